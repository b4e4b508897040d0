"""Turn images into descriptors: decoded in other threads while the runner computes, in batches of equal size."""

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from netvlad_deploy.errors import InputError
from netvlad_deploy.retrieval.batches import batches, largest_batch, run_batch, smallest_shape
from netvlad_deploy.retrieval.image_files import load_images, usable
from netvlad_deploy.runner import Runner
from netvlad_deploy.sources.image_folders import ImageFile
from netvlad_deploy.spec.images import IMAGES, ImageInput
from netvlad_deploy.spec.items import Skipped, count_reasons, printable
from netvlad_deploy.support.arrays import Array, Float32
from netvlad_deploy.support.progress import Progress

BATCH: Final = 8  # images at once
OUTSIDE: Final = "of a size outside every profile"
DESCRIPTORS_NOT_FINITE: Final = "descriptors of {runner} are not finite for {name}"


@dataclass(frozen=True, kw_only=True)
class Described:
    """Descriptors (N,P) of named images, and the files that gave none."""

    names: tuple[str, ...]
    descriptors: Float32
    skipped: tuple[Skipped, ...] = ()

    def only(self, names: AbstractSet[str]) -> "Described":
        """Return those of these names, in their order."""
        kept = [place for place, name in enumerate(self.names) if name in names]
        if len(kept) == len(self.names):
            return self
        return replace(self, names=tuple(self.names[place] for place in kept), descriptors=self.descriptors[kept])


def embed_images(
    runner: Runner,
    images: ImageInput,
    files: Sequence[ImageFile],
    *,
    batch: int = BATCH,
    skipped: Sequence[Skipped] = (),
) -> Described:
    """Return the descriptors of images in their order; `skipped` are files that were none.

    Images of equal size next to each other are computed `batch` at a time, or as many as a profile takes.

    Raises: InputError if no image is left; RunError if a descriptor is not finite.
    """
    lost = list(skipped)
    names: list[str] = []
    descriptors = np.empty((0, 0), dtype=np.float32)
    progress = Progress("embedding", len(files), "images")
    with load_images(files, images, ahead=2 * batch) as loaded:
        fitting = ((file, _fitting(runner, file, image)) for file, image in loaded)
        for group in batches(usable(fitting, lost), lambda shape: largest_batch(runner, batch, shape[:2])):
            pixels = np.stack([image for _, image in group])  # (B,H,W,3)
            values = run_batch(runner, {IMAGES: pixels}, [file.name for file, _ in group], DESCRIPTORS_NOT_FINITE)
            if not names:
                descriptors = np.empty((len(files), values.shape[1]), dtype=np.float32)
            descriptors[len(names) : len(names) + len(group)] = values
            names += [file.name for file, _ in group]
            progress.reach(len(names) + len(lost) - len(skipped))
    progress.finish()
    if not names:
        raise InputError(f"no image to embed: {count_reasons(lost) or 'none was found'}")
    return Described(names=tuple(names), descriptors=descriptors[: len(names)], skipped=tuple(lost))


def _fitting(runner: Runner, file: ImageFile, image: Array | Skipped) -> Array | Skipped:
    """Return the image (H,W,3) if it was loaded and some profile takes its size, else why it cannot be run."""
    if isinstance(image, Skipped):
        return image
    height, width = image.shape[:2]
    if smallest_shape(runner.profiles, (1, height, width)) is not None:
        return image
    profiles = "; ".join(str(profile) for profile in runner.profiles)
    detail = f"height {height}, width {width}, where the engine takes {profiles}: rebuild it with a wider --profile"
    return Skipped(path=printable(file.path), reason=OUTSIDE, detail=detail)
