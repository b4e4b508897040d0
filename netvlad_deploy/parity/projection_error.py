"""The distance that a correct runner may have from the oracle after a projection: value by value, from errors before.

docs/error-model.md derives the formulas. p = v P^T is the product of the aggregate v, with BatchNorm's scale in P; y is
p with its bias; P_jk is the part of row j that belongs to cluster k.
"""

import numpy as np

from netvlad_deploy.oracle.equations import LinearMap, ReferenceParameters, by_cluster, divisor, sigmoid
from netvlad_deploy.parity.rounding import FP32_UNIT, HALF, HALF_QUANTUM, LAMBDA, Rounding
from netvlad_deploy.support.arrays import Float64


def projection_error(
    parameters: ReferenceParameters, vectors: Float64, allowed: Float64, rounding: Rounding
) -> Float64:
    """Return the tolerated error of every value of a projected descriptor (B,P).

    `vectors` are the oracle's aggregates v (B, D*K), `allowed` is the tolerance of each cluster's part of v (B,K).
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


def batch_norm_factor(linear: LinearMap) -> Float64:
    """Return by how much BatchNorm multiplies each product (P,); 1 without BatchNorm."""
    norm = linear.batch_norm
    if norm is None:
        return np.ones(len(linear.weight))
    return norm.weight / np.sqrt(norm.running_var + norm.eps)


def _products(linear: LinearMap, vectors: Float64) -> Float64:
    return linear(vectors) - linear.offset(np.zeros(len(linear.weight)))


def _product_error(
    parameters: ReferenceParameters, projection: LinearMap, vectors: Float64, allowed: Float64, rounding: Rounding
) -> tuple[Float64, Float64]:
    """Return the values y (B,P) and their errors dy."""
    products = _products(projection, vectors)
    added = projection.offset(np.zeros(products.shape[-1]))
    values = products + added
    parts = parameters.row_norms * np.abs(batch_norm_factor(projection))[:, None]  # |P_jk| (P,K)
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
    norms = np.abs(batch_norm_factor(gating))
    for block, rows in gating.blocks():
        norms[block] *= np.linalg.norm(rows, axis=-1)
    added = np.abs(gating.offset(np.zeros(len(norms))))
    moved, length = (np.linalg.norm(each, axis=-1, keepdims=True) for each in (error, values))
    off = norms * moved + unit * (norms * length + added + np.abs(gates))
    off = np.minimum((off + LAMBDA * FP32_UNIT * np.sqrt(len(norms)) * np.abs(products)) / 4, 1)
    opened = sigmoid(gates)
    gated: Float64 = values * opened
    return gated, opened * error + (np.abs(values) + error) * off + 2 * unit * np.abs(gated)
