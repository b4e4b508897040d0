"""The distance that a correct runner may have from the oracle: a rounding-error model, evaluated case by case.

The tolerance of every cluster follows from the oracle's values. docs/error-model.md derives each formula, in the
symbols that the docstrings below name: N local descriptors x_n of D values, K centroids c_k, weights w_nk = a_nk / A_k.
Source of the bound: Higham & Mary 2019, "A New Approach to Probabilistic Rounding Error Analysis".
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from netvlad_deploy.oracle import equations
from netvlad_deploy.oracle.equations import ReferenceParameters
from netvlad_deploy.parity.projection_error import projection_error
from netvlad_deploy.parity.rounding import FP32_UNIT, HALF, HALF_QUANTUM, LAMBDA, ROUNDINGS, TINY, Rounding
from netvlad_deploy.spec import layer
from netvlad_deploy.spec.graph_options import LARGEST_SCALE
from netvlad_deploy.support.arrays import Array, Arrays, Float64

SMALLEST_ASSIGNMENT = 1e-37  # a smaller one may be lost: FP32 is normal down to 1.2e-38
LOST_SUM = 1e-25
"""Sum of assignments below which a cluster may be lost where its square is needed: 1e-12 / A^2 ends at 3e38 in FP32."""

UNKNOWN = 0.5
"""Relative error from which nothing is known of a cluster's assignments but that they are between 0 and 1."""

LARGEST_EXPONENT = 300.0  # rho counts as no more


@dataclass(frozen=True, kw_only=True)
class _Logits:
    """Errors of the logits (B,N,K+G): dl of FP32, dh of rounding them to FP16, and the known dv of the FP16 weights.

    Or those of the soft assignments (B,N,K) that follow from them: f, h and v.
    """

    wide: Float64
    half: Float64
    weights: Float64


@dataclass(frozen=True, kw_only=True)
class _Means:
    """Weighted means of an image's local descriptors, all (B,K): A, R, and E, the error of the mean residual V'.

    `direction_error` is that of the direction of V' alone, as a length. Where `unknown` is set, nothing is known of the
    assignments.
    """

    assignment: Float64
    relative_error: Float64
    error: Float64
    direction_error: Float64
    unknown: Array


@dataclass(frozen=True, kw_only=True)
class _Lengths:
    """Norms s (B,N,1) by which the layer divides, t (B,1,1) and r (B,N,1), by which an FP16 graph scales weights.

    All are 1 where the layer does not L2-normalise.
    """

    norms: Float64
    mean: Float64
    factors: Float64


def tolerances(parameters: ReferenceParameters, feeds: Mapping[str, Array], expected: Arrays, precision: str) -> Arrays:
    """Return the tolerated error of every stage against the oracle's `expected` outputs.

    The error of `descriptor`, `residual_sum` and `mean_residual` is the norm over D of each cluster's part (B,K); that
    of `soft_assignment` is absolute (B,N,K), and that of `assignment_logits` too (B,N,K+G), less the row's mean. Of a
    layer with a projection the parts are those of `aggregate`, and the error of `descriptor` is absolute (B,P).
    """
    rounding = ROUNDINGS[precision]
    error = LAMBDA * rounding.unit
    features = equations.local_descriptors(parameters, feeds[layer.FEATURES])
    assignment, lengths = expected[layer.SOFT_ASSIGNMENT], _lengths(parameters, feeds)
    logits = _logit_errors(parameters, features, lengths.norms, rounding)
    rho = _relative_errors(parameters, features, logits, 4 * error)
    growth = _growth(parameters, features, rho)
    if layer.MASK in feeds:
        rho = _Logits(**{name: values * feeds[layer.MASK][..., None] for name, values in vars(rho).items()})
        growth = growth * feeds[layer.MASK][..., None]
    means = _mean_errors(parameters, features, lengths, assignment, rho, growth, rounding)
    rows = features.shape[1]
    centroid_norm = np.linalg.norm(parameters.centroids, axis=-1)
    residual_norm = np.linalg.norm(expected[layer.RESIDUAL_SUM], axis=-1)
    reach = np.linalg.norm(features, axis=-1).max(axis=1, keepdims=True) + centroid_norm
    flushed = rows * SMALLEST_ASSIGNMENT * reach
    residual_error = means.assignment * (means.error + error * np.sqrt(rows) * centroid_norm)
    scale_error = HALF if rounding.half_mean else 0.0  # of the weights' sum: intra-normalisation cancels it
    residual_error = residual_error + (means.relative_error + error + scale_error) * residual_norm + flushed
    logit_error = _total(logits)
    parts = _descriptor_error(parameters.epsilon, residual_norm, means, flushed, error)
    vectors = equations.aggregate(parameters, expected[layer.RESIDUAL_SUM])
    return {
        layer.ASSIGNMENT_LOGITS: logit_error + logit_error.mean(axis=-1, keepdims=True),
        layer.SOFT_ASSIGNMENT: growth + SMALLEST_ASSIGNMENT,
        layer.MEAN_RESIDUAL: means.error + (scale_error * residual_norm + flushed) / np.maximum(means.assignment, TINY),
        layer.RESIDUAL_SUM: np.where(means.unknown, rows * reach, residual_error),
        layer.AGGREGATE: parts,
        layer.DESCRIPTOR: projection_error(parameters, vectors, parts, rounding),
    }


def _total(errors: _Logits) -> Float64:
    total: Float64 = errors.wide + errors.half + np.abs(errors.weights)
    return total


def _growth(parameters: ReferenceParameters, features: Float64, rho: _Logits) -> Float64:
    """Return y (B,N,K), by how much a soft assignment can be off: it lies between a e^-rho and min(a e^rho, 1).

    It is computed from the logarithm of a, which may be 0 in float64 where an honest runner has more.
    """
    logits = equations.assignment_logits(parameters, features)
    logits = logits - logits.max(axis=-1, keepdims=True)
    logarithm = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    logarithm = logarithm[..., : parameters.spec.num_clusters]
    total, assignment = _total(rho), np.exp(logarithm)
    grown = np.exp(np.minimum(logarithm + total, 0)) - assignment
    off: Float64 = np.where(total < 1, assignment * _relative_growth(total), np.maximum(grown, assignment))
    return off


def _relative_growth(rho: Float64) -> Float64:
    """Return z = e^rho - 1."""
    growth: Float64 = np.expm1(np.minimum(rho, LARGEST_EXPONENT))
    return growth


def _input_error(parameters: ReferenceParameters, width: int) -> float:
    """Return g, the relative error of an L2-normalised local descriptor's length: half that of its sum of squares."""
    return LAMBDA * FP32_UNIT * (np.sqrt(width) / 2 + 2) if parameters.normalize_input else 0.0


def _lengths(parameters: ReferenceParameters, feeds: Mapping[str, Array]) -> _Lengths:
    features = feeds[layer.FEATURES].astype(np.float64)
    if not parameters.normalize_input:
        ones = np.ones((*features.shape[:2], 1))
        return _Lengths(norms=ones, mean=ones[:, :1], factors=ones)
    norms = equations.divisor((features**2).sum(axis=-1, keepdims=True), parameters.epsilon)
    counted = norms * feeds[layer.MASK][..., None] if layer.MASK in feeds else norms
    mean = np.clip(counted.mean(axis=1, keepdims=True), layer.NORM_FLOORS[parameters.epsilon], LARGEST_SCALE)
    return _Lengths(norms=norms, mean=mean, factors=np.minimum(mean / norms, LARGEST_SCALE))


def _logit_errors(parameters: ReferenceParameters, features: Float64, lengths: Float64, rounding: Rounding) -> _Logits:
    """Return dl, dh and dv of local descriptors (B,N,D), of length `lengths` (B,N,1) in the graph's products."""
    weight, bias = equations.assignment_projection(parameters)
    logits = equations.assignment_logits(parameters, features)
    if rounding.half_mean and weight.shape[1] > 1:  # FP16 graphs are centred
        weight, bias, logits = (values - values.mean(axis=-1, keepdims=True) for values in (weight, bias, logits))
    norms = np.linalg.norm(features, axis=-1, keepdims=True)
    drift = np.sqrt(features.shape[-1]) * np.abs(logits - bias)
    wide = norms * np.linalg.norm(weight, axis=0) + drift + np.abs(bias) + np.abs(logits)
    wide = LAMBDA * rounding.unit * wide
    if parameters.normalize_input:
        wide = wide + _input_error(parameters, features.shape[-1]) * np.abs(logits - bias)
    if not rounding.half_logits:
        return _Logits(wide=wide, half=np.zeros_like(wide), weights=np.zeros_like(wide))
    scale = np.exp2(np.ceil(np.log2(np.maximum(np.abs(weight).sum(axis=0), TINY))))
    rounded = (weight / scale).astype(np.float16) * scale
    lost = HALF_QUANTUM * 2 * scale / lengths * (norms > 0)  # a row of zeros has products of exactly 0
    half = HALF * np.abs(features @ weight) + lost
    return _Logits(wide=wide, half=half, weights=features @ (rounded - weight))


def _relative_errors(
    parameters: ReferenceParameters, features: Float64, logits: _Logits, softmax_error: float
) -> _Logits:
    """Return the relative errors (B,N,K) of the soft assignments by their origin: f and h, and v with its sign.

    A softmax over one column is always 1.
    """
    if logits.wide.shape[-1] == 1:
        none = np.zeros_like(logits.wide)
        return _Logits(wide=none + softmax_error, half=none, weights=none)
    everything = equations.soft_assignment(equations.assignment_logits(parameters, features), logits.wide.shape[-1])
    kept = np.s_[..., : parameters.spec.num_clusters]

    def shared(errors: Float64) -> Float64:
        summed: Float64 = (everything * errors).sum(axis=-1, keepdims=True)
        return summed

    return _Logits(
        wide=(logits.wide + shared(logits.wide) + softmax_error)[kept],
        half=(logits.half + shared(logits.half))[kept],
        weights=(logits.weights - shared(logits.weights))[kept],
    )


def _mean_errors(
    parameters: ReferenceParameters,
    features: Float64,
    lengths: _Lengths,
    assignment: Float64,
    rho: _Logits,
    growth: Float64,
    rounding: Rounding,
) -> _Means:
    centroids = parameters.centroids
    total = assignment.sum(axis=1)
    weights = assignment / np.maximum(total, TINY)[:, None]  # (B,N,K)
    means = weights.swapaxes(1, 2) @ features  # (B,K,D)
    mean_norm = np.linalg.norm(means, axis=-1)
    deviation = _distances(features, means)  # (B,N,K)
    spread = np.sqrt((weights * deviation**2).sum(axis=1))
    relative_error = np.sqrt((weights * _relative_growth(_total(rho)) ** 2).sum(axis=1))
    unknown = (relative_error > UNKNOWN) | (growth.sum(axis=1) > np.maximum(total, SMALLEST_ASSIGNMENT))
    wide = np.sqrt((weights * _relative_growth(rho.wide) ** 2).sum(axis=1))
    walk = np.sqrt(np.einsum("bnk,bnd->bk", weights**2, features**2))
    drift = np.sqrt(features.shape[1]) * mean_norm
    error = 2 * wide * spread + LAMBDA * rounding.unit * (walk + drift + np.linalg.norm(centroids, axis=-1))
    if parameters.normalize_input:
        length = (weights * np.linalg.norm(features, axis=-1)[..., None]).sum(axis=1)
        error += LAMBDA * FP32_UNIT * walk + _input_error(parameters, features.shape[-1]) * length
    along = np.zeros_like(error)
    if rounding.half_mean:
        # Equal local descriptors round alike: their errors add up.
        repeated = weights * np.sqrt(_multiplicity(features))[..., None]
        known = _known_errors(features, lengths, means, centroids, weights, rho)
        across = _across(known, means - centroids)
        along = np.linalg.norm(known, axis=-1) - across
        error = error + across + 2 * relative_error**2 * spread
        error = error + LAMBDA * np.linalg.norm(repeated * rho.half * deviation, axis=1)
        error = error + _half_mean_error(_distances(features, centroids), weights, repeated, lengths.factors)
        error = error + HALF * mean_norm + HALF_QUANTUM * np.sqrt(features.shape[-1]) / lengths.mean[..., 0]
    error = np.where(unknown, np.maximum(error, deviation.max(axis=1)), error)
    # Error parallel to V' cancels in its direction, unless it exceeds half of the norm of V'.
    turned = along > np.linalg.norm(means - centroids, axis=-1) / 2
    return _Means(
        assignment=total,
        relative_error=relative_error,
        error=error + along,
        direction_error=np.where(turned, error + along, error),
        unknown=unknown,
    )


def _known_errors(
    features: Float64, lengths: _Lengths, means: Float64, centroids: Float64, weights: Float64, rho: _Logits
) -> Float64:
    """Return the error B (B,K,D) of V' that FP16's rounding of both weights is known to make."""
    shifted = weights * rho.weights
    known: Float64 = shifted.swapaxes(1, 2) @ features - shifted.sum(axis=1)[..., None] * means
    shifted = (weights * lengths.factors).astype(np.float16) / lengths.factors - weights
    known += shifted.swapaxes(1, 2) @ features - shifted.sum(axis=1)[..., None] * centroids
    shortened = np.minimum(lengths.factors * lengths.norms / lengths.mean, 1) - 1  # where LARGEST_SCALE ends r
    known += (weights * shortened).swapaxes(1, 2) @ features
    return known


def _half_mean_error(distances: Float64, weights: Float64, repeated: Float64, factors: Float64) -> Float64:
    """Return the error of V' (B,K) from rounding the weights of the mean to FP16; tiny ones are lost altogether."""
    lost = (np.minimum(weights, HALF_QUANTUM / factors) * distances).sum(axis=1)
    error: Float64 = lost + LAMBDA * HALF * np.linalg.norm(repeated * distances, axis=1)
    return error


def _across(vectors: Float64, direction: Float64) -> Float64:
    """Return the norms over D of vectors less their part along `direction`, which intra-normalisation cancels."""
    along = (vectors * direction).sum(axis=-1) / np.maximum((direction**2).sum(axis=-1), TINY)
    norms: Float64 = np.linalg.norm(vectors - along[..., None] * direction, axis=-1)
    return norms


def _distances(features: Float64, centres: Float64) -> Float64:
    """Return |x_n - m_k| (B,N,K) of features (B,N,D) and centres (K,D) or (B,K,D)."""
    squares = (features**2).sum(axis=-1)[..., None] - 2 * features @ centres.swapaxes(-1, -2)
    squares = squares + (centres**2).sum(axis=-1)[..., None, :]
    distances: Float64 = np.sqrt(np.maximum(squares, 0))
    return distances


def _multiplicity(features: Float64) -> Float64:
    """Return mu (B,N), the number of times that each local descriptor occurs in its image."""
    keys = [[row.tobytes() for row in image] for image in features]
    return np.array([[counts[key] for key in image] for image in keys for counts in (Counter(image),)], dtype=float)


def _descriptor_error(epsilon: str, residual_norm: Float64, means: _Means, flushed: Float64, error: float) -> Float64:
    floor = layer.NORM_FLOORS[epsilon]
    ratio = residual_norm / equations.divisor(residual_norm**2, epsilon)  # r_k
    if epsilon == layer.ADD:
        scaled, flushed = 1 - ratio**2, flushed * LOST_SUM / SMALLEST_ASSIGNMENT
    else:
        scaled = (residual_norm < 2 * floor).astype(float)
    mean_residual_norm = residual_norm / np.maximum(means.assignment, TINY)
    length = means.direction_error
    direction = length / np.maximum(np.maximum(mean_residual_norm, length / 2), TINY)  # 2 at most
    part = ratio * (direction + error + scaled * means.relative_error) + np.minimum(1.0, flushed / floor)
    part = np.where(means.unknown, 2.0, part)
    global_norm = equations.divisor((ratio**2).sum(axis=-1, keepdims=True), epsilon)
    share = ratio / global_norm  # d_k
    shared_error = (share * part).sum(axis=-1, keepdims=True) / global_norm + error
    allowed: Float64 = part / global_norm + share * shared_error
    return allowed
