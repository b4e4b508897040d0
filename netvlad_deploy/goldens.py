"""Golden images: what a pipeline was given when it was exported, and what it had to give.

A backbone is no formula that the oracle could compute. So the export keeps, beside the head's parameters, a few images
and the descriptors of the unfolded torch module in float64, with how far the same module in FP32 is from them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from netvlad_deploy.arrays import Array, Arrays, Float64, read_arrays
from netvlad_deploy.errors import ArtifactError, InputError
from netvlad_deploy.images import CHANNELS, ImageInput

SIZES: Final = ((224, 224), (225, 257), (320, 256))
"""Heights and widths of golden images, one odd, in the usual profile; the last gives way to the resize rule's own."""

SMALL_SIZES: Final = ((96, 128), (97, 131))
"""The first two where the rule has one size, which alone an engine takes: cheaper, and as telling."""

USUAL_PHOTO: Final = (480, 640)
"""What a rule that keeps an image's shape is asked about."""

_PREFIX: Final = "golden."
_KEY: Final = _PREFIX + "{index}.{part}"


@dataclass(frozen=True, kw_only=True)
class Golden:
    """A golden image (H,W,3) uint8, its descriptor in float64, and the distance of FP32 from it.

    `fp32_distance` is that of `distances`, measured with the unfolded module.
    """

    image: npt.NDArray[np.uint8]
    descriptor: Float64
    fp32_distance: float

    @property
    def name(self) -> str:
        """Return how reports call it."""
        return f"images {self.image.shape[0]}x{self.image.shape[1]}"


def distances(got: Array, expected: Array) -> Float64:
    """Return |got - expected| / |expected| of descriptors (B,P), row by row; infinite where a value is not finite."""
    wide, wanted = got.astype(np.float64), expected.astype(np.float64)
    difference = np.where(np.isfinite(wide), wide - wanted, np.inf)
    norm = np.maximum(np.linalg.norm(wanted, axis=-1), np.finfo(np.float64).tiny)
    found: Float64 = np.linalg.norm(difference, axis=-1) / norm
    return found


def golden_sizes(images: ImageInput) -> tuple[tuple[int, int], ...]:
    """Return the heights and widths of a pipeline's golden images."""
    if images.size is not None:
        return (*SMALL_SIZES, images.size)
    return SIZES if images.resize.rule is None else (*SIZES[:-1], images.target(*USUAL_PHOTO))


def golden_image(height: int, width: int, seed: int) -> npt.NDArray[np.uint8]:
    """Return a picture (H,W,3) with what photos have, shades, edges of many sizes and noise; the same for a seed."""
    random = np.random.default_rng(seed)
    y, x = np.linspace(0, 1, height)[:, None, None], np.linspace(0, 1, width)[None, :, None]
    picture = np.full((height, width, CHANNELS), 128.0)
    for cycles in (0.5, 1.5, 4.0):
        turn, phase = random.uniform(0, 2 * np.pi, (2, CHANNELS))
        picture += 40 / cycles * np.cos(2 * np.pi * cycles * (x * np.cos(turn) + y * np.sin(turn)) + phase)
    for _ in range(24):
        centre_y, centre_x, radius = random.uniform((0, 0, 0.02), (1, 1, 0.2))
        across, along = (x - centre_x) * random.uniform(0.5, 2), (y - centre_y) * random.uniform(0.5, 2)
        round_shape = across**2 + along**2 < radius**2
        square = (np.abs(across) < radius) & (np.abs(along) < radius)
        inside = round_shape if random.uniform() < 0.5 else square
        picture = np.where(inside, 0.3 * picture + 0.7 * random.uniform(0, 255, CHANNELS), picture)
    picture += random.normal(0, 6, picture.shape)
    pixels: npt.NDArray[np.uint8] = np.clip(np.round(picture), 0, 255).astype(np.uint8)
    return pixels


def golden_arrays(goldens: tuple[Golden, ...]) -> Arrays:
    """Return goldens as arrays of a reference file."""
    return {
        _KEY.format(index=index, part=part): np.asarray(getattr(golden, part))
        for index, golden in enumerate(goldens)
        for part in ("image", "descriptor", "fp32_distance")
    }


def load_goldens(path: Path) -> tuple[Golden, ...]:
    """Read the golden images of a reference file.

    Raises: ArtifactError if there is none, or an array is not what a golden has.
    """
    try:
        arrays = read_arrays(path, _PREFIX)
        found = tuple(_goldens(arrays if isinstance(arrays, dict) else {}))
    except InputError as error:
        raise ArtifactError(f"no golden images: {error}: export again") from error
    if not found:
        raise ArtifactError(f"{path} holds no golden images: export again")
    return found


def _goldens(arrays: Mapping[str, Array]) -> list[Golden]:
    found: list[Golden] = []
    while (key := _KEY.format(index=len(found), part="image")) in arrays:
        image = arrays[key]
        descriptor, distance = (
            arrays.get(_KEY.format(index=len(found), part=part), np.zeros(0))
            for part in ("descriptor", "fp32_distance")
        )
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != CHANNELS or 0 in image.shape:
            raise InputError(f"{key} is {image.dtype} {image.shape}, expected uint8 (height, width, {CHANNELS})")
        sound = descriptor.ndim == 1 and descriptor.size and distance.ndim == 0
        if not sound or not (np.isfinite(descriptor).all() and 0 <= distance < np.inf):
            raise InputError(f"golden {len(found)} has no finite descriptor and distance")
        found.append(Golden(image=image, descriptor=descriptor.astype(np.float64), fp32_distance=float(distance)))
    return found
