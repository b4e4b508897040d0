"""What `bench` does with baselines: find one before the measurement, and judge or save after it."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from netvlad_deploy.artifact import sidecar_path
from netvlad_deploy.errors import DeviceUnavailableError, UsageError
from netvlad_deploy.latency.baseline import Baseline, Setup, fingerprint, judge, load_baseline, new_baseline
from netvlad_deploy.latency.results import LatencyReport
from netvlad_deploy.runner import Feeds
from netvlad_deploy.runtime.open_runner import Candidate
from netvlad_deploy.spec.verdict import Verdict
from netvlad_deploy.support.files import check_apart, check_suffix, check_targets, stage_files

LOG = logging.getLogger(__name__)

BASELINE_SUFFIX = ".json"


@dataclass(frozen=True, kw_only=True)
class BaselineOptions:
    """The file of a baseline to compare with, or to save; at most one of them.

    `allowed` is how much slower than its baseline a candidate may be, 0.05 for 5 %.
    """

    compared: Path | None = None
    saved: Path | None = None
    allowed: float = 0.05
    force: bool = False

    @property
    def file(self) -> Path | None:
        """Return the file of the baseline, whether compared or saved; None for no baseline."""
        return self.compared or self.saved


@dataclass(frozen=True, kw_only=True)
class BaselineStep:
    """A comparison or a save that awaits the measurement of its candidate.

    `rival` is the baseline's artifact where it is at hand: it is measured first, and the candidate after it.
    """

    options: BaselineOptions
    candidate: Candidate
    sha256: str
    setup: Setup
    baseline: Baseline | None = None
    rival: Candidate | None = None

    def finish(self, report: LatencyReport) -> LatencyReport:
        """Return the report, judged by the baseline; or save it as one, unless a budget was broken.

        Raises: DeviceUnavailableError if the candidate did not run, and so there is nothing to save.
        """
        if self.baseline is not None:
            paired = self.rival is not None
            return judge(report, self.baseline, self.sha256, paired=paired, allowed=self.options.allowed)
        target, own = self.options.saved, report.candidates[0]
        assert target is not None
        if own.verdict is Verdict.NOT_RUN:
            raise DeviceUnavailableError(f"{own.name} did not run, so {target} was not written: {own.reason}")
        if own.verdict is not Verdict.PASS:
            LOG.warning("%s was not written: %s", target, own.reason)
            return report
        saved = new_baseline(target, self.candidate, self.setup, report)
        with stage_files(force=self.options.force) as staging:
            staging.write(target, saved.text())
        LOG.info("%s is the baseline of %s", target, own.name)
        return report


def baseline_step(
    candidates: Sequence[Candidate], feeds: Feeds, options: BaselineOptions, *, threads: int, concurrency: int
) -> BaselineStep | None:
    """Return what is to be done after the measurement of the only candidate, None where no baseline is asked for.

    Raises: UsageError if there are several candidates, or they are measured in another way than the baseline was;
        ArtifactError if the baseline is damaged, or its stored figures are of another machine.
    """
    file = options.file
    if file is None:
        return None
    if options.compared and options.saved:
        raise UsageError("--baseline compares and --save-baseline saves: give one of them")
    if len(candidates) != 1:
        raise UsageError(f"a baseline is of one file on one backend, {len(candidates)} are given: measure them apart")
    candidate = candidates[0]
    setup = Setup.of(candidate, feeds, threads, concurrency)
    artifact = candidate.artifact
    assert artifact is not None
    step = BaselineStep(options=options, candidate=candidate, sha256=artifact.sha256, setup=setup)
    if options.saved:
        check_apart(check_suffix(file, BASELINE_SUFFIX), (candidate.path, sidecar_path(candidate.path)), "baseline")
        check_targets(file, force=options.force)
        return step
    baseline = load_baseline(file)
    baseline.check_setup(setup, file)
    path = baseline.artifact_at_hand(file)
    if path is None:
        baseline.check_machine(fingerprint(), file)
        return replace(step, baseline=baseline)
    rival = Candidate(path=path, backend=candidate.backend, expect_sha256=baseline.artifact.sha256, hold=False)
    return replace(step, baseline=baseline, rival=rival)
