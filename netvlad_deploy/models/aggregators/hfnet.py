"""The global head of HF-Net and MobileNetVLAD: a NetVLAD that is normalised over its clusters.

A residual is c - x, and a column of the aggregate, one value of every cluster, has length 1. TensorFlow's norms are at
least 1e-6. A linear layer may follow, with an L2-normalisation before and after it.

Source: ethz-asl/hfnet, hfnet/models/utils/layers.py, vlad and dimensionality_reduction.
"""

import math
from typing import Final

import torch
from torch import Tensor, nn

from netvlad_deploy.models.affine import AffineMap
from netvlad_deploy.models.aggregators.base import Aggregator
from netvlad_deploy.spec.layer import AggregatorSpec

HFNET: Final = "hfnet"
SQUARE_FLOOR: Final = 1e-12
"""Least square of a norm in `tf.nn.l2_normalize`."""


def hfnet_spec(num_clusters: int, feature_size: int, epsilon: float, projection: int | None = None) -> AggregatorSpec:
    """Return the spec of K clusters for local descriptors of D values; `projection` is the size of what follows.

    >>> hfnet_spec(32, 1280, 1e-3, 4096).descriptor_size
    4096
    """
    return AggregatorSpec(
        name=HFNET,
        descriptor_size=num_clusters * feature_size if projection is None else projection,
        unit_length=True,
        feature_size=feature_size,
        settings={"num_clusters": num_clusters, "epsilon": epsilon, "projected": int(projection is not None)},
    )


class HfNet(Aggregator):
    """Turn local descriptors (B,N,D) into descriptors (B, K*D), index k*D + d, or (B,P) with a projection."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, spec: AggregatorSpec) -> None:
        super().__init__(
            spec, feature_norm=math.sqrt(spec.feature_size)
        )  # as the BatchNorm of a bottleneck leaves them
        count, width = int(spec.settings["num_clusters"]), spec.feature_size
        self.epsilon = float(spec.settings["epsilon"])
        self.memberships = nn.Parameter(torch.randn(width, count) / math.sqrt(width))
        self.register_buffer("running_mean", torch.zeros(count))
        self.register_buffer("running_var", torch.ones(count))
        self.offset = nn.Parameter(torch.zeros(count))
        self.clusters = nn.Parameter(torch.randn(count, width) / math.sqrt(width))
        self.projection = None
        if spec.settings["projected"]:
            self.projection = AffineMap(count * width, spec.descriptor_size, bias=True, batch_norm=False)

    def forward(self, features: Tensor, *_: Tensor) -> Tensor:
        """Return the descriptors (B,P) of local descriptors (B,N,D)."""
        scores = (features @ self.memberships - self.running_mean) / (self.running_var + self.epsilon).sqrt()
        assignment = (scores + self.offset).softmax(dim=2)  # (B,N,K)
        sums = assignment.transpose(1, 2) @ features  # (B,K,N) x (B,N,D)
        residuals = assignment.sum(1).unsqueeze(2) * self.clusters - sums  # (B,K,D)
        descriptor = _unit(_unit(residuals, 1).flatten(1), 1)
        return descriptor if self.projection is None else _unit(self.projection(_unit(descriptor, 1)), 1)


def _unit(values: Tensor, dim: int) -> Tensor:
    return values / values.square().sum(dim, keepdim=True).clamp(min=SQUARE_FLOOR).sqrt()
