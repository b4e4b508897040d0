"""What a pipeline takes: images of which sizes, and what is done to them before the backbone sees them.

Standard library only, like `spec`. Whoever loads an image prepares it by the rule here; the graph subtracts the mean
and divides by the deviation itself, so that every device gives the backbone the same numbers.
"""

import math
import re
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Final, TypeAlias

from netvlad_deploy.errors import InputError, UsageError
from netvlad_deploy.spec.profiles import AxisRange, Profile, ShapeRanges
from netvlad_deploy.support.limits import LIMITS, range_words

IMAGES: Final = "images"
"""Name of a pipeline's input (batch, height, width, 3), uint8, RGB."""

LOCAL_DESCRIPTORS: Final = "local_descriptors"
"""Name of the tensor (batch, num_features, D) in a pipeline's graph that its head takes."""

CHANNELS: Final = 3

BILINEAR: Final = "bilinear"
BOX: Final = "box"
ANTIALIASED: Final = "bilinear-antialiased"
ALIASED: Final = "bilinear-aliased"
AREA: Final = "area"
NEAREST: Final = "nearest"
FILTERS: Final = (BILINEAR, ANTIALIASED, ALIASED, AREA, BOX, NEAREST)
"""How an image is resized.

`bilinear` and `box` are Pillow's on bytes: both average when they shrink. `bilinear-antialiased` and `bilinear-aliased`
are torch's on tensors, the second takes four pixels however much it shrinks. `area` is OpenCV's, fractions of pixels
weighed. `nearest` is torch's.
"""

MAX_PIXELS: Final = 89_478_485
"""Larger images are not decoded, nor made. Source: Pillow's own limit, above which it warns: a quarter GiB of RGB."""

LEAST_SIDE, MOST_SIDE = 16, 16_384
"""Lengths that can be asked for: below, a backbone of stride 16 has nothing left; no photo is longer."""

IMAGENET_MEAN: Final = (123.675, 116.28, 103.53)
IMAGENET_STD: Final = (58.395, 57.12, 57.375)
"""Mean and deviation of RGB values from 0 to 255 over ImageNet. Source: torchvision's models, times 255."""

RULES: Final = {(None, 2): "size", (None, 1): "longest", ("shorter:", 1): "shortest", ("cover:", 2): "cover"}
"""Which rule of `Resize` a text means, by the word before its numbers and how many they are."""

Size: TypeAlias = tuple[int, int]
"""A height and a width."""


@dataclass(frozen=True, kw_only=True)
class Resize:
    """How large an image becomes before it enters the graph; without a rule it stays as large as it is.

    Args:
        size: height and width, whatever the image's own shape.
        longest: most length of the longer side, the shape kept, rounded; smaller images are not enlarged.
        shortest: length of the shorter side, the shape kept, the longer side rounded down; smaller images are enlarged.
        cover: height and width that the image, its shape kept, just covers; smaller images are enlarged.
        filter: one of FILTERS; None for the dialect's own, or `bilinear`.

    Raises: InputError if several rules are given, a length is below 1 or the filter is unknown.

    Source: `longest` as hloc's extract_features.py rounds it, `shortest` as torchvision's `resize` of one number,
    `cover` as the deep visual geo-localization benchmark's `central_crop`.
    """

    size: Size | None = None
    longest: int | None = None
    shortest: int | None = None
    cover: Size | None = None
    filter: str | None = None

    def __post_init__(self) -> None:
        rules = [rule for rule in (self.size, self.longest, self.shortest, self.cover) if rule is not None]
        if len(rules) > 1:
            raise InputError("an image is resized by one rule: to a size, by its longer or shorter side, or to cover")
        lengths = [length for rule in rules for length in (rule if isinstance(rule, tuple) else (rule,))]
        if any(length < 1 for length in lengths):
            raise InputError(f"resize to {'x'.join(map(str, lengths))}: every length must be at least 1")
        if self.filter not in (None, *FILTERS):
            raise InputError(f"filter is {self.filter!r}, expected {', '.join(FILTERS[:-1])} or {FILTERS[-1]}")

    def __str__(self) -> str:
        for rule, words in (
            (_text(self.size), "to {}"),
            (_text(self.cover), "to cover {}"),
            (self.longest, "longer side to {} at most"),
            (self.shortest, "shorter side to {}"),
        ):
            if rule is not None:
                return f"{words.format(rule)} ({self.kernel})"
        return "no resize"

    @property
    def rule(self) -> Size | int | None:
        """Return the length or lengths it goes by, None if images stay as large as they are."""
        return self.size or self.longest or self.shortest or self.cover

    @property
    def kernel(self) -> str:
        """Return the filter, `bilinear` where none is named."""
        return self.filter or BILINEAR

    @classmethod
    def parse(cls, text: str) -> "Resize":
        """Read `HxW`, `N` for the longer side, `shorter:N`, `cover:HxW` or `none`, with or without `,FILTER`.

        Raises: UsageError if the text has another form or a length is out of range.
        """
        rule, comma, kernel = text.partition(",")
        if comma and kernel not in FILTERS:
            raise UsageError(f"resize {_short(text)} names another filter than {', '.join(FILTERS)}")
        if rule == "none":
            return cls(filter=kernel or None)
        found = re.fullmatch(r"(shorter:|cover:)?([1-9][0-9]*)(?:x([1-9][0-9]*))?", rule)
        kind, *digits = found.groups() if found else ("", None, None)
        sides = [_length(side, text) for side in digits if side is not None]
        field = RULES.get((kind, len(sides)))
        if field is None:
            raise UsageError(
                f"resize {_short(text)} is not HxW, one number for the longer side, shorter:N, cover:HxW or none: "
                "for example 480x640"
            )
        if math.prod(sides) > MAX_PIXELS:
            raise UsageError(f"resize {_short(text)} makes {math.prod(sides)} pixels, at most {MAX_PIXELS} are made")
        lengths: Any = sides[0] if len(sides) == 1 else tuple(sides)
        return cls(**{field: lengths}, filter=kernel or None)

    def target(self, height: int, width: int) -> Size:
        """Return the height and width that an image of this height and width is given."""
        if self.size is not None:
            return self.size
        if self.longest is not None:
            scale = min(1.0, self.longest / max(height, width))
            return max(1, round(height * scale)), max(1, round(width * scale))
        if self.shortest is not None:
            long = max(1, self.shortest * max(height, width) // min(height, width))
            return (self.shortest, long) if height <= width else (long, self.shortest)
        if self.cover is not None:
            least_height, least_width = self.cover
            if least_height * width >= least_width * height:
                return least_height, least_height * width // height
            return least_width * height // width, least_width
        return height, width

    def factor(self, height: int, width: int) -> float | None:
        """Return by what both sides of an image are multiplied, None where the rule says lengths and no factor."""
        return None if self.cover is None else max(self.cover[0] / height, self.cover[1] / width)

    def may_hold(self, height: int, width: int) -> bool:
        """Return whether an image can be this high and wide at least once it is resized."""
        size = self.size or self.cover
        if size is not None:
            return height <= size[0] and width <= size[1]
        if self.shortest is not None:
            return min(height, width) <= self.shortest
        return self.longest is None or max(height, width) <= self.longest


def _text(size: Size | None) -> str | None:
    return None if size is None else f"{size[0]}x{size[1]}"


def _short(text: str) -> str:
    """Return what was typed, cut where nobody would read on."""
    return repr(text if len(text) <= 40 else text[:40] + "...")


def _length(digits: str, text: str) -> int:
    """Return a length in its range.

    Raises: UsageError.
    """
    length = int(digits) if len(digits) <= len(str(MOST_SIDE)) else MOST_SIDE + 1
    if not LEAST_SIDE <= length <= MOST_SIDE:
        raise UsageError(f"{_short(text)}: every length must be from {LEAST_SIDE} to {MOST_SIDE} pixels")
    return length


@dataclass(frozen=True, kw_only=True)
class ImageInput:
    """How an image becomes a backbone's input: prepared by whoever loads it, then (rgb - mean) / std in the graph.

    Args:
        mean, std: of RGB values from 0 to 255.
        resize: how large it becomes.
        crop: height and width of the middle that is cut out after the resize, None for all of it.
        orient: whether the EXIF orientation turns it upright; else its pixels stay as they are stored.
        depth: how many bits of a grey value in a file of 16 or 32 bits are used, None for all 16.

    Raises: InputError if the crop is larger than the size, or the depth is unknown.
    """

    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    resize: Resize = Resize()
    crop: Size | None = None
    orient: bool = True
    depth: int | None = None

    def __post_init__(self) -> None:
        if self.crop is not None and min(self.crop) < 1:
            raise InputError(f"crop is {_text(self.crop)}: every length must be at least 1")
        if self.crop is not None and not self.resize.may_hold(*self.crop):
            raise InputError(f"no image holds the crop {_text(self.crop)} after the resize {self.resize}: crop less")
        if self.depth is not None and not LIMITS["depth"].holds(self.depth):
            raise InputError(f"depth is {self.depth}, expected {range_words('depth')} bits")

    def __str__(self) -> str:
        mean, std = (", ".join(f"{value:g}" for value in values) for values in (self.mean, self.std))
        return f"{self.preparation}, then (rgb - ({mean})) / ({std})"

    @property
    def preparation(self) -> str:
        """Return in words what is done before the graph."""
        steps = [
            None if self.depth is None else f"grey values of {self.depth} bits",
            "upright by EXIF" if self.orient else "pixels as stored",
            str(self.resize),
            None if self.crop is None else f"the middle {_text(self.crop)}",
        ]
        return ", ".join(step for step in steps if step)

    @property
    def size(self) -> Size | None:
        """Return the height and width that every image has in the end, None if they differ."""
        return self.crop or self.resize.size

    def target(self, height: int, width: int) -> Size:
        """Return the height and width of an image of this height and width in the end."""
        return self.crop or self.resize.target(height, width)

    @property
    def usual_profile(self) -> "ImageProfile":
        """Return the optimization profile for images of the rule's one size, or of the usual sizes."""
        if self.size is None:
            return USUAL_IMAGES
        height, width = (AxisRange.parse(str(length)) for length in self.size)
        return ImageProfile(batch=USUAL_IMAGES.batch, height=height, width=width)


@dataclass(frozen=True, kw_only=True)
class ImageChanges:
    """What the user asks for in place of a dialect's or a backbone's own rule; None leaves a thing as it is."""

    resize: Resize | None = None
    crop: Size | None = None
    orient: bool | None = None
    depth: int | None = None

    @classmethod
    def parse(cls, resize: str | None, crop: str | None, orient: bool | None, depth: int | None) -> "ImageChanges":
        """Read the options of the command line.

        Raises: UsageError if a text has another form.
        """
        return cls(
            resize=None if resize is None else Resize.parse(resize),
            crop=None if crop is None else parse_size(crop, "crop"),
            orient=orient,
            depth=depth,
        )

    @classmethod
    def to(cls, images: ImageInput) -> "ImageChanges":
        """Return the changes that lead from a rule to this one again; what is None here was None there."""
        return cls(**{field.name: getattr(images, field.name) for field in fields(cls)})

    def __bool__(self) -> bool:
        return any(getattr(self, field.name) is not None for field in fields(self))

    def on(self, images: ImageInput) -> ImageInput:
        """Return the rule with the changes; a resize without a filter keeps the rule's own.

        Raises: UsageError if they do not fit together.
        """
        given = {field.name: value for field in fields(self) if (value := getattr(self, field.name)) is not None}
        if self.resize is not None:
            given["resize"] = replace(self.resize, filter=self.resize.filter or images.resize.filter)
        try:
            return replace(images, **given)
        except InputError as error:
            raise UsageError(str(error)) from error


NO_CHANGES: Final = ImageChanges()


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


def parse_size(text: str, what: str = "image size") -> Size:
    """Read `HxW`.

    Raises: UsageError if the text has another form or a length is out of range.
    """
    size = Resize.parse(text).size if re.fullmatch(r"[1-9][0-9]*x[1-9][0-9]*", text) else None
    if size is None:
        raise UsageError(f"{what} {_short(text)} is not HxW, for example 480x640")
    return size


def parse_profile(text: str) -> AnyProfile:
    """Read an optimization profile: of a head `BxN`, of a pipeline `BxHxW`, one shape or three."""
    return ImageProfile.parse(text) if text.partition(",")[0].count("x") == 2 else Profile.parse(text)


USUAL_IMAGES: Final = ImageProfile.parse("1x224x224,1x480x640,8x1024x1024")
"""The profile of a pipeline whose images come in any size."""
