"""SALAD: local descriptors are shared out among clusters and a dustbin by optimal transport.

Two networks of two layers turn a local descriptor into its scores for K clusters and into C values; a third turns the
class token into T values. Three steps of Sinkhorn in the log domain make the scores a plan of transport: every local
descriptor gives the mass 1, every cluster takes the mass 1 and the dustbin the N - K that are left. A cluster is the
sum of the values by their mass in it. The token's part, every cluster and the whole are L2-normalised.

Source: serizba/salad, models/aggregators/salad.py. Izquierdo & Civera 2024 (SALAD); Cuturi 2013 (Sinkhorn).
"""

import math
from typing import Final, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from netvlad_deploy.errors import InputError
from netvlad_deploy.models.aggregators.base import Aggregator
from netvlad_deploy.spec.layer import AggregatorSpec

SALAD: Final = "salad"
SINKHORN_STEPS: Final = 3
Layers: TypeAlias = tuple[int, int, int]
"""Number of values that a network of two layers takes, has between them, and gives."""


def salad_spec(token: Layers, cluster: Layers, score: Layers) -> AggregatorSpec:
    """Return the spec of a SALAD by the sizes of its three networks: T, C and K are the numbers of values they give.

    Raises: InputError if clusters and scores are not of the same local descriptors.

    >>> spec = salad_spec((768, 512, 256), (768, 512, 128), (768, 512, 64))
    >>> spec.descriptor_size, spec.least_features
    (8448, 64)
    """
    if cluster[0] != score[0]:
        raise InputError(f"the scores take {score[0]} values, the clusters {cluster[0]}: they are of two layers")
    return AggregatorSpec(
        name=SALAD,
        descriptor_size=token[2] + score[2] * cluster[2],
        unit_length=True,
        feature_size=cluster[0],
        token_size=token[0],
        least_features=score[2],
        settings={
            "num_clusters": score[2],
            "cluster_size": cluster[2],
            "token_part": token[2],
            "token_hidden": token[1],
            "cluster_hidden": cluster[1],
            "score_hidden": score[1],
        },
    )


class Salad(Aggregator):
    """Turn local descriptors (B,N,D) and class tokens (B,D) into descriptors (B, T+C*K).

    Value t of the token's part has index t, value c of cluster k has index T + c*K + k. With fewer local descriptors
    than clusters the plan does not exist, and the descriptor is NaN.
    """

    def __init__(self, spec: AggregatorSpec) -> None:
        super().__init__(spec, feature_norm=math.sqrt(spec.feature_size))  # as a LayerNorm leaves them
        size = {name: int(value) for name, value in spec.settings.items()}
        self.num_clusters = size["num_clusters"]
        self.token_features = _two_layers(spec.token_size, size["token_hidden"], size["token_part"])
        self.cluster_features = _two_layers(spec.feature_size, size["cluster_hidden"], size["cluster_size"])
        self.score = _two_layers(spec.feature_size, size["score_hidden"], self.num_clusters)
        self.dust_bin = nn.Parameter(torch.ones(()))

    def forward(self, features: Tensor, *others: Tensor) -> Tensor:
        """Return the descriptors (B, T+C*K) of local descriptors (B,N,D) and class tokens (B,D)."""
        (token,) = others
        scores = self.score(features).transpose(1, 2)  # (B,K,N)
        plan = self._transport(scores)
        clusters = (plan @ self.cluster_features(features)).transpose(1, 2)  # (B,K,N) x (B,N,C), then (B,C,K)
        part = functional.normalize(self.token_features(token), dim=1)
        joined = torch.cat((part, functional.normalize(clusters, dim=1).flatten(1)), dim=1)
        return functional.normalize(joined, dim=1)

    def _transport(self, scores: Tensor) -> Tensor:
        """Return the mass (B,K,N) of every local descriptor in every cluster, of scores (B,K,N)."""
        batch, clusters, count = scores.shape
        couplings = torch.cat((scores, self.dust_bin.expand(batch, 1, count)), dim=1)  # (B,K+1,N)
        wanted = scores.new_tensor([1] * clusters + [count - clusters]).log()  # of a negative number it is NaN
        by_descriptor = scores.new_zeros(batch, 1, count)
        by_cluster = scores.new_zeros(batch, clusters + 1, 1)
        for _ in range(SINKHORN_STEPS):
            by_cluster = wanted[:, None] + -(couplings + by_descriptor).logsumexp(dim=2, keepdim=True)
            by_descriptor = -(couplings + by_cluster).logsumexp(dim=1, keepdim=True)
        return (couplings + by_cluster + by_descriptor)[:, :-1].exp()


def _two_layers(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs))
