"""Warnings read from folded weights before anything runs: the logit step, lost weights, dead clusters, overflow."""

import math

import torch
from torch import Tensor

from netvlad_deploy.errors import FoldError
from netvlad_deploy.export.fold_backbone import HALF_MAX
from netvlad_deploy.export.fold_head import ASSIGNMENT_FLOOR, FoldedNetVLAD
from netvlad_deploy.spec.graph_options import COARSE_STEP, FeatureRange, logit_step
from netvlad_deploy.spec.layer import FEATURES
from netvlad_deploy.spec.profiles import Profile

LARGEST_FEATURE = 65440.0
"""Largest absolute value of FP16 features. A weighted mean is at most max|x| times the sum of the rounded weights,
1 + 2^-11 + N 2^-25, and numbers from 65,520 on round to infinity in FP16: 24,000 local descriptors do not overflow."""

LARGEST_NORM = 2.0**62
"""Largest norm of a local descriptor or a centroid in FP32: the square of their difference stays below 2^126."""

LARGEST_SUM = 2.0**126
"""Largest sum that is allowed in FP32: a quarter of the largest number, which leaves room for partial sums."""

SMALLEST_NORM = 1e-15
"""Least norm, in FP32, of a vector that is averaged and squared: squares lose bits below 1e-38, norms below 1e-19."""

MOST_SUBNORMAL_LOSS = 0.01
"""Largest part of a local descriptor's norm that rounding to subnormal FP16 numbers may take."""

LEAST_VALUE = 2.0**-13
"""Least root mean square of the values of a local descriptor that an FP16 graph L2-normalises. A product with it and
a weighted mean of such are subnormal below 2^-14, and err by 2^-25; times 2, as a column's scale may be too large by 2,
that is a part 2^-11, which rounding to FP16 takes anyway."""

SMALLEST_NORMAL_HALF = 2.0**-14
"""Smallest FP16 number with all of its 11 significant bits."""


def overflow_alone(largest: float | None) -> FeatureRange:
    """Return the range of a layer that is no NetVLAD, whose features overflow beyond `largest`, None for nowhere."""
    return FeatureRange(norm=1.0, largest=largest, logit_slope=0.0, logit_step=0.0)


def audit(folded: FoldedNetVLAD, *, alone: bool = True) -> tuple[FeatureRange, tuple[str, ...]]:
    """Return the range of the features, and a sentence for each thing that may cost accuracy or memory.

    `alone` is False for the head of a pipeline, whose local descriptors come from a backbone.

    Raises: FoldError if the layer would overflow FP32 on features of the usual norm.
    """
    options = folded.options
    weight = folded.assignment_weight.double()
    if folded.assignment_scale is not None:
        weight = weight * folded.assignment_scale.double()
    norm = 1.0 if folded.spec.normalize_input else options.feature_norm
    slope = float(weight.norm(dim=0).max())
    largest, smallest = _limits(folded, norm, slope)
    feature_range = FeatureRange(
        norm=norm,
        largest=largest,
        logit_slope=slope,
        logit_step=logit_step(slope * norm, 11 if options.half_logits else 24),
        normalized=folded.spec.normalize_input,
        smallest=smallest,
    )
    findings = []
    if options.half_logits and feature_range.logit_step > COARSE_STEP:
        findings.append(
            f"FP16 logits are {feature_range.logit_step:g} apart at features of norm {norm:g}: "
            "L2-normalise them, or export with --wide-logits"
        )
    if options.wide_logits and options.dtypes[FEATURES] == "float16":
        findings.append("FP32 logits need the features in FP32: " + _cost(4 * folded.spec.feature_size, alone=alone))
    if options.half and options.dtypes[FEATURES] == "float32":
        findings.append("FP32 features are copied to FP16: " + _cost(2 * folded.spec.feature_size, alone=alone))
    if lost := _columns(_lost_to_subnormals(folded)):
        findings.append(f"weights of {lost} are so small in FP16 that they lose bits: export with --wide-logits")
    if dead := _columns(_dead(weight, folded.assignment_bias, norm)[: folded.spec.num_clusters]):
        findings.append(
            f"features of norm {norm:g} are never assigned to {dead}: that part of a descriptor is always 0"
        )
    if (largest := _largest_value(folded)) > HALF_MAX and options.output_dtype == "float16":
        findings.append(
            f"values of a descriptor may reach {largest:.3g}, FP16 ends at {HALF_MAX:g}: store it as float32"
        )
    return feature_range, tuple(findings)


def _limits(folded: FoldedNetVLAD, norm: float, slope: float) -> tuple[float, float | None]:
    """Return the largest absolute value of features, and the least norm of a nonzero local descriptor or None.

    `norm` is that of a usual local descriptor, `slope` the largest norm of a weight column.

    Raises: FoldError if centroids, logits or a projection overflow FP32.
    """
    spec, options = folded.spec, folded.options
    centroids = folded.centroids.double().norm(dim=1)
    if (most := float(centroids.max())) > LARGEST_NORM:
        raise FoldError(
            f"centroid {int(centroids.argmax())} has norm {most:.2g}, over {LARGEST_NORM:.2g} squares overflow FP32: "
            "scale features and centroids down"
        )
    bias = 0.0 if folded.assignment_bias is None else float(folded.assignment_bias.abs().max())
    if max(slope * norm, bias) > LARGEST_SUM:
        raise FoldError(
            f"logits of features of norm {norm:g} may reach {slope * norm + bias:.2g}, over {LARGEST_SUM:.2g} sums "
            "overflow FP32: scale clusters and BatchNorm down"
        )
    _check_projection(folded)
    longest = min(LARGEST_NORM, LARGEST_SUM / slope) if slope else LARGEST_NORM
    largest = 2.0 ** math.floor(math.log2(longest / math.sqrt(spec.feature_size)))
    largest = min(largest, LARGEST_FEATURE) if options.half else largest
    if spec.normalize_input:  # in FP32 the clamp of its norm covers squares that vanish
        return largest, math.sqrt(spec.feature_size) * LEAST_VALUE if options.half else None
    smallest = math.sqrt(spec.feature_size / 3) * 2.0**-25 / MOST_SUBNORMAL_LOSS if options.half else SMALLEST_NORM
    hidden = float(centroids.min()) < smallest  # longer centroids outweigh the loss in such features
    return largest, smallest if hidden else None


def _check_projection(folded: FoldedNetVLAD) -> None:
    """Check the projection and its gating.

    Raises: FoldError if either may overflow FP32.
    """
    if folded.projection is None or folded.spec.projection is None:
        return
    most = folded.projection.largest
    limit = LARGEST_NORM / math.sqrt(folded.spec.projection.size) if folded.spec.projection.l2 else LARGEST_SUM
    if most > limit:
        raise FoldError(f"the projection may reach {most:.2g}, over {limit:.2g} FP32 overflows: scale its weight down")
    length = 1.0 if folded.spec.projection.l2 else most * math.sqrt(folded.spec.projection.size)
    if folded.gating is not None and folded.gating.largest * max(length, 1.0) > LARGEST_SUM:
        raise FoldError(f"gating may reach {folded.gating.largest * length:.2g}, which overflows FP32: scale it down")


def _largest_value(folded: FoldedNetVLAD) -> float:
    """Return an upper bound of the absolute values in a descriptor; L2-normalised values are at most 1.

    Gating makes no value larger. Subnormal FP16 weights of a projection need no bound: in a row of D*K values with a
    norm over 1/2 they lose more than the others only if D*K exceeds 2^26.
    """
    projection = folded.spec.projection
    return 1.0 if projection is None or projection.bounded or folded.projection is None else folded.projection.largest


def _cost(size_bytes: int, *, alone: bool) -> str:
    """Return the cost of `size_bytes` per local descriptor, of a head also in an engine of its usual profile."""
    each = f"{size_bytes} bytes each"
    if not alone:
        return each
    return f"{each}, {size_bytes * Profile().largest / 2**20:g} MiB for {Profile().batch.max} images of the largest"


def _columns(found: Tensor) -> str:
    """Return the indices that a mask (K+G,) marks in words, such as `clusters 1, 4`; empty if it marks none."""
    indices = found.nonzero().flatten().tolist()
    if not indices:
        return ""
    listed = ", ".join(map(str, indices[:8])) + (f" and {len(indices) - 8} more" if len(indices) > 8 else "")
    return f"cluster{'s' * (len(indices) > 1)} {listed}"


def _lost_to_subnormals(folded: FoldedNetVLAD) -> Tensor:
    """Return a mask (K+G,) of the FP16 columns that lose more to subnormal weights than to normal rounding."""
    if folded.assignment_scale is None:
        return torch.zeros(0, dtype=torch.bool)
    weight = folded.assignment_weight.double()
    subnormal = (weight != 0) & (weight.abs() < SMALLEST_NORMAL_HALF)
    error = subnormal.sum(0).sqrt() * 2.0**-25
    lost: Tensor = error > weight.norm(dim=0) * 2.0**-11
    return lost


def _dead(weight: Tensor, bias: Tensor | None, norm: float) -> Tensor:
    """Return a mask (K+G,) of the columns whose assignment is below 1e-37 for all features of norm up to `norm`.

    l_k - l_j is at most |W_k - W_j| norm + b_k - b_j, and a_k at most the exponential of that, for every j.
    """
    bias = torch.zeros(weight.shape[1]) if bias is None else bias
    margin = torch.cdist(weight.T, weight.T) * norm + (bias[:, None] - bias[None, :]).double()  # [k, j]
    dead: Tensor = margin.amin(1) < math.log(ASSIGNMENT_FLOOR)
    return dead
