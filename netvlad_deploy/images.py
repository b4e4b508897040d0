"""What a pipeline takes: images of which sizes, and what is done to them before the backbone sees them.

Standard library only, like `spec`. Whoever loads an image resizes it by the rule here; the graph subtracts the mean
and divides by the deviation itself, so that every device gives the backbone the same numbers.
"""

import re
from dataclasses import dataclass
from typing import ClassVar, Final, TypeAlias

from netvlad_deploy.errors import InputError, UsageError
from netvlad_deploy.shapes import AxisRange, Profile, ShapeRanges

IMAGES: Final = "images"
"""Name of a pipeline's input (batch, height, width, 3), uint8, RGB."""

LOCAL_DESCRIPTORS: Final = "local_descriptors"
"""Name of the tensor (batch, num_features, D) in a pipeline's graph that its head takes."""

CHANNELS: Final = 3
FILTERS: Final = ("bilinear", "box")
"""How an image is resized, by the names that Pillow has for it; both average when they shrink."""

IMAGENET_MEAN: Final = (123.675, 116.28, 103.53)
IMAGENET_STD: Final = (58.395, 57.12, 57.375)
"""Mean and deviation of RGB values from 0 to 255 over ImageNet. Source: torchvision's models, times 255."""


@dataclass(frozen=True, kw_only=True)
class Resize:
    """How large an image becomes before it enters the graph.

    Args:
        size: height and width, whatever the image's own shape.
        longest: most length of the longer side, the shape kept; smaller images are not enlarged. Without either, an
            image stays as large as it is.
        filter: `bilinear` or `box`.

    Raises: InputError if both rules are given, a length is below 1 or the filter is unknown.
    """

    size: tuple[int, int] | None = None
    longest: int | None = None
    filter: str = "bilinear"

    def __post_init__(self) -> None:
        if self.size is not None and self.longest is not None:
            raise InputError("an image is resized to a size or by its longer side, not both")
        lengths = self.size or (() if self.longest is None else (self.longest,))
        if any(length < 1 for length in lengths):
            raise InputError(f"resize to {'x'.join(map(str, lengths))}: every length must be at least 1")
        if self.filter not in FILTERS:
            raise InputError(f"filter is {self.filter!r}, expected {' or '.join(FILTERS)}")

    def __str__(self) -> str:
        if self.size is not None:
            return f"to {self.size[0]}x{self.size[1]} ({self.filter})"
        return "no resize" if self.longest is None else f"longer side to {self.longest} at most ({self.filter})"

    @classmethod
    def parse(cls, text: str) -> "Resize":
        """Read `HxW`, one number for the longer side, or `none`.

        Raises: UsageError if the text has another form.
        """
        if text == "none":
            return cls()
        if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)?", text):
            raise UsageError(
                f"resize {text!r} is not HxW, one number for the longer side, or none: for example 480x640"
            )
        lengths = [int(part) for part in text.split("x")]
        return cls(size=(lengths[0], lengths[1])) if len(lengths) == 2 else cls(longest=lengths[0])

    def target(self, height: int, width: int) -> tuple[int, int]:
        """Return the height and width that an image of this height and width is given."""
        if self.size is not None:
            return self.size
        if self.longest is None:
            return height, width
        scale = min(1.0, self.longest / max(height, width))
        return max(1, round(height * scale)), max(1, round(width * scale))


@dataclass(frozen=True, kw_only=True)
class ImageInput:
    """How an image becomes a backbone's input: resized by whoever loads it, then (rgb - mean) / std in the graph.

    `mean` and `std` are of RGB values from 0 to 255.
    """

    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    resize: Resize = Resize()

    def __str__(self) -> str:
        mean, std = (", ".join(f"{value:g}" for value in values) for values in (self.mean, self.std))
        return f"{self.resize}, then (rgb - ({mean})) / ({std})"

    @property
    def usual_profile(self) -> "ImageProfile":
        """Return the optimization profile for images of the rule's one size, or of the usual sizes."""
        if self.resize.size is None:
            return USUAL_IMAGES
        height, width = (AxisRange.parse(str(length)) for length in self.resize.size)
        return ImageProfile(batch=USUAL_IMAGES.batch, height=height, width=width)


@dataclass(frozen=True, kw_only=True)
class ImageProfile(ShapeRanges):
    """Optimization profile of a pipeline."""

    FORM: ClassVar[str] = "BxHxW"
    EXAMPLE: ClassVar[str] = "1x480x640"

    batch: AxisRange
    height: AxisRange
    width: AxisRange


AnyProfile: TypeAlias = Profile | ImageProfile
"""An optimization profile of a head or of a pipeline."""


def parse_size(text: str) -> tuple[int, int]:
    """Read `HxW`.

    Raises: UsageError if the text has another form.
    """
    size = Resize.parse(text).size
    if size is None:
        raise UsageError(f"image size {text!r} is not HxW, for example 480x640")
    return size


def parse_profile(text: str) -> AnyProfile:
    """Read an optimization profile: of a head `BxN`, of a pipeline `BxHxW`, one shape or three."""
    return ImageProfile.parse(text) if text.partition(",")[0].count("x") == 2 else Profile.parse(text)


USUAL_IMAGES: Final = ImageProfile.parse("1x224x224,1x480x640,8x1024x1024")
"""The profile of a pipeline whose images come in any size."""
