"""What the stages tell each other: the layer's shape, an optimization profile, a verdict.

Standard library only, so that every floor can speak these words.
"""

import enum
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from netvlad_deploy.errors import InputError, UsageError

FEATURES: Final = "features"
MASK: Final = "mask"
DESCRIPTOR: Final = "descriptor"
SOFT_ASSIGNMENT: Final = "soft_assignment"
RESIDUAL_SUM: Final = "residual_sum"
PROBES: Final = (SOFT_ASSIGNMENT, RESIDUAL_SUM)

NORM_FLOOR: Final = 1e-12
"""Every norm is clamped to at least this, as `torch.nn.functional.normalize` does."""


class Verdict(str, enum.Enum):
    """Outcome of a check. NOT_RUN is never a pass."""

    PASS = "PASS"
    FAIL = "FAIL"
    NOT_RUN = "NOT_RUN"

    @staticmethod
    def combine(verdicts: "Iterable[Verdict]") -> "Verdict":
        """Return FAIL if any failed, else NOT_RUN if any did not run or there were none, else PASS."""
        seen = set(verdicts)
        if Verdict.FAIL in seen:
            return Verdict.FAIL
        return Verdict.PASS if seen == {Verdict.PASS} else Verdict.NOT_RUN


@dataclass(frozen=True, kw_only=True)
class NetVLADSpec:
    """Shape of a NetVLAD layer: K clusters, G ghost clusters, descriptors of D*K values (index d*K + k).

    Raises: InputError if a size is out of range.
    """

    num_clusters: int
    feature_size: int
    num_ghost_clusters: int = 0
    batch_norm: bool = True
    flatten: str = "d*K+k"
    normalization: tuple[str, ...] = ("intra", "l2")

    def __post_init__(self) -> None:
        for name, least in (("num_clusters", 1), ("feature_size", 1), ("num_ghost_clusters", 0)):
            if getattr(self, name) < least:
                raise InputError(f"{name} is {getattr(self, name)}, expected at least {least}")

    @property
    def descriptor_size(self) -> int:
        """Return D*K, the length of a descriptor."""
        return self.num_clusters * self.feature_size


@dataclass(frozen=True, kw_only=True)
class AxisRange:
    """Smallest, usual and largest length of a dynamic axis.

    Raises: UsageError unless 1 <= min <= opt <= max.
    """

    min: int
    opt: int
    max: int

    def __post_init__(self) -> None:
        if not 1 <= self.min <= self.opt <= self.max:
            raise UsageError(f"range {self} is not 1 <= MIN <= OPT <= MAX")

    def __str__(self) -> str:
        return f"{self.min}:{self.opt}:{self.max}"

    @classmethod
    def parse(cls, text: str) -> "AxisRange":
        """Read `MIN:OPT:MAX`, or one number for a fixed length.

        Raises: UsageError if the text has another form.
        """
        if not re.fullmatch(r"\d+(:\d+:\d+)?", text):
            raise UsageError(f"range {text!r} is not MIN:OPT:MAX or one number, for example 1:8:64")
        numbers = [int(part) for part in text.split(":")]
        low, opt, high = numbers if len(numbers) == 3 else numbers * 3
        return cls(min=low, opt=opt, max=high)


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Optimization profile: the ranges of the two dynamic axes an engine is built for."""

    batch: AxisRange = AxisRange(min=1, opt=8, max=64)
    num_features: AxisRange = AxisRange(min=1, opt=300, max=4096)

    def __str__(self) -> str:
        return f"batch {self.batch}, num_features {self.num_features}"
