"""Measure latency fairly: each candidate in a process of its own, one active at a time, in random order.

Candidates in one process disturb each other through their spinning thread pools. So every candidate gets a worker,
rounds of one block for each worker run in a new random order, and two candidates are compared round by round: the
ratio of block medians stays fair while the machine's speed drifts. The interval is a bootstrap over the rounds.
"""

import io
import logging
import math
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, Final

import numpy as np

from netvlad_deploy.errors import (
    DeviceUnavailableError,
    MissingDependencyError,
    NetVLADDeployError,
    ParityError,
    UsageError,
)
from netvlad_deploy.latency.results import CandidateLatency, DeviceTimes, Estimate, LatencyReport
from netvlad_deploy.oracle.goldens import USUAL_PHOTO
from netvlad_deploy.runner import Feeds, check_finite
from netvlad_deploy.runtime.open_runner import Candidate
from netvlad_deploy.spec.images import CHANNELS, IMAGES, ImageInput
from netvlad_deploy.spec.layer import FEATURES, MASK, TOKEN, AnySpec, NetVLADSpec, input_shape
from netvlad_deploy.spec.profiles import Profile
from netvlad_deploy.spec.verdict import Verdict
from netvlad_deploy.support.arrays import Arrays, Float64, unit_rows
from netvlad_deploy.support.children import Child
from netvlad_deploy.support.limits import check_limit
from netvlad_deploy.support.machine import available_cores, describe_machine, installed_versions

LOG = logging.getLogger(__name__)

BOOTSTRAP_SAMPLES: Final = 2000
INTERVAL: Final = (2.5, 97.5)
PERCENTILES: Final = (50, 90, 95, 99)
PERCENTILE_SAMPLES: Final = 200
QUANTILES: Final = tuple(range(0, 101, 2))
THREAD_VARIABLES: Final = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
"""Read by NumPy's matrix products when the worker starts."""

USUAL_FEATURES: Final = Profile().num_features.opt

WORKER: Final = "netvlad_deploy.latency.worker"


def random_feeds(
    candidates: Sequence[Candidate],
    batch: int,
    num_features: int | None,
    image_size: tuple[int, int] | None,
    *,
    seed: int = 0,
) -> Arrays:
    """Return L2-normalised features (B,N,D) and a full mask for heads, or images (B,H,W,3) for pipelines.

    Each of several heads gets features of its own, as many as the others.

    `num_features` is 300 by default, `image_size` as the images of the first pipeline are resized.

    Raises: UsageError if some candidates take features and some images, if a length is given that they do not take, or
        if the input is too large.
    """
    random = np.random.default_rng(seed)
    kinds = [_kind_of(candidate) for candidate in candidates]
    spec, images = kinds[0]
    if any((other is None) != (images is None) for _, other in kinds):
        raise UsageError("some take features and some take images: measure them apart")
    if images is None:
        if image_size is not None:
            raise UsageError(f"{candidates[0].path} takes features: leave the image size out")
        lengths = batch, num_features or USUAL_FEATURES
        names = (FEATURES,) if isinstance(spec, NetVLADSpec) else spec.inputs
        shapes = {name: input_shape(spec, name, lengths) for name in names}
        check_limit("bytes of input", sum(map(math.prod, shapes.values())) * np.dtype(np.float32).itemsize)
        feeds: Arrays = {
            name: unit_rows(random.standard_normal(shape, dtype=np.float32)) for name, shape in shapes.items()
        }
        return {**feeds, MASK: np.ones(lengths, dtype=np.bool_)}
    if num_features is not None:
        raise UsageError(f"{candidates[0].path} takes images: leave the number of features out")
    size = image_size or images.target(*USUAL_PHOTO)
    check_limit("bytes of input", math.prod((batch, *size, CHANNELS)))
    return {IMAGES: random.integers(0, 256, (batch, *size, CHANNELS), dtype=np.uint8)}


def _kind_of(candidate: Candidate) -> tuple[AnySpec, ImageInput | None]:
    """Return the layer's spec, and a pipeline's preparation of images; no artifact is opened: it may not run here."""
    if candidate.artifact is not None:
        return candidate.artifact.spec, candidate.artifact.images
    with candidate.on(None).open() as runner:
        return runner.spec, None


def measure(
    candidates: Sequence[Candidate],
    feeds: Feeds,
    *,
    rounds: int = 10,
    block_ms: float = 300.0,
    warmup_ms: float = 500.0,
    threads: int | None = None,
    budget_p99_ms: float | None = None,
    seed: int = 0,
) -> LatencyReport:
    """Time every candidate on the same feeds, of which each takes the inputs it has, and compare it with the first.

    A candidate that cannot run on this machine is NOT_RUN with its reason; the others go on.

    >>> from netvlad_deploy import export_onnx
    >>> from netvlad_deploy.models.netvlad import NetVLADSpec, initialize
    >>> exported = export_onnx(initialize(NetVLADSpec(num_clusters=2, feature_size=4), seed=0), "m.onnx")
    >>> feeds = {"features": np.ones((1, 5, 4), np.float32)}
    >>> report = measure([Candidate.of(exported)], feeds, rounds=1, block_ms=1, warmup_ms=1)
    >>> report.verdict.value, report.candidates[0].runs > 0
    ('PASS', True)

    Raises: ParityError if there is no candidate; RunError if a worker fails.
    """
    if not candidates or rounds < 1:
        raise ParityError("no candidate or no round to measure: a measurement of nothing is none")
    for name in feeds.keys() - {IMAGES, MASK, TOKEN}:
        check_finite(feeds[name])
    threads = threads or available_cores()
    with ExitStack() as stack:
        np.savez(archive := io.BytesIO(), allow_pickle=False, **feeds)
        workers = [_Worker(candidate, threads, stack) for candidate in candidates]
        for worker in workers:  # all of them before the first block: opening one would disturb a measurement
            worker.warm_up(archive.getvalue(), warmup_ms=warmup_ms)
        random = np.random.default_rng(seed)
        _run_rounds([worker for worker in workers if not worker.reason], rounds, block_ms, random)
        images, main = feeds.get(IMAGES), next(iter(feeds.values()))
        results = [worker.result(len(main), workers[0], random, budget_p99_ms) for worker in workers]
    return LatencyReport(
        batch=len(main),
        num_features=main.shape[1] if images is None else None,
        image_size=None if images is None else (images.shape[1], images.shape[2]),
        threads=threads,
        rounds=rounds,
        block_ms=block_ms,
        warmup_ms=warmup_ms,
        machine=describe_machine() | installed_versions(),
        candidates=tuple(results),
    )


def _run_rounds(running: Sequence["_Worker"], rounds: int, block_ms: float, random: np.random.Generator) -> None:
    for number in range(rounds if running else 0):
        LOG.info("round %d of %d", number + 1, rounds)
        for index in random.permutation(len(running)):  # in a fixed order one would always follow the slowest
            running[index].run_block(block_ms)


class _Worker:
    """The process of one candidate: it opens the runner, warms up, and runs a block when told to.

    `stack` ends the process.
    """

    def __init__(self, candidate: Candidate, threads: int, stack: ExitStack) -> None:
        if candidate.artifact is not None:
            candidate.artifact.release()  # this process does not run it, and the other one reads it for itself
        self.candidate = candidate
        self.threads = threads
        self.blocks: list[Float64] = []  # a block for each round, so that rounds can be compared one by one
        self.times: list[list[float]] = []
        self.reason = self.conditions = ""
        self.warmup_runs = 0
        environment = dict.fromkeys(THREAD_VARIABLES, str(threads))
        self._child = stack.enter_context(Child(WORKER, "its process", environment=environment))

    def warm_up(self, feeds: bytes, *, warmup_ms: float) -> None:
        """Open the runner and run it for `warmup_ms`; `reason` says why it cannot run here, if it cannot.

        `feeds` are those of an `.npz` file.
        """
        LOG.info("warming up %s", self.candidate.name)
        request = {
            "path": str(self.candidate.path),
            "backend": self.candidate.backend,
            "expect_sha256": None if self.candidate.artifact is None else self.candidate.artifact.sha256,
            "threads": self.threads,
            "warmup_ms": warmup_ms,
        }
        try:
            answer = self._ask(request, feeds)
        except (DeviceUnavailableError, MissingDependencyError) as error:
            self.reason = str(error)
        else:
            self.warmup_runs, self.conditions = answer["warmup_runs"], answer["conditions"]

    def _ask(self, request: dict[str, Any], content: bytes = b"") -> dict[str, Any]:
        """Return the answer to a request.

        Raises: the error that ended the worker, its message after the name of the candidate.
        """
        try:
            self._child.send(request, content)
            return self._child.receive()[0]
        except (DeviceUnavailableError, MissingDependencyError):
            raise
        except NetVLADDeployError as error:
            raise type(error)(f"{self.candidate.name}: {error}") from error

    def run_block(self, block_ms: float) -> None:
        """Run for at least `block_ms` and keep the time of each run, and the times of one run by the device's clock."""
        answer = self._ask({"block_ms": block_ms})
        self.blocks.append(np.array(answer["samples_ms"]))
        self.times += [answer["times_ms"]] if answer["times_ms"] else []

    def _device_times(self) -> DeviceTimes | None:
        """Return the medians over the rounds, None where the device has no clock."""
        if not self.times:
            return None
        h2d, compute, d2h = np.median(self.times, axis=0).tolist()
        return DeviceTimes(h2d_ms=h2d, compute_ms=compute, d2h_ms=d2h)

    def result(
        self, batch: int, first: "_Worker", random: np.random.Generator, budget_p99_ms: float | None = None
    ) -> CandidateLatency:
        """Return the statistics over all blocks, and the ratio to the first candidate; FAIL if the budget is broken."""
        if self.reason:
            return CandidateLatency(name=self.candidate.name, verdict=Verdict.NOT_RUN, reason=self.reason)
        samples = np.concatenate(self.blocks)
        percentiles = {f"p{share}": _percentile(self.blocks, share, random) for share in PERCENTILES}
        p99 = percentiles["p99"].value
        over = budget_p99_ms is not None and p99 > budget_p99_ms
        return CandidateLatency(
            name=self.candidate.name,
            verdict=Verdict.FAIL if over else Verdict.PASS,
            reason=f"p99 is {p99:.3f} ms, the budget is {budget_p99_ms:g} ms" if over else "",
            warmup_runs=self.warmup_runs,
            runs=len(samples),
            mean_ms=float(samples.mean()),
            variation=float(samples.std() / samples.mean()),
            percentiles_ms=percentiles,
            throughput=_throughput(self.blocks, batch, random),
            quantiles_ms=tuple(np.percentile(samples, QUANTILES).tolist()),
            block_medians_ms=tuple(float(np.median(block)) for block in self.blocks),
            device=self._device_times(),
            conditions=self.conditions,
            ratio=None if self is first or first.reason else bootstrap_ratio(self.blocks, first.blocks, random),
        )


def bootstrap_ratio(
    blocks: Sequence[Float64],
    baseline: Sequence[Float64],
    random: np.random.Generator,
) -> Estimate:
    """Return the median over the rounds of the ratio of block medians, with its 95 % bootstrap interval."""
    ratios = np.array([np.median(own) / np.median(other) for own, other in zip(blocks, baseline, strict=True)])
    resampled = np.median(random.choice(ratios, size=(BOOTSTRAP_SAMPLES, len(ratios))), axis=1)
    return _estimate(float(np.median(ratios)), resampled)


def _percentile(blocks: Sequence[Float64], share: float, random: np.random.Generator) -> Estimate:
    """Return a percentile of all samples, its interval by resampling whole rounds: runs of one round are alike."""
    picks = random.integers(len(blocks), size=(PERCENTILE_SAMPLES, len(blocks)))
    resampled = [np.percentile(np.concatenate([blocks[index] for index in pick]), share) for pick in picks]
    return _estimate(float(np.percentile(np.concatenate(blocks), share)), np.array(resampled))


def _throughput(blocks: Sequence[Float64], batch: int, random: np.random.Generator) -> Estimate:
    """Return the descriptors a second over all rounds."""
    runs = np.array([len(block) for block in blocks])
    spent_ms = np.array([block.sum() for block in blocks])
    picks = random.integers(len(blocks), size=(BOOTSTRAP_SAMPLES, len(blocks)))
    resampled = 1e3 * batch * runs[picks].sum(axis=1) / spent_ms[picks].sum(axis=1)
    return _estimate(float(1e3 * batch * runs.sum() / spent_ms.sum()), resampled)


def _estimate(value: float, resampled: Float64) -> Estimate:
    low, high = np.percentile(resampled, INTERVAL)
    return Estimate(value=value, low=float(low), high=float(high))
