"""VLAD with hard assignment: every local descriptor belongs to the one cluster whose centre has the largest cosine.

Source: AnyLoc/AnyLoc, utilities.py, class VLAD, with its defaults norm_descs, intra_norm and dist_mode cosine;
DeMoriRyu/fast_pytorch_kmeans, kmeans.py. Jegou et al. 2010 (VLAD); Arandjelovic & Zisserman 2013 (intra-normalisation).
"""

from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from netvlad_deploy.models.aggregators.base import Aggregator
from netvlad_deploy.spec.layer import AggregatorSpec

HARD_VLAD: Final = "hard-vlad"


def hard_vlad_spec(num_clusters: int, feature_size: int) -> AggregatorSpec:
    """Return the spec of K clusters for local descriptors of D values.

    >>> hard_vlad_spec(32, 1536).descriptor_size
    49152
    """
    return AggregatorSpec(
        name=HARD_VLAD,
        descriptor_size=num_clusters * feature_size,
        unit_length=True,
        feature_size=feature_size,
        settings={"num_clusters": num_clusters},
    )


class HardVLAD(Aggregator):
    """Turn local descriptors (B,N,D) into descriptors (B, K*D), index k*D + d.

    They are L2-normalised first; a residual is x - c. A cluster without local descriptors stays 0; of equally near
    centres the first one counts.
    """

    def __init__(self, spec: AggregatorSpec) -> None:
        super().__init__(spec)
        self.num_clusters = int(spec.settings["num_clusters"])
        self.centres = nn.Parameter(torch.randn(self.num_clusters, spec.feature_size))

    def forward(self, features: Tensor, *_: Tensor) -> Tensor:
        """Return the descriptors (B, K*D) of local descriptors (B,N,D)."""
        directions = functional.normalize(self.centres, dim=1)
        # By einsum, whose operands no golden rounding touches: a graph of any precision has the cosines in FP32.
        nearest = torch.einsum("bnd,kd->bnk", features, directions).argmax(2)  # (B,N)
        belongs = functional.one_hot(nearest, self.num_clusters).to(features.dtype)  # (B,N,K)
        sums = belongs.transpose(1, 2) @ functional.normalize(features, dim=2)  # (B,K,N) x (B,N,D)
        residuals = sums - belongs.sum(1).unsqueeze(2) * self.centres  # (B,K,1) * (K,D)
        return functional.normalize(functional.normalize(residuals, dim=2).flatten(1), dim=1)
