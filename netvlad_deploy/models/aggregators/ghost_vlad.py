"""GhostVLAD of speaker recognition: the assignments come from other features than those that are summed up.

A feature map of the network, several frequencies at a time, gives the logits; the features themselves come from a layer
of their own. Clusters are L2-normalised, their vector is not; a linear layer with ReLU makes the descriptor of it.

Source: WeidiXie/VGG-Speaker-Recognition, src/model.py, VladPooling and vggvox_resnet2d_icassp in the mode eval.
Xie et al. 2019, "Utterance-level aggregation for speaker recognition in the wild"; Zhong et al. 2018 (GhostVLAD).
"""

from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from netvlad_deploy.models.aggregators.base import Aggregator
from netvlad_deploy.spec.layer import NORM_FLOORS, RSQRT, AggregatorSpec

GHOST_VLAD: Final = "ghost-vlad"


def ghost_vlad_spec(
    *, num_clusters: int, num_ghost_clusters: int, feature_size: int, assignment_feature_size: int, size: int
) -> AggregatorSpec:
    """Return the spec of K clusters and G ghosts whose descriptor has `size` values.

    >>> spec = ghost_vlad_spec(
    ...     num_clusters=8, num_ghost_clusters=2, feature_size=512, assignment_feature_size=3584, size=512
    ... )
    >>> spec.inputs
    ('features', 'assignment_features')
    """
    return AggregatorSpec(
        name=GHOST_VLAD,
        descriptor_size=size,
        unit_length=True,
        feature_size=feature_size,
        assignment_feature_size=assignment_feature_size,
        settings={"num_clusters": num_clusters, "num_ghost_clusters": num_ghost_clusters},
    )


class GhostVLAD(Aggregator):
    """Turn features (B,N,D) and assignment features (B,N,A) into descriptors (B,P).

    The logits are a linear map of the assignment features; ghost clusters come last and are dropped. Norms are taken as
    at least 1e-6, as TensorFlow does it. The vector that the last layer takes has index k*D + d.
    """

    def __init__(self, spec: AggregatorSpec) -> None:
        super().__init__(spec)
        size = {name: int(value) for name, value in spec.settings.items()}
        self.num_clusters = size["num_clusters"]
        self.assignment = nn.Linear(spec.assignment_feature_size, self.num_clusters + size["num_ghost_clusters"])
        self.centres = nn.Parameter(torch.randn(self.num_clusters, spec.feature_size))
        self.projection = nn.Linear(self.num_clusters * spec.feature_size, spec.descriptor_size)

    def forward(self, features: Tensor, *others: Tensor) -> Tensor:
        """Return the descriptors (B,P) of features (B,N,D) and assignment features (B,N,A)."""
        (assignment_features,) = others
        shares = self.assignment(assignment_features).softmax(2)[:, :, : self.num_clusters]  # (B,N,K)
        sums = shares.transpose(1, 2) @ features  # (B,K,N) x (B,N,D)
        residuals = sums - shares.sum(1).unsqueeze(2) * self.centres  # (B,K,1) * (K,D)
        clusters = functional.normalize(residuals, dim=2, eps=NORM_FLOORS[RSQRT])
        projected = self.projection(clusters.flatten(1)).relu()
        return functional.normalize(projected, dim=1, eps=NORM_FLOORS[RSQRT])
