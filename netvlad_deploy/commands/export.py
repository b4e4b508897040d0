"""The verbs that start from weights: `export`, `adopt`, `build`, `deploy`, `precision`; and `fit`, which makes them."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from netvlad_deploy.commands import flags
from netvlad_deploy.commands.choices import one_of
from netvlad_deploy.commands.output import Shown, code_of, command_line
from netvlad_deploy.errors import UsageError
from netvlad_deploy.spec.graph_options import INPUT_KINDS, GraphOptions
from netvlad_deploy.spec.images import NO_CHANGES, ImageChanges
from netvlad_deploy.support.limits import check_limit

if TYPE_CHECKING:
    from netvlad_deploy.workflow.fit import Vocabulary
    from netvlad_deploy.workflow.source import Source


def export(
    source: flags.SourceFlags,
    images: flags.ImageFlags,
    graph: flags.GraphFlags,
    checkpoint: flags.Checkpoint = None,
    all_heads: Annotated[
        bool, typer.Option("--all-heads", help="Every NetVLAD of the checkpoint in one graph, each with its own input.")
    ] = False,
    output: flags.Output = None,
    force: flags.Force = False,
) -> Shown:
    """Turn trained weights into an ONNX file and its reference file.

    BatchNorm is folded; validate compares with the reference file, which holds the weights as they were. A checkpoint
    with an image backbone becomes one graph from image to descriptor; --input features takes its head.
    Without a checkpoint the weights are untrained. The target is CHECKPOINT.onnx, or netvlad.onnx, in this folder.
    """
    from netvlad_deploy.report.text import artifact_lines
    from netvlad_deploy.support.files import stem_of
    from netvlad_deploy.workflow.export import export as run

    target = output or Path((stem_of(checkpoint) if checkpoint else "netvlad") + ".onnx")
    given = replace(_source(checkpoint, source, images.changes), all_heads=all_heads)
    artifact = run(given, target, GraphOptions(**graph), force=force)
    return Shown(artifact, artifact_lines)


def adopt(
    source: Annotated[Path, typer.Argument(metavar="MODEL.onnx", help="An ONNX file that others made.")],
    images: flags.ImageFlags,
    graph: flags.GraphFlags,
    head: Annotated[
        str | None, typer.Option(metavar="NAME", help="Softmax or output of its NetVLAD.  [default: the only one]")
    ] = None,
    no_head: Annotated[
        bool, typer.Option("--no-head", help="Keep the whole graph as it is, NetVLAD or not; --head names its output.")
    ] = False,
    takes: Annotated[
        str | None, one_of(INPUT_KINDS, "--input", "What the graph takes; features leave the backbone out.")
    ] = None,
    mean: Annotated[str | None, typer.Option(metavar="R,G,B", help="Mean of pixels.  [default: ImageNet's]")] = None,
    std: Annotated[
        str | None, typer.Option(metavar="R,G,B", help="Deviation of pixels.  [default: ImageNet's]")
    ] = None,
    output: flags.Output = None,
    force: flags.Force = False,
) -> Shown:
    """Turn an ONNX file that others made into an artifact.

    Its NetVLAD is found, and the same network written with the head in this package's form, unless the two compute
    different descriptors. The target is MODEL-adopted.onnx in this folder.
    """
    from netvlad_deploy.report.adopt import adoption_lines
    from netvlad_deploy.support.files import stem_of
    from netvlad_deploy.workflow.adopt import AdoptOptions
    from netvlad_deploy.workflow.adopt import adopt as run

    target = output or Path(f"{stem_of(source)}-adopted.onnx")
    options = AdoptOptions(
        graph=GraphOptions(**graph),
        head=head,
        whole=no_head,
        takes=takes,
        mean=None if mean is None else flags.parse_triple(mean, "mean"),
        std=None if std is None else flags.parse_triple(std, "std"),
        changes=images.changes,
    )
    return Shown(run(source, target, options, force=force), adoption_lines)


def build(
    source: Annotated[Path, typer.Argument(metavar="MODEL.onnx", help="An exported ONNX file.")],
    engine: flags.EngineFlags,
    tuning: flags.Tuning,
    timing_cache: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Kernel timings to use and add to, shared by all builds.")
    ] = None,
    output: flags.Output = None,
    expect_sha256: flags.ExpectSha256 = None,
    force: flags.Force = False,
) -> Shown:
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
    return Shown(artifact, lambda done: [*artifact_lines(done), f"  {trtexec_line(done, timing_cache)}"])


def deploy(
    context: typer.Context,
    source: flags.SourceFlags,
    images: flags.ImageFlags,
    graph: flags.GraphFlags,
    engine: flags.EngineFlags,
    model: Annotated[
        Path | None,
        typer.Argument(
            metavar="MODEL", help="A checkpoint, or an ONNX file that is exported; without it, untrained weights."
        ),
    ] = None,
    output: flags.Folder = Path("deployment"),
    duration: flags.Duration = 3.0,
    expect_sha256: flags.ExpectSha256 = None,
    allow_not_run: flags.AllowNotRun = False,
    force: flags.Force = False,
) -> Shown:
    """Export, build, validate and measure into one folder.

    It gets report.html, report.md and report.json, too. An ONNX file is taken as it is, and needs no torch.
    """
    from netvlad_deploy.report.deploy import step_rows
    from netvlad_deploy.report.text import table
    from netvlad_deploy.workflow.deploy import deploy as deploy_all
    from netvlad_deploy.workflow.deploy import deploy_onnx

    options: dict[str, Any] = {
        "engine_options": engine.options(), "duration_s": duration, "command": command_line(), "force": force
    }  # fmt: skip
    if model is not None and model.suffix == ".onnx":
        of_export = flags.given(context, flags.SourceFlags, flags.ImageFlags, flags.GraphFlags)
        if of_export:
            raise UsageError(f"{model} is exported already, leave out what is for an export: {', '.join(of_export)}")
        deployment = deploy_onnx(model, output, expect_sha256=expect_sha256, **options)
    elif expect_sha256 is not None:
        raise UsageError("--expect-sha256 is for an ONNX file: leave it out, or name MODEL.onnx")
    else:
        deployment = deploy_all(_source(model, source, images.changes), output, GraphOptions(**graph), **options)
    lines = table(("verdict", "step", "reason"), step_rows(deployment.steps))
    return Shown(deployment, lambda _: lines, code_of(deployment.verdict, allow_not_run))


def precision(
    source: flags.SourceFlags,
    checkpoint: flags.Checkpoint = None,
    output: flags.Folder = Path("precision"),
    feature_norm: Annotated[float, typer.Option(help="Norm of a usual local descriptor, to judge FP16 by.")] = 1.0,
    force: flags.Force = False,
) -> Shown:
    """Measure what FP16 costs your weights, without a GPU.

    The folder gets report.html, report.md, report.json and a picture.
    """
    from netvlad_deploy.report.precision import precision_lines
    from netvlad_deploy.workflow.precision import precision as run

    report = run(_source(checkpoint, source), output, feature_norm=feature_norm, command=command_line(), force=force)
    return Shown(report, precision_lines)


def fit(
    folders: Annotated[list[Path], typer.Argument(metavar="FOLDER", help="Folders of images, and those below.")],
    images: flags.ImageFlags,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="TARGET", help="File to write.")] = Path(
        "vocabulary.safetensors"
    ),
    clusters: Annotated[int, typer.Option(help="Number of clusters K.")] = 64,
    backbone: flags.BackboneName = None,
    checkpoint: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Weights of the backbone: of a NetVLAD, or a whole network.")
    ] = None,
    whitening: Annotated[
        int | None, typer.Option(metavar="P", help="Whiten descriptors to P values.  [default: no whitening]")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of samples and k-means.")] = 0,
    samples: Annotated[int, typer.Option(help="Most local descriptors of one image.")] = 300,
    force: flags.Force = False,
) -> Shown:
    """Fit a vocabulary on images: a checkpoint that export takes.

    It holds the backbone and a head. Exit 1 if an image was skipped.
    """
    from netvlad_deploy.workflow import fit as fitting

    options = fitting.FitOptions(
        backbone=backbone,
        checkpoint=checkpoint,
        clusters=clusters,
        whitening=whitening,
        seed=seed,
        samples=samples,
        changes=images.changes,
    )
    vocabulary = fitting.fit(folders, output, options, force=force)
    return Shown(vocabulary, _vocabulary_lines, 1 if vocabulary.skipped else 0)


def _source(checkpoint: Path | None, given: flags.SourceFlags, changes: ImageChanges = NO_CHANGES) -> "Source":
    """Return the source of the weights as the workflow takes it.

    Raises: UsageError for an option that needs a checkpoint, or excludes one; or if the layer would be too large.
    """
    from netvlad_deploy.workflow.source import DEFAULT_SPEC, Source

    for option, value in (("prefix", given.prefix), ("dialect", given.dialect), ("head-only", given.head_only)):
        if checkpoint is None and value:
            raise UsageError(f"--{option} needs a checkpoint")
    if checkpoint is None:
        clusters = (given.clusters or DEFAULT_SPEC.num_clusters) + (given.ghost_clusters or 0)
        check_limit("values of a layer", clusters * (given.feature_size or DEFAULT_SPEC.feature_size))
    elif given.seed is not None:
        raise UsageError("--seed is for untrained weights: leave it out with a checkpoint")
    return Source(
        checkpoint=checkpoint,
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


def _vocabulary_lines(done: "Vocabulary") -> list[str]:
    """Return the lines that `fit` prints."""
    from netvlad_deploy.spec.items import count_reasons

    record = done.record
    return [
        f"{done.output}  {done.clusters} clusters of {record.num_descriptors} local descriptors, "
        f"{record.num_images} images",
        f"  backbone {record.backbone}, images: {record.images}",
        f"  alpha {record.alpha:.4g}, descriptor {done.descriptor_size}",
        *([f"  {len(done.skipped)} skipped: {count_reasons(done.skipped)}"] if done.skipped else []),
    ]
