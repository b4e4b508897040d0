"""Golden images: what a pipeline was given when it was exported, and what it had to give.

A backbone is no formula that the oracle could compute. So the export keeps, beside the head's parameters, a few images
and the descriptors of the unfolded torch module in float64, with how far that module comes out when it rounds as a
precision does. That distance says how much this network makes of rounding on this image. What is tolerated is

    factor * max(distance measured in the precision, floor)

The factor leaves room for sums in another order and for narrower sums: 16 in FP32, where that is all there is, and 4
where every tensor is rounded to 11 bits, which weighs more than any order. A golden image proves nothing where its
tolerance is above the ceiling, or where it reaches half way to the descriptor of another golden image: then it would
pass a network that takes one image for the other.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from netvlad_deploy.errors import ArtifactError, InputError
from netvlad_deploy.spec.images import CHANNELS, ImageInput
from netvlad_deploy.support.arrays import Array, Arrays, Float64, read_arrays

SIZES: Final = ((224, 224), (225, 257), (320, 256))
"""Heights and widths of golden images, one odd, in the usual profile; the last gives way to the resize rule's own."""

SMALL_SIZES: Final = ((96, 128), (97, 131))
"""The first two where the rule has one size, which alone an engine takes: cheaper, and as telling."""

USUAL_PHOTO: Final = (480, 640)
"""What a rule that keeps an image's shape is asked about."""

FP32: Final = "fp32"
TF32: Final = "tf32"

FACTOR, FLOOR = 16.0, 2.0**-23
"""Of FP32: the distance of one run, so the floor is for one that was lucky."""

NARROW_FACTOR, NARROW_FLOOR = 4.0, 2.0**-12
"""Of tensors with 11 bits: the largest distance of several roundings."""

CEILING: Final = 0.1
"""Largest tolerance worth a verdict: a cosine of 0.995."""

_PREFIX: Final = "golden."
_DISTANCE: Final = "_distance"


@dataclass(frozen=True, kw_only=True)
class Golden:
    """A golden image (H,W,3) uint8, its descriptor (P,) in float64, and by precision how far rounding moved it.

    The distances are those of the function `distances`, measured with the unfolded module.
    """

    image: npt.NDArray[np.uint8]
    descriptor: Float64
    distances: Mapping[str, float]

    @property
    def name(self) -> str:
        """Return how reports call it."""
        return f"images {self.image.shape[0]}x{self.image.shape[1]}"

    def tolerance(self, precision: str) -> float:
        """Return the largest distance from the golden descriptor that rounding explains.

        Raises: ArtifactError if it was not measured for this precision.
        """
        if precision not in self.distances:
            known = ", ".join(self.distances)
            raise ArtifactError(f"golden {self.name} was measured for {known}, not for {precision}: export again")
        factor, floor = (FACTOR, FLOOR) if precision == FP32 else (NARROW_FACTOR, NARROW_FLOOR)
        return factor * max(self.distances[precision], floor)

    def doubt(self, tolerance: float, goldens: "Iterable[Golden]") -> str:
        """Return why this tolerance would prove nothing, empty if it proves something; `goldens` are all of them."""
        if not self.descriptor.any():
            return "its descriptor is 0, which has no direction"
        if not tolerance <= CEILING:
            return f"rounding may move the descriptor by {tolerance:.2g}, more than {CEILING:g} of its length"
        others = (each for each in goldens if each is not self)
        apart = min((float(distances(each.descriptor, self.descriptor)) for each in others), default=np.inf)
        if tolerance > apart / 2:
            return f"rounding may move the descriptor by {tolerance:.2g}, that of another image is {apart:.2g} away"
        return ""


def doubts(goldens: Sequence[Golden], precision: str) -> tuple[str, ...]:
    """Return a sentence if `validate` will not be able to judge some of the golden images in a precision."""
    found = [(golden, golden.doubt(golden.tolerance(precision), goldens)) for golden in goldens]
    doubted = [(golden, doubt) for golden, doubt in found if doubt]
    if not doubted:
        return ()
    golden, doubt = max(doubted, key=lambda one: one[0].tolerance(precision))
    cure = "" if precision == FP32 or doubts(goldens, FP32) else ": export with --precision fp32"
    return (
        f"validate cannot judge {len(doubted)} of {len(goldens)} golden images in {precision}, which moved "
        f"{golden.name} by {golden.distances[precision]:.2g}: {doubt}{cure}",
    )


def distances(got: Array, expected: Array) -> Float64:
    """Return |got - expected| / |expected| of descriptors (B,P), row by row; infinite where a value is not finite."""
    given, wanted = got.astype(np.float64), expected.astype(np.float64)
    difference = np.where(np.isfinite(given), given - wanted, np.inf)
    norm = np.maximum(np.linalg.norm(wanted, axis=-1), np.finfo(np.float64).tiny)
    found: Float64 = np.linalg.norm(difference, axis=-1) / norm
    return found


def golden_sizes(images: ImageInput) -> tuple[tuple[int, int], ...]:
    """Return the heights and widths of a pipeline's golden images, each once: at least two."""
    if images.size is not None:
        sizes = (*SMALL_SIZES, images.size)
    else:
        sizes = SIZES if images.resize.rule is None else (*SIZES[:-1], images.target(*USUAL_PHOTO))
    return tuple(dict.fromkeys(sizes))


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
    arrays: Arrays = {}
    for index, golden in enumerate(goldens):
        arrays |= {f"{_PREFIX}{index}.image": golden.image, f"{_PREFIX}{index}.descriptor": golden.descriptor}
        measured = golden.distances.items()
        arrays |= {f"{_PREFIX}{index}.{name}{_DISTANCE}": np.asarray(distance) for name, distance in measured}
    return arrays


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


def _goldens(arrays: Mapping[str, Array]) -> Iterator[Golden]:
    for index in itertools.count():
        start = f"{_PREFIX}{index}."
        parts = {name.removeprefix(start): array for name, array in arrays.items() if name.startswith(start)}
        if "image" not in parts:
            return
        image, descriptor = parts["image"], parts.get("descriptor", np.zeros(0))
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != CHANNELS or 0 in image.shape:
            raise InputError(f"{start}image is {image.dtype} {image.shape}, expected uint8 (height, width, {CHANNELS})")
        measured = {name.removesuffix(_DISTANCE): array for name, array in parts.items() if name.endswith(_DISTANCE)}
        vector = descriptor.ndim == 1 and descriptor.size and descriptor.dtype.kind == "f"
        numbers = all(array.ndim == 0 and array.dtype.kind == "f" and array >= 0 for array in measured.values())
        if not (vector and numbers and np.isfinite([*descriptor, measured.get(FP32, np.inf)]).all()):
            raise InputError(f"golden {index} has no finite descriptor and distance")
        yield Golden(
            image=image,
            descriptor=descriptor.astype(np.float64),
            distances={name: float(array) for name, array in measured.items()},
        )
