"""The statistics of a latency measurement: functions of numbers, without randomness and without a clock.

Nothing here takes neighbouring runs for independent. A ratio is of rounds, each of which compares two candidates
within a fraction of a second; percentiles, throughput and drift are judged by GROUPS of neighbouring rounds.
"""

import functools
import itertools
import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Final

import numpy as np

from netvlad_deploy.latency.results import Estimate
from netvlad_deploy.support.arrays import Float64

INTERVAL: Final = 0.95
RATIO_INTERVAL: Final = 0.99
"""Chance that an interval holds the truth. A ratio is judged by its interval, and one false alarm in twenty is one too
many for a check that runs each night."""

LEAST_ROUNDS: Final = 8
"""Fewest rounds of a ratio: the range of fewer holds a median less often than in 99 % (1 - 2**(1 - n))."""

GROUPS: Final = 20
"""Most groups of neighbouring rounds: as many as leave each longer than most disturbances of a machine."""

DRIFT_LEVEL: Final = 0.01
"""Chance of calling a steady machine drifting."""

ANGLES: Final = 100_001
"""Points of the numeric integral of Student's distribution: its quantiles are then right to four digits."""

WARM_WINDOW, WARM_TOLERANCE = 3, 0.05
"""Warm: the last slices of the warm-up are not faster by this share than as many before them."""

Samples = Sequence[float] | Float64


def median_interval(values: Samples, level: float) -> Estimate | None:
    """Return the median and an interval of two order statistics, None if there are too few values for the level.

    Whatever the distribution is, the median lies outside with a chance of twice `P(B < k)`, `B` binomial with `n` draws
    and chance 1/2, where the interval reaches from the k-th smallest to the k-th largest value. `k` is the largest for
    which this is at most `1 - level`.

    Source: David and Nagaraja, Order Statistics, 3rd edition, section 7.1.

    >>> median_interval([1, 2, 3, 4, 5, 6, 7, 80], 0.99)
    Estimate(value=4.5, low=1.0, high=80.0)
    >>> median_interval([1, 2, 3], 0.95) is None
    True
    """
    ordered, count = np.sort(np.asarray(values, np.float64)), len(values)
    rank, term, below, most = 0, 1, 1, int((1 - level) / 2 * 2**53) << count >> 53  # of 2**count equally likely signs
    while below <= most:
        term = term * (count - rank) // (rank + 1)
        below += term
        rank += 1
    if not rank:
        return None
    return Estimate(value=float(np.median(ordered)), low=float(ordered[rank - 1]), high=float(ordered[-rank]))


def time_ratio(own_ms: Samples, other_ms: Samples) -> Estimate | None:
    """Return the median over the rounds of the ratio of two candidates' times, with its 99 % interval.

    Args:
        own_ms: the median run of each round.
        other_ms: that of the other candidate in the same rounds.

    Returns: None for fewer than LEAST_ROUNDS rounds, which prove nothing.

    >>> time_ratio([1.5] * 8, [1.0] * 8)
    Estimate(value=1.5, low=1.5, high=1.5)
    """
    return median_interval(np.asarray(own_ms) / np.asarray(other_ms), RATIO_INTERVAL)


def comparison(ratio: Estimate | None) -> str:
    """Return `faster` or `slower` where the whole interval of a time ratio says so, else an empty string.

    >>> comparison(Estimate(value=1.1, low=1.02, high=1.2)), comparison(Estimate(value=1.1, low=0.98, high=1.2))
    ('slower', '')
    """
    if ratio is None or ratio.low <= 1 <= ratio.high:
        return ""
    return "faster" if ratio.high < 1 else "slower"


def percentile(blocks: Sequence[Float64], share: float) -> Estimate:
    """Return a percentile of all runs with its 95 % interval, in the unit of the runs.

    How far the share of runs below the percentile varies from group to group gives an interval of that share, and the
    percentiles at its two ends are the interval. The groups are those of a survey in clusters: runs of one round are
    alike, so that a thousand of them say less than a thousand independent ones.

    Source: Woodruff, Confidence Intervals for Medians and Other Position Measures, JASA 47 (1952).

    >>> percentile([np.arange(100.0)] * 10, 50)
    Estimate(value=49.5, low=49.5, high=49.5)
    """
    runs = np.concatenate(blocks)
    value = float(np.percentile(runs, share))
    groups = grouped(blocks)
    sizes = np.array([len(group) for group in groups])
    below = np.array([np.count_nonzero(group < value) + np.count_nonzero(group == value) / 2 for group in groups])
    error = _half_width(below - below.sum() / sizes.sum() * sizes, float(sizes.sum()))
    ends = np.clip([share / 100 - error, share / 100 + error], 0, 1)
    low, high = np.percentile(runs, 100 * ends).tolist()
    return Estimate(value=value, low=min(low, value), high=max(high, value))


def throughput(rates: Samples, batch: int) -> Estimate:
    """Return the descriptors a second over all blocks, with the 95 % interval of a mean of groups of rounds.

    Args:
        rates: runs that each block completed, the last ones in part, over its milliseconds.
        batch: descriptors of a run.

    Source: the variance of a mean from the means of batches, Law and Kelton, Simulation Modeling and Analysis, 9.5.3.

    >>> throughput([0.02, 0.02, 0.02], 2)
    Estimate(value=40.0, low=40.0, high=40.0)
    """
    groups = grouped([np.array([each]) for each in rates])
    rate = float(np.mean(rates))
    error = _half_width(np.array([(group - rate).sum() for group in groups]), len(rates))
    scale = 1e3 * batch
    return Estimate(value=scale * rate, low=scale * max(rate - error, 0.0), high=scale * (rate + error))


def grouped(blocks: Sequence[Float64]) -> list[Float64]:
    """Return at most GROUPS groups of neighbouring rounds, each as one array; of one round, groups of its runs."""
    if len(blocks) == 1:
        return np.array_split(blocks[0], min(GROUPS, len(blocks[0])))
    ends = np.linspace(0, len(blocks), min(GROUPS, len(blocks)) + 1).astype(int)
    return [np.concatenate(blocks[start:end]) for start, end in itertools.pairwise(ends)]


def _half_width(deviations: Float64, total: float) -> float:
    """Return half the 95 % interval of a mean, from each group's sum of deviations from it; 0 of one group."""
    count = len(deviations)
    if count < 2:
        return 0.0
    error = math.sqrt(count / (count - 1) * float(np.square(deviations).sum())) / total
    return student_quantile((1 + INTERVAL) / 2, count - 1) * error


@functools.cache
def student_quantile(share: float, freedom: int) -> float:
    """Return a quantile of Student's distribution: the t below which a share of it lies.

    With t = sqrt(n) tan(a) its density is proportional to cos(a)**(n - 1), which is summed on a grid.

    >>> f"{student_quantile(0.975, 1):.1f} {student_quantile(0.975, 10):.3f}"
    '12.7 2.228'
    """
    angles = np.linspace(-np.pi / 2, np.pi / 2, ANGLES)
    density = np.cos(angles) ** (freedom - 1)
    below = np.concatenate([[0], np.cumsum(density[1:] + density[:-1])])
    angle = np.interp(share * below[-1], below, angles)
    return float(np.sqrt(freedom) * np.tan(angle))


def drift(medians_ms: Samples) -> tuple[float | None, bool]:
    """Return how much slower the last third of the rounds was than the first, and whether that is a trend.

    The trend is Mann and Kendall's: how many pairs of groups of rounds became slower, less how many became faster, over
    its standard deviation where nothing drifts. None for fewer than three rounds; no trend of fewer than LEAST_ROUNDS.

    Source: Kendall, Rank Correlation Methods (1975), variance without ties, with continuity correction.

    >>> drift([1.0] * 10 + [1.5] * 10)[0]
    0.5
    """
    third = len(medians_ms) // 3
    if not third:
        return None, False
    value = float(np.median(medians_ms[-third:]) / np.median(medians_ms[:third])) - 1
    groups = [float(np.median(group)) for group in grouped([np.array([each]) for each in medians_ms])]
    count = len(groups)
    score = sum((later > earlier) - (later < earlier) for earlier, later in itertools.combinations(groups, 2))
    deviation = math.sqrt(count * (count - 1) * (2 * count + 5) / 18)
    limit = NormalDist().inv_cdf(1 - DRIFT_LEVEL / 2)
    return value, count >= LEAST_ROUNDS and (abs(score) - 1) / deviation > limit


def settled(medians_ms: Samples) -> bool:
    """Return True if the last slices of a warm-up are no faster than those before them.

    >>> settled([9, 5, 3, 2, 2, 2]), settled([9, 5, 3, 2, 2, 2, 2, 2])
    (False, True)
    """
    last, before = medians_ms[-WARM_WINDOW:], medians_ms[-2 * WARM_WINDOW : -WARM_WINDOW]
    return len(before) == WARM_WINDOW and bool(np.median(last) >= (1 - WARM_TOLERANCE) * np.median(before))
