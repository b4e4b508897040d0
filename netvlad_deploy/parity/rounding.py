"""Rounding of numbers in each precision: the constants of the error model."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

LAMBDA = 4.0
"""Standard deviations of a rounding error that are allowed for."""

FP32_UNIT, HALF = 2.0**-24, 2.0**-11
"""Unit roundoffs of FP32 and of FP16, which TF32 shares: half the distance from 1 to the next number."""

HALF_QUANTUM = 2.0**-25
"""Half the distance of neighbouring subnormal FP16 numbers."""

TINY = float(np.finfo(np.float64).tiny)


@dataclass(frozen=True, kw_only=True)
class Rounding:
    """Unit roundoff of the layer in general, and the stages that are rounded to FP16 besides.

    `half_mean` stands for the weighted mean and for the projection.
    """

    unit: float = FP32_UNIT
    half_logits: bool = False
    half_mean: bool = False


ROUNDINGS: Mapping[str, Rounding] = MappingProxyType(
    {
        "fp32": Rounding(),
        "tf32": Rounding(unit=HALF),
        "fp16": Rounding(half_logits=True, half_mean=True),
        "fp16-wide-logits": Rounding(half_mean=True),
    }
)
