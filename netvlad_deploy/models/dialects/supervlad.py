"""SuperVLAD: a NetVLAD without centroids, whose last clusters are ghosts.

Its file has the names of the benchmark's NetVLAD less the centroids, and does not say how many of its clusters are
ghosts: the published models have 4 clusters and 1 ghost, the variant of one cluster has 2. So it is read by `--dialect`
alone; without that it may as well be a damaged file of the benchmark.

Its optional cross-image encoder mixes the descriptors of a batch: a descriptor then depends on the images beside it. No
graph here has one; the descriptor before it is the head's.

Source: Lu-Feng/SuperVLAD, model/supervlad_layer.py, parser.py, datasets_ws.py and README.md.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from netvlad_deploy.errors import InputError
from netvlad_deploy.models.dialects.base import NORMALIZES, BackboneKeys, Dialect
from netvlad_deploy.models.dialects.convolution import GEO_LOCALIZATION_NETWORKS
from netvlad_deploy.models.head import Head
from netvlad_deploy.spec.images import ALIASED, ImageInput, Resize
from netvlad_deploy.spec.layer import CLUSTERS_FIRST, NetVLADSpec

ONE_CLUSTER_COLUMNS = 3
"""Columns of the variant of one cluster, which has two ghosts."""


@dataclass(frozen=True, kw_only=True)
class SuperVLAD(Dialect):
    """A layer with a convolution (K+G,D,1,1) or (K+G,D,1) alone.

    Args:
        ghosts: G, the number of its last columns that are ghosts.
        columns: K+G if it can have no other, else 0.
    """

    ghosts: int = 1
    columns: int = 0

    def convert(self, state: Mapping[str, Tensor], root: str) -> Head:
        """Return the head with centroids of 0: the residual x - 0 is the local descriptor itself."""
        name = root + self.needs[0]
        shape = tuple(state[name].shape)
        if len(shape) not in (3, 4) or any(side != 1 for side in shape[2:]):
            raise InputError(f"{name} {shape} is not (K+G, D, 1, 1) or (K+G, D, 1)")
        if shape[0] <= self.ghosts or self.columns not in (0, shape[0]):
            wanted = f"{self.columns} clusters" if self.columns else f"more than {self.ghosts}"
            raise InputError(f"{name} {shape} has {shape[0]} clusters, {self.name} has {wanted}, ghosts among them")
        spec = NetVLADSpec(
            num_clusters=shape[0] - self.ghosts,
            feature_size=shape[1],
            num_ghost_clusters=self.ghosts,
            batch_norm=False,
            normalize_input=True,
            flatten=CLUSTERS_FIRST,
        )
        tensors = {
            "clusters": state[name].reshape(shape[:2]).T,
            "clusters2": torch.zeros(1, spec.feature_size, spec.num_clusters),
        }
        return Head(spec=spec, tensors=tensors, ignored=self.others(state, root, (name,)))


SUPERVLAD = SuperVLAD(
    name="supervlad",
    needs=("conv.weight",),
    lacks=("centroids", "conv.bias"),
    roots=("aggregation.",),
    explicit=True,
    after=("encoder.",),
    preprocessing="local descriptors (batch, num_features, D): every patch token of DINOv2, or every position of the "
    f"backbone's feature map; {NORMALIZES}",
    backbone=BackboneKeys(
        roots=("backbone.",),
        candidates=("dinov2-s", "dinov2-b", "dinov2-l", *GEO_LOCALIZATION_NETWORKS),
        images=ImageInput(resize=Resize(size=(322, 322), filter=ALIASED), orient=False),
    ),
)
SUPERVLAD_ONE_CLUSTER = replace(SUPERVLAD, name="supervlad-one-cluster", ghosts=2, columns=ONE_CLUSTER_COLUMNS)
