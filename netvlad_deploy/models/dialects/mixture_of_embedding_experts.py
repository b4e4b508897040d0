"""Mixture-of-Embedding-Experts, built without BatchNorm: it saves one all the same, and never uses it.

Source: antoine77340/Mixture-of-Embedding-Experts, loupe.py. Its own model does use BatchNorm, and is then no other
dialect than collaborative-experts without ghost clusters.
"""

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from netvlad_deploy.errors import InputError
from netvlad_deploy.models.dialects.base import Head
from netvlad_deploy.models.dialects.collaborative_experts import CollaborativeExperts
from netvlad_deploy.oracle.reference_file import ASSIGNMENT_BIAS, MARKS, PROJECTION

BATCH_NORM_PREFIX = "batch_norm."


class MixtureOfEmbeddingExperts(CollaborativeExperts):
    """As collaborative-experts, without ghost clusters, and BatchNorm left out."""

    def convert(self, state: Mapping[str, Tensor], root: str) -> Head:
        """Drop BatchNorm, and refuse ghost clusters."""
        unused = tuple(name for name in state if name.startswith(BATCH_NORM_PREFIX))
        head = super().convert({name: tensor for name, tensor in state.items() if name not in unused}, root)
        if head.spec.num_ghost_clusters:
            shapes = f"clusters {tuple(state['clusters'].shape)} and clusters2 {tuple(state['clusters2'].shape)}"
            raise InputError(f"{shapes} have ghost clusters, which {self.name} does not have")
        return replace(head, ignored=tuple(sorted((*head.ignored, *unused))))


MIXTURE_OF_EMBEDDING_EXPERTS = MixtureOfEmbeddingExperts(
    name="mixture-of-embedding-experts",
    keys="clusters (D,K), clusters2 (1,D,K), batch_norm.* that is not used",
    needs=("clusters", "clusters2", f"{BATCH_NORM_PREFIX}weight"),
    lacks=(f"{BATCH_NORM_PREFIX}eps", *MARKS, ASSIGNMENT_BIAS, f"{PROJECTION}.weight"),
    unused=(BATCH_NORM_PREFIX,),
    explicit=True,
)
