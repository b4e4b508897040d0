"""How often intervals of a median hold the truth, by simulation: the figures behind docs/latency.md.

`python -m tools.coverage_of_intervals` prints a Markdown table. Ratios of rounds are drawn with outliers, with and
without neighbours that are alike, and each kind of interval is asked whether it holds the median that they have.
"""

from collections.abc import Callable, Iterator

import numpy as np
from scipy.stats import bootstrap

from netvlad_deploy.latency.statistics import median_interval
from netvlad_deploy.support.arrays import Float64

TRIALS, RESAMPLES, LEVEL = 1000, 999, 0.95
ROUNDS = (10, 20, 50, 200)
SPREAD, OUTLIERS = 0.05, 0.1

Ends = tuple[float, float]


def by_order(values: Float64, level: float = LEVEL) -> Ends:
    found = median_interval(values, level)
    assert found is not None
    return found.low, found.high


def by_bootstrap(method: str) -> Callable[[Float64], Ends]:
    """Return SciPy's bootstrap of a median by one of its methods; ends that it cannot tell hold nothing."""

    def ends(values: Float64) -> Ends:
        with np.errstate(all="ignore"):
            found = bootstrap(
                (values,), np.median, confidence_level=LEVEL, n_resamples=RESAMPLES, method=method, rng=0
            ).confidence_interval
        return float(found.low), float(found.high)

    return ends


KINDS: dict[str, Callable[[Float64], Ends]] = {
    "order statistics 95 %": by_order,
    "order statistics 99 %": lambda values: by_order(values, 0.99),
    "percentile bootstrap 95 %": by_bootstrap("percentile"),
    "BCa bootstrap 95 %": by_bootstrap("BCa"),
}


def ratios(random: np.random.Generator, rounds: int, alike: float, *, ties: bool) -> Float64:
    """Return logarithms of ratios with median 0: an AR(1) series, one value in ten an outlier of up to five times.

    With ties they are rounded to 1 %, as a coarse clock would.
    """
    steps = random.standard_normal(rounds + 20) * np.sqrt(1 - alike**2)
    series = np.zeros(rounds + 20)
    for index in range(1, len(series)):
        series[index] = alike * series[index - 1] + steps[index]
    values = SPREAD * series[20:]
    outlying = random.random(rounds) < OUTLIERS
    values[outlying] += random.choice([-1, 1], outlying.sum()) * random.uniform(0.2, 1.6, outlying.sum())
    return np.round(values, 2) if ties else values


def rows() -> Iterator[str]:
    cases = (("independent", 0.0, False), ("rounded to 1 %", 0.0, True), ("neighbours alike, 0.3", 0.3, False))
    for name, alike, ties in (*cases, ("neighbours alike, 0.6", 0.6, False)):
        for rounds in ROUNDS:
            random = np.random.default_rng(0)
            held, widths = dict.fromkeys(KINDS, 0), dict.fromkeys(KINDS, 0.0)
            for _ in range(TRIALS):
                values = ratios(random, rounds, alike, ties=ties)
                for kind, interval in KINDS.items():
                    low, high = interval(values)
                    held[kind] += low <= 0 <= high
                    widths[kind] += np.nan_to_num(high - low) / TRIALS
            cells = [f"{held[kind] / TRIALS:.1%} ({widths[kind] / 2:.3f})" for kind in KINDS]
            yield f"| {name} | {rounds} | {' | '.join(cells)} |"


if __name__ == "__main__":
    print(f"| rounds are | how many | {' | '.join(KINDS)} |")
    print(f"|---|---|{'---|' * len(KINDS)}")
    for row in rows():
        print(row, flush=True)
