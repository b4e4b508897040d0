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
        for name, side in CONTEXT_FILTERS.items():
            kernel = self._kernel(state, f"{root}crn.{name}.weight", (feature_size, side, side))
            channels[name] = len(kernel)
            tensors |= self._layer(state, f"{root}crn.{name}", f"filters.{name}", kernel)
            used += [f"{root}crn.{name}.weight", f"{root}crn.{name}.bias"]
        kernel = self._kernel(state, f"{root}{ACCUMULATION}.weight", (sum(channels.values()), 1, 1))
        tensors |= self._layer(state, f"{root}{ACCUMULATION}", "accumulation", kernel)
        used += [f"{root}{ACCUMULATION}.weight", f"{root}{ACCUMULATION}.bias"]
        spec = crn_spec(num_clusters, feature_size, channels)
        return Head(spec=spec, tensors=tensors, ignored=self.others(state, root, used))

    def _kernel(self, state: Mapping[str, Tensor], name: str, shape: tuple[int, int, int]) -> Tensor:
        """Return the kernel (C,I,h,w) of this name, of which all axes but the first have this `shape`.

        Raises: InputError if it is missing or has another shape.
        """
        if name not in state:
            raise InputError(f"lacks {name} of {self.name}")
        if state[name].shape[1:] != shape:
            wanted = ", ".join(map(str, shape))
            raise InputError(f"{name} has shape {tuple(state[name].shape)}, expected (C, {wanted})")
        return state[name]

    def _layer(self, state: Mapping[str, Tensor], name: str, own: str, kernel: Tensor) -> dict[str, Tensor]:
        """Return a convolution's kernel and bias under the module's name for it."""
        bias = self.vector(state, f"{name}.bias", len(kernel), f"{name}.weight")
        return {f"{own}.weight": kernel, f"{own}.bias": bias}


CRN_FILE = ContextFile(
    name=CRN,
    needs=("conv.weight", "centroids", f"{ACCUMULATION}.weight"),
    roots=DEEP_VISUAL_GEO_LOCALIZATION.roots,
    preprocessing="a feature map of even height and width: it is exported with its backbone",
    backbone=DEEP_VISUAL_GEO_LOCALIZATION.backbone,
)
