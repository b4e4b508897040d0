"""The verb `fit`: a vocabulary from folders of images, in a checkpoint that `export` takes.

Local descriptors of every image are sampled, clustered, and become a head under the backbone that made them. With
whitening the images are seen a second time, by the head.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from netvlad_deploy.errors import InputError, UsageError
from netvlad_deploy.retrieval.batches import batches
from netvlad_deploy.retrieval.loading import load_images, usable
from netvlad_deploy.sources.image_folders import find_images
from netvlad_deploy.spec.images import NO_CHANGES, ImageChanges
from netvlad_deploy.spec.items import Item, Skipped, count_reasons
from netvlad_deploy.spec.layer import NetVLADSpec
from netvlad_deploy.support.arrays import Array, Arrays, Float32
from netvlad_deploy.support.files import check_suffix, check_targets, stage_files
from netvlad_deploy.support.progress import Progress
from netvlad_deploy.support.require import installed_version, require

if TYPE_CHECKING:
    from netvlad_deploy.models.pipeline import Pipeline
    from netvlad_deploy.models.vocabulary import VocabularyRecord

Compute: TypeAlias = Callable[["Pipeline", Array], Float32]
"""A function that returns rows of values for images (B,H,W,3)."""

LOG = logging.getLogger(__name__)

SUFFIX = ".safetensors"
LEAST_CLUSTERS = 2
SAMPLES = 300
"""Local descriptors of one image, unless more is asked for: all of a 240x320 image at stride 16."""

MOST_DESCRIPTORS = 200_000
"""Local descriptors of all images together, so that many images do not fill the memory."""

MOST_WHITENED = 8192
"""Images that whitening is fitted on: of more, as many are drawn."""

MAX_BATCH_PIXELS = 1 << 20
"""Pixels of all the images that a backbone sees at once; one larger image goes alone."""


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """Options of `fit`.

    Args:
        backbone: a name of `models.backbones`, `package.module:callable`, or None for that of the checkpoint.
        checkpoint: where the backbone's weights are, None for those that it brings.
        clusters: K, at least 2.
        whitening: number of values of a descriptor after whitening, None for no whitening.
        samples: most local descriptors of one image.
        changes: preparation of images that differs from that of the backbone's own code.

    Raises: UsageError if a number is out of range.

    >>> FitOptions(backbone="dinov2-s", clusters=16).whitening is None  # the descriptor stays D*K long
    True
    """

    backbone: str | None = None
    checkpoint: Path | None = None
    clusters: int = 64
    whitening: int | None = None
    seed: int = 0
    samples: int = SAMPLES
    changes: ImageChanges = NO_CHANGES

    def __post_init__(self) -> None:
        for name, value, least in (
            ("clusters", self.clusters, LEAST_CLUSTERS),
            ("whitening", self.whitening, 1),
            ("samples", self.samples, 1),
        ):
            if value is not None and value < least:
                raise UsageError(f"{name} is {value}, expected at least {least}")


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """The file that `fit` wrote, the record in it, and the files that could not be used."""

    output: Path
    record: "VocabularyRecord"
    clusters: int
    descriptor_size: int
    skipped: tuple[Skipped, ...]


def fit(folders: Sequence[Path], target: Path, options: FitOptions, *, force: bool = False) -> Vocabulary:
    """Fit a vocabulary on the images of folders, and write it with its backbone; the file is complete or not there.

    With the pixels themselves as local descriptors:

    >>> from PIL import Image
    >>> Path("photos").mkdir()
    >>> for number in range(3):
    ...     Image.effect_noise((24, 16), 50).convert("RGB").save(f"photos/{number}.png")
    >>> options = FitOptions(backbone="torch.nn:Identity", clusters=2)
    >>> fit([Path("photos")], Path("v.safetensors"), options).descriptor_size
    6

    Raises: InputError if there are no usable images or too few; UsageError if the target exists, or nothing says which
        backbone; MissingDependencyError.
    """
    check_targets(check_suffix(target, SUFFIX), force=force)
    for package, extra in (("torch", "export"), ("safetensors", "export"), ("sklearn", "fit"), ("PIL", "images")):
        require(package, extra=extra)
    from netvlad_deploy.models import vocabulary
    from netvlad_deploy.models.assembly import read_backbone
    from netvlad_deploy.models.netvlad import initialize
    from netvlad_deploy.models.vocabulary import VocabularyRecord

    with stage_files(force=force) as staging:
        files, skipped = _find(folders)
        ready = read_backbone(options.backbone, options.checkpoint, changes=options.changes)
        blank = ready.under(initialize(NetVLADSpec(num_clusters=1, feature_size=ready.width), options.seed))
        points, used = _sample(blank, files, options, skipped)
        LOG.info("k-means: %d local descriptors of %d images, %d clusters", len(points), len(used), options.clusters)
        centroids = vocabulary.fit_clusters(points, options.clusters, options.seed)
        alpha = vocabulary.sharpness(points, centroids)
        state = vocabulary.head_state(centroids, alpha)
        pipeline = ready.under(vocabulary.head_module(state))
        if options.whitening is not None:
            state |= _whitening(pipeline, used, options.whitening, options.seed)
        versions = {name: installed_version(name) or "" for name in ("scikit-learn", "torch", "netvlad-deploy")}
        record = VocabularyRecord(
            backbone=ready.name, images=ready.images, num_images=len(used), num_descriptors=len(points),
            seed=options.seed, alpha=alpha, versions=versions,
        )  # fmt: skip
        staging.write(target, _content({**state, **vocabulary.backbone_state(pipeline)}, record))
    return Vocabulary(
        output=target,
        record=record,
        clusters=options.clusters,
        descriptor_size=options.whitening or pipeline.head.spec.descriptor_size,
        skipped=tuple(skipped),
    )


def _content(tensors: Arrays, record: "VocabularyRecord") -> bytes:
    """Return the bytes of a safetensors file, which takes the memory of arrays as it is: rows first."""
    rows_first = {name: np.asarray(tensor, order="C") for name, tensor in tensors.items()}
    content: bytes = require("safetensors.numpy", extra="export").save(rows_first, metadata=record.metadata())
    return content


def _find(folders: Sequence[Path]) -> tuple[list[Item], list[Skipped]]:
    """Return the images of folders, of which two may have the same name, and the files that cannot be taken."""
    found = [find_images([folder]) for folder in folders]
    skipped = [one for _, others in found for one in others]
    files = [file for images, _ in found for file in images]
    if not files:
        raise InputError(f"no image in {', '.join(map(str, folders))}: {count_reasons(skipped) or 'none was found'}")
    return files, skipped


def _sample(
    pipeline: "Pipeline", files: Sequence[Item], options: FitOptions, skipped: list[Skipped]
) -> tuple[Float32, list[Item]]:
    """Return some L2-normalised local descriptors (M,D) of every image, and the images that have been used."""
    from netvlad_deploy.models.vocabulary import local_descriptors

    most = max(1, min(options.samples, MOST_DESCRIPTORS // len(files)))
    points: list[Float32] = []
    used: list[Item] = []
    for names, rows in _by_batches(pipeline, files, local_descriptors, "local descriptors", skipped):
        for name, own in zip(names, rows, strict=True):
            random = np.random.default_rng((options.seed, len(used)))
            points.append(own[random.permutation(len(own))[:most]])
            used.append(name)
    if not used:
        raise InputError(f"no image to fit a vocabulary on: {count_reasons(skipped) or 'none was found'}")
    return np.concatenate(points), used


def _whitening(pipeline: "Pipeline", files: Sequence[Item], size: int, seed: int) -> Arrays:
    """Return the projection fitted on the descriptors of the images."""
    from netvlad_deploy.models.vocabulary import descriptors, fit_whitening

    if len(files) > MOST_WHITENED:
        drawn = np.random.default_rng(seed).choice(len(files), MOST_WHITENED, replace=False)
        files = [files[index] for index in sorted(drawn)]
    if len(files) <= size:
        raise InputError(f"whitening to {size} values needs more than {size} images, got {len(files)}: ask for fewer")
    rows = [each for _, each in _by_batches(pipeline, files, descriptors, "descriptors", [])]
    LOG.info("whitening: %d descriptors to %d values", len(files), size)
    return fit_whitening(np.concatenate(rows), size)


def _by_batches(
    pipeline: "Pipeline", files: Sequence[Item], compute: Compute, rows_name: str, skipped: list[Skipped]
) -> Iterator[tuple[list[Item], Float32]]:
    """Yield the files of neighbouring images of one shape and the rows computed from them.

    The rows are called `rows_name` where the progress is said.
    """
    progress = Progress(rows_name, len(files), "images")
    done, before = 0, len(skipped)
    with load_images(files, pipeline.images) as loaded:
        for group in batches(usable(loaded, skipped), lambda shape: MAX_BATCH_PIXELS // (shape[0] * shape[1])):
            yield [file for file, _ in group], compute(pipeline, np.stack([image for _, image in group]))
            done += len(group)
            progress.reach(done + len(skipped) - before)
    progress.finish()
