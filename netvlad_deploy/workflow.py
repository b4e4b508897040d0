"""The verbs of the command line as functions: artifacts in, results out.

Nothing heavy is imported until a step needs it, so that an engine can be validated and timed on a machine
without torch and onnx.
"""

import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from netvlad_deploy.arrays import npz_content
from netvlad_deploy.artifact import (
    EngineArtifact,
    FileReference,
    OnnxArtifact,
    check_file,
    load_artifact,
    make_folder,
    sha256_file,
    sidecar_path,
    stage_files,
    write_text,
)
from netvlad_deploy.errors import ArtifactError, DeviceUnavailableError, MissingDependencyError, UsageError
from netvlad_deploy.measurement.candidate import (
    Candidate,
    check_lineage,
    is_checkpoint,
    open_runner,
    parity_backend,
)
from netvlad_deploy.measurement.cases import unit_rows
from netvlad_deploy.measurement.latency import LatencyReport, measure
from netvlad_deploy.measurement.parity import ParityReport, compare
from netvlad_deploy.oracle import load_reference
from netvlad_deploy.report.deployment import Deployment, Step, deployment_markdown
from netvlad_deploy.report.junit import parity_junit
from netvlad_deploy.report.serialize import to_json
from netvlad_deploy.require import require
from netvlad_deploy.runner import Runner
from netvlad_deploy.runtime.embed import check_target, embed_array, embed_sequences, load_features
from netvlad_deploy.runtime.trt_api import check_flavor
from netvlad_deploy.spec import FEATURES, MASK, GraphOptions, NetVLADSpec, Profile, Verdict

if TYPE_CHECKING:
    from netvlad_deploy.models.netvlad import NetVLAD

LOG = logging.getLogger(__name__)

UNAVAILABLE = (DeviceUnavailableError, MissingDependencyError)
"""What makes a step NOT_RUN instead of an error."""

REPORT_JSON, REPORT_PAGE = "report.json", "report.md"
DEFAULT_SPEC = NetVLADSpec(num_clusters=64, feature_size=512)


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where the weights come from: a checkpoint, or a seed. Sizes left None come from the checkpoint."""

    checkpoint: Path | None = None
    prefix: str = ""
    num_clusters: int | None = None
    feature_size: int | None = None
    num_ghost_clusters: int | None = None
    batch_norm: bool | None = None
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class EmbedResult:
    """What `embed` wrote."""

    output: Path
    descriptors: int
    descriptor_size: int
    duration_ms: float


def load_module(source: Source) -> tuple["NetVLAD", str, FileReference | None]:
    """Return the reference module, its origin in words, and the file it came from.

    Raises: InputError for an unusable checkpoint; UsageError if a size contradicts it.
    """
    require("torch", extra="export")
    from netvlad_deploy.models.checkpoints import check_options, load_checkpoint
    from netvlad_deploy.models.netvlad import initialize

    names = ("num_clusters", "feature_size", "num_ghost_clusters", "batch_norm")
    given = {name: getattr(source, name) for name in names}
    if source.checkpoint is None:
        spec = replace(DEFAULT_SPEC, **{name: value for name, value in given.items() if value is not None})
        LOG.info("no checkpoint given: the weights are initialised from seed %d, untrained", source.seed)
        return initialize(spec, source.seed), f"untrained, seed {source.seed}", None
    module = load_checkpoint(source.checkpoint, prefix=source.prefix)
    check_options(module.spec, source.checkpoint, **given)
    parent = FileReference(name=source.checkpoint.name, sha256=sha256_file(source.checkpoint))
    return module, source.checkpoint.name, parent


def export(source: Source, target: Path, options: GraphOptions, *, force: bool = False) -> OnnxArtifact:
    """Export a checkpoint, or a seeded module, to ONNX."""
    module, origin, parent = load_module(source)
    from netvlad_deploy.export.onnx_model import export_onnx

    return export_onnx(module, target, options, origin=origin, parent=parent, force=force)


def build(
    source: Path, target: Path, *, flavor: str, profile: Profile, tf32: bool = False, force: bool = False
) -> EngineArtifact:
    """Build an engine from an ONNX artifact."""
    from netvlad_deploy.export.engine import build_engine

    return build_engine(source, target, flavor=flavor, profile=profile, tf32=tf32, force=force)


def validate(
    path: Path, *, against: Path | None = None, backend: str | None = None, junit: Path | None = None
) -> ParityReport:
    """Compare an artifact with the oracle, or with another artifact or checkpoint.

    NOT_RUN, with its reason, where the artifact cannot run on this machine.

    Raises: ArtifactError if a file is damaged or stale; ParityError if there is nothing to compare.
    """
    artifact = load_artifact(path)
    parameters = load_reference(check_file(path.parent, artifact.reference))
    if backend == "oracle" or (against is not None and against.resolve() == path.resolve()):
        raise UsageError(f"{path} would be compared with itself, which proves nothing: choose another reference")
    if junit is not None and junit.suffix != ".xml":
        raise UsageError(f"{junit} does not end in .xml: name the JUnit file so, that it overwrites no other")
    if isinstance(artifact, EngineArtifact):
        _check_parent(artifact, against)
    candidate = Candidate(path=path, backend=backend or parity_backend(artifact))
    try:
        with candidate.open() as runner:
            if against is None:
                report = compare(runner, parameters)
            else:
                with _open_reference(against) as reference:
                    report = compare(runner, parameters, against=reference)
        report = replace(report, candidate=candidate.name, reference=against.name if against else report.reference)
    except UNAVAILABLE as error:
        report = ParityReport(
            candidate=candidate.name,
            reference=against.name if against else "oracle",
            precision=artifact.precision,
            cases=(),
            reason=str(error),
        )
    if junit is not None:
        write_text(junit, parity_junit(report))
    return report


def _open_reference(path: Path) -> Runner:
    return open_runner(path, backend=None if is_checkpoint(path) else parity_backend(load_artifact(path)))


def _check_parent(engine: EngineArtifact, against: Path | None) -> None:
    """Raise ArtifactError if the engine was built from another ONNX file than the one it stands beside or against."""
    if engine.parent is None:
        raise ArtifactError(f"{engine.path} names no parent: build it again")
    check_lineage(engine)
    if against is not None and not is_checkpoint(against):
        other = load_artifact(against)
        if isinstance(other, OnnxArtifact) and other.sha256 != engine.parent.sha256:
            raise ArtifactError(f"{engine.path} was not built from {against}: build it again, or compare with its own")


def bench(
    candidates: Sequence[Candidate],
    *,
    batch: int = 1,
    num_features: int = 300,
    duration_s: float = 3.0,
    threads: int | None = None,
    budget_p99_ms: float | None = None,
    seed: int = 0,
) -> LatencyReport:
    """Time artifacts against each other on the same L2-normalised random features."""
    block_ms = 300.0
    random = np.random.default_rng(seed)
    shape = batch, num_features, _spec_of(candidates[0].path).feature_size
    features = unit_rows(random.standard_normal(shape, dtype=np.float32))
    feeds = {FEATURES: features, MASK: np.ones(features.shape[:2], dtype=np.bool_)}
    rounds = max(5, round(duration_s * 1e3 / block_ms))
    return measure(
        candidates, feeds, rounds=rounds, block_ms=block_ms, threads=threads, budget_p99_ms=budget_p99_ms, seed=seed
    )


def _spec_of(path: Path) -> NetVLADSpec:
    """Return the shape of an artifact, which may not run here, or of a checkpoint."""
    if not is_checkpoint(path):
        return load_artifact(path).spec
    with open_runner(path) as runner:
        return runner.spec


def embed(
    path: Path, source: Path, target: Path, *, backend: str | None = None, batch: int = 32, force: bool = False
) -> EmbedResult:
    """Write the descriptors of a feature file; the target is complete or not there."""
    check_target(source, target)
    features = load_features(source)
    with stage_files(force=force) as staging:
        staging.check(target)
        with open_runner(path, backend=backend) as runner:
            started = time.perf_counter()
            if isinstance(features, dict):
                sequences = embed_sequences(runner, features, batch=batch)
                staging.write(target, npz_content(sequences))
            else:
                with staging.open(target) as stream:
                    np.save(stream, embed_array(runner, features, batch=batch), allow_pickle=False)
            duration_ms = (time.perf_counter() - started) * 1e3
            size = runner.spec.descriptor_size
    return EmbedResult(output=target, descriptors=len(features), descriptor_size=size, duration_ms=duration_ms)


def deploy(
    source: Source,
    folder: Path,
    options: GraphOptions,
    *,
    flavor: str,
    profile: Profile,
    duration_s: float = 3.0,
    force: bool = False,
) -> Deployment:
    """Export, build, validate and measure into one folder, with `report.json` and `report.md`.

    What cannot run on this machine is NOT_RUN with its reason; what is wrong raises.
    """
    check_flavor(flavor)
    stem = "netvlad" if source.checkpoint is None else stem_of(source.checkpoint)
    onnx_path, engine_path = folder / f"{stem}.onnx", folder / f"{stem}.engine"
    make_folder(folder, (onnx_path, engine_path, folder / REPORT_JSON, folder / REPORT_PAGE), force=force)
    LOG.info("export %s", onnx_path)
    onnx = export(source, onnx_path, options, force=force)
    LOG.info("validate %s", onnx_path)
    parity = [validate(onnx_path)]
    steps = [Step(name="export", verdict=Verdict.PASS), _parity_step("parity of the ONNX file", parity[0])]
    candidates = [Candidate(path=onnx_path, backend="torch"), Candidate(path=onnx_path)]
    engine = None
    LOG.info("build %s with %s", engine_path, flavor)
    try:
        engine = build(onnx_path, engine_path, flavor=flavor, profile=profile, force=force)
    except UNAVAILABLE as error:
        for leftover in (engine_path, sidecar_path(engine_path)):  # of an earlier deployment, with --force
            leftover.unlink(missing_ok=True)
        steps.append(Step(name=f"build with {flavor}", verdict=Verdict.NOT_RUN, reason=str(error)))
    else:
        steps.append(Step(name=f"build with {flavor}", verdict=Verdict.PASS))
        LOG.info("validate %s", engine_path)
        parity.append(validate(engine_path))
        steps.append(_parity_step("parity of the engine", parity[1]))
        candidates.append(Candidate(path=engine_path))
    lengths = {"batch": profile.batch.min, "num_features": profile.num_features.opt}
    latency = bench(candidates, **lengths, duration_s=duration_s)
    steps += [
        Step(name=f"latency of {result.name}", verdict=result.verdict, reason=result.reason)
        for result in latency.candidates
    ]
    deployment = Deployment(steps=tuple(steps), onnx=onnx, engine=engine, parity=tuple(parity), latency=latency)
    write_text(folder / REPORT_JSON, to_json("deploy", deployment), force=force)
    write_text(folder / REPORT_PAGE, deployment_markdown(deployment), force=force)
    return deployment


def _parity_step(name: str, report: ParityReport) -> Step:
    failed = [case.name for case in report.cases if case.verdict is Verdict.FAIL]
    return Step(name=name, verdict=report.verdict, reason=report.reason or ", ".join(failed))


def stem_of(path: Path) -> str:
    """Return a file's name without its suffixes: `model_best.pth.tar` becomes `model_best`."""
    return path.name.partition(".")[0] or path.name


def candidates_of(paths: Iterable[Path], backends: Sequence[str]) -> list[Candidate]:
    """Return every artifact on every backend that was asked for, or each on its own."""
    return [Candidate(path=path, backend=backend) for path in paths for backend in (backends or (None,))]
