"""One candidate and the process that times it, with what it has answered so far."""

import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Final

import numpy as np

from netvlad_deploy.errors import DeviceUnavailableError, MissingDependencyError, NetVLADDeployError
from netvlad_deploy.latency import statistics
from netvlad_deploy.latency.advice import candidate_advice
from netvlad_deploy.latency.results import CandidateLatency, DeviceTimes, Estimate
from netvlad_deploy.runtime.open_runner import Candidate
from netvlad_deploy.spec.verdict import Verdict
from netvlad_deploy.support.arrays import Array, Float64, cosines
from netvlad_deploy.support.children import Child

LOG = logging.getLogger(__name__)

PERCENTILES: Final = (50, 90, 95, 99)
QUANTILES: Final = tuple(range(0, 101, 2))
THREAD_VARIABLES: Final = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
"""Read by NumPy's matrix products when the worker starts."""

WORKER: Final = "netvlad_deploy.latency.worker"

MOST_APART: Final = 1e-3
"""Largest 1 - cosine of two descriptors of one image: far above what FP16 costs, far below what another image gives."""


class CandidateProcess:
    """The process of one candidate: it opens the runner, warms up, and runs a block when told to.

    `reason` says why it cannot run here; `blocks` has the milliseconds of the runs of each round, so that rounds can be
    compared one by one, and `rates` how many of them each block completed a millisecond. `descriptor` is that of the
    first image, after the warm-up. `stack` ends the process.
    """

    def __init__(self, candidate: Candidate, threads: int, concurrency: int, stack: ExitStack) -> None:
        if candidate.artifact is not None:
            candidate.artifact.release()  # this process does not run it, and the other one reads it for itself
        self.candidate = candidate
        self.threads, self.concurrency = threads, concurrency
        self.blocks: list[Float64] = []
        self.rates: list[float] = []
        self.times: list[dict[str, float]] = []
        self.reason = self.conditions = ""
        self.warmup_runs, self.run_ms, self.settled = 0, 0.0, True
        self.descriptor: Array = np.empty(0, np.float32)
        environment = dict.fromkeys(THREAD_VARIABLES, str(threads))
        self._child = stack.enter_context(Child(WORKER, "its process", environment=environment))

    @property
    def pid(self) -> int:
        """Return the number of the process."""
        return self._child.pid

    @property
    def rounds_ms(self) -> list[float]:
        """Return the time of each round by which it is compared: the median run, of requests at once the time of each.

        Requests at once wait for each other, so that a run may take long where many are completed.
        """
        if self.concurrency > 1:
            return [1 / each for each in self.rates]
        return [float(np.median(block)) for block in self.blocks]

    def warm_up(self, feeds: bytes, *, warmup_ms: float) -> None:
        """Open the runner and run it until it is warm; `reason` says why it cannot run here, if it cannot.

        `feeds` are those of an `.npz` file.
        """
        LOG.info("warming up %s", self.candidate.name)
        if self.candidate.reason:
            self.reason = self.candidate.reason
            return
        request = {
            "candidate": self.candidate.request,
            "threads": self.threads,
            "concurrency": self.concurrency,
            "warmup_ms": warmup_ms,
        }
        try:
            answer, descriptor = self._ask(request, feeds)
        except (DeviceUnavailableError, MissingDependencyError) as error:
            self.reason = str(error)
        else:
            self.warmup_runs, self.conditions = answer["warmup_runs"], answer["conditions"]
            self.run_ms, self.settled = answer["run_ms"], answer["settled"]
            self.descriptor = np.frombuffer(descriptor, np.float32)

    def compare_with(self, first: "CandidateProcess") -> None:
        """Refuse to time what stands for the same artifact as another candidate and computes something else."""
        same = self is not first and self.candidate.origin == first.candidate.origin
        if same and not self.reason and not first.reason:
            self.reason = disagreement(self.descriptor, first.descriptor, first.candidate.name)

    def run_block(self, block_ms: float, place: int) -> None:
        """Run for `block_ms`, at least once, from core number `place` on, and keep what that gives.

        Before it the device's own clock times one run, which wakes the threads, too; a single run that is longer than
        a block is no shorter for that, so it is left out where the device has no clock.
        """
        clock = self.run_ms < block_ms or not self.blocks or bool(self.times)
        answer, _ = self._ask({"block_ms": block_ms, "place": place, "clock": clock})
        self.blocks.append(np.array(answer["samples_ms"]))
        self.rates.append(answer["completed"] / block_ms)
        self.times += [answer["times_ms"]] if answer["times_ms"] else []

    def _ask(self, request: dict[str, Any], content: bytes = b"") -> tuple[dict[str, Any], bytes]:
        """Return the answer to a request, and the bytes with it.

        Raises: the error that ended the worker, its message after the name of the candidate.
        """
        try:
            self._child.send(request, content)
            return self._child.receive()
        except (DeviceUnavailableError, MissingDependencyError):
            raise
        except NetVLADDeployError as error:
            raise type(error)(f"{self.candidate.name}: {error}") from error


def disagreement(own: Array, other: Array, name: str) -> str:
    """Return in words how far a descriptor is from that of the candidate `name`, empty if they agree.

    >>> disagreement(np.array([3.0, 4.0]), np.array([4.0, 3.0]), "m.onnx")
    'computes something else than m.onnx, so it was not timed: 1 - cosine of their descriptors is 0.04'
    >>> disagreement(np.array([3.0, 4.0]), np.array([6.0, 8.0]), "m.onnx")
    ''
    """
    what = f"computes something else than {name}, so it was not timed"
    if own.shape != other.shape:
        return f"{what}: {own.size} values, not {other.size}"
    if own.any() != other.any():
        return f"{what}: one of their descriptors is zero"
    apart = 1 - float(cosines(own[None], other[None])[0]) if own.any() else 0.0
    return "" if apart <= MOST_APART else f"{what}: 1 - cosine of their descriptors is {apart:.2g}"


def device_times(times: Sequence[Mapping[str, float]]) -> DeviceTimes | None:
    """Return the medians over the rounds, None where the device has no clock.

    >>> device_times([{"h2d_ms": 1, "compute_ms": 2, "d2h_ms": 3, "enqueue_ms": 0.5}])
    DeviceTimes(h2d_ms=1.0, compute_ms=2.0, d2h_ms=3.0, enqueue_ms=0.5)
    """
    if not times:
        return None
    return DeviceTimes(**{name: float(np.median([each[name] for each in times])) for name in times[0]})


def result_of(
    process: CandidateProcess,
    first: CandidateProcess,
    limit: CandidateProcess | None,
    *,
    batch: int,
    budget_p99_ms: float | None = None,
) -> CandidateLatency:
    """Return the statistics over all blocks, the ratios to the first candidate and to the limit, and the advice.

    NOT_RUN if it could not run here, FAIL if the budget is broken.
    """
    name = process.candidate.name
    if process.reason:
        return CandidateLatency(name=name, verdict=Verdict.NOT_RUN, reason=process.reason)
    samples = np.concatenate(process.blocks)
    percentiles = {f"p{share}": statistics.percentile(process.blocks, share) for share in PERCENTILES}
    p99 = percentiles["p99"].value
    over = budget_p99_ms is not None and p99 > budget_p99_ms
    drift, trend = statistics.drift(process.rounds_ms)
    ratio, over_limit = (_ratio(process, other) for other in (first, limit))
    device = device_times(process.times)
    return CandidateLatency(
        name=name,
        verdict=Verdict.FAIL if over else Verdict.PASS,
        reason=f"p99 is {p99:.3f} ms, the budget is {budget_p99_ms:g} ms" if over else "",
        warmup_runs=process.warmup_runs,
        runs=len(samples),
        mean_ms=float(samples.mean()),
        variation=float(samples.std() / samples.mean()),
        percentiles_ms=percentiles,
        throughput=statistics.throughput(process.rates, batch),
        ratio=ratio,
        over_limit=over_limit,
        quantiles_ms=tuple(np.percentile(samples, QUANTILES).tolist()),
        block_medians_ms=tuple(process.rounds_ms),
        drift=drift,
        device=device,
        conditions=process.conditions,
        advice=candidate_advice(settled=process.settled, drift=drift if trend else None, ratio=ratio, device=device),
    )


def _ratio(process: CandidateProcess, other: CandidateProcess | None) -> Estimate | None:
    """Return the time of a candidate over that of another one, None if that is itself or did not run."""
    if other is None or other is process or other.reason:
        return None
    return statistics.time_ratio(process.rounds_ms, other.rounds_ms)
