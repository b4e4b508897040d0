"""The torch reference: NetVLAD with ghost clusters and BatchNorm on the assignments.

Constructor and parameter names are those of the collaborative-experts module (also in towhee), whose checkpoints load
with `strict=True` and give the same descriptors. `export.fold_head` makes the layer fast on a GPU.

Source: Arandjelovic et al. 2016 (NetVLAD); Miech et al. 2017 (BatchNorm instead of a bias on the assignment);
Zhong et al. 2018 (ghost clusters).
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from netvlad_deploy.models.affine import AffineMap
from netvlad_deploy.spec import layer
from netvlad_deploy.spec.layer import NetVLADSpec, Projection


def initialize(spec: NetVLADSpec, seed: int) -> "NetVLAD":
    """Return an untrained module of the spec in eval mode; the same seed gives the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return NetVLAD.of(spec).eval()


class NetVLAD(nn.Module):
    """Aggregate local descriptors (B,N,D) into a descriptor (B, D*K), index d*K + k, and project that, if asked to.

    Args:
        cluster_size: number of clusters K.
        feature_size: width D of a local descriptor.
        ghost_clusters: number of ghost clusters G, which take part in the softmax and are then dropped.
        add_batch_norm: normalise the assignment logits; without it they have no bias at all.
        assignment_bias: add a bias to the logits, as other dialects do instead of BatchNorm.
        normalize_input: L2-normalise every local descriptor first.
        flatten: `d*K+k`, or `k*D+d` for a descriptor with index k*D + d.
        epsilon: the mode in which a division by a norm is kept finite, see `NetVLADSpec`.
        projection: the linear map of the descriptor, and its gating: the modules `projection` and `gating`.

    Raises: InputError if a size is out of range, or both BatchNorm and a bias are asked for.

    >>> layer = NetVLAD(cluster_size=64, feature_size=512).eval()
    >>> layer(torch.randn(2, 100, 512)).shape  # two images with 100 local descriptors each
    torch.Size([2, 32768])
    """

    def __init__(
        self,
        cluster_size: int,
        feature_size: int,
        ghost_clusters: int = 0,
        add_batch_norm: bool = True,
        *,
        assignment_bias: bool = False,
        normalize_input: bool = False,
        flatten: str = layer.CLUSTERS_LAST,
        epsilon: str = layer.CLAMP,
        projection: Projection | None = None,
    ) -> None:
        super().__init__()
        self.spec = NetVLADSpec(
            num_clusters=cluster_size,
            feature_size=feature_size,
            num_ghost_clusters=ghost_clusters,
            batch_norm=add_batch_norm,
            assignment_bias=assignment_bias,
            normalize_input=normalize_input,
            flatten=flatten,
            epsilon=epsilon,
            projection=projection,
        )
        self.cluster_size = cluster_size
        self.feature_size = feature_size
        self.out_dim = self.spec.descriptor_size
        scale = 1.0 / math.sqrt(feature_size)
        self.clusters = nn.Parameter(scale * torch.randn(feature_size, cluster_size + ghost_clusters))
        self.batch_norm = nn.BatchNorm1d(cluster_size + ghost_clusters) if add_batch_norm else None
        self.clusters2 = nn.Parameter(scale * torch.randn(1, feature_size, cluster_size))
        self.assignment_bias = nn.Parameter(torch.zeros(cluster_size + ghost_clusters)) if assignment_bias else None
        self.projection, self.gating = _following(projection, self.spec.aggregate_size)

    @classmethod
    def of(cls, spec: NetVLADSpec) -> "NetVLAD":
        """Return an untrained module of the spec."""
        return cls(
            spec.num_clusters,
            spec.feature_size,
            spec.num_ghost_clusters,
            spec.batch_norm,
            assignment_bias=spec.assignment_bias,
            normalize_input=spec.normalize_input,
            flatten=spec.flatten,
            epsilon=spec.epsilon,
            projection=spec.projection,
        )

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the descriptors (B, D*K) of local descriptors x (B,N,D), or (B,P) with a projection.

        `mask` (B,N) bool marks the valid rows. Padded rows must be finite and change nothing; an item of the batch
        without a valid row gives the aggregate 0. Without a mask this is the original layer exactly.

        Raises: ValueError if x is on another device than the parameters, or x or mask has another shape.
        """
        if x.device != self.clusters.device:
            raise ValueError(f"x is on {x.device}, the parameters are on {self.clusters.device}: move one of them")
        if x.ndim != 3 or x.shape[2] != self.feature_size:
            raise ValueError(f"x has shape {tuple(x.shape)}, expected (batch, num_features, {self.feature_size})")
        if mask is not None and (mask.dtype != torch.bool or mask.shape != x.shape[:2]):
            raise ValueError(f"mask is {mask.dtype} {tuple(mask.shape)}, expected bool {tuple(x.shape[:2])}")
        if self.spec.normalize_input:
            x = self._l2_normalize(x, dim=2)
        assignment = self._soft_assignment(x, mask)  # (B,N,K)
        centroid_sum = assignment.sum(dim=1, keepdim=True) * self.clusters2  # (B,1,K) * (1,D,K)
        residual_sum = (assignment.transpose(1, 2) @ x).transpose(1, 2) - centroid_sum  # (B,D,K)
        intra_normalized = self._l2_normalize(residual_sum, dim=1)
        if self.spec.flatten == layer.CLUSTERS_FIRST:
            intra_normalized = intra_normalized.transpose(1, 2)  # (B,K,D)
        aggregate = self._l2_normalize(intra_normalized.reshape(-1, self.spec.aggregate_size), dim=1)
        return self._project(aggregate)

    def _project(self, descriptor: Tensor) -> Tensor:
        """Apply the projection, the gating and the L2 normalisations of the spec to aggregates (B, D*K)."""
        if self.spec.projection is None or self.projection is None:
            return descriptor
        descriptor = self.projection(descriptor)
        if self.spec.projection.l2:
            descriptor = self._l2_normalize(descriptor, dim=1)
        if self.gating is not None:
            descriptor = descriptor * self.gating(descriptor).sigmoid()
        return self._l2_normalize(descriptor, dim=1) if self.spec.projection.final_l2 else descriptor

    def _l2_normalize(self, values: Tensor, dim: int) -> Tensor:
        floor = layer.NORM_FLOORS[self.spec.epsilon]
        if self.spec.epsilon == layer.ADD:
            return values / (values.square().sum(dim, keepdim=True) + floor**2).sqrt()
        return functional.normalize(values, dim=dim, eps=floor)

    def _soft_assignment(self, x: Tensor, mask: Tensor | None) -> Tensor:
        logits = x.reshape(-1, self.feature_size) @ self.clusters  # (B*N, K+G)
        if self.batch_norm is not None:
            if mask is not None and self.training:  # batch statistics of the valid rows alone
                valid = mask.reshape(-1)
                logits = logits.masked_scatter(valid[:, None], self.batch_norm(logits[valid]))
            else:
                logits = self.batch_norm(logits)
        if self.assignment_bias is not None:
            logits = logits + self.assignment_bias
        assignment = logits.softmax(dim=1)[:, : self.cluster_size].reshape(*x.shape[:2], self.cluster_size)
        return assignment if mask is None else assignment * mask[..., None]


def _following(projection: Projection | None, inputs: int) -> tuple[AffineMap | None, AffineMap | None]:
    """Return the untrained maps of a projection and of its gating, None for one that the layer does not have."""
    if projection is None:
        return None, None
    mapped = AffineMap(inputs, projection.size, bias=projection.bias, batch_norm=projection.batch_norm)
    if projection.gating is None:
        return mapped, None
    offset = {"bias": projection.gating == layer.BIAS, "batch_norm": projection.gating == layer.BATCH_NORM}
    return mapped, AffineMap(projection.size, projection.size, **offset)
