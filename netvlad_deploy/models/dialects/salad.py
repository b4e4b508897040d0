"""The files of SALAD: a model of PyTorch Lightning with `backbone.model.*` and `aggregator.*`, or the aggregator alone.

Its class token is the backbone's, behind its last LayerNorm, as the local descriptors are. The published evaluation
resizes images of Pillow to 322x322.

Source: serizba/salad, models/aggregators/salad.py, vpr_model.py, eval.py and README.md.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from netvlad_deploy.errors import InputError
from netvlad_deploy.models.aggregators.salad import SALAD, salad_spec
from netvlad_deploy.models.dialects.base import BackboneKeys, Dialect
from netvlad_deploy.models.head import Head
from netvlad_deploy.spec.images import ImageInput, Resize

SAVED_LAYERS = {"token_features": ("0", "2"), "cluster_features": ("0", "3"), "score": ("0", "3")}
"""By the name of each network, the names of its two layers: those of convolutions have a Dropout between them."""

DUST_BIN = "dust_bin"


@dataclass(frozen=True, kw_only=True)
class SaladFile(Dialect):
    """The dialect of SALAD; the sizes of its layers come from their shapes."""

    def convert(self, state: Mapping[str, Tensor], root: str) -> Head:
        """Return the head with 1x1 convolutions as linear layers."""
        tensors, used, sizes = {DUST_BIN: state[root + DUST_BIN]}, [root + DUST_BIN], []
        if tensors[DUST_BIN].shape:
            raise InputError(f"{root}{DUST_BIN} has shape {tuple(tensors[DUST_BIN].shape)}, expected one number")
        for network, layers in SAVED_LAYERS.items():
            first, second = (f"{root}{network}.{layer}." for layer in layers)
            weights = self._weight(state, f"{first}weight"), self._weight(state, f"{second}weight")
            if weights[1].shape[1] != len(weights[0]):
                taken, given = weights[1].shape[1], len(weights[0])
                raise InputError(f"{second}weight takes {taken} values, {first}weight gives {given}")
            for name, own, weight in zip((first, second), ("0", "2"), weights, strict=True):
                bias = self.vector(state, f"{name}bias", len(weight), f"{name}weight")
                tensors |= {f"{network}.{own}.weight": weight, f"{network}.{own}.bias": bias}
                used += [f"{name}weight", f"{name}bias"]
            sizes.append((weights[0].shape[1], len(weights[0]), len(weights[1])))
        spec = salad_spec(sizes[0], sizes[1], sizes[2])
        return Head(spec=spec, tensors=tensors, ignored=self.others(state, root, used))

    def _weight(self, state: Mapping[str, Tensor], name: str) -> Tensor:
        """Return the matrix (O,I) of a linear layer or of a 1x1 convolution.

        Raises: InputError if it is missing or has another shape.
        """
        if name not in state:
            raise InputError(f"lacks {name} of {self.name}")
        weight = state[name]
        if weight.ndim == 4 and weight.shape[2:] == (1, 1):
            weight = weight[:, :, 0, 0]
        if weight.ndim != 2:
            raise InputError(f"{name} has shape {tuple(state[name].shape)}, expected (O, I) or (O, I, 1, 1)")
        return weight


SALAD_FILE = SaladFile(
    name=SALAD,
    needs=(DUST_BIN, *(f"{name}.{layer}.weight" for name, layers in SAVED_LAYERS.items() for layer in layers)),
    roots=("aggregator.", ""),
    preprocessing="local descriptors (batch, num_features, D): every patch token of DINOv2 after its last LayerNorm; "
    "and token (batch, D): its class token after it",
    backbone=BackboneKeys(
        roots=("backbone.model.", "backbone."),
        candidates=("dinov2-s", "dinov2-b", "dinov2-l"),
        images=ImageInput(resize=Resize(size=(322, 322)), orient=False),
    ),
)
