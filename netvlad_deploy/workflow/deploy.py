"""Export, build, validate and measure in one go, with one report."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from netvlad_deploy.artifact import (
    EngineArtifact,
    OnnxArtifact,
    load_artifact,
    log_path,
    reference_path,
    sidecar_path,
)
from netvlad_deploy.errors import UNAVAILABLE, ArtifactError
from netvlad_deploy.parity.heads import ParityReport
from netvlad_deploy.report.deploy import Deployment, Step, deployment_page
from netvlad_deploy.report.graph_figure import graph_block
from netvlad_deploy.report.write import REPORT_FILES, write_report
from netvlad_deploy.runtime.open_runner import Candidate
from netvlad_deploy.spec.build_options import BuildOptions
from netvlad_deploy.spec.graph_options import GraphOptions
from netvlad_deploy.spec.images import AnyProfile
from netvlad_deploy.spec.verdict import Verdict
from netvlad_deploy.support.files import make_folder, stem_of
from netvlad_deploy.workflow.bench import bench
from netvlad_deploy.workflow.build import build
from netvlad_deploy.workflow.export import export
from netvlad_deploy.workflow.source import Source
from netvlad_deploy.workflow.validate import validate

LOG = logging.getLogger(__name__)


def deploy(
    source: Source,
    folder: Path,
    options: GraphOptions,
    *,
    engine_options: BuildOptions,
    duration_s: float = 3.0,
    command: str = "",
    force: bool = False,
) -> Deployment:
    """Export, build, validate and measure into one folder, with a report as HTML, Markdown and JSON.

    A step that cannot run on this machine is NOT_RUN with its reason; any other failure raises. `command` is shown.

    >>> source = Source(num_clusters=2, feature_size=4)
    >>> options = BuildOptions(flavor="tensorrt")  # its engines need the GPU that builds them
    >>> done = deploy(source, Path("out"), GraphOptions(), engine_options=options, duration_s=0.1)
    >>> [(step.name, step.verdict.value) for step in done.steps[:2]], Path("out", "report.md").exists()
    ([('export', 'PASS'), ('parity of the ONNX file', 'PASS')], True)

    Raises: as the verbs that it calls.
    """
    stem = "netvlad" if source.checkpoint is None else stem_of(source.checkpoint)
    onnx_path = folder / f"{stem}.onnx"
    onnx_files = onnx_path, sidecar_path(onnx_path), reference_path(onnx_path)
    make_folder(folder, (*onnx_files, *_engine_files(folder, stem), *_report_files(folder)), force=force)
    LOG.info("export %s", onnx_path)
    onnx = export(source, onnx_path, options, force=force)
    step = Step(name="export", verdict=Verdict.PASS)
    peers = ("torch",) if onnx.images is None else ()
    return _go_on(onnx, step, folder, engine_options, peers=peers, duration_s=duration_s, command=command, force=force)


def deploy_onnx(
    path: Path,
    folder: Path,
    *,
    engine_options: BuildOptions,
    expect_sha256: str | None = None,
    duration_s: float = 3.0,
    command: str = "",
    force: bool = False,
) -> Deployment:
    """Build, validate and measure an ONNX file that was exported, where it stands; no step needs torch.

    The engine and the report go into the folder.

    Raises: ArtifactError if the file differs from its sidecar or from the expected hash; as the verbs that it calls.
    """
    onnx = load_artifact(path, expect_sha256=expect_sha256)
    if not isinstance(onnx, OnnxArtifact):
        raise ArtifactError(f"{path} is an engine, expected an ONNX file")
    make_folder(folder, (*_engine_files(folder, path.stem), *_report_files(folder)), force=force)
    step = Step(name="export", verdict=Verdict.PASS, reason=f"{path} is taken as it is, its hash is the sidecar's")
    return _go_on(onnx, step, folder, engine_options, duration_s=duration_s, command=command, force=force)


def _engine_files(folder: Path, stem: str) -> tuple[Path, Path, Path]:
    engine_path = folder / f"{stem}.engine"
    return engine_path, sidecar_path(engine_path), log_path(engine_path)


def _report_files(folder: Path) -> tuple[Path, ...]:
    return tuple(folder / name for name in REPORT_FILES)


def _go_on(
    onnx: OnnxArtifact,
    export_step: Step,
    folder: Path,
    engine_options: BuildOptions,
    *,
    duration_s: float,
    command: str,
    force: bool,
    peers: Sequence[str] = (),
) -> Deployment:
    """Do all that comes after the export; `peers` are backends that are timed before the ONNX file's own."""
    exported = Candidate.of(onnx)
    engine_files = _engine_files(folder, onnx.path.stem)
    LOG.info("validate %s", onnx.path)
    with onnx.keep():  # it is read once, for the drawing and for the proof
        graph = graph_block(onnx)
        parity = [validate(exported)]
    steps = [export_step, _parity_step("parity of the ONNX file", parity[0])]
    candidates = [*map(exported.on, peers), exported]
    engine, step = _build_engine(onnx, engine_files, engine_options, force=force)
    steps.append(step)
    if engine is not None:
        LOG.info("validate %s", engine.path)
        candidates.append(Candidate.of(engine))
        parity.append(validate(candidates[-1]))
        steps.append(_parity_step("parity of the engine", parity[1]))
    profile = (engine_options.profiles or (onnx.usual_profile,))[0]
    latency = bench(candidates, **_usual_input(profile), duration_s=duration_s)
    steps += [
        Step(name=f"latency of {result.name}", verdict=result.verdict, reason=result.reason)
        for result in latency.candidates
    ]
    deployment = Deployment(steps=tuple(steps), onnx=onnx, engine=engine, parity=tuple(parity), latency=latency)
    page = deployment_page(deployment, graph=graph, command=command)
    write_report(folder, "deploy", deployment, page, force=force)
    return deployment


def _build_engine(
    onnx: OnnxArtifact, files: Sequence[Path], options: BuildOptions, *, force: bool
) -> tuple[EngineArtifact | None, Step]:
    """Return the engine of an ONNX artifact, the first of `files`, None if it cannot be built here; and the step."""
    name = f"build with {options.flavor}"
    LOG.info("build %s with %s", files[0], options.flavor)
    try:
        return build(onnx, files[0], options, force=force), Step(name=name, verdict=Verdict.PASS)
    except UNAVAILABLE as error:
        for leftover in files:  # of an earlier deployment
            leftover.unlink(missing_ok=True)
        return None, Step(name=name, verdict=Verdict.NOT_RUN, reason=str(error))


def _usual_input(profile: AnyProfile) -> dict[str, Any]:
    """Return the arguments of `bench` for the usual input of a profile, in its smallest batch."""
    axes = profile.axes
    if "num_features" in axes:
        return {"batch": axes["batch"].min, "num_features": axes["num_features"].opt}
    return {"batch": axes["batch"].min, "image_size": (axes["height"].opt, axes["width"].opt)}


def _parity_step(name: str, report: ParityReport) -> Step:
    failed = [case.name for case in report.cases if case.verdict is Verdict.FAIL]
    doubts = dict.fromkeys(case.reason for case in report.cases) if report.verdict is Verdict.NOT_JUDGED else ()
    reason = report.reason or ", ".join(failed) or report.unseen or "; ".join(doubts)
    return Step(name=name, verdict=report.verdict, reason=reason)
