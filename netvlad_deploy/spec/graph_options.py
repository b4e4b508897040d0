"""Options of an exported graph: inputs, outputs and precision; and the range of features for which it is accurate.

The fields of `GraphOptions` are the table of graph options, from which the command line is made.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from netvlad_deploy.errors import UsageError
from netvlad_deploy.spec.build_options import option
from netvlad_deploy.spec.images import IMAGES
from netvlad_deploy.spec.layer import DESCRIPTOR, FEATURES, MASK, PROBES
from netvlad_deploy.spec.layouts import LAYOUTS, UINT8
from netvlad_deploy.spec.tensors import parse_names
from netvlad_deploy.support.limits import check_choice

COARSE_STEP: Final = 0.5
"""Logit step above which a warning is due: rounding by half a step then changes an assignment by e^0.25 - 1 = 28 %."""

LARGEST_SCALE: Final = 2.0**15
"""Largest factor of an FP16 weight by which a layer L2-normalises: a local descriptor over this many times shorter than
the mean one of its image counts for less. Also the largest mean norm that the weights are scaled by. Both are half of
where FP16 ends."""

PRECISIONS: Final = ("fp32", "fp16")
GRAPH_DTYPES: Final = ("float32", "float16")
INPUT_KINDS: Final = (IMAGES, FEATURES)
OLDEST_OPSET: Final = 17


@dataclass(frozen=True, kw_only=True)
class GraphOptions:
    """Inputs, outputs and precision of an exported graph.

    Args:
        precision: fp32; or fp16, where both matrix products are FP16, and softmax, sums and norms FP32.
        wide_logits: compute the logits of an FP16 graph in FP32, for features of large norm.
        feature_norm: norm of a usual local descriptor, for which the logit step is judged.
        input_dtype: float32 or float16, None for that of the precision.
        output_dtype: float32 or float16.
        masked: add the input `mask` (batch, num_features) bool.
        probe: add the outputs `soft_assignment` (B,N,K) and `residual_sum` (B,K,D).
        opset: ONNX operator set, 17 or newer.
        layout: how images lie in the input of a pipeline, one of LAYOUTS.
        tensor_names: names of the input and output of a pipeline, None for `images` and `descriptor`.

    Raises: UsageError if two of them contradict each other.

    >>> options = GraphOptions(precision="fp16", wide_logits=True, masked=True)
    >>> options.precision_name, options.inputs
    ('fp16-wide-logits', ('features', 'mask'))
    >>> options.dtypes
    {'features': 'float16', 'mask': 'bool', 'descriptor': 'float32'}
    """

    precision: str = option(
        "fp32", "--precision", "FP16 for both matrix products, or FP32 for all.", choices=PRECISIONS
    )
    wide_logits: bool = option(False, "--wide-logits", "FP32 logits in an FP16 graph, for features of large norm.")
    feature_norm: float = option(1.0, "--feature-norm", "Norm of a usual local descriptor, to judge FP16 by.")
    input_dtype: str | None = option(
        None, "--input-dtype", "Type of the features.  [default: the precision's own]", choices=GRAPH_DTYPES
    )
    output_dtype: str = option("float32", "--output-dtype", "Type of the descriptor.", choices=GRAPH_DTYPES)
    masked: bool = option(False, "--masked", "Take a mask, for padded features.")
    probe: bool = option(False, "--probe", "Also give soft_assignment and residual_sum.")
    opset: int = option(18, "--opset", "ONNX operator set, 17 or newer.")
    layout: str = option(
        UINT8,
        "--layout",
        "How images lie in the input: uint8 RGB, or float32 from 0 to 255, in RGB or grey, channels last or first.",
        choices=tuple(LAYOUTS),
    )
    tensor_names: str | None = option(
        None, "--tensor-names", "Names of a pipeline's input and output, such as image:0,descriptor:0."
    )

    def __post_init__(self) -> None:
        known = {
            "precision": PRECISIONS,
            "input_dtype": GRAPH_DTYPES,
            "output_dtype": GRAPH_DTYPES,
            "layout": tuple(LAYOUTS),
        }
        if self.tensor_names is not None:
            parse_names(self.tensor_names)
        for name, choices in known.items():
            if (value := getattr(self, name)) is not None:
                check_choice(name, value, choices)
        if not 0 < self.feature_norm < math.inf:
            raise UsageError(f"feature_norm is {self.feature_norm}, expected a positive number")
        if not self.half and (self.wide_logits or "float16" in (self.input_dtype, self.output_dtype)):
            raise UsageError("wide logits and float16 tensors belong to --precision fp16")

    @property
    def pipeline_names(self) -> dict[str, str]:
        """Return the names of a pipeline's input and output in the file, by their own."""
        own = (IMAGES, DESCRIPTOR)
        return dict(zip(own, parse_names(self.tensor_names) if self.tensor_names else own, strict=True))

    @property
    def half(self) -> bool:
        """Return True if the weighted mean is computed in FP16."""
        return self.precision == "fp16"

    @property
    def half_logits(self) -> bool:
        """Return True if the logits are computed in FP16."""
        return self.half and not self.wide_logits

    @property
    def precision_name(self) -> str:
        """Return the name of the precision in reports: fp32, fp16 or fp16-wide-logits."""
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
        """Return the dtype of every input and output by its name."""
        features = self.input_dtype or ("float16" if self.half else "float32")
        known = {FEATURES: features, MASK: "bool", DESCRIPTOR: self.output_dtype}
        return {name: known.get(name, "float32") for name in (*self.inputs, *self.outputs)}


@dataclass(frozen=True, kw_only=True)
class FeatureRange:
    """Range of local descriptors for which a graph is accurate.

    Args:
        norm: norm of a usual local descriptor, as given to the export.
        largest: largest absolute value that overflows nowhere, None if every FP32 number is allowed.
        smallest: least norm of a local descriptor that is not zero, None if every norm is allowed.
        logit_slope: largest change of a logit per unit of a local descriptor: the largest norm of a weight column.
        logit_step: distance between neighbouring representable logits at `norm`, where they are largest.
        normalized: the layer L2-normalises its input, so that logits always belong to norm 1.
    """

    norm: float
    largest: float | None
    logit_slope: float
    logit_step: float
    normalized: bool = False
    smallest: float | None = None

    @property
    def spread(self) -> float | None:
        """Return how many times as long as a local descriptor the mean one of its image may be, None if any times.

        An FP16 layer that L2-normalises has such a limit, which is also the only one of these with a `smallest`.
        """
        return LARGEST_SCALE if self.normalized and self.smallest is not None else None

    def step_at(self, norm: float) -> float:
        """Return the logit step for local descriptors of this norm."""
        if not self.logit_step or not norm:
            return 0.0
        norm = 1.0 if self.normalized else norm
        return float(
            self.logit_step * 2.0 ** (_exponent(self.logit_slope * norm) - _exponent(self.logit_slope * self.norm))
        )


@dataclass(frozen=True, kw_only=True)
class HeadsRange(FeatureRange):
    """The range of each of several heads by name; its own fields are a range within which all of them are accurate."""

    heads: Mapping[str, FeatureRange]

    @classmethod
    def of(cls, heads: Mapping[str, FeatureRange]) -> "HeadsRange":
        """Return the range of several heads: the narrowest limits, and the logits of the head with the coarsest."""
        coarsest = max(heads.values(), key=lambda each: each.logit_step)
        return cls(
            norm=coarsest.norm,
            largest=min((each.largest for each in heads.values() if each.largest is not None), default=None),
            smallest=max((each.smallest for each in heads.values() if each.smallest is not None), default=None),
            logit_slope=coarsest.logit_slope,
            logit_step=coarsest.logit_step,
            normalized=coarsest.normalized,
            heads=heads,
        )


def logit_step(largest: float, significant_bits: int) -> float:
    """Return the distance between neighbouring logits up to `largest`, of 11 significant bits in FP16 or 24 in FP32.

    >>> logit_step(224.0, 11)
    0.125
    """
    return 2.0 ** (_exponent(largest) - significant_bits + 1) if largest else 0.0


def _exponent(value: float) -> int:
    """Return the largest whole e with 2^e <= value."""
    return math.frexp(value)[1] - 1


@dataclass(frozen=True, kw_only=True)
class OperatorTypes:
    """Numbers of nodes of one operator whose result is FP16 (`half`) and FP32 (`single`)."""

    operator: str
    half: int
    single: int
