"""What every candidate of a latency measurement is fed."""

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from netvlad_deploy.errors import UsageError
from netvlad_deploy.oracle.goldens import USUAL_PHOTO
from netvlad_deploy.runner import Feeds
from netvlad_deploy.runtime.open_runner import Candidate
from netvlad_deploy.spec.images import CHANNELS, IMAGES, ImageInput
from netvlad_deploy.spec.layer import FEATURES, MASK, AnySpec, NetVLADSpec, input_shape
from netvlad_deploy.spec.profiles import Profile
from netvlad_deploy.support.arrays import Arrays, unit_rows
from netvlad_deploy.support.limits import check_limit

USUAL_FEATURES: Final = Profile().num_features.opt


def random_feeds(
    candidates: Sequence[Candidate],
    batch: int,
    num_features: int | None,
    image_size: tuple[int, int] | None,
    *,
    seed: int = 0,
) -> Arrays:
    """Return L2-normalised features (B,N,D) and a full mask for heads, or images (B,H,W,3) for pipelines.

    Each of several heads gets features of its own, as many as the others.

    `num_features` is 300 by default, `image_size` as the images of the first pipeline are resized.

    Raises: UsageError if some candidates take features and some images, if a length is given that they do not take, or
        if the input is too large.
    """
    random = np.random.default_rng(seed)
    kinds = [_kind_of(candidate) for candidate in candidates]
    spec, images = kinds[0]
    if any((other is None) != (images is None) for _, other in kinds):
        raise UsageError("some take features and some take images: measure them apart")
    if images is None:
        if image_size is not None:
            raise UsageError(f"{candidates[0].path} takes features: leave the image size out")
        lengths = batch, num_features or USUAL_FEATURES
        names = (FEATURES,) if isinstance(spec, NetVLADSpec) else spec.inputs
        shapes = {name: input_shape(spec, name, lengths) for name in names}
        check_limit("bytes of input", sum(map(math.prod, shapes.values())) * np.dtype(np.float32).itemsize)
        feeds: Arrays = {
            name: unit_rows(random.standard_normal(shape, dtype=np.float32)) for name, shape in shapes.items()
        }
        return {**feeds, MASK: np.ones(lengths, dtype=np.bool_)}
    if num_features is not None:
        raise UsageError(f"{candidates[0].path} takes images: leave the number of features out")
    size = image_size or images.target(*USUAL_PHOTO)
    check_limit("bytes of input", math.prod((batch, *size, CHANNELS)))
    return {IMAGES: random.integers(0, 256, (batch, *size, CHANNELS), dtype=np.uint8)}


def lengths_of(feeds: Feeds) -> dict[str, Any]:
    """Return `batch`, and of heads `num_features`, of pipelines `image_size`; what they do not have is None."""
    images, main = feeds.get(IMAGES), next(iter(feeds.values()))
    return {
        "batch": len(main),
        "num_features": main.shape[1] if images is None else None,
        "image_size": None if images is None else (images.shape[1], images.shape[2]),
    }


def _kind_of(candidate: Candidate) -> tuple[AnySpec, ImageInput | None]:
    """Return the layer's spec, and a pipeline's preparation of images; no artifact is opened: it may not run here."""
    if candidate.artifact is not None:
        return candidate.artifact.spec, candidate.artifact.images
    with candidate.on(None).open() as runner:
        return runner.spec, None
