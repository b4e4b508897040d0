"""The verb `fit`, which makes a head from images, for people who have no trained one."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from netvlad_deploy.commands.flags import BackboneName, Force, ImageFlags, Json, flags
from netvlad_deploy.commands.output import render

if TYPE_CHECKING:
    from netvlad_deploy.workflow.fit import Vocabulary


@flags
def fit(
    folders: Annotated[list[Path], typer.Argument(metavar="FOLDER", help="Folders of images, and those below.")],
    images: ImageFlags,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="TARGET", help="File to write.")] = Path(
        "vocabulary.safetensors"
    ),
    clusters: Annotated[int, typer.Option(help="Number of clusters K.")] = 64,
    backbone: BackboneName = None,
    checkpoint: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Weights of the backbone: of a NetVLAD, or a whole network.")
    ] = None,
    whitening: Annotated[
        int | None, typer.Option(metavar="P", help="Whiten descriptors to P values.  [default: no whitening]")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of samples and k-means.")] = 0,
    samples: Annotated[int, typer.Option(help="Most local descriptors of one image.")] = 300,
    force: Force = False,
    as_json: Json = False,
) -> None:
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
    render("fit", vocabulary, _lines, as_json)
    raise typer.Exit(1 if vocabulary.skipped else 0)


def _lines(done: "Vocabulary") -> list[str]:
    """Return the lines that `fit` prints."""
    from netvlad_deploy.retrieval.image_files import count_reasons

    record = done.record
    return [
        f"{done.output}  {done.clusters} clusters of {record.num_descriptors} local descriptors, "
        f"{record.num_images} images",
        f"  backbone {record.backbone}, images: {record.images}",
        f"  alpha {record.alpha:.4g}, descriptor {done.descriptor_size}",
        *([f"  {len(done.skipped)} skipped: {count_reasons(done.skipped)}"] if done.skipped else []),
    ]
