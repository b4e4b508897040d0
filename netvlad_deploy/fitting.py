"""The verb `fit`: a vocabulary from folders of images, in a checkpoint that `export` takes.

Local descriptors of every image are sampled, clustered, and become a head under the backbone that made them. With
whitening the images are seen a second time, by the head.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from netvlad_deploy.arrays import Array, Arrays, Float32
from netvlad_deploy.errors import InputError, UsageError
from netvlad_deploy.files import check_suffix, stage_files
from netvlad_deploy.images import Resize
from netvlad_deploy.require import installed_version, require
from netvlad_deploy.spec import NetVLADSpec

if TYPE_CHECKING:
    from netvlad_deploy.models.pipeline import Pipeline
    from netvlad_deploy.models.record import VocabularyRecord

LOG = logging.getLogger(__name__)

SUFFIX = ".safetensors"
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
LEAST_CLUSTERS = 2
SAMPLES = 300
"""Local descriptors of one image, unless more is asked for: all of a 240x320 image at stride 16."""

MOST_DESCRIPTORS = 200_000
"""Local descriptors of all images together, so that many images do not fill the memory."""

MOST_WHITENED = 8192
"""Images that whitening is fitted on: of more, as many are drawn."""

PIXELS = 1 << 20
"""Of the images that a backbone sees at once."""


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """How a vocabulary is fitted.

    Args:
        backbone: a name of `models.backbones`, `package.module:callable`, or None for that of the checkpoint.
        checkpoint: where the backbone's weights are, None for those that it brings.
        clusters: K, at least 2.
        whitening: how many values a descriptor has after whitening, None for no whitening.
        seed: of the samples and of k-means.
        samples: most local descriptors of one image.
        resize: what is done to an image first, None for the backbone's own.

    Raises: UsageError if a number is out of range.
    """

    backbone: str | None = None
    checkpoint: Path | None = None
    clusters: int = 64
    whitening: int | None = None
    seed: int = 0
    samples: int = SAMPLES
    resize: Resize | None = None

    def __post_init__(self) -> None:
        for name, value, least in (
            ("clusters", self.clusters, LEAST_CLUSTERS),
            ("whitening", self.whitening, 1),
            ("samples", self.samples, 1),
        ):
            if value is not None and value < least:
                raise UsageError(f"{name} is {value}, expected at least {least}")


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """An image that could not be used, and why."""

    path: Path
    reason: str


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """What `fit` wrote, and its record of it."""

    output: Path
    record: "VocabularyRecord"
    clusters: int
    descriptor_size: int
    skipped: tuple[Skipped, ...]


def fit(folders: Sequence[Path], target: Path, options: FitOptions, *, force: bool = False) -> Vocabulary:
    """Fit a vocabulary on the images of folders, and write it with its backbone; the file is complete or not there.

    Raises: InputError if there are no usable images or too few; UsageError if the target exists, or nothing says which
        backbone; MissingDependencyError.
    """
    for package, extra in (("torch", "export"), ("safetensors", "export"), ("sklearn", "fit"), ("PIL", "fit")):
        require(package, extra=extra)
    from netvlad_deploy.models import vocabulary
    from netvlad_deploy.models.assembly import read_backbone
    from netvlad_deploy.models.netvlad import initialize
    from netvlad_deploy.models.record import VocabularyRecord

    with stage_files(force=force) as staging:
        staging.check(check_suffix(target, SUFFIX))
        paths = find_images(folders)
        ready = read_backbone(options.backbone, options.checkpoint, resize=options.resize)
        blank = ready.under(initialize(NetVLADSpec(num_clusters=1, feature_size=ready.width), options.seed))
        skipped: list[Skipped] = []
        points, used = _sample(blank, paths, options, skipped)
        LOG.info("k-means: %d local descriptors of %d images, %d clusters", len(points), len(used), options.clusters)
        centroids = vocabulary.fit_clusters(points, options.clusters, options.seed)
        alpha = vocabulary.sharpness(points, centroids)
        state = vocabulary.head_state(centroids, alpha)
        pipeline = ready.under(vocabulary.head_module(state))
        if options.whitening is not None:
            state |= _whitening(pipeline, used, options.whitening, options.seed)
        record = VocabularyRecord(
            backbone=ready.name,
            images=ready.images,
            num_images=len(used),
            num_descriptors=len(points),
            seed=options.seed,
            alpha=alpha,
            versions={name: installed_version(name) or "" for name in ("scikit-learn", "torch", "netvlad-deploy")},
        )
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


def find_images(folders: Sequence[Path]) -> list[Path]:
    """Return the images in folders and below, in order.

    Raises: InputError if there is none, or a folder is not there.
    """
    for folder in folders:
        if not folder.is_dir():
            raise InputError(f"{folder} is not a folder")
    paths = [
        path
        for folder in folders
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()
    ]
    if not paths:
        raise InputError(f"no images in {', '.join(map(str, folders))}: expected {', '.join(IMAGE_SUFFIXES)}")
    return paths


def load(path: Path, resize: Resize) -> Array:
    """Return an image (H,W,3), uint8, RGB, upright and resized by the rule.

    Raises: InputError if it cannot be read.
    """
    pillow = require("PIL.Image", extra="fit")
    operations = require("PIL.ImageOps", extra="fit")
    try:
        with pillow.open(path) as file:
            image = operations.exif_transpose(file).convert("RGB")
            height, width = resize.target(image.height, image.width)
            if (image.height, image.width) != (height, width):
                image = image.resize((width, height), pillow.Resampling[resize.filter.upper()])
            return np.asarray(image)
    except (OSError, SyntaxError, ValueError, pillow.DecompressionBombError) as error:
        raise InputError(f"{path} is no readable image: {error}") from error


def _sample(
    pipeline: "Pipeline", paths: list[Path], options: FitOptions, skipped: list[Skipped]
) -> tuple[Float32, list[Path]]:
    """Return some L2-normalised local descriptors (M,D) of every image, and the images that have been used."""
    from netvlad_deploy.models.vocabulary import local_descriptors

    most = max(1, min(options.samples, MOST_DESCRIPTORS // len(paths)))
    points: list[Float32] = []
    used: list[Path] = []
    for names, rows in _by_batches(pipeline, paths, local_descriptors, "local descriptors", skipped):
        for name, own in zip(names, rows, strict=True):
            random = np.random.default_rng((options.seed, len(used)))
            points.append(own[random.permutation(len(own))[:most]])
            used.append(name)
    if not used:
        raise InputError(f"none of {len(paths)} images can be used: {skipped[0].path}: {skipped[0].reason}")
    return np.concatenate(points), used


def _whitening(pipeline: "Pipeline", paths: list[Path], size: int, seed: int) -> Arrays:
    """Return the projection fitted on the descriptors of the images."""
    from netvlad_deploy.models.vocabulary import descriptors, fit_whitening

    if len(paths) > MOST_WHITENED:
        drawn = np.random.default_rng(seed).choice(len(paths), MOST_WHITENED, replace=False)
        paths = [paths[index] for index in sorted(drawn)]
    if len(paths) <= size:
        raise InputError(f"whitening to {size} values needs more than {size} images, got {len(paths)}: ask for fewer")
    rows = [each for _, each in _by_batches(pipeline, paths, descriptors, "descriptors", [])]
    LOG.info("whitening: %d descriptors to %d values", len(paths), size)
    return fit_whitening(np.concatenate(rows), size)


def _by_batches(
    pipeline: "Pipeline",
    paths: list[Path],
    compute: Callable[["Pipeline", Array], Float32],
    what: str,
    skipped: list[Skipped],
) -> Iterator[tuple[list[Path], Float32]]:
    """Yield what is computed of images of one shape at once, and say how far it is."""
    done, said = 0, 0
    for names, images in _batches(paths, pipeline.images.resize, skipped):
        yield names, compute(pipeline, images)
        done += len(names)
        if 10 * (done - said) >= len(paths) or done + len(skipped) == len(paths):
            said = done
            LOG.info("%s: %d of %d images", what, done, len(paths))


def _batches(paths: list[Path], resize: Resize, skipped: list[Skipped]) -> Iterator[tuple[list[Path], Array]]:
    """Yield neighbouring images of one shape together, as many as PIXELS allows."""
    names: list[Path] = []
    images: list[Array] = []
    for path in paths:
        try:
            image = load(path, resize)
        except InputError as error:
            LOG.warning("skipped: %s", error)
            skipped.append(Skipped(path=path, reason=str(error)))
            continue
        if images and (image.shape != images[0].shape or (len(images) + 1) * image[..., 0].size > PIXELS):
            yield names, np.stack(images)
            names, images = [], []
        names.append(path)
        images.append(image)
    if images:
        yield names, np.stack(images)
