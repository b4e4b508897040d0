"""The benchmark's CRN: the names of its NetVLAD, and `crn.*` beside them.

Source: gmberton/deep-visual-geo-localization-benchmark, model/aggregation.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from netvlad_deploy.errors import InputError
from netvlad_deploy.models.aggregators.crn import CONTEXT_FILTERS, CRN, crn_spec
from netvlad_deploy.models.dialects.base import Dialect
from netvlad_deploy.models.dialects.convolution import DEEP_VISUAL_GEO_LOCALIZATION
from netvlad_deploy.models.head import Head

ACCUMULATION = "crn.acc_w"


@dataclass(frozen=True, kw_only=True)
class ContextFile(Dialect):
    """The dialect of a convolution (K,D,1,1), centroids (K,D) and the convolutions of the context."""

    def convert(self, state: Mapping[str, Tensor], root: str) -> Head:
        """Return the head with the convolution of the logits as (D,K)."""
        weight, centroids = root + self.needs[0], root + self.needs[1]
        num_clusters, feature_size = state[weight].shape[:2]
        if state[weight].shape[2:] != (1, 1) or state[centroids].shape != (num_clusters, feature_size):
            shapes = f"{weight} {tuple(state[weight].shape)} and {centroids} {tuple(state[centroids].shape)}"
            raise InputError(f"{shapes} are not (K, D, 1, 1) and (K, D)")
        tensors = {"clusters": state[weight].reshape(num_clusters, feature_size).T, "centres": state[centroids]}
        used, channels = [weight, centroids], {}

        def take(name: str, own: str, *shape: int) -> int:
            """Take kernel (C,*shape) and bias (C,) of a convolution under its `own` name in the module; return C."""
            kernel, bias = f"{root}{name}.weight", f"{root}{name}.bias"
            if kernel not in state:
                raise InputError(f"lacks {kernel} of {self.name}")
            if state[kernel].shape[1:] != shape:
                wanted = ", ".join(map(str, shape))
                raise InputError(f"{kernel} has shape {tuple(state[kernel].shape)}, expected (C, {wanted})")
            count = len(state[kernel])
            tensors[f"{own}.weight"], tensors[f"{own}.bias"] = state[kernel], self.vector(state, bias, count, kernel)
            used.extend((kernel, bias))
            return count

        for name, side in CONTEXT_FILTERS.items():
            channels[name] = take(f"crn.{name}", f"filters.{name}", feature_size, side, side)
        take(ACCUMULATION, "accumulation", sum(channels.values()), 1, 1)
        spec = crn_spec(num_clusters, feature_size, channels)
        return Head(spec=spec, tensors=tensors, ignored=self.others(state, root, used))


CRN_FILE = ContextFile(
    name=CRN,
    needs=("conv.weight", "centroids", f"{ACCUMULATION}.weight"),
    roots=DEEP_VISUAL_GEO_LOCALIZATION.roots,
    preprocessing="a feature map of even height and width: it is exported with its backbone",
    backbone=DEEP_VISUAL_GEO_LOCALIZATION.backbone,
)
