"""Baselines: the figures of one artifact in a file, with which a later artifact is compared.

Where the baseline's artifact is at hand it is measured in the same rounds as the candidate: that is fair on any
machine. Where it is not, the stored figures are compared, on the machine they come from alone.
"""

import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

from netvlad_deploy.artifact import FileReference
from netvlad_deploy.errors import ArtifactError, ParityError, UsageError
from netvlad_deploy.latency.feeds import lengths_of
from netvlad_deploy.latency.gpu_state import read_gpus
from netvlad_deploy.latency.results import CandidateLatency, Estimate, LatencyReport, Regression
from netvlad_deploy.latency.statistics import INTERVAL, LEAST_ROUNDS, median_interval
from netvlad_deploy.runner import Feeds
from netvlad_deploy.runtime.execution_providers import CPU
from netvlad_deploy.runtime.open_runner import ENGINES, Candidate
from netvlad_deploy.spec.verdict import Verdict
from netvlad_deploy.support.files import read_bounded, sha256_file
from netvlad_deploy.support.limits import LIMITS
from netvlad_deploy.support.machine import describe_machine, installed_versions
from netvlad_deploy.support.records import from_record
from netvlad_deploy.support.require import install_line
from netvlad_deploy.support.sidecar import MAX_SIDECAR_BYTES, Form, seal, unseal

FORM: Final = Form(
    kind="a baseline",
    schema="netvlad-deploy/baseline/1",
    hash_name="baseline_sha256",
    remedy="save a new baseline with --save-baseline",
)
EACH_LEVEL: Final = 1 - (1 - INTERVAL) / 2
"""Level of the interval of each of two medians: their quotient then has INTERVAL. Source: Bonferroni's inequality."""

ON_CPU: Final = (CPU, "openvino", "torch", "oracle")
"""Backends for which nothing about a GPU needs to be known."""


def fingerprint() -> dict[str, str]:
    """Return what a machine's latency depends on, by name: processor, memory, versions, and GPUs where NVML knows."""
    gpus = ", ".join(gpu.name for gpu in read_gpus()[0])
    return describe_machine() | installed_versions() | ({"gpus": gpus} if gpus else {})


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What a latency depends on, beside the artifact and the machine."""

    backend: str
    batch: int
    num_features: int | None
    image_size: tuple[int, int] | None
    threads: int
    concurrency: int = 1

    @classmethod
    def of(cls, candidate: Candidate, feeds: Feeds, threads: int, concurrency: int = 1) -> "Setup":
        """Return the setup in which a candidate is measured on these inputs.

        Raises: UsageError if it is a checkpoint, which no hash describes.
        """
        if candidate.artifact is None:
            raise UsageError(f"{candidate.path} is a checkpoint: a baseline is of an ONNX file or an engine")
        backend = candidate.backend or (ENGINES if candidate.path.suffix == ".engine" else CPU)
        return cls(backend=backend, **lengths_of(feeds), threads=threads, concurrency=concurrency)


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """The figures of one artifact; the name of `artifact` is its path from the folder of the baseline's file.

    `block_medians_ms` are the medians of the blocks of its runs, in milliseconds.
    """

    artifact: FileReference
    setup: Setup
    machine: Mapping[str, str]
    block_medians_ms: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.block_medians_ms) < LEAST_ROUNDS:
            raise ArtifactError(f"it has {len(self.block_medians_ms)} blocks, expected at least {LEAST_ROUNDS}")
        if not all(0 < each < math.inf for each in self.block_medians_ms):
            raise ArtifactError("a block took no finite time above 0")

    def check_setup(self, setup: Setup, path: Path) -> None:
        """Raise UsageError with all that differs if a candidate is measured in another way than this baseline was."""
        ours, theirs = asdict(self.setup), asdict(setup)
        if differing := [f"{name} {ours[name]}, here {theirs[name]}" for name in ours if ours[name] != theirs[name]]:
            raise UsageError(f"{path} was measured with {'; '.join(differing)}: measure alike, or save a new baseline")

    def check_machine(self, machine: Mapping[str, str], path: Path) -> None:
        """Raise ArtifactError with all that differs if the figures come from another machine, or other versions."""
        names = sorted({*self.machine, *machine})
        pairs = {name: (self.machine.get(name, "none"), machine.get(name, "none")) for name in names}
        if differing := [f"{name} {ours}, here {theirs}" for name, (ours, theirs) in pairs.items() if ours != theirs]:
            raise ArtifactError(
                f"{path} has the figures of another machine ({'; '.join(differing)}): put {self.artifact.name} of "
                f"SHA-256 {self.artifact.sha256[:12]} beside it, to be measured here, or save a new baseline"
            )
        if self.setup.backend not in ON_CPU and not {"gpus", "board"} & set(machine):
            raise ArtifactError(
                f"{path} has the figures of a GPU, and nothing says which is here: {install_line('nvml')}"
            )

    def artifact_at_hand(self, path: Path) -> Path | None:
        """Return where the baseline's artifact stands, for a baseline in the file `path`; None if it is not at hand.

        That is the recorded path, or its name beside the baseline's file, if the content has the recorded hash.
        """
        places = (path.parent / self.artifact.name, path.parent / Path(self.artifact.name).name)
        return next((place for place in places if place.is_file() and sha256_file(place) == self.artifact.sha256), None)

    def text(self) -> bytes:
        """Return the text of the baseline's file."""
        return seal(asdict(self), FORM)


def load_baseline(path: Path) -> Baseline:
    """Read the file of a baseline.

    Raises: ArtifactError if it is missing, damaged, or another file.
    """
    record = unseal(read_bounded(path, MAX_SIDECAR_BYTES), str(path), FORM)
    try:
        return from_record(Baseline, record)
    except ValueError as error:
        raise ArtifactError(f"{path} is not {FORM.kind} ({error}): {FORM.remedy}") from error


def new_baseline(path: Path, candidate: Candidate, setup: Setup, report: LatencyReport) -> Baseline:
    """Return the baseline of a report's only candidate, for a file at `path`.

    Raises: ArtifactError if it was measured for too few blocks.
    """
    assert candidate.artifact is not None
    name = os.path.relpath(candidate.path.resolve(), path.parent.resolve())
    return Baseline(
        artifact=FileReference(name=name, sha256=candidate.artifact.sha256),
        setup=setup,
        machine=fingerprint(),
        block_medians_ms=report.candidates[0].block_medians_ms,
    )


def judge(report: LatencyReport, baseline: Baseline, sha256: str, *, paired: bool, allowed: float) -> LatencyReport:
    """Return a report whose candidate, of this hash, is compared with a baseline, and FAILs if it is too slow.

    The candidate is the first of the report, or the second where the baseline's artifact was measured as the first.

    Raises: ParityError if both ran for too few rounds.
    """
    rows = list(report.candidates)
    own = rows[int(paired)]
    ratio = own.ratio if paired else _unpaired(own, baseline)
    if ratio is None and all(row.verdict is not Verdict.NOT_RUN for row in rows):
        raise ParityError(f"{report.rounds} rounds compare nothing: measure {LEAST_ROUNDS} at least")
    regression = Regression(
        baseline=f"{Path(baseline.artifact.name).name} on {baseline.setup.backend}",
        sha256=baseline.artifact.sha256,
        paired=paired,
        allowed=allowed,
        ratio=ratio,
        advice=tuple(_advice(ratio, report, allowed, paired=paired, same=sha256 == baseline.artifact.sha256)),
    )
    if regression.verdict is Verdict.FAIL and ratio is not None:
        slower = (
            f"{ratio.value:.3f} [{ratio.low:.3f}, {ratio.high:.3f}] times its baseline, {1 + allowed:.4g} is allowed"
        )
        own = replace(own, verdict=Verdict.FAIL, reason=f"{own.reason}; {slower}" if own.reason else slower)
    rows[int(paired)] = own
    if paired:
        first = replace(rows[0], name=f"{rows[0].name} (baseline)")
        if first.verdict is Verdict.FAIL:  # a budget is the candidate's, and nothing is asked of the baseline
            first = replace(first, verdict=Verdict.PASS, reason="")
        rows[0] = first
    return replace(report, regression=regression, candidates=tuple(rows))


def _unpaired(own: CandidateLatency, baseline: Baseline) -> Estimate | None:
    """Return the quotient of the medians of two runs, None where there are too few blocks for its interval."""
    ours = median_interval(own.block_medians_ms, EACH_LEVEL)
    theirs = median_interval(baseline.block_medians_ms, EACH_LEVEL)
    if ours is None or theirs is None:
        return None
    return Estimate(value=ours.value / theirs.value, low=ours.low / theirs.high, high=ours.high / theirs.low)


def _advice(ratio: Estimate | None, report: LatencyReport, allowed: float, *, paired: bool, same: bool) -> list[str]:
    """Return sentences on what this comparison cannot tell."""
    advice = []
    if same:
        advice.append(
            "The baseline is this very file: only noise differs, and neither the machine nor the versions were compared"
            if paired
            else "The baseline is this very file: what differs is noise, or the state of the machine"
        )
    if not paired:
        advice.append(
            "The baseline's artifact is not at hand, so its stored figures were compared: the interval does not hold "
            "what changes on a machine from day to day"
        )
    if ratio is None:
        return [*advice, "There is nothing to compare: one of the two did not run"]
    limit = 1 + allowed
    if ratio.low <= limit < ratio.high:
        advice.append(f"Not decided: the interval holds the limit {limit:.4g}; {_longer(ratio, report, limit)}")
    return advice


def _longer(ratio: Estimate, report: LatencyReport, limit: float) -> str:
    """Return in words how long to measure until the interval leaves the limit: its width falls with 1/sqrt(rounds).

    A round takes a block of each candidate, or a run where that is longer than a block.
    """
    gap = limit - ratio.value
    side = ratio.high - ratio.value if gap > 0 else ratio.value - ratio.low
    round_ms = max(report.block_ms, *(each for row in report.candidates for each in row.block_medians_ms))
    needed_s = report.rounds * round_ms / 1e3 * (side / gap) ** 2 if gap else math.inf
    if needed_s > LIMITS["duration"].most:
        return "the ratio is too near to it for any duration"
    return f"about --duration {math.ceil(needed_s)} would decide it"
