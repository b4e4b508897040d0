"""The oracle: NetVLAD in float64, equation by equation, in NumPy.

It reads the unfolded parameters that `export` writes beside an ONNX file and applies BatchNorm itself. It
shares no code with the torch module, the fold or the graph, so a fault in one of those cannot validate itself.

    x / max(|x|, 1e-12), if the layer normalises its input  local_descriptors   (B,N,D)
    l = (x W - mean) / sqrt(var + eps) * gamma + beta     assignment_logits   (B,N,K+G)
    a = softmax(l) over K+G, first K columns, times mask   soft_assignment     (B,N,K)
    V_k = sum_n a_nk (x_n - c_k)                           residual_sum        (B,K,D)
    V_k / max(|V_k|, 1e-12), flattened, and again          aggregate v         (B,D*K)
    y = v P^T + p, or BatchNorm(v P^T); y / max(|y|, 1e-12), if `l2`; z = y * sigmoid(y G^T + g), if `gating`;
    z / max(|z|, 1e-12), if `final_l2`                     descriptor          (B,P), v itself without a projection

Without BatchNorm, l = x W, plus a bias where there is one. A descriptor is flattened d*K + k or k*D + d. Other epsilon
modes divide by max(|x|, 1e-6) or by sqrt(|x|^2 + 1e-12).

Source: Arandjelovic et al. 2016, equations 3 and 4; ghost clusters: Zhong et al. 2018, "GhostVLAD".
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from netvlad_deploy.errors import InputError
from netvlad_deploy.spec import layer
from netvlad_deploy.spec.layer import NetVLADSpec, Projection
from netvlad_deploy.support.arrays import Array, Float64

BLOCK_ROWS = 64
"""Rows of a projection that are converted to float64 at a time: 16 MiB for a descriptor of 32,768 values."""


@dataclass(frozen=True, kw_only=True)
class BatchNorm:
    """BatchNorm over the last axis, of length C: four vectors (C,), and epsilon."""

    weight: Float64
    bias: Float64
    running_mean: Float64
    running_var: Float64
    eps: float

    def __call__(self, values: Float64) -> Float64:
        """Return values (...,C) normalised with the running statistics."""
        normalised = (values - self.running_mean) / np.sqrt(self.running_var + self.eps)
        return normalised * self.weight + self.bias


@dataclass(frozen=True, kw_only=True)
class LinearMap:
    """A product with `weight` (P,I), in the dtype of its file, followed by BatchNorm, by a bias (P,) or by neither."""

    weight: Array
    bias: Float64 | None
    batch_norm: BatchNorm | None

    def __call__(self, vectors: Float64) -> Float64:
        """Apply the weight, then BatchNorm or the bias: (B,I) to (B,P)."""
        products = np.empty((*vectors.shape[:-1], len(self.weight)))
        for block, rows in self.blocks():
            products[..., block] = vectors @ rows.T
        return self.offset(products)

    def offset(self, products: Float64) -> Float64:
        """Apply BatchNorm or the bias to products (B,P)."""
        if self.batch_norm is not None:
            return self.batch_norm(products)
        return products if self.bias is None else products + self.bias

    def blocks(self) -> Iterator[tuple[slice, Float64]]:
        """Yield blocks of rows of the weight in float64, each with its slice of the rows.

        Write results into an array allocated before the loop: a small array allocated within it would lie between the
        blocks, and keep the allocator from using the memory of one block for the next.
        """
        for start in range(0, len(self.weight), BLOCK_ROWS):
            block = slice(start, start + BLOCK_ROWS)
            yield block, self.weight[block].astype(np.float64)


@dataclass(frozen=True, kw_only=True)
class ReferenceParameters:
    """Unfolded parameters of a NetVLAD layer: clusters (D,K+G), centroids (K,D), BatchNorm or a bias (K+G,) or neither.

    `normalize_input`, `flatten` and `epsilon` are as in `NetVLADSpec`; `projection`, `gating`, `projection_l2` and
    `final_l2` describe the steps after the aggregate.
    """

    clusters: Float64
    centroids: Float64
    batch_norm: BatchNorm | None
    bias: Float64 | None = None
    normalize_input: bool = False
    flatten: str = layer.CLUSTERS_LAST
    epsilon: str = layer.CLAMP
    projection: LinearMap | None = None
    projection_l2: bool = False
    gating: LinearMap | None = None
    final_l2: bool = False

    @property
    def spec(self) -> NetVLADSpec:
        """Return the sizes and conventions of the layer that has these parameters."""
        num_clusters, feature_size = self.centroids.shape
        projection = None
        if self.projection is not None:
            gating = None if self.gating is None else layer.BIAS if self.gating.batch_norm is None else layer.BATCH_NORM
            projection = Projection(
                size=len(self.projection.weight),
                bias=self.projection.bias is not None,
                batch_norm=self.projection.batch_norm is not None,
                l2=self.projection_l2,
                gating=gating,
                final_l2=self.final_l2,
            )
        return NetVLADSpec(
            num_clusters=num_clusters,
            feature_size=feature_size,
            num_ghost_clusters=self.clusters.shape[1] - num_clusters,
            batch_norm=self.batch_norm is not None,
            assignment_bias=self.bias is not None,
            normalize_input=self.normalize_input,
            flatten=self.flatten,
            epsilon=self.epsilon,
            projection=projection,
        )

    @cached_property
    def row_norms(self) -> Float64:
        """Return the norms (P,K) of the parts of each row of the projection's weight that belong to one cluster."""
        if self.projection is None:
            raise InputError("the layer has no projection")
        norms = np.empty((len(self.projection.weight), self.spec.num_clusters))
        for block, rows in self.projection.blocks():
            norms[block] = np.linalg.norm(by_cluster(rows, self.spec), axis=-1)
        return norms


def by_cluster(vectors: Array, spec: NetVLADSpec) -> Array:
    """Return flattened vectors (B, D*K), in the order of the spec, as (B,K,D)."""
    if spec.flatten == layer.CLUSTERS_FIRST:
        return vectors.reshape(-1, spec.num_clusters, spec.feature_size)
    parts: Array = vectors.reshape(-1, spec.feature_size, spec.num_clusters).swapaxes(1, 2)
    return parts


def local_descriptors(parameters: ReferenceParameters, features: Array) -> Float64:
    """Return features (B,N,D) as x (B,N,D) in float64, L2-normalised if the layer does that."""
    values = features.astype(np.float64)
    return l2_normalize(values, parameters.epsilon) if parameters.normalize_input else values


def assignment_logits(parameters: ReferenceParameters, features: Array) -> Float64:
    """Return l (B,N,K+G) of local descriptors (B,N,D), BatchNorm applied with its running statistics."""
    logits: Float64 = local_descriptors(parameters, features) @ parameters.clusters
    if parameters.batch_norm is not None:
        logits = parameters.batch_norm(logits)
    return logits if parameters.bias is None else logits + parameters.bias


def assignment_projection(parameters: ReferenceParameters) -> tuple[Float64, Float64]:
    """Return weight (D,K+G) and bias (K+G,) of the affine map from x to the logits, with BatchNorm folded in."""
    origin = assignment_logits(parameters, np.zeros((1, parameters.spec.feature_size)))[0]
    norm = parameters.batch_norm
    slope = 1.0 if norm is None else norm.weight / np.sqrt(norm.running_var + norm.eps)
    return parameters.clusters * slope, origin


def soft_assignment(logits: Float64, num_clusters: int, mask: Array | None = None) -> Float64:
    """Return a (B,N,K): softmax over all K+G columns, ghosts dropped, rows outside the mask zero.

    >>> soft_assignment(np.zeros((1, 1, 4)), num_clusters=2)  # two of four columns are ghosts
    array([[[0.25, 0.25]]])
    """
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    assignment: Float64 = (exponentials / exponentials.sum(axis=-1, keepdims=True))[..., :num_clusters]
    if mask is not None:
        assignment = assignment * mask[..., None]
    return assignment


def residual_sum(assignment: Float64, features: Array, centroids: Float64) -> Float64:
    """Return V (B,K,D): the sum over n of a_nk (x_n - c_k).

    >>> residual_sum(np.ones((1, 2, 1)), np.array([[[1.0], [4.0]]]), centroids=np.array([[1.0]]))
    array([[[3.]]])
    """
    residuals: Float64 = assignment.swapaxes(1, 2) @ features.astype(np.float64)
    residuals -= assignment.sum(axis=1)[..., None] * centroids
    return residuals


def l2_normalize(values: Float64, epsilon: str = layer.CLAMP) -> Float64:
    """Divide by the norm over the last axis; `epsilon` is the mode in which the divisor is kept above 0.

    >>> l2_normalize(np.array([3.0, 4.0]))
    array([0.6, 0.8])
    """
    return values / divisor((values * values).sum(axis=-1, keepdims=True), epsilon)


def divisor(squares: Float64, epsilon: str) -> Float64:
    """Return the norm of a sum of squares, kept above 0 by the mode `epsilon`: the divisor of an L2 normalisation."""
    floor = layer.NORM_FLOORS[epsilon]
    return np.sqrt(squares + floor**2) if epsilon == layer.ADD else np.maximum(np.sqrt(squares), floor)


def aggregate(parameters: ReferenceParameters, residuals: Float64) -> Float64:
    """Return v (B, D*K) of V (B,K,D): intra-normalise, flatten, L2-normalise."""
    intra_normalized = l2_normalize(residuals, parameters.epsilon)
    ordered = intra_normalized if parameters.flatten == layer.CLUSTERS_FIRST else intra_normalized.swapaxes(1, 2)
    return l2_normalize(ordered.reshape(len(residuals), -1), parameters.epsilon)


def project(parameters: ReferenceParameters, vectors: Float64) -> Float64:
    """Return the descriptor (B,P) of aggregates v (B, D*K): v itself if the layer has no projection."""
    if parameters.projection is None:
        return vectors
    return after_projection(parameters, parameters.projection(vectors))


def after_projection(parameters: ReferenceParameters, values: Float64) -> Float64:
    """Apply the L2 normalisation, the gating and the last L2 normalisation of the layer to projected vectors (B,P)."""
    if parameters.projection_l2:
        values = l2_normalize(values, parameters.epsilon)
    if parameters.gating is not None:
        values = values * sigmoid(parameters.gating(values))
    return l2_normalize(values, parameters.epsilon) if parameters.final_l2 else values


def sigmoid(values: Float64) -> Float64:
    """Return 1 / (1 + exp(-x)), computed as (1 + tanh(x/2)) / 2, which never overflows."""
    return (1 + np.tanh(values / 2)) / 2
