"""The verbs of the command line as functions: artifacts in, results out.

Nothing heavy is imported until a step needs it, so that an engine can be validated and timed on a machine
without torch and onnx.
"""

import contextlib
import logging
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from netvlad_deploy.artifact import EngineArtifact, FileReference, OnnxArtifact, check_file, load_artifact
from netvlad_deploy.build_options import BuildOptions
from netvlad_deploy.errors import ArtifactError, DeviceUnavailableError, MissingDependencyError, UsageError
from netvlad_deploy.files import make_folder, sha256_file, stage_files, write_text
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
from netvlad_deploy.measurement.precision import measure_precisions
from netvlad_deploy.measurement.retrieval import Bank, near_ties
from netvlad_deploy.oracle import load_reference
from netvlad_deploy.report.junit import parity_junit
from netvlad_deploy.report.precision import PrecisionReport, draw_precisions, precision_markdown
from netvlad_deploy.report.serialize import to_json
from netvlad_deploy.require import require
from netvlad_deploy.runner import Runner
from netvlad_deploy.runtime.embed import load_features
from netvlad_deploy.runtime.trt_api import stdout_to_stderr
from netvlad_deploy.spec import FEATURES, MASK, GraphOptions, NetVLADSpec, Profile

if TYPE_CHECKING:
    from netvlad_deploy.models.netvlad import NetVLAD

LOG = logging.getLogger(__name__)

UNAVAILABLE = (DeviceUnavailableError, MissingDependencyError)
"""What makes a step NOT_RUN instead of an error."""

REPORT_JSON, REPORT_PAGE, PRECISION_PICTURE = "report.json", "report.md", "precision.svg"
DEFAULT_SPEC = NetVLADSpec(num_clusters=64, feature_size=512)


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where the weights come from: a checkpoint, or a seed. Sizes left None come from the checkpoint."""

    checkpoint: Path | None = None
    prefix: str = ""
    dialect: str | None = None
    head_only: bool = False
    num_clusters: int | None = None
    feature_size: int | None = None
    num_ghost_clusters: int | None = None
    batch_norm: bool | None = None
    seed: int = 0


def load_module(source: Source) -> tuple["NetVLAD", str, FileReference | None, str]:
    """Return the reference module, its origin in words, the file it came from, and what local descriptors must be.

    Raises: InputError for an unusable checkpoint; UsageError if a size contradicts it.
    """
    require("torch", extra="export")
    from netvlad_deploy.models.checkpoints import check_options, module_of, read_head
    from netvlad_deploy.models.dialects.base import PREPROCESSING
    from netvlad_deploy.models.netvlad import initialize

    names = ("num_clusters", "feature_size", "num_ghost_clusters", "batch_norm")
    given = {name: getattr(source, name) for name in names}
    if source.checkpoint is None:
        spec = replace(DEFAULT_SPEC, **{name: value for name, value in given.items() if value is not None})
        LOG.info("no checkpoint given: the weights are initialised from seed %d, untrained", source.seed)
        return initialize(spec, source.seed), f"untrained, seed {source.seed}", None, PREPROCESSING
    head = read_head(source.checkpoint, prefix=source.prefix, dialect=source.dialect, head_only=source.head_only)
    module = module_of(head, source.checkpoint)
    check_options(module.spec, source.checkpoint, **given)
    parent = FileReference(name=source.checkpoint.name, sha256=sha256_file(source.checkpoint))
    return module, source.checkpoint.name, parent, head.preprocessing


def export(source: Source, target: Path, options: GraphOptions, *, force: bool = False) -> OnnxArtifact:
    """Export a checkpoint, or a seeded module, to ONNX."""
    module, origin, parent, preprocessing = load_module(source)
    from netvlad_deploy.export.onnx_model import export_onnx

    return export_onnx(module, target, options, origin=origin, parent=parent, preprocessing=preprocessing, force=force)


def build(
    source: Path,
    target: Path,
    options: BuildOptions,
    *,
    timing_cache: Path | None = None,
    expect_sha256: str | None = None,
    force: bool = False,
) -> EngineArtifact:
    """Build an engine from an ONNX artifact."""
    from netvlad_deploy.export.engine import build_engine

    artifact = load_artifact(source, expect_sha256=expect_sha256)
    return build_engine(artifact, target, options, timing_cache=timing_cache, force=force)


def validate(
    candidate: Candidate,
    *,
    against: Path | None = None,
    bank: Path | None = None,
    queries: Path | None = None,
    junit: Path | None = None,
) -> ParityReport:
    """Compare an artifact with the oracle, or with another artifact or checkpoint.

    `bank` and `queries` are feature files of the user's own images to rank, beside a synthetic bank of near ties.

    NOT_RUN, with its reason, where the artifact cannot run on this machine.

    Raises: ArtifactError if a file is damaged or stale; ParityError if there is nothing to compare.
    """
    path = candidate.path
    artifact = load_artifact(path, expect_sha256=candidate.expect_sha256)
    parameters = load_reference(check_file(path.parent, artifact.reference))
    if candidate.backend == "oracle" or (against is not None and against.resolve() == path.resolve()):
        raise UsageError(f"{path} would be compared with itself, which proves nothing: choose another reference")
    if junit is not None and junit.suffix != ".xml":
        raise UsageError(f"{junit} does not end in .xml: name the JUnit file so, that it overwrites no other")
    if isinstance(artifact, EngineArtifact):
        _check_parent(artifact, against)
    shapes = _feature_profile(artifact)
    banks = [near_ties(parameters, shapes=shapes), *_own_bank(bank, queries)]
    candidate = replace(candidate, backend=candidate.backend or parity_backend(artifact))
    reference = against.name if against else "oracle"
    try:
        with stdout_to_stderr(), candidate.open() as runner, contextlib.ExitStack() as stack:
            other = stack.enter_context(_open_reference(against)) if against else None
            report = compare(runner, parameters, against=other, banks=banks)
        report = replace(report, candidate=candidate.name, reference=reference)
    except UNAVAILABLE as error:
        report = ParityReport(
            candidate=candidate.name, reference=reference, precision=artifact.precision, cases=(), reason=str(error)
        )
    if junit is not None:
        write_text(junit, parity_junit(report))
    return report


def _feature_profile(artifact: OnnxArtifact | EngineArtifact) -> Profile | None:
    """Return the first optimization profile of an engine that takes local descriptors."""
    profiles = artifact.profiles if isinstance(artifact, EngineArtifact) else ()
    return next((profile for profile in profiles if isinstance(profile, Profile)), None)


def _own_bank(bank: Path | None, queries: Path | None) -> Iterator[Bank]:
    if bank is None and queries is not None:
        raise UsageError(f"queries {queries} have no images to rank: pass --bank too")
    if bank is not None:
        yield Bank(name=bank.name, images=load_features(bank), queries=load_features(queries) if queries else None)


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
    if any(candidate.backend == "strict" for candidate in candidates):
        raise UsageError("backend strict emulates FP16 and says nothing about time: leave it out")
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


def precision(source: Source, folder: Path, *, feature_norm: float = 1.0, force: bool = False) -> PrecisionReport:
    """Measure what each precision costs these weights, into a folder with `report.json`, `report.md` and a picture.

    The layer exported after `module.half()` is measured beside them, to show what the typed graph is for.
    """
    for package, extra in (("matplotlib", "report"), ("onnxruntime", "cpu")):
        require(package, extra=extra)
    module, origin, _, _ = load_module(source)
    from netvlad_deploy.export.audit import LARGEST_FEATURE, operator_types
    from netvlad_deploy.export.onnx_model import export_onnx, export_plain

    make_folder(folder, (folder / name for name in (REPORT_JSON, REPORT_PAGE, PRECISION_PICTURE)), force=force)
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as stack:
        artifacts = {}
        for name, wide in (("fp32", False), ("fp16", False), ("fp16", True)):
            options = GraphOptions(precision=name, wide_logits=wide, feature_norm=feature_norm)
            LOG.info("export %s", options.precision_name)
            target = Path(scratch) / f"{options.precision_name}.onnx"
            artifacts[options.precision_name] = export_onnx(module, target, options)
        LOG.info("export plain fp16")
        artifacts["plain fp16"] = export_plain(module, artifacts["fp16"], Path(scratch) / "plain.onnx")
        runners = {
            name: stack.enter_context(open_runner(artifact, backend="strict")) for name, artifact in artifacts.items()
        }
        LOG.info("run every case in every precision")
        parameters = load_reference(artifacts["fp16"].reference_path)
        report = PrecisionReport(
            origin=origin,
            precisions=tuple(artifacts),
            operators=operator_types(artifacts["fp16"].path),
            cases=tuple(measure_precisions(runners, parameters, largest=LARGEST_FEATURE)),
            warnings=artifacts["fp16"].warnings,
        )
    with stage_files(force=force) as staging:
        staging.write(folder / PRECISION_PICTURE, draw_precisions(report))
        staging.write(folder / REPORT_PAGE, precision_markdown(report, PRECISION_PICTURE).encode())
        staging.write(folder / REPORT_JSON, to_json("precision", report).encode())
    return report


def stem_of(path: Path) -> str:
    """Return a file's name without its suffixes: `model_best.pth.tar` becomes `model_best`."""
    return path.name.partition(".")[0] or path.name


def candidates_of(
    paths: Sequence[Path], backends: Sequence[str], *, expect_sha256: str | None = None
) -> list[Candidate]:
    """Return every artifact on every backend that was asked for, or each on its own."""
    if expect_sha256 is not None and len(paths) > 1:
        raise UsageError(f"one hash is expected of {len(paths)} files: name one of them")
    return [
        Candidate(path=path, backend=backend, expect_sha256=expect_sha256)
        for path in paths
        for backend in (backends or (None,))
    ]
