"""The reference's own names: collaborative-experts and towhee, and reference files of this package."""

from collections.abc import Mapping

from torch import Tensor

from netvlad_deploy.models.dialects.base import PROJECTION, BackboneKeys, Dialect, Head, columns
from netvlad_deploy.spec import CLUSTERS_FIRST, CLUSTERS_LAST, NetVLADSpec

BIAS = "assignment_bias"
NORMALIZE_INPUT, CLUSTERS_FIRST_MARK = "normalize_input", "clusters_first"
"""Conventions in a reference file, which a state alone does not show: 1 for yes."""

BACKBONE = "backbone."
"""Before the names of a backbone in a vocabulary file, whose own record says which it is."""


class CollaborativeExperts(Dialect):
    """Descriptors are d*K + k, local descriptors as they come, ghost clusters last."""

    def convert(self, state: Mapping[str, Tensor]) -> Head:
        """Keep every tensor but a projection: the module refuses what it does not know."""
        self.root(state)
        ignored = tuple(sorted(name for name in state if PROJECTION.search(name) or name.startswith(BACKBONE)))
        tensors = {name: tensor for name, tensor in state.items() if name not in ignored}
        num_clusters, feature_size, ghosts = columns("clusters", "clusters2", state)
        normalize_input, clusters_first = (_mark(tensors, name) for name in (NORMALIZE_INPUT, CLUSTERS_FIRST_MARK))
        spec = NetVLADSpec(
            num_clusters=num_clusters,
            feature_size=feature_size,
            num_ghost_clusters=ghosts,
            batch_norm=any(name.startswith("batch_norm.") for name in tensors),
            assignment_bias=BIAS in tensors,
            normalize_input=normalize_input,
            flatten=CLUSTERS_FIRST if clusters_first else CLUSTERS_LAST,
        )
        return Head(spec=spec, tensors=tensors, ignored=ignored, preprocessing=self.preprocessing)


def _mark(tensors: dict[str, Tensor], name: str) -> bool:
    mark = tensors.pop(name, None)
    return mark is not None and bool(mark.all())


COLLABORATIVE_EXPERTS = CollaborativeExperts(
    name="collaborative-experts",
    keys="clusters (D,K+G), clusters2 (1,D,K), batch_norm.* or none",
    needs=("clusters", "clusters2"),
    backbone=BackboneKeys(roots=(BACKBONE,), candidates=()),
)
