"""Turn images into descriptors: decoded in other threads while the runner computes, in batches of equal size."""

import logging
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from netvlad_deploy.errors import InputError, RunError
from netvlad_deploy.retrieval.image_files import ImageFile, LoadedImage, Skipped, count_reasons, load_images, printable
from netvlad_deploy.runner import Runner
from netvlad_deploy.spec.images import IMAGES, ImageInput, ImageProfile
from netvlad_deploy.spec.layer import DESCRIPTOR
from netvlad_deploy.spec.profiles import AxisRange
from netvlad_deploy.support.arrays import Array, Float32

LOG = logging.getLogger(__name__)

BATCH: Final = 8
OUTSIDE: Final = "of a size outside every profile"
PROGRESS_S: Final = 10.0
ANY: Final = AxisRange(min=1, opt=1, max=sys.maxsize)


@dataclass(frozen=True)
class Embedded:
    """Descriptors (N,P) of named images, and the files that gave none."""

    names: tuple[str, ...]
    descriptors: Float32
    skipped: tuple[Skipped, ...]


def embed_images(
    runner: Runner,
    images: ImageInput,
    files: Sequence[ImageFile],
    *,
    batch: int = BATCH,
    skipped: Sequence[Skipped] = (),
) -> Embedded:
    """Return the descriptors of images in their order; `skipped` are files that were none.

    Images of equal size next to each other are computed `batch` at a time, or as many as a profile takes.

    Raises: InputError if no image is left; RunError if a descriptor is not finite.
    """
    lost = list(skipped)
    names: list[str] = []
    descriptors = np.empty((0, 0), dtype=np.float32)
    shown = time.monotonic()
    with load_images(files, images, ahead=2 * batch) as loaded:
        for group in _batches(loaded, runner, batch, lost):
            values = _run(runner, [image for _, image in group], [file.name for file, _ in group])
            if not names:
                descriptors = np.empty((len(files), values.shape[1]), dtype=np.float32)
            descriptors[len(names) : len(names) + len(group)] = values
            names += [file.name for file, _ in group]
            if time.monotonic() - shown > PROGRESS_S:
                shown = time.monotonic()
                LOG.info("%d of %d images", len(names) + len(lost) - len(skipped), len(files))
    if not names:
        raise InputError(f"no image to embed: {count_reasons(lost) or 'none was found'}")
    return Embedded(tuple(names), descriptors[: len(names)], tuple(lost))


def _batches(
    loaded: Iterable[LoadedImage], runner: Runner, batch: int, lost: list[Skipped]
) -> Iterator[list[tuple[ImageFile, Array]]]:
    """Yield runs of images of equal size, none longer than a profile takes; what cannot be run joins `lost`."""
    group: list[tuple[ImageFile, Array]] = []
    for file, pixels in loaded:
        image = pixels if isinstance(pixels, Skipped) else _fitting(runner, file, pixels)
        if isinstance(image, Skipped):
            LOG.warning("skipped %s", image)
            lost.append(image)
            continue
        if group and (group[0][1].shape != image.shape or len(group) == _largest_batch(runner, image, batch)):
            yield group
            group = []
        group.append((file, image))
    if group:
        yield group


def _batch_ranges(runner: Runner, image: Array) -> list[AxisRange]:
    """Return how many images of this size (H,W,3) each profile takes that takes the size; without profiles, any."""
    if not runner.profiles:
        return [ANY]
    profiles = [profile for profile in runner.profiles if isinstance(profile, ImageProfile)]
    return [each.batch for each in profiles if image.shape[0] in each.height and image.shape[1] in each.width]


def _largest_batch(runner: Runner, image: Array, asked: int) -> int:
    return min(asked, max(axis.max for axis in _batch_ranges(runner, image)))


def _fitting(runner: Runner, file: ImageFile, image: Array) -> Array | Skipped:
    """Return the image if some profile takes its size, else why it cannot be run."""
    if _batch_ranges(runner, image):
        return image
    height, width = image.shape[:2]
    profiles = "; ".join(str(profile) for profile in runner.profiles)
    detail = f"height {height}, width {width}, where the engine takes {profiles}: rebuild it with a wider --profile"
    return Skipped(path=printable(file.path), reason=OUTSIDE, detail=detail)


def _run(runner: Runner, images: Sequence[Array], names: Sequence[str]) -> Array:
    """Return one descriptor for each image; where every profile wants more of them, the last one is repeated."""
    ranges = _batch_ranges(runner, images[0])
    size = min(max(len(images), axis.min) for axis in ranges if len(images) <= axis.max)
    batch = np.stack([*images, *[images[-1]] * (size - len(images))])
    descriptors = runner.run({IMAGES: batch})[DESCRIPTOR][: len(images)]
    finite = np.isfinite(descriptors).all(axis=1)
    if not finite.all():
        raise RunError(f"descriptors of {runner.name} are not finite for {names[int(finite.argmin())]}")
    return descriptors
