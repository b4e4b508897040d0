"""What an exported graph takes and gives, in which precision it computes, and for which features that is right."""

import math
from dataclasses import dataclass
from typing import Final

from netvlad_deploy.errors import UsageError
from netvlad_deploy.spec.layer import DESCRIPTOR, FEATURES, MASK, PROBES

COARSE_STEP: Final = 0.5
"""Largest unsuspicious logit step: rounding by half of it changes an assignment by e^0.25 - 1 = 28 %."""

PRECISIONS: Final = ("fp32", "fp16")
DTYPES: Final = ("float32", "float16")
OLDEST_OPSET: Final = 17


@dataclass(frozen=True, kw_only=True)
class GraphOptions:
    """What an exported graph takes and gives, and in which precision it computes.

    Args:
        masked: add the input `mask` (batch, num_features) bool.
        probe: add the outputs `soft_assignment` (B,N,K) and `residual_sum` (B,K,D).
        opset: ONNX operator set, 17 or newer.
        precision: fp32; or fp16, where both matrix products are FP16, and softmax, sums and norms FP32.
        wide_logits: compute the logits of an FP16 graph in FP32, for features of large norm.
        input_dtype: float32 or float16, None for that of the precision.
        output_dtype: float32 or float16.
        feature_norm: norm of a usual local descriptor, for which the logit step is judged.

    Raises: UsageError if two of them contradict each other.
    """

    masked: bool = False
    probe: bool = False
    opset: int = 18
    precision: str = "fp32"
    wide_logits: bool = False
    input_dtype: str | None = None
    output_dtype: str = "float32"
    feature_norm: float = 1.0

    def __post_init__(self) -> None:
        for name, choices in (("precision", PRECISIONS), ("input_dtype", (None, *DTYPES)), ("output_dtype", DTYPES)):
            if (value := getattr(self, name)) not in choices:
                raise UsageError(f"{name} {value!r} is unknown: choose {' or '.join(filter(None, choices))}")
        if not 0 < self.feature_norm < math.inf:
            raise UsageError(f"feature_norm is {self.feature_norm}, expected a positive number")
        if not self.half and (self.wide_logits or "float16" in (self.input_dtype, self.output_dtype)):
            raise UsageError("wide logits and float16 tensors belong to --precision fp16")

    @property
    def half(self) -> bool:
        """Return whether the weighted mean is computed in FP16."""
        return self.precision == "fp16"

    @property
    def half_logits(self) -> bool:
        """Return whether the logits are computed in FP16."""
        return self.half and not self.wide_logits

    @property
    def precision_name(self) -> str:
        """Return what reports call the precision: fp32, fp16 or fp16-wide-logits."""
        return f"{self.precision}-wide-logits" if self.wide_logits else self.precision

    @property
    def inputs(self) -> tuple[str, ...]:
        """Return the names of the graph's inputs."""
        return (FEATURES, MASK) if self.masked else (FEATURES,)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Return the names of the graph's outputs."""
        return (DESCRIPTOR, *PROBES) if self.probe else (DESCRIPTOR,)

    @property
    def dtypes(self) -> dict[str, str]:
        """Return the dtype of every input and output."""
        features = self.input_dtype or ("float16" if self.half else "float32")
        known = {FEATURES: features, MASK: "bool", DESCRIPTOR: self.output_dtype}
        return {name: known.get(name, "float32") for name in (*self.inputs, *self.outputs)}


@dataclass(frozen=True, kw_only=True)
class FeatureRange:
    """How large and how small local descriptors may be.

    Args:
        norm: that of a usual local descriptor, as the export was told.
        largest: largest absolute value that overflows nowhere, None if any FP32 number may come.
        smallest: least norm of a local descriptor that is not zero, None if it may be any.
        logit_slope: largest change of a logit for a change of the features by 1: the largest norm of a weight column.
        logit_step: distance of neighbouring representable logits at `norm`, where they are largest.
        normalized: the layer L2-normalises its input, so that a logit never sees another norm than 1.
    """

    norm: float
    largest: float | None
    logit_slope: float
    logit_step: float
    normalized: bool = False
    smallest: float | None = None

    @classmethod
    def at(
        cls,
        norm: float,
        logit_slope: float,
        *,
        significant_bits: int,
        largest: float | None,
        normalized: bool = False,
        smallest: float | None = None,
    ) -> "FeatureRange":
        """Return the range of logits with this many significant bits (11 in FP16, 24 in FP32)."""
        norm = 1.0 if normalized else norm
        step = 2.0 ** (_exponent(logit_slope * norm) - significant_bits + 1) if logit_slope else 0.0
        return cls(
            norm=norm,
            largest=largest,
            logit_slope=logit_slope,
            logit_step=step,
            normalized=normalized,
            smallest=smallest,
        )

    def step_at(self, norm: float) -> float:
        """Return the logit step for local descriptors of another norm."""
        if not self.logit_step or not norm:
            return 0.0
        norm = 1.0 if self.normalized else norm
        return float(
            self.logit_step * 2.0 ** (_exponent(self.logit_slope * norm) - _exponent(self.logit_slope * self.norm))
        )


def _exponent(value: float) -> int:
    """Return the largest e with 2^e <= value."""
    return math.frexp(value)[1] - 1


@dataclass(frozen=True, kw_only=True)
class OperatorTypes:
    """How often an operator of a graph gives FP16, and how often FP32."""

    operator: str
    half: int
    single: int
