"""How an image becomes the input of a pipeline: resize, crop, orientation, depth, mean and deviation.

Who loads an image resizes and crops it by these rules. The graph subtracts the mean and divides by the deviation, so
that the backbone gets the same numbers on every device.
"""

import math
import re
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Final, TypeAlias

from netvlad_deploy.errors import InputError, UsageError
from netvlad_deploy.spec.layouts import LAYOUTS, UINT8
from netvlad_deploy.spec.profiles import AxisRange, Profile, ShapeRanges
from netvlad_deploy.support.limits import LIMITS, range_words, whole_number

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
BICUBIC: Final = "bicubic"
LANCZOS: Final = "lanczos"
NEAREST_CENTRE: Final = "nearest-centre"
FILTERS: Final = (BILINEAR, ANTIALIASED, ALIASED, AREA, BOX, NEAREST, BICUBIC, LANCZOS, NEAREST_CENTRE)
"""Filters that resize an image.

`bilinear`, `box`, `bicubic` and `lanczos` are Pillow's on bytes: they average when they shrink. `bilinear-antialiased`
and `bilinear-aliased` are torch's on tensors; the second reads four pixels however much it shrinks. `area` is OpenCV's,
which weighs fractions of pixels. `nearest` is torch's, `nearest-centre` Pillow's, which takes the pixel under the
centre of the new one.
"""

PILLOW_FILTERS: Final = {
    **{name: name.upper() for name in (BILINEAR, BOX, BICUBIC, LANCZOS)},
    NEAREST_CENTRE: "NEAREST",
}
"""By filter, its name in Pillow's `Resampling`."""

MAX_PIXELS: Final = 89_478_485
"""Most pixels of an image that is decoded or made: a quarter GiB of RGB. Source: Pillow, which warns above this."""

LEAST_SIDE, MOST_SIDE = 16, 16_384  # below, a backbone of stride 16 has no output; above, there are no photos

IMAGENET_MEAN: Final = (123.675, 116.28, 103.53)
IMAGENET_STD: Final = (58.395, 57.12, 57.375)
"""Mean and deviation of RGB values from 0 to 255 over ImageNet. Source: torchvision's models, times 255."""

RULE_FIELDS: Final = {(None, 2): "size", (None, 1): "longest", ("shorter:", 1): "shortest", ("cover:", 2): "cover"}
"""Field of `Resize` that a text sets, by the word before its numbers and the count of the numbers."""

Size: TypeAlias = tuple[int, int]  # a height and a width


@dataclass(frozen=True, kw_only=True)
class Resize:
    """The rule for an image's size before it enters the graph; without a rule it stays as large as it is.

    Args:
        size: height and width; the image is stretched to them.
        longest: most length of the longer side; the shape is kept, rounded, and smaller images are not enlarged.
        shortest: length of the shorter side; the shape is kept, rounded down, and smaller images are enlarged.
        cover: height and width that the image just covers; the shape is kept, and smaller images are enlarged.
        filter: one of FILTERS; None for the dialect's own, or `bilinear`.

    Raises: InputError if several rules are given, a length is below 1 or the filter is unknown.

    Source: `longest` as hloc's extract_features.py rounds it, `shortest` as torchvision's `resize` of one number,
    `cover` as the deep visual geo-localization benchmark's `central_crop`.

    >>> Resize.parse("480").target(height=600, width=800)
    (360, 480)
    >>> str(Resize.parse("cover:224x224,box"))
    'to cover 224x224 (box)'
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
        """Return the length or lengths of the rule, None if images stay as large as they are."""
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
        sides = [whole_number(side) for side in digits if side is not None]
        if not all(LEAST_SIDE <= side <= MOST_SIDE for side in sides):
            raise UsageError(f"{_short(text)}: every length must be from {LEAST_SIDE} to {MOST_SIDE} pixels")
        field = RULE_FIELDS.get((kind, len(sides)))
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
            by_height = least_height * width >= least_width * height
            if by_height:
                return least_height, least_height * width // height
            return least_width * height // width, least_width
        return height, width

    def factor(self, height: int, width: int) -> float | None:
        """Return the factor by which `cover` multiplies both sides of an image; None under the other rules."""
        return None if self.cover is None else max(self.cover[0] / height, self.cover[1] / width)

    def may_hold(self, height: int, width: int) -> bool:
        """Return False if no resized image can be at least this high and wide."""
        size = self.size or self.cover
        if size is not None:
            return height <= size[0] and width <= size[1]
        if self.shortest is not None:
            return min(height, width) <= self.shortest
        return self.longest is None or max(height, width) <= self.longest


def _text(size: Size | None) -> str | None:
    return None if size is None else f"{size[0]}x{size[1]}"


def _short(text: str) -> str:
    """Return a user's text in quotes, cut after 40 characters."""
    return repr(text if len(text) <= 40 else text[:40] + "...")


@dataclass(frozen=True, kw_only=True)
class ImageInput:
    """The way from an image to a backbone's input: prepared when it is loaded, then (rgb - mean) / std in the graph.

    Args:
        mean: mean of R, G and B from 0 to 255.
        std: deviation of R, G and B from 0 to 255.
        resize: the rule for its size.
        crop: height and width of the middle that is kept after the resize, None for all of it.
        orient: turn the image upright as its EXIF orientation says; else its pixels stay as they are stored.
        depth: bits of a grey value that are used in a file of 16 or 32 bits, None for all 16.
        fixed: the backbone takes images of the one `size` alone.
        layout: how prepared images lie in the graph's input, one of LAYOUTS.

    Raises: InputError if the crop is larger than the size, or the depth or the layout is unknown.

    >>> ImageInput(resize=Resize.parse("240x320"), crop=(224, 224)).target(480, 640)
    (224, 224)
    """

    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    resize: Resize = Resize()
    crop: Size | None = None
    orient: bool = True
    depth: int | None = None
    fixed: bool = False
    layout: str = UINT8

    def __post_init__(self) -> None:
        if self.layout not in LAYOUTS:
            raise InputError(f"layout is {self.layout[:40]!r}, expected {', '.join(LAYOUTS)}")
        if self.fixed and self.size is None:
            raise InputError(f"images of one size alone need a size or a crop, the resize is {self.resize}")
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
        """Return in words the steps before the graph."""
        steps = [
            None if self.depth is None else f"grey values of {self.depth} bits",
            "upright by EXIF" if self.orient else "pixels as stored",
            str(self.resize),
            None if self.crop is None else f"the middle {_text(self.crop)}",
        ]
        return ", ".join(step for step in steps if step)

    @property
    def size(self) -> Size | None:
        """Return the height and width of every prepared image, None if they depend on the image."""
        return self.crop or self.resize.size

    def target(self, height: int, width: int) -> Size:
        """Return the height and width, once prepared, of an image of this height and width."""
        return self.crop or self.resize.target(height, width)

    @property
    def usual_profile(self) -> "ImageProfile":
        """Return the optimization profile for the one size of prepared images, or for the usual sizes."""
        if self.size is None:
            return USUAL_IMAGES
        height, width = (AxisRange.parse(str(length)) for length in self.size)
        return ImageProfile(batch=USUAL_IMAGES.batch, height=height, width=width)

    def check_taken(self, *sizes: Size) -> None:
        """Raise InputError unless the graph takes these heights and widths: the one size alone if fixed, else any."""
        for size in sizes:
            if self.fixed and size != self.size:
                alone = f"images of {_text(size)} are not taken, the backbone is for {_text(self.size)} alone"
                raise InputError(f"{alone}: export again with --resize {_text(size)}")


@dataclass(frozen=True, kw_only=True)
class ImageChanges:
    """Fields of ImageInput that a user gives in place of a dialect's or a backbone's own; None keeps theirs."""

    resize: Resize | None = None
    crop: Size | None = None
    orient: bool | None = None
    depth: int | None = None

    @classmethod
    def to(cls, images: ImageInput) -> "ImageChanges":
        """Return the changes that give `images` again when they are applied to the rule that it was made from."""
        return cls(**{field.name: getattr(images, field.name) for field in fields(cls)})

    def __bool__(self) -> bool:
        return any(getattr(self, field.name) is not None for field in fields(self))

    def on(self, images: ImageInput) -> ImageInput:
        """Return `images` with the changes; a resize without a filter keeps the filter of `images`.

        A resize to a size is the size of the image then: the crop of `images`, which followed its own resize, is left
        out.

        Raises: UsageError if the result contradicts itself, such as a crop larger than the size.
        """
        given = {field.name: value for field in fields(self) if (value := getattr(self, field.name)) is not None}
        if self.resize is not None:
            given["resize"] = replace(self.resize, filter=self.resize.filter or images.resize.filter)
            if self.resize.size is not None and self.crop is None:
                given["crop"] = None
        try:
            return replace(images, **given)
        except InputError as error:
            raise UsageError(str(error)) from error


NO_CHANGES: Final = ImageChanges()


@dataclass(frozen=True, kw_only=True)
class ImageProfile(ShapeRanges):
    """Optimization profile of a pipeline: ranges of the batch and of the images' height and width."""

    FORM: ClassVar[str] = "BxHxW"
    EXAMPLE: ClassVar[str] = "1x480x640"

    batch: AxisRange
    height: AxisRange
    width: AxisRange


AnyProfile: TypeAlias = Profile | ImageProfile


def parse_size(text: str, name: str = "image size") -> Size:
    """Read `HxW`, which an error calls `name`.

    Raises: UsageError if the text has another form or a length is out of range.
    """
    size = Resize.parse(text).size if re.fullmatch(r"[1-9][0-9]*x[1-9][0-9]*", text) else None
    if size is None:
        raise UsageError(f"{name} {_short(text)} is not HxW, for example 480x640")
    return size


def parse_profile(text: str) -> AnyProfile:
    """Read an optimization profile, of a head in shapes `BxN`, of a pipeline in shapes `BxHxW`.

    Raises: UsageError if the text has another form, or is not ordered or not within the limits.

    >>> parse_profile("1x480x640")
    ImageProfile(batch=AxisRange(min=1, opt=1, max=1), height=AxisRange(min=480, ...), width=AxisRange(min=640, ...))
    """
    return ImageProfile.parse(text) if text.partition(",")[0].count("x") == 2 else Profile.parse(text)


USUAL_IMAGES: Final = ImageProfile.parse("1x224x224,1x480x640,8x1024x1024")
"""Usual profile of a pipeline whose images differ in size."""
