"""Turn image files into an array of descriptors."""

import contextlib
import logging
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from netvlad_deploy.errors import InputError
from netvlad_deploy.retrieval.loading import contents_of
from netvlad_deploy.retrieval.stream import describe
from netvlad_deploy.runner import Runner
from netvlad_deploy.spec.images import ImageInput
from netvlad_deploy.spec.items import Item, Skipped, count_reasons
from netvlad_deploy.support.arrays import Float32
from netvlad_deploy.support.progress import Progress

LOG = logging.getLogger(__name__)

BATCH: Final = 8  # images at once


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
    files: Sequence[Item],
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
    with contextlib.closing(describe(runner, images, contents_of(files), batch=batch)) as described:
        for item, descriptor in described:
            if isinstance(descriptor, Skipped):
                LOG.warning("skipped %s", descriptor)
                lost.append(descriptor)
            else:
                if not names:
                    descriptors = np.empty((len(files), len(descriptor)), dtype=np.float32)
                descriptors[len(names)] = descriptor
                names.append(item.name)
            progress.advance()
    if not names:
        raise InputError(f"no image to embed: {count_reasons(lost) or 'none was found'}")
    return Described(names=tuple(names), descriptors=descriptors[: len(names)], skipped=tuple(lost))
