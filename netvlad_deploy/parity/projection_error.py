"""The distance that a correct runner may have from the oracle after a projection: value by value, from errors before.

    product   dy_j = sqrt(S_k (|P_jk| t_k)^2) + |p_j| S_k d_k t_k + e (m_j + |b_j| + |y_j|) + 4 u32 sqrt(D K) |p_j|
      FP16, besides  2 LAMBDA u16 m_j + u16 |p_j| + q (sqrt(D K) + 2 LAMBDA) |P_j|
    L2        (dy_j + |z_j| |dy|) / (n - |dy|), 1 + |z_j| at most, + e (sqrt(P)/2 + 2) |z_j|                z = y / n
    gating    dh_i = |G_i| |dy| + e (|G_i| |y| + |g_i| + |h_i|) + 4 u32 sqrt(P) |G_i.y|                 h = y G^T + g
              s_i dy_i + (|y_i| + dy_i) min(dh_i / 4, 1) + 2 e |y_i s_i|                              s = sigmoid(h)
    final L2  as L2, of the gated values y_i s_i and their errors

t_k is the tolerance of cluster k's part of v, and d_k its norm; p = v P^T, BatchNorm's scale in P; b is added to it;
P_jk is the part of row j that belongs to cluster k; m_j^2 = S_k |P_jk|^2 max_d v_kd^2 is no less than the sum of the
squares of the products that make p_j. Errors of different clusters are independent, but for the common scale of v. The
derivation is in docs/error-model.md.
"""

import numpy as np

from netvlad_deploy.oracle.equations import LinearMap, ReferenceParameters, by_cluster, divisor, sigmoid
from netvlad_deploy.parity.rounding import FP32_UNIT, HALF, HALF_QUANTUM, LAMBDA, Rounding
from netvlad_deploy.support.arrays import Float64


def projection_error(
    parameters: ReferenceParameters, vectors: Float64, allowed: Float64, rounding: Rounding
) -> Float64:
    """Return the tolerated error of every value of a projected descriptor (B,P).

    Args:
        parameters: the layer.
        vectors: the oracle's aggregate v (B, D*K).
        allowed: tolerance of each cluster's part of v (B,K).
        rounding: unit roundoffs of the precision.
    """
    projection = parameters.projection
    if projection is None:
        return allowed
    values, error = _product_error(parameters, projection, vectors, allowed, rounding)
    if parameters.projection_l2:
        values, error = _normalized_error(values, error, parameters.epsilon, LAMBDA * rounding.unit)
    if parameters.gating is not None:
        values, error = _gated_error(parameters.gating, values, error, rounding)
    if parameters.final_l2:
        values, error = _normalized_error(values, error, parameters.epsilon, LAMBDA * rounding.unit)
    return error


def slope(linear: LinearMap) -> Float64:
    """Return by how much BatchNorm scales each product (P,), without its sign; 1 without BatchNorm."""
    norm = linear.batch_norm
    if norm is None:
        return np.ones(len(linear.weight))
    result: Float64 = np.abs(norm.weight) / np.sqrt(norm.running_var + norm.eps)
    return result


def _products(linear: LinearMap, vectors: Float64) -> Float64:
    return linear(vectors) - linear.offset(np.zeros(len(linear.weight)))


def _product_error(
    parameters: ReferenceParameters, projection: LinearMap, vectors: Float64, allowed: Float64, rounding: Rounding
) -> tuple[Float64, Float64]:
    """Return the values y (B,P) and their errors."""
    products = _products(projection, vectors)
    added = projection.offset(np.zeros(products.shape[-1]))
    values = products + added
    parts = parameters.row_norms * slope(projection)[:, None]  # |P_jk| (P,K)
    clusters = by_cluster(vectors, parameters.spec)  # (B,K,D)
    shared = (np.linalg.norm(clusters, axis=-1) * allowed).sum(axis=-1, keepdims=True)
    walk = np.sqrt(np.abs(clusters).max(axis=-1) ** 2 @ parts.T**2)  # m_j
    drift = np.sqrt(vectors.shape[-1])
    error = np.sqrt(allowed**2 @ parts.T**2) + np.abs(products) * shared
    error = error + LAMBDA * rounding.unit * (walk + np.abs(added) + np.abs(values))
    error = error + LAMBDA * FP32_UNIT * drift * np.abs(products)
    if rounding.half_mean:
        lost = HALF_QUANTUM * (drift + 2 * LAMBDA) * np.linalg.norm(parts, axis=-1)
        error = error + 2 * LAMBDA * HALF * walk + HALF * np.abs(products) + lost
    return values, error


def _normalized_error(values: Float64, error: Float64, epsilon: str, rounding: float) -> tuple[Float64, Float64]:
    """Return L2-normalised values (B,P) and their errors."""
    length = divisor((values**2).sum(axis=-1, keepdims=True), epsilon)
    normalized = values / length
    total = np.linalg.norm(error, axis=-1, keepdims=True)
    known = length > total
    turned = (error + np.abs(normalized) * total) / np.where(known, length - total, 1)
    turned = np.where(known, np.minimum(turned, 1 + np.abs(normalized)), 1 + np.abs(normalized))
    return normalized, turned + rounding * (np.sqrt(values.shape[-1]) / 2 + 2) * np.abs(normalized)


def _gated_error(gating: LinearMap, values: Float64, error: Float64, rounding: Rounding) -> tuple[Float64, Float64]:
    """Return gated values (B,P) and their errors; a sigmoid is nowhere steeper than 1/4."""
    unit = LAMBDA * rounding.unit
    products, gates = _products(gating, values), gating(values)
    norms = slope(gating)
    for block, rows in gating.blocks():
        norms[block] *= np.linalg.norm(rows, axis=-1)
    added = np.abs(gating.offset(np.zeros(len(norms))))
    moved, length = (np.linalg.norm(each, axis=-1, keepdims=True) for each in (error, values))
    off = norms * moved + unit * (norms * length + added + np.abs(gates))
    off = np.minimum((off + LAMBDA * FP32_UNIT * np.sqrt(len(norms)) * np.abs(products)) / 4, 1)
    opened = sigmoid(gates)
    gated: Float64 = values * opened
    return gated, opened * error + (np.abs(values) + error) * off + 2 * unit * np.abs(gated)
