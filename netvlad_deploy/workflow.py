"""The verbs of the command line as functions: artifacts in, results out.

Nothing heavy is imported until a step needs it, so that an engine can be validated and timed on a machine
without torch and onnx.
"""

import contextlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from netvlad_deploy.artifact import EngineArtifact, OnnxArtifact, copied, load_artifact, reference_path, sidecar_path
from netvlad_deploy.build_options import BuildOptions
from netvlad_deploy.errors import ArtifactError, DeviceUnavailableError, MissingDependencyError, UsageError
from netvlad_deploy.files import check_suffix, check_targets, make_folder, stage_files, write_text
from netvlad_deploy.goldens import Golden, load_goldens
from netvlad_deploy.images import IMAGES, NO_CHANGES, ImageChanges
from netvlad_deploy.measurement.candidate import Candidate, check_lineage, open_runner, parity_backend
from netvlad_deploy.measurement.golden import compare_goldens
from netvlad_deploy.measurement.latency import LatencyReport, measure
from netvlad_deploy.measurement.parity import ParityReport, compare
from netvlad_deploy.measurement.precision import measure_precisions
from netvlad_deploy.measurement.random_feeds import random_feeds
from netvlad_deploy.measurement.retrieval import Bank, near_ties
from netvlad_deploy.oracle import ReferenceParameters, load_reference
from netvlad_deploy.report.junit import parity_junit
from netvlad_deploy.report.precision import PrecisionReport, draw_precisions, precision_markdown
from netvlad_deploy.report.serialize import to_json
from netvlad_deploy.require import require
from netvlad_deploy.runner import Runner
from netvlad_deploy.runtime.embed import load_features
from netvlad_deploy.runtime.trt_api import stdout_to_stderr
from netvlad_deploy.scratch import scratch_folder
from netvlad_deploy.shapes import Profile
from netvlad_deploy.source import Source, load_head, load_module
from netvlad_deploy.spec import FEATURES, GraphOptions

LOG = logging.getLogger(__name__)

UNAVAILABLE = (DeviceUnavailableError, MissingDependencyError)
"""What makes a step NOT_RUN instead of an error."""

REPORT_JSON, REPORT_PAGE, PRECISION_PICTURE = "report.json", "report.md", "precision.svg"


def export(source: Source, target: Path, options: GraphOptions, *, force: bool = False) -> OnnxArtifact:
    """Export a checkpoint, or a seeded module, to ONNX: image to descriptor where there is a backbone.

    What is missing, and a target that cannot be written, is said before the checkpoint is read.
    """
    check_targets(check_suffix(target, ".onnx"), sidecar_path(target), reference_path(target), force=force)
    for package in ("torch", "onnx", "onnxscript"):  # torch alone takes seconds to import
        require(package, extra="export")
    module, origin, parent, preprocessing = load_module(source)
    from netvlad_deploy.export.onnx_model import export_onnx

    return export_onnx(
        module,
        target,
        options,
        origin=origin,
        parent=parent,
        preprocessing=preprocessing,
        force=force,
    )


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
    read_as: Source | None = None,
    bank: Path | None = None,
    queries: Path | None = None,
    junit: Path | None = None,
) -> ParityReport:
    """Compare an artifact with the oracle, a pipeline with its golden images, or either with another one.

    `against` is an artifact, or a checkpoint to run in torch; `read_as` says how its names are read, and which
    backbone it has, where the export was told: the rest the artifact knows. `bank` and `queries` are feature files
    of the user's own images to rank, beside a synthetic bank of near ties.

    NOT_RUN, with its reason, where the artifact cannot run on this machine.

    Raises: ArtifactError if a file is damaged or stale; ParityError if there is nothing to compare.
    """
    path = candidate.path
    _check_junit(junit)
    artifact = load_artifact(path, expect_sha256=candidate.expect_sha256)
    parameters, goldens = _read_reference(artifact)
    if goldens and (bank or queries):
        raise UsageError(f"{path} takes images, a bank is of features: leave --bank and --queries out")
    if candidate.backend == "oracle" or (against is not None and against.resolve() == path.resolve()):
        raise UsageError(f"{path} would be compared with itself, which proves nothing: choose another reference")
    other = None if against is None else Candidate(path=against).pinned()
    _check_against(artifact, other, read_as)
    candidate = replace(candidate, backend=candidate.backend or parity_backend(artifact), artifact=artifact)
    reference = against.name if against else "golden images" if goldens else "oracle"
    try:
        with stdout_to_stderr(), candidate.open() as runner, contextlib.ExitStack() as stack:
            theirs = stack.enter_context(_open_reference(artifact, other, read_as)) if other else None
            if goldens:
                # a checkpoint brings none: torch computes it in FP32
                their_goldens = _read_reference(other.artifact)[1] if other and other.artifact else ()
                report = compare_goldens(runner, goldens, parameters, against=theirs, against_goldens=their_goldens)
            else:
                banks = [near_ties(parameters, shapes=_feature_profile(artifact)), *_own_bank(bank, queries)]
                report = compare(runner, parameters, against=theirs, banks=banks)
        report = replace(report, candidate=candidate.name, reference=reference)
    except UNAVAILABLE as error:
        report = ParityReport(
            candidate=candidate.name, reference=reference, precision=artifact.precision, cases=(), reason=str(error)
        )
    if junit is not None:
        write_text(junit, parity_junit(report))
    return report


def _check_junit(junit: Path | None) -> None:
    if junit is None:
        return
    if junit.suffix != ".xml":
        raise UsageError(f"{junit} does not end in .xml: name the JUnit file so, that it overwrites no other")
    check_targets(junit, force=True)


def _feature_profile(artifact: OnnxArtifact | EngineArtifact) -> Profile | None:
    """Return the first optimization profile of an engine that takes local descriptors."""
    profiles = artifact.profiles if isinstance(artifact, EngineArtifact) else ()
    return next((profile for profile in profiles if isinstance(profile, Profile)), None)


def _own_bank(bank: Path | None, queries: Path | None) -> Iterator[Bank]:
    if bank is None and queries is not None:
        raise UsageError(f"queries {queries} have no images to rank: pass --bank too")
    if bank is not None:
        yield Bank(name=bank.name, images=load_features(bank), queries=load_features(queries) if queries else None)


def _open_reference(artifact: OnnxArtifact | EngineArtifact, other: Candidate, read_as: Source | None) -> Runner:
    """Open what an artifact is compared with: another one, or what it has of a checkpoint, in torch."""
    if other.artifact is not None:
        return replace(other, backend=parity_backend(other.artifact)).open()
    source = replace(
        read_as or Source(),
        checkpoint=other.path,
        head_only=artifact.spec.projection is None,
        takes=FEATURES if artifact.images is None else IMAGES,
        changes=NO_CHANGES if artifact.images is None else ImageChanges.to(artifact.images),
    )
    module, _, file, _ = load_module(source)
    from netvlad_deploy.models.torch_runner import TorchRunner

    exported_from = None if isinstance(artifact, EngineArtifact) else artifact.parent
    if file is not None and exported_from is not None:
        same = "the file" if file.sha256 == exported_from.sha256 else "another file than the one"
        LOG.info("%s is %s that %s was exported from", other.path, same, artifact.path)
    return TorchRunner(module)


def _read_reference(artifact: OnnxArtifact | EngineArtifact) -> tuple[ReferenceParameters, tuple[Golden, ...]]:
    """Return the oracle's parameters of an artifact, and the golden images of a pipeline: none of a head."""
    with copied(artifact.path.parent, artifact.reference) as file:
        return load_reference(file), () if artifact.images is None else load_goldens(file)


def _check_against(artifact: OnnxArtifact | EngineArtifact, other: Candidate | None, read_as: Source | None) -> None:
    """Compare what an artifact is and comes from with what it is to be compared with.

    Raises: ArtifactError if it is an engine of another ONNX file than the one it stands beside or against; UsageError
        if one takes images and the other does not, or there is no checkpoint to be read as is said.
    """
    compared = None if other is None else other.artifact
    if read_as not in (None, Source()) and (other is None or compared is not None):
        raise UsageError("--prefix, --dialect and --backbone say how a checkpoint is read: name it with --against")
    if compared is not None and (compared.images is None) != (artifact.images is None):
        raise UsageError(f"{artifact.path} takes {artifact.inputs[0]}, {compared.path} does not: compare two that do")
    if not isinstance(artifact, EngineArtifact):
        return
    if artifact.parent is None:
        raise ArtifactError(f"{artifact.path} names no parent: build it again")
    check_lineage(artifact)
    if isinstance(compared, OnnxArtifact) and compared.sha256 != artifact.parent.sha256:
        raise ArtifactError(
            f"{artifact.path} was not built from {compared.path}: build it again, or compare with its own"
        )


def bench(
    candidates: Sequence[Candidate],
    *,
    batch: int = 1,
    num_features: int | None = None,
    image_size: tuple[int, int] | None = None,
    duration_s: float = 3.0,
    threads: int | None = None,
    budget_p99_ms: float | None = None,
    seed: int = 0,
) -> LatencyReport:
    """Time artifacts against each other on the same random input: L2-normalised features, or images.

    `num_features` is 300 by default; `image_size`, height and width, is as the first pipeline's images are resized.
    """
    if any(candidate.backend == "strict" for candidate in candidates):
        raise UsageError("backend strict emulates FP16 and says nothing about time: leave it out")
    block_ms = 300.0
    candidates = [candidate.pinned() for candidate in candidates]  # each is opened again, in a process of its own
    feeds = random_feeds(candidates, batch, num_features, image_size, seed=seed)
    rounds = max(5, round(duration_s * 1e3 / block_ms))
    return measure(
        candidates, feeds, rounds=rounds, block_ms=block_ms, threads=threads, budget_p99_ms=budget_p99_ms, seed=seed
    )


def precision(source: Source, folder: Path, *, feature_norm: float = 1.0, force: bool = False) -> PrecisionReport:
    """Measure what each precision costs these weights, into a folder with `report.json`, `report.md` and a picture.

    The layer exported after `module.half()` is measured beside them, to show what the typed graph is for.
    """
    for package, extra in (("matplotlib", "report"), ("onnxruntime", "cpu")):
        require(package, extra=extra)
    module, origin = load_head(source)
    from netvlad_deploy.export.audit import LARGEST_FEATURE, operator_types
    from netvlad_deploy.export.onnx_model import export_onnx, export_plain

    make_folder(folder, (folder / name for name in (REPORT_JSON, REPORT_PAGE, PRECISION_PICTURE)), force=force)
    with scratch_folder() as scratch, contextlib.ExitStack() as stack:
        artifacts = {}
        for name, wide in (("fp32", False), ("fp16", False), ("fp16", True)):
            options = GraphOptions(precision=name, wide_logits=wide, feature_norm=feature_norm)
            LOG.info("export %s", options.precision_name)
            target = scratch / f"{options.precision_name}.onnx"
            artifacts[options.precision_name] = export_onnx(module, target, options)
        LOG.info("export plain fp16")
        artifacts["plain fp16"] = export_plain(module, artifacts["fp16"], scratch / "plain.onnx")
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
