"""A photo as the pipelines take it: loaded from its file, or refused."""

from pathlib import Path

import numpy as np

from netvlad_deploy.retrieval.loading import load_images
from netvlad_deploy.spec.images import ImageInput
from netvlad_deploy.spec.items import Item, Skipped
from netvlad_deploy.support.arrays import Array

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)


def load(path: Path, prepared: ImageInput | None = None) -> Array | Skipped:
    with load_images(
        [Item(path=path, name=path.name, size_bytes=0, modified_ns=0)], prepared or ImageInput()
    ) as loaded:
        ((_, image),) = loaded
    return image


def taken(path: Path, prepared: ImageInput | None = None) -> Array:
    image = load(path, prepared)
    assert isinstance(image, np.ndarray), image
    assert image.dtype == np.uint8
    return image


def refused(path: Path, prepared: ImageInput | None = None) -> Skipped:
    image = load(path, prepared)
    assert isinstance(image, Skipped)
    return image
