"""The verbs that make artifacts from weights: `export`, `build`, `deploy`, `precision`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from netvlad_deploy.commands.flags import (
    AllowNotRun,
    Duration,
    EngineFlags,
    ExpectSha256,
    Force,
    GraphFlags,
    ImageFlags,
    Json,
    Output,
    SourceFlags,
    Tuning,
    flags,
)
from netvlad_deploy.commands.output import leave, render
from netvlad_deploy.errors import UsageError
from netvlad_deploy.spec.graph_options import GraphOptions
from netvlad_deploy.spec.images import NO_CHANGES, ImageChanges
from netvlad_deploy.support.limits import check_limit

if TYPE_CHECKING:
    from netvlad_deploy.workflow.source import Source


@flags
def export(
    source: SourceFlags,
    images: ImageFlags,
    graph: GraphFlags,
    output: Output = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Turn trained weights into an ONNX file and its reference file.

    BatchNorm is folded; validate compares with the reference file, which holds the weights as they were. A checkpoint
    with an image backbone becomes one graph from image to descriptor; --input features takes its head.
    Without a checkpoint the weights are untrained. The target is CHECKPOINT.onnx, or netvlad.onnx, in this folder.
    """
    from netvlad_deploy.report.text import artifact_lines
    from netvlad_deploy.support.files import stem_of
    from netvlad_deploy.workflow.export import export as run

    target = output or Path((stem_of(source.checkpoint) if source.checkpoint else "netvlad") + ".onnx")
    artifact = run(_source(source, images.changes), target, GraphOptions(**vars(graph)), force=force)
    render("export", artifact, artifact_lines, as_json)


@flags
def build(
    source: Annotated[Path, typer.Argument(metavar="MODEL.onnx", help="An exported ONNX file.")],
    engine: EngineFlags,
    tuning: Tuning,
    timing_cache: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Kernel timings to use and add to, shared by all builds.")
    ] = None,
    output: Output = None,
    expect_sha256: ExpectSha256 = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Build a strongly typed TensorRT engine of an ONNX file.

    It is for one or several optimization profiles: ranges of batch sizes and of features, or of image sizes. The target
    is MODEL.engine beside the ONNX file; the builder's log is MODEL.engine.log.
    """
    from netvlad_deploy.report.text import artifact_lines
    from netvlad_deploy.tensorrt.build_log import trtexec_line
    from netvlad_deploy.workflow.build import build as run

    artifact = run(
        source,
        output or source.with_suffix(".engine"),
        engine.options(tuning),
        timing_cache=timing_cache,
        expect_sha256=expect_sha256,
        force=force,
    )
    render("build", artifact, lambda done: [*artifact_lines(done), f"  {trtexec_line(done, timing_cache)}"], as_json)


@flags
def deploy(
    source: SourceFlags,
    images: ImageFlags,
    graph: GraphFlags,
    engine: EngineFlags,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="Folder to write.")] = Path(
        "deployment"
    ),
    duration: Duration = 3.0,
    allow_not_run: AllowNotRun = False,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Export, build, validate and measure into one folder.

    It gets report.json and report.md, too.
    """
    from netvlad_deploy.report.deploy import step_rows
    from netvlad_deploy.report.text import table
    from netvlad_deploy.workflow.deploy import deploy as deploy_all

    deployment = deploy_all(
        _source(source, images.changes),
        output,
        GraphOptions(**vars(graph)),
        engine_options=engine.options(),
        duration_s=duration,
        force=force,
    )
    render("deploy", deployment, lambda done: table(("verdict", "step", "reason"), step_rows(done.steps)), as_json)
    leave(deployment.verdict, allow_not_run)


@flags
def precision(
    source: SourceFlags,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="Folder to write.")] = Path(
        "precision"
    ),
    feature_norm: Annotated[float, typer.Option(help="Norm of a usual local descriptor, to judge FP16 by.")] = 1.0,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Measure what FP16 costs your weights, without a GPU.

    The folder gets report.json, report.md and a picture.
    """
    from netvlad_deploy.report.precision import precision_lines
    from netvlad_deploy.workflow.precision import precision as run

    report = run(_source(source), output, feature_norm=feature_norm, force=force)
    render("precision", report, precision_lines, as_json)


def _source(given: SourceFlags, changes: ImageChanges = NO_CHANGES) -> "Source":
    """Return the source of the weights as the workflow takes it.

    Raises: UsageError for an option that needs a checkpoint, or excludes one; or if the layer would be too large.
    """
    from netvlad_deploy.workflow.source import DEFAULT_SPEC, Source

    for option, value in (("prefix", given.prefix), ("dialect", given.dialect), ("head-only", given.head_only)):
        if given.checkpoint is None and value:
            raise UsageError(f"--{option} needs a checkpoint")
    if given.checkpoint is None:
        clusters = (given.clusters or DEFAULT_SPEC.num_clusters) + (given.ghost_clusters or 0)
        check_limit("values of a layer", clusters * (given.feature_size or DEFAULT_SPEC.feature_size))
    elif given.seed is not None:
        raise UsageError("--seed is for untrained weights: leave it out with a checkpoint")
    return Source(
        checkpoint=given.checkpoint,
        prefix=given.prefix,
        dialect=given.dialect,
        head_only=given.head_only,
        num_clusters=given.clusters,
        feature_size=given.feature_size,
        num_ghost_clusters=given.ghost_clusters,
        batch_norm=given.batch_norm,
        seed=given.seed or 0,
        takes=given.takes,
        backbone=given.backbone,
        changes=changes,
    )
