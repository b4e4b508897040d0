"""The vocabulary of AnyLoc: `c_centers.pt`, a tensor (K,D) without a name.

Such a file says nothing of itself, so it is read by `--dialect` alone: `anyloc` for hard assignment, AnyLoc's default,
and `anyloc-soft` for its soft assignment at the default temperature of 1.

Source: AnyLoc/AnyLoc, utilities.py, class VLAD, and demo/anyloc_vlad_generate.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor
from torch.nn import functional

from netvlad_deploy.errors import InputError
from netvlad_deploy.models.aggregators.hard_vlad import hard_vlad_spec
from netvlad_deploy.models.dialects.base import NORMALIZES, Dialect
from netvlad_deploy.models.head import Head
from netvlad_deploy.spec.layer import CLUSTERS_FIRST, NetVLADSpec

C_CENTERS = "c_centers"
DEFAULTS = "L2-normalised local descriptors and clusters, as AnyLoc's VLAD does by default"


@dataclass(frozen=True, kw_only=True)
class Vocabulary(Dialect):
    """The dialect of centres (K,D) alone, with hard or with `soft` assignment by their cosine.

    Of soft assignment the centres are L2-normalised in float64 for the cosines, and rounded once.
    """

    soft: bool = False

    def convert(self, state: Mapping[str, Tensor], root: str) -> Head:
        """Return the head with the centres as they are; of soft assignment as the NetVLAD that it is."""
        name = root + C_CENTERS
        centres = state[name]
        if centres.ndim != 2:
            raise InputError(f"{name} has shape {tuple(centres.shape)}, expected (K, D)")
        num_clusters, feature_size = centres.shape
        ignored = self.others(state, root, (name,))
        if not self.soft:
            return Head(
                spec=hard_vlad_spec(num_clusters, feature_size),
                tensors={"centres": centres},
                ignored=ignored,
                assumed=f"hard assignment to the centre of the largest cosine, {DEFAULTS}",
            )
        spec = NetVLADSpec(
            num_clusters=num_clusters,
            feature_size=feature_size,
            batch_norm=False,
            normalize_input=True,
            flatten=CLUSTERS_FIRST,
        )
        directions = functional.normalize(centres.double(), dim=1).float()
        return Head(
            spec=spec,
            tensors={"clusters": directions.T, "clusters2": centres.T[None]},
            ignored=ignored,
            assumed=f"a softmax of cosines at the temperature 1, {DEFAULTS}",
        )


ANYLOC = Vocabulary(
    name="anyloc",
    needs=(C_CENTERS,),
    lone=C_CENTERS,
    explicit=True,
    preprocessing="local descriptors (batch, num_features, D): a facet of a layer of DINO or DINOv2, such as value; "
    f"{NORMALIZES}",
)
ANYLOC_SOFT = replace(ANYLOC, name="anyloc-soft", soft=True)
