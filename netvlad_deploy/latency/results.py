"""The results of a latency measurement: an estimate is never without its interval."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from netvlad_deploy.spec.verdict import Verdict


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A measured value with the ends of its 95 % interval, of a time ratio its 99 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class DeviceTimes:
    """Milliseconds of one run: by the GPU's clock the copies in, the work and the copies out; by the host's the launch.

    `enqueue_ms` is how long the host was busy starting the work, None where that is not known.
    """

    h2d_ms: float
    compute_ms: float
    d2h_ms: float
    enqueue_ms: float | None = None


@dataclass(frozen=True, kw_only=True)
class CandidateLatency:
    """Latency of one candidate, over all its runs; `reason` says why it has none, or which budget it broke.

    Args:
        percentiles_ms: milliseconds of one run, by `p50`, `p90`, `p95` and `p99`.
        variation: the standard deviation over the mean.
        throughput: descriptors a second, all requests in flight together.
        ratio: time over the first candidate's, round by round.
        over_limit: time over that of the limit, the least that the backend could need, round by round.
        quantiles_ms: the distribution: the milliseconds below which 0 %, 2 %, ... 100 % of the runs lie.
        block_medians_ms: the median of each round, of requests at once its time over the runs that it completed.
        drift: how much slower the last third of the rounds was than the first, 0.05 for 5 %.
        device: medians of one run in each round, None where the device has no clock of its own.
        conditions: the runner's means of being fast, in words.
        advice: what makes these figures doubtful or slow, and what to do, in sentences.
    """

    name: str
    verdict: Verdict
    reason: str = ""
    warmup_runs: int = 0
    runs: int = 0
    mean_ms: float | None = None
    variation: float | None = None
    percentiles_ms: Mapping[str, Estimate] = field(default_factory=dict)
    throughput: Estimate | None = None
    ratio: Estimate | None = None
    over_limit: Estimate | None = None
    quantiles_ms: tuple[float, ...] = ()
    block_medians_ms: tuple[float, ...] = ()
    drift: float | None = None
    device: DeviceTimes | None = None
    conditions: str = ""
    advice: tuple[str, ...] = ()

    @property
    def p50_ms(self) -> float | None:
        """Return the median of one run in milliseconds, None if it did not run."""
        median = self.percentiles_ms.get("p50")
        return None if median is None else median.value


@dataclass(frozen=True, kw_only=True)
class Regression:
    """The time of the last candidate over that of its baseline.

    Args:
        baseline: name of the baseline's artifact, with its backend.
        paired: the baseline's artifact was measured in the same rounds; else its stored figures were compared.
        allowed: how much slower the candidate may be, 0.05 for 5 %.
        ratio: the candidate's time over the baseline's, None where one of them did not run.
        advice: what limits this comparison, and what to do, in sentences.
    """

    baseline: str
    sha256: str
    paired: bool
    allowed: float
    ratio: Estimate | None = None
    advice: tuple[str, ...] = ()

    @property
    def verdict(self) -> Verdict:
        """Return FAIL where the whole interval lies above what is allowed: noise alone fails nothing."""
        if self.ratio is None:
            return Verdict.NOT_RUN
        return Verdict.FAIL if self.ratio.low > 1 + self.allowed else Verdict.PASS


@dataclass(frozen=True, kw_only=True)
class LatencyReport:
    """The outcome of `measure`: heads have `num_features`, pipelines have `image_size`, height and width.

    Args:
        concurrency: requests in flight at once; 1 measures latency, more measure throughput.
        machine: facts that stay, by name: the processor, versions.
        before: the state of the machine before the measurement, by name: load, governor, clocks, throttling.
        after: the same after it.
        limit: what `over_limit` is measured against, in words; empty if it was not.
        advice: what about the machine makes all figures doubtful, and what to do, in sentences.
        regression: the comparison of the last candidate with a baseline, None where none was given.
    """

    batch: int
    num_features: int | None
    image_size: tuple[int, int] | None = None
    threads: int
    concurrency: int = 1
    rounds: int
    block_ms: float
    warmup_ms: float
    machine: dict[str, str]
    before: dict[str, str] = field(default_factory=dict)
    after: dict[str, str] = field(default_factory=dict)
    limit: str = ""
    advice: tuple[str, ...] = ()
    candidates: tuple[CandidateLatency, ...]
    regression: Regression | None = None

    @property
    def verdict(self) -> Verdict:
        """Return FAIL if a budget was broken, or the baseline was; NOT_RUN if a candidate could not run."""
        return Verdict.combine(candidate.verdict for candidate in self.candidates)
