"""Input for measuring latency: random local descriptors, or random images."""

import math
from collections.abc import Sequence
from typing import Final

import numpy as np

from netvlad_deploy.errors import UsageError
from netvlad_deploy.oracle.goldens import USUAL_PHOTO
from netvlad_deploy.runtime.open_runner import Candidate
from netvlad_deploy.spec.images import CHANNELS, IMAGES, ImageInput
from netvlad_deploy.spec.layer import FEATURES, MASK, NetVLADSpec
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

    `num_features` is 300 by default, `image_size` as the images of the first pipeline are resized.

    Raises: UsageError if the candidates take different things, or a length is of what they do not take, or the
        input is too large.
    """
    random = np.random.default_rng(seed)
    kinds = [_kind_of(candidate) for candidate in candidates]
    spec, images = kinds[0]
    if any((other is None) != (images is None) for _, other in kinds):
        raise UsageError("some take features and some take images: measure them apart")
    if images is None:
        if image_size is not None:
            raise UsageError(f"{candidates[0].path} takes features: leave the image size out")
        shape = batch, num_features or USUAL_FEATURES, spec.feature_size
        check_limit("bytes of input", math.prod(shape) * np.dtype(np.float32).itemsize)
        features = unit_rows(random.standard_normal(shape, dtype=np.float32))
        return {FEATURES: features, MASK: np.ones(features.shape[:2], dtype=np.bool_)}
    if num_features is not None:
        raise UsageError(f"{candidates[0].path} takes images: leave the number of features out")
    size = image_size or images.target(*USUAL_PHOTO)
    check_limit("bytes of input", math.prod((batch, *size, CHANNELS)))
    return {IMAGES: random.integers(0, 256, (batch, *size, CHANNELS), dtype=np.uint8)}


def _kind_of(candidate: Candidate) -> tuple[NetVLADSpec, ImageInput | None]:
    """Return the layer's spec and what a pipeline does with images. An artifact is not opened: it may not run here."""
    if candidate.artifact is not None:
        return candidate.artifact.spec, candidate.artifact.images
    with candidate.on(None).open() as runner:
        return runner.spec, None
