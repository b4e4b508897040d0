"""Golden inputs: images or features that a network was given when it was exported, with the descriptors it must give.

The oracle's equations and the error model are those of a NetVLAD head. For a pipeline, and for another aggregator, the
export keeps a few inputs, with the descriptors of the unfolded network in float64 and the distance of its descriptors
when it rounds as a precision does. That distance measures the effect of rounding on this network and this input. The
tolerance is

    factor * max(distance measured in the precision, floor)

The factor leaves room for sums in another order and in narrower types. A golden input is not judged if its tolerance is
above MAX_TOLERANCE, or above half the distance to the descriptor of another: it would then pass a network that mistakes
one for the other (docs/adr/0014-pipelines-and-golden-images.md).
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from netvlad_deploy.errors import ArtifactError, InputError
from netvlad_deploy.spec.images import CHANNELS, IMAGES, ImageInput
from netvlad_deploy.spec.layer import ASSIGNMENT_FEATURES, FEATURES, TOKEN
from netvlad_deploy.support.arrays import Array, Arrays, Float64, read_arrays

IMAGE_SIZES: Final = ((224, 224), (225, 257), (320, 256))
"""Heights and widths of golden images, one of them odd, within the default profile.

A resize rule that keeps an image's shape replaces the last by its own size.
"""

SMALL_IMAGE_SIZES: Final = ((96, 128), (97, 131))
"""The first two sizes under a resize rule with a fixed size: cheaper, and they show the same faults."""

FIXED_SIZE_IMAGES: Final = 2
"""Number of golden images of a backbone that takes one size alone."""

USUAL_PHOTO: Final = (480, 640)
"""Height and width of a typical photo: its size after a rule that keeps the shape is the last golden size."""

FP32: Final = "fp32"
TF32: Final = "tf32"

FP32_FACTOR, FP32_FLOOR = 16.0, 2.0**-23
"""Factor and floor of a tolerance in FP32, where one run was measured: the floor is for a run with little error."""

ELEVEN_BIT_FACTOR, ELEVEN_BIT_FLOOR = 4.0, 2.0**-12
"""Factor and floor where tensors have 11 bits (TF32, FP16): the largest distance of several roundings was measured."""

MAX_TOLERANCE: Final = 0.1
"""Largest tolerance that is judged: it allows a cosine of 0.995."""

_PREFIX: Final = "golden."
_DISTANCE: Final = "_distance"
_INPUTS: Final = (IMAGES, FEATURES, TOKEN, ASSIGNMENT_FEATURES)
_KEYS: Final = {IMAGES: "image"}
"""Name of an input in a reference file where it is another than in the graph: one image has no batch axis."""


@dataclass(frozen=True, kw_only=True)
class Golden:
    """A golden input, its descriptor (P,) in float64, and the effect of rounding by precision.

    `feeds` has an image (H,W,3) uint8 under `images`; or, for an aggregator alone, local descriptors (N,D) in FP32
    under `features`, and its other inputs by name, without the batch axis too. `distances` has, for each precision, the
    relative distance that rounding moved the unfolded network's descriptor.
    """

    feeds: Arrays
    descriptor: Float64
    distances: Mapping[str, float]

    @property
    def lengths(self) -> tuple[int, ...]:
        """Return the lengths of the dynamic axes behind the batch: height and width, or the number of features."""
        return next(iter(self.feeds.values())).shape[:-1]

    @property
    def kind(self) -> str:
        """Return the name of such inputs in reports: `golden images` or `golden features`."""
        return f"golden {next(iter(self.feeds))}"

    @property
    def name(self) -> str:
        """Return the name of the input in reports, with the lengths of its axes: `images 480x640`, `features 300`."""
        return f"{next(iter(self.feeds))} {'x'.join(map(str, self.lengths))}"

    def same_input(self, other: "Golden") -> bool:
        """Return True if two have equal inputs."""
        return self.feeds.keys() == other.feeds.keys() and all(
            np.array_equal(array, other.feeds[name]) for name, array in self.feeds.items()
        )

    def tolerance(self, precision: str) -> float:
        """Return the largest distance from the golden descriptor that rounding explains.

        Raises: ArtifactError if it was not measured for this precision.
        """
        if precision not in self.distances:
            known = ", ".join(self.distances)
            raise ArtifactError(f"golden {self.name} was measured for {known}, not for {precision}: export again")
        factor, floor = (FP32_FACTOR, FP32_FLOOR) if precision == FP32 else (ELEVEN_BIT_FACTOR, ELEVEN_BIT_FLOOR)
        return factor * max(self.distances[precision], floor)

    def doubt(self, tolerance: float, goldens: "Iterable[Golden]") -> str:
        """Return the reason against a verdict with this tolerance, empty if there is none; `goldens` are all inputs."""
        if not self.descriptor.any():
            return "its descriptor is 0, which has no direction"
        if not tolerance <= MAX_TOLERANCE:
            return f"rounding may move the descriptor by {tolerance:.2g}, more than {MAX_TOLERANCE:g} of its length"
        others = (each for each in goldens if each is not self)
        apart = min((float(distances(each.descriptor, self.descriptor)) for each in others), default=np.inf)
        if tolerance > apart / 2:
            return f"rounding may move the descriptor by {tolerance:.2g}, that of another input is {apart:.2g} away"
        return ""


def doubts(goldens: Sequence[Golden], precision: str) -> tuple[str, ...]:
    """Return one sentence if `validate` cannot judge some of the golden inputs in a precision, else nothing."""
    found = [(golden, golden.doubt(golden.tolerance(precision), goldens)) for golden in goldens]
    doubted = [(golden, doubt) for golden, doubt in found if doubt]
    if not doubted:
        return ()
    golden, doubt = max(doubted, key=lambda one: one[0].tolerance(precision))
    cure = "" if precision == FP32 or doubts(goldens, FP32) else ": export with --precision fp32"
    return (
        f"validate cannot judge {len(doubted)} of {len(goldens)} {golden.kind} in {precision}, which moved "
        f"{golden.name} by {golden.distances[precision]:.2g}: {doubt}{cure}",
    )


def distances(got: Array, expected: Array) -> Float64:
    """Return |got - expected| / |expected| for each row of descriptors (B,P); infinite where a value is not finite.

    >>> distances(np.array([[3.0, 0.0]]), np.array([[2.0, 0.0]]))
    array([0.5])
    """
    wide, wanted = got.astype(np.float64), expected.astype(np.float64)
    difference = np.where(np.isfinite(wide), wide - wanted, np.inf)
    norm = np.maximum(np.linalg.norm(wanted, axis=-1), np.finfo(np.float64).tiny)
    found: Float64 = np.linalg.norm(difference, axis=-1) / norm
    return found


def golden_sizes(images: ImageInput, *, step: int = 1) -> tuple[tuple[int, int], ...]:
    """Return the heights and widths of a pipeline's golden images: at least two.

    No size stands twice, unless the backbone takes one size alone. Lengths that the image input does not fix are
    multiples of `step`.

    >>> golden_sizes(ImageInput())
    ((224, 224), (225, 257), (320, 256))
    >>> golden_sizes(ImageInput(), step=32)
    ((224, 224), (256, 288), (320, 256))
    """
    if images.fixed and images.size is not None:
        return (images.size,) * FIXED_SIZE_IMAGES
    if images.size is not None:
        sizes = (*SMALL_IMAGE_SIZES, images.size)
    else:
        sizes = IMAGE_SIZES if images.resize.rule is None else (*IMAGE_SIZES[:-1], images.target(*USUAL_PHOTO))
    rounded = (size if size == images.size else (_up(size[0], step), _up(size[1], step)) for size in sizes)
    return tuple(dict.fromkeys(rounded))


def _up(length: int, step: int) -> int:
    """Return the least multiple of a step that is not below a length."""
    return -(-length // step) * step


def golden_image(height: int, width: int, seed: int) -> npt.NDArray[np.uint8]:
    """Return a random image (H,W,3) with shades, edges of many sizes and noise; a seed gives the same image."""
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
    return np.clip(np.round(picture), 0, 255).astype(np.uint8)


def golden_arrays(goldens: tuple[Golden, ...]) -> Arrays:
    """Return golden inputs as the arrays of a reference file."""
    arrays: Arrays = {}
    for index, golden in enumerate(goldens):
        start = f"{_PREFIX}{index}."
        arrays |= {start + _KEYS.get(name, name): array for name, array in golden.feeds.items()}
        arrays[f"{start}descriptor"] = golden.descriptor
        arrays |= {f"{start}{name}{_DISTANCE}": np.asarray(far) for name, far in golden.distances.items()}
    return arrays


def load_goldens(path: Path) -> tuple[Golden, ...]:
    """Return the golden inputs in a reference file.

    Raises: ArtifactError if there is none, or one lacks its input, descriptor or FP32 distance.
    """
    try:
        arrays = read_arrays(path, _PREFIX)
        found = tuple(_goldens(arrays if isinstance(arrays, dict) else {}))
    except InputError as error:
        raise ArtifactError(f"no golden inputs: {error}: export again") from error
    if not found:
        raise ArtifactError(f"{path} holds no golden images or features: export again")
    return found


def _goldens(arrays: Mapping[str, Array]) -> Iterator[Golden]:
    for index in itertools.count():
        start = f"{_PREFIX}{index}."
        parts = {name.removeprefix(start): array for name, array in arrays.items() if name.startswith(start)}
        feeds = {name: parts[key] for name in _INPUTS if (key := _KEYS.get(name, name)) in parts}
        if not feeds:
            return
        for name, array in feeds.items():
            _check_input(start, name, array)
        descriptor = parts.get("descriptor", np.zeros(0))
        measured = {name.removesuffix(_DISTANCE): array for name, array in parts.items() if name.endswith(_DISTANCE)}
        vector = descriptor.ndim == 1 and descriptor.size and descriptor.dtype.kind == "f"
        numbers = all(array.ndim == 0 and array.dtype.kind == "f" and array >= 0 for array in measured.values())
        if not (vector and numbers and np.isfinite([*descriptor, measured.get(FP32, np.inf)]).all()):
            raise InputError(f"golden {index} has no finite descriptor and distance")
        yield Golden(
            feeds=feeds,
            descriptor=descriptor.astype(np.float64),
            distances={name: float(array) for name, array in measured.items()},
        )


def _check_input(start: str, name: str, array: Array) -> None:
    """Raise InputError unless an array is an image, or finite values with as many axes as the input has."""
    if name == IMAGES:
        if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != CHANNELS or 0 in array.shape:
            raise InputError(f"{start}image is {array.dtype} {array.shape}, expected uint8 (height, width, {CHANNELS})")
    elif array.dtype != np.float32 or array.ndim != (1 if name == TOKEN else 2) or not np.isfinite(array).all():
        raise InputError(f"{start}{name} is {array.dtype} {array.shape}, expected finite float32 without a batch axis")
