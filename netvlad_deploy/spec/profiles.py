"""Optimization profiles: smallest, usual and largest length of each dynamic axis."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import ClassVar, TypeVar

from netvlad_deploy.errors import UsageError
from netvlad_deploy.support.limits import check_limit, whole_number


@dataclass(frozen=True, kw_only=True)
class AxisRange:
    """Smallest, usual and largest length of a dynamic axis.

    Raises: UsageError unless 1 <= min <= opt <= max.

    >>> 64 in AxisRange.parse("1:8:64"), 65 in AxisRange.parse("1:8:64")
    (True, False)
    """

    min: int
    opt: int
    max: int

    def __post_init__(self) -> None:
        if not 1 <= self.min <= self.opt <= self.max:
            raise UsageError(f"range {self} is not 1 <= MIN <= OPT <= MAX")

    def __str__(self) -> str:
        return f"{self.min}:{self.opt}:{self.max}"

    def __contains__(self, length: int) -> bool:
        return self.min <= length <= self.max

    @classmethod
    def parse(cls, text: str) -> "AxisRange":
        """Read `MIN:OPT:MAX`, or one number for a fixed length.

        Raises: UsageError if the text has another form.
        """
        if not re.fullmatch(r"\d+(:\d+:\d+)?", text):
            raise UsageError(f"range {text[:40]!r} is not MIN:OPT:MAX or one number, for example 1:8:64")
        numbers = [whole_number(part) for part in text.split(":")]
        low, opt, high = numbers if len(numbers) == 3 else numbers * 3
        return cls(min=low, opt=opt, max=high)


ShapeRangesType = TypeVar("ShapeRangesType", bound="ShapeRanges")


@dataclass(frozen=True, kw_only=True)
class ShapeRanges:
    """Ranges of the dynamic axes of an input, one field for each axis, in the order of the input's shape.

    `FORM` and `EXAMPLE` show a shape in the text of a profile, and such a text.

    Raises: UsageError if the largest length of an axis, or their product, exceeds its limit.
    """

    FORM: ClassVar[str]
    EXAMPLE: ClassVar[str]

    def __post_init__(self) -> None:
        for name, lengths in self.axes.items():
            check_limit(name, lengths.max)
        check_limit("positions", self.largest)

    @classmethod
    def parse(cls: type[ShapeRangesType], text: str) -> ShapeRangesType:
        """Read the smallest, usual and largest shape, or one shape for all three, as in EXAMPLE.

        Raises: UsageError if the text has another form, or is not ordered or not within the limits.
        """
        names = [field.name for field in fields(cls)]
        shape = "x".join([r"\d+"] * len(names))
        if not re.fullmatch(f"{shape}(,{shape},{shape})?", text):
            raise UsageError(
                f"profile {text[:40]!r} is not {cls.FORM},{cls.FORM},{cls.FORM} or one shape, for example {cls.EXAMPLE}"
            )
        axes = zip(*(part.split("x") for part in text.split(",")), strict=True)
        ranges = (AxisRange.parse(":".join(lengths)) for lengths in axes)
        return cls(**dict(zip(names, ranges, strict=True)))

    @property
    def axes(self) -> dict[str, AxisRange]:
        """Return the range of each axis by its name, in the order of the input's shape."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def __str__(self) -> str:
        return ", ".join(f"{name} {lengths}" for name, lengths in self.axes.items())

    @property
    def text(self) -> str:
        """Return the ranges as `parse` reads them."""
        return ",".join("x".join(map(str, shape)) for shape in self.shapes)

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Return the smallest, usual and largest shape."""
        ranges = self.axes.values()
        return tuple(tuple(getattr(axis, bound) for axis in ranges) for bound in ("min", "opt", "max"))

    def with_fixed(self: ShapeRangesType, lengths: Mapping[str, int]) -> ShapeRangesType:
        """Return the ranges with a single length of each axis that is named.

        >>> Profile().with_fixed({"batch": 2}).text
        '2x1,2x300,2x4096'
        """
        return replace(
            self, **{name: AxisRange(min=length, opt=length, max=length) for name, length in lengths.items()}
        )

    @property
    def largest(self) -> int:
        """Return the number of positions in the largest shape, to which activation memory is proportional."""
        return math.prod(axis.max for axis in self.axes.values())

    def holds(self, *shape: int) -> bool:
        """Return True if every length of a shape is within the range of its axis."""
        return all(length in axis for length, axis in zip(shape, self.axes.values(), strict=True))


@dataclass(frozen=True, kw_only=True)
class Profile(ShapeRanges):
    """Optimization profile of a head: ranges of the batch and of the number of local descriptors.

    >>> Profile.parse("1x1,8x300,64x4096") == Profile()
    True
    >>> Profile().holds(8, 5000)
    False
    """

    FORM: ClassVar[str] = "BxN"
    EXAMPLE: ClassVar[str] = "1x1,8x300,64x4096"

    batch: AxisRange = AxisRange(min=1, opt=8, max=64)
    num_features: AxisRange = AxisRange(min=1, opt=300, max=4096)
