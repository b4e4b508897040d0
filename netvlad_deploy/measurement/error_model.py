"""How far a correct runner may be from the oracle: a rounding-error model of the layer, evaluated case by case.

One fixed tolerance is too wide for well-conditioned input, where it would pass a wrong epsilon, and too tight for
features of large norm, where FP32 logits themselves are coarse. So the tolerance of every cluster follows from the
oracle's values. With unit roundoff u, e = LAMBDA u, and sums over n written S_n:

    logits           dl_nk = e (|x_n| |W_k| + sqrt(D) |x_n.W_k| + |b_k| + |l_nk|)
    assignment       rho_nk = dl_nk + S_j a_nj dl_nj + 4 e                        relative error of a_nk
    mean residual    E_k = 2 R_k T_k + e (Q_k + sqrt(N) |m_k| + |c_k|)            w_nk = a_nk / A_k, m_k = S_n w_nk x_n
                     R_k^2 = S_n w_nk rho_nk^2,  T_k^2 = S_n w_nk |x_n - m_k|^2,  Q_k^2 = S_n w_nk^2 |x_n|^2
    residual sum     A_k (E_k + e sqrt(N) |c_k|) + (R_k + e) |V_k|
    intra-normalised s_k = r_k (E_k / |V'_k| + e, and R_k where the clamp is active)
    descriptor       s_k / g + d_k (S_j d_j s_j / g + e)                          d_k = r_k / g

The partial sums of a dot product are a drift towards its value plus a random walk; independent roundings of them
add up as sqrt(D) |x.W| and |x| |W|. An assignment under 1e-37 may be lost (FP32 is normal down to 1.2e-38), which
adds N 1e-37 (|x| + |c|). The derivation is in docs/error-model.md. Source of the probabilistic bound: Higham & Mary
2019, "A New Approach to Probabilistic Rounding Error Analysis".
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from netvlad_deploy.arrays import Array, Arrays, Float64
from netvlad_deploy.oracle import ReferenceParameters, assignment_logits, assignment_projection
from netvlad_deploy.spec import DESCRIPTOR, FEATURES, MASK, NORM_FLOOR, RESIDUAL_SUM, SOFT_ASSIGNMENT

LAMBDA = 4.0
"""Standard deviations of a rounding error that are allowed for."""

UNIT_ROUNDOFF: Mapping[str, float] = MappingProxyType({"fp32": 2.0**-24, "tf32": 2.0**-11})
SMALLEST_ASSIGNMENT = 1e-37
TINY = float(np.finfo(np.float64).tiny)


@dataclass(frozen=True, kw_only=True)
class _Sums:
    """Sums over the local descriptors of an image, all (B,K)."""

    assignment: Float64
    relative_error: Float64
    mean_norm: Float64
    spread: Float64
    walk: Float64


def tolerances(parameters: ReferenceParameters, feeds: Mapping[str, Array], expected: Arrays, precision: str) -> Arrays:
    """Return the tolerated error of each output against the oracle's `expected` outputs.

    The error of `descriptor` and `residual_sum` is the norm over D of each cluster's part (B,K), that of
    `soft_assignment` is absolute (B,N,K).
    """
    error = LAMBDA * UNIT_ROUNDOFF[precision]
    features, assignment = feeds[FEATURES].astype(np.float64), expected[SOFT_ASSIGNMENT]
    rho = _relative_error(parameters, features, error)
    if MASK in feeds:
        rho = rho * feeds[MASK][..., None]
    norms = np.linalg.norm(features, axis=-1)
    rows = features.shape[1]
    sums = _sum(features, norms, assignment, rho)
    centroid_norm = np.linalg.norm(parameters.centroids, axis=-1)
    residual_norm = np.linalg.norm(expected[RESIDUAL_SUM], axis=-1)
    mean_error = 2 * sums.relative_error * sums.spread
    mean_error = mean_error + error * (sums.walk + np.sqrt(rows) * sums.mean_norm + centroid_norm)
    flushed = rows * SMALLEST_ASSIGNMENT * (norms.max(axis=1, keepdims=True) + centroid_norm)
    residual_error = sums.assignment * (mean_error + error * np.sqrt(rows) * centroid_norm)
    residual_error = residual_error + (sums.relative_error + error) * residual_norm + flushed
    return {
        SOFT_ASSIGNMENT: assignment * rho + SMALLEST_ASSIGNMENT,
        RESIDUAL_SUM: residual_error,
        DESCRIPTOR: _descriptor_error(residual_norm, sums, mean_error, flushed, error),
    }


def _relative_error(parameters: ReferenceParameters, features: Float64, error: float) -> Float64:
    """Return rho (B,N,K), the relative error of every soft assignment."""
    weight, bias = assignment_projection(parameters)
    logits = assignment_logits(parameters, features)
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    everything = exponentials / exponentials.sum(axis=-1, keepdims=True)
    walk = np.linalg.norm(features, axis=-1, keepdims=True) * np.linalg.norm(weight, axis=0)
    drift = np.sqrt(features.shape[-1]) * np.abs(logits - bias)
    logit_error = error * (walk + drift + np.abs(bias) + np.abs(logits))
    rho = logit_error + (everything * logit_error).sum(axis=-1, keepdims=True) + 4 * error
    kept: Float64 = rho[..., : parameters.spec.num_clusters]
    return kept


def _sum(features: Float64, norms: Float64, assignment: Float64, rho: Float64) -> _Sums:
    total = assignment.sum(axis=1)
    weights = assignment / np.maximum(total, TINY)[:, None]  # (B,N,K)
    mean_norm = np.linalg.norm(weights.swapaxes(1, 2) @ features, axis=-1)  # (B,K)
    mean_square = np.einsum("bnk,bn->bk", weights, norms**2)
    return _Sums(
        assignment=total,
        relative_error=np.sqrt((weights * rho**2).sum(axis=1)),
        mean_norm=mean_norm,
        spread=np.sqrt(np.maximum(mean_square - mean_norm**2, 0)),
        walk=np.sqrt(np.einsum("bnk,bn->bk", weights**2, norms**2)),
    )


def _descriptor_error(
    residual_norm: Float64, sums: _Sums, mean_error: Float64, flushed: Float64, error: float
) -> Float64:
    ratio = residual_norm / np.maximum(residual_norm, NORM_FLOOR)  # r_k
    clamped = residual_norm < 2 * NORM_FLOOR
    mean_residual_norm = residual_norm / np.maximum(sums.assignment, TINY)
    direction = mean_error / np.maximum(np.maximum(mean_residual_norm, mean_error / 2), TINY)  # 2 at most
    part = ratio * (direction + error + clamped * sums.relative_error) + np.minimum(1.0, flushed / NORM_FLOOR)
    global_norm = np.maximum(np.sqrt((ratio**2).sum(axis=-1, keepdims=True)), NORM_FLOOR)
    share = ratio / global_norm  # d_k
    shared_error = (share * part).sum(axis=-1, keepdims=True) / global_norm + error
    allowed: Float64 = part / global_norm + share * shared_error
    return allowed
