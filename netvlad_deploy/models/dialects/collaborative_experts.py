"""The reference's own names: collaborative-experts and towhee, and reference files of this package."""

from collections.abc import Mapping, Set

from torch import Tensor

from netvlad_deploy.models.dialects.base import FOLLOWING, PROJECTION_KEY, BackboneKeys, Dialect, Head, columns
from netvlad_deploy.oracle.reference_file import (
    ASSIGNMENT_BIAS,
    CLUSTERS_FIRST_MARK,
    EPSILON_MARKS,
    FINAL_L2,
    MARKS,
    NORMALIZE_INPUT,
    PROJECTION_L2,
)
from netvlad_deploy.spec.layer import BATCH_NORM, BIAS, CLAMP, CLUSTERS_FIRST, CLUSTERS_LAST, NetVLADSpec, Projection

BACKBONE = "backbone."
"""Before the names of a backbone in a vocabulary file, whose own record says which it is."""


class CollaborativeExperts(Dialect):
    """Descriptors are d*K + k, local descriptors as they come, ghost clusters last.

    A reference file says by its marks, 1 for yes, what a state alone does not show, and may have a projection.
    """

    def convert(self, state: Mapping[str, Tensor], root: str) -> Head:
        """Keep every tensor but a projection of others: the module refuses what it does not know."""
        ignored = tuple(sorted(name for name in state if PROJECTION_KEY.search(name) or name.startswith(BACKBONE)))
        marks = {name for name in MARKS if name in state and bool(state[name].all())}
        tensors = {name: tensor for name, tensor in state.items() if name not in (*ignored, *MARKS)}
        following = {name: tensors.pop(name) for name in list(tensors) if name.startswith(FOLLOWING)}
        num_clusters, feature_size, ghosts = columns(root + "clusters", root + "clusters2", state)
        spec = NetVLADSpec(
            num_clusters=num_clusters,
            feature_size=feature_size,
            num_ghost_clusters=ghosts,
            batch_norm=any(name.startswith("batch_norm.") for name in tensors),
            assignment_bias=ASSIGNMENT_BIAS in tensors,
            normalize_input=NORMALIZE_INPUT in marks,
            flatten=CLUSTERS_FIRST if CLUSTERS_FIRST_MARK in marks else CLUSTERS_LAST,
            epsilon=next((mode for name, mode in EPSILON_MARKS.items() if name in marks), CLAMP),
        )
        head = Head(spec=spec, tensors=tensors, ignored=ignored, preprocessing=self.preprocessing)
        if not following:
            return head
        projection = self._projection(following, spec.aggregate_size, marks)
        return head.followed_by(projection, following, following)

    def _projection(self, following: Mapping[str, Tensor], inputs: int, marks: Set[str]) -> Projection:
        """Return what the names and shapes of the reference's own projection say."""

        def offset(layer: str) -> str | None:
            names = [name for name in following if name.startswith(layer)]
            if not names:
                return None
            return BATCH_NORM if any(name.startswith(f"{layer}batch_norm.") for name in names) else BIAS

        size = len(self.matrix(following, "projection.weight", inputs))
        return Projection(
            size=size,
            bias="projection.bias" in following,
            batch_norm=offset("projection.") == BATCH_NORM,
            l2=PROJECTION_L2 in marks,
            gating=offset("gating."),
            final_l2=FINAL_L2 in marks,
        )


COLLABORATIVE_EXPERTS = CollaborativeExperts(
    name="collaborative-experts",
    keys="clusters (D,K+G), clusters2 (1,D,K), batch_norm.* or none",
    needs=("clusters", "clusters2"),
    backbone=BackboneKeys(roots=(BACKBONE,), candidates=()),
)
