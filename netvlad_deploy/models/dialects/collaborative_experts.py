"""The dialect of the reference (collaborative-experts, towhee, reference files), and Mixture-of-Embedding-Experts.

The code of the latter saves a BatchNorm that it never applies if it is built without one. Built with BatchNorm, its
files are those of collaborative-experts without ghost clusters.

Source: antoine77340/Mixture-of-Embedding-Experts, loupe.py.
"""

from collections.abc import Mapping, Set
from dataclasses import replace

from torch import Tensor

from netvlad_deploy.errors import InputError
from netvlad_deploy.models.dialects.base import PROJECTION_NAME, BackboneKeys, Dialect, cluster_sizes
from netvlad_deploy.models.head import PROJECTION_PREFIXES, Head
from netvlad_deploy.oracle import reference_file
from netvlad_deploy.spec.layer import BATCH_NORM, BIAS, CLAMP, CLUSTERS_FIRST, CLUSTERS_LAST, NetVLADSpec, Projection

BACKBONE = "backbone."
"""Prefix of the backbone in a vocabulary file, whose record names the network."""

BATCH_NORM_PREFIX = "batch_norm."


class CollaborativeExperts(Dialect):
    """A layer with descriptors d*K + k, local descriptors as they come, and ghost clusters last.

    A reference file has a mark, 1 for yes, for each convention that a state alone does not show, and may have a
    projection.
    """

    def convert(self, state: Mapping[str, Tensor], root: str) -> Head:
        """Return the head with every tensor but foreign projections: the module refuses unknown tensors."""
        ignored = tuple(sorted(name for name in state if PROJECTION_NAME.search(name) or name.startswith(BACKBONE)))
        marks = {name for name in reference_file.MARKS if name in state and bool(state[name].all())}
        tensors = {name: tensor for name, tensor in state.items() if name not in (*ignored, *reference_file.MARKS)}
        following = {name: tensors.pop(name) for name in list(tensors) if name.startswith(PROJECTION_PREFIXES)}
        num_clusters, feature_size, ghosts = cluster_sizes(root + "clusters", root + "clusters2", state)
        spec = NetVLADSpec(
            num_clusters=num_clusters,
            feature_size=feature_size,
            num_ghost_clusters=ghosts,
            batch_norm=any(name.startswith(BATCH_NORM_PREFIX) for name in tensors),
            assignment_bias=reference_file.ASSIGNMENT_BIAS in tensors,
            normalize_input=reference_file.NORMALIZE_INPUT in marks,
            flatten=CLUSTERS_FIRST if reference_file.CLUSTERS_FIRST_MARK in marks else CLUSTERS_LAST,
            epsilon=next((mode for name, mode in reference_file.EPSILON_MARKS.items() if name in marks), CLAMP),
        )
        head = Head(spec=spec, tensors=tensors, ignored=ignored)
        if not following:
            return head
        projection = self._projection(following, spec.aggregate_size, marks)
        return head.followed_by(projection, following, following)

    def _projection(self, following: Mapping[str, Tensor], inputs: int, marks: Set[str]) -> Projection:
        """Return the projection that the names and shapes of its tensors, and the marks, describe."""

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
            l2=reference_file.PROJECTION_L2 in marks,
            gating=offset("gating."),
            final_l2=reference_file.FINAL_L2 in marks,
        )


class MixtureOfEmbeddingExperts(CollaborativeExperts):
    """The layer of collaborative-experts without ghost clusters and without BatchNorm."""

    def convert(self, state: Mapping[str, Tensor], root: str) -> Head:
        """Return the head without the BatchNorm; ghost clusters are refused."""
        unused = tuple(name for name in state if name.startswith(BATCH_NORM_PREFIX))
        head = super().convert({name: tensor for name, tensor in state.items() if name not in unused}, root)
        if head.spec.num_ghost_clusters:
            shapes = f"clusters {tuple(state['clusters'].shape)} and clusters2 {tuple(state['clusters2'].shape)}"
            raise InputError(f"{shapes} have ghost clusters, which {self.name} does not have")
        return replace(head, ignored=tuple(sorted((*head.ignored, *unused))))


COLLABORATIVE_EXPERTS = CollaborativeExperts(
    name="collaborative-experts",
    needs=("clusters", "clusters2"),
    backbone=BackboneKeys(roots=(BACKBONE,), candidates=()),
)
MIXTURE_OF_EMBEDDING_EXPERTS = MixtureOfEmbeddingExperts(
    name="mixture-of-embedding-experts",
    needs=("clusters", "clusters2", f"{BATCH_NORM_PREFIX}weight"),
    lacks=(f"{BATCH_NORM_PREFIX}eps", *reference_file.MARKS, reference_file.ASSIGNMENT_BIAS, "projection.weight"),
    unused=(BATCH_NORM_PREFIX,),
    explicit=True,
)
