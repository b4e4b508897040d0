"""The head in a checkpoint, in the form of its torch module, and the image backbone under it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from netvlad_deploy.errors import InputError
from netvlad_deploy.models.aggregators import AGGREGATORS
from netvlad_deploy.models.aggregators.base import Aggregator
from netvlad_deploy.models.netvlad import NetVLAD
from netvlad_deploy.models.tensor_names import BATCH_NORM_COUNTER
from netvlad_deploy.spec.images import ImageInput
from netvlad_deploy.spec.layer import AnySpec, NetVLADSpec, Projection

PREPROCESSING = "none: local descriptors (batch, num_features, D) as the layer was trained on"

PROJECTION_PREFIXES = ("projection.", "gating.")
"""State-dict prefixes of the reference's projection and gating."""


@dataclass(frozen=True, kw_only=True)
class BackboneState:
    """An image backbone as a checkpoint holds it.

    Args:
        root: the prefix of its names in the file.
        tensors: its tensors, by their names after the root.
        candidates: the names in `models.backbones` of the networks that it may be.
        images: its image input.
        recorded: the file itself names the backbone and its image input; otherwise both follow from the dialect.
        assumed: the part of its image input that the file leaves open and that was assumed, in words.
    """

    root: str
    tensors: Mapping[str, Tensor]
    candidates: tuple[str, ...]
    images: ImageInput
    recorded: bool = False
    assumed: str = ""


@dataclass(frozen=True, kw_only=True)
class Head:
    """A NetVLAD, or another aggregator, as a checkpoint holds it, brought to the form of its torch module.

    Args:
        spec: sizes and conventions of the layer: the NetVLADSpec of a NetVLAD, the AggregatorSpec of another one. A
            dialect of NetVLADs gives the first, which the type does not say.
        tensors: the state of the module, and `batch_norm.eps` if the checkpoint brings its own.
        ignored: names in the checkpoint of tensors that the head does not use.
        preprocessing: the required local descriptors, in words.
        dialect: the name of the dialect in which it was saved.
        projected: names in the checkpoint of the projection's tensors, which `tensors` has too.
        projections: ignored names of a projection after the head that the dialect does not know.
        unplaced: ignored names of tensors with several values that are neither the backbone's, nor another head's, nor
            known to change no descriptor: they may stand before the head or after it.
        assumed: the conventions that the keys leave open and that were assumed, in words; empty if there are none.
        backbone: the image backbone among the ignored names, None if there is none.
    """

    spec: Any
    tensors: Mapping[str, Tensor]
    ignored: tuple[str, ...] = ()
    preprocessing: str = PREPROCESSING
    dialect: str = ""
    projected: tuple[str, ...] = ()
    projections: tuple[str, ...] = ()
    unplaced: tuple[str, ...] = ()
    assumed: str = ""
    backbone: BackboneState | None = None

    def followed_by(self, projection: Projection, tensors: Mapping[str, Tensor], names: Iterable[str]) -> "Head":
        """Return the head with a projection: tensors by the reference's names, and `names` in the checkpoint."""
        projected = tuple(sorted(names))
        return replace(
            self,
            spec=replace(self.spec, projection=projection),
            tensors={**self.tensors, **tensors},
            ignored=tuple(name for name in self.ignored if name not in projected),
            projected=projected,
        )

    def alone(self) -> "Head":
        """Return the head without its projection and gating, and without what it does not know after it."""
        left = replace(self, projected=(), projections=(), unplaced=())
        if not self.projected:
            return left
        if isinstance(self.spec, NetVLADSpec):
            spec: AnySpec = replace(self.spec, projection=None)
        else:  # another aggregator, with a linear layer at its end
            size = self.tensors["projection.weight"].shape[1]
            spec = replace(self.spec, descriptor_size=size, settings={**self.spec.settings, "projected": 0})
        return replace(
            left,
            spec=spec,
            tensors={name: tensor for name, tensor in self.tensors.items() if not name.startswith(PROJECTION_PREFIXES)},
            ignored=tuple(sorted((*self.ignored, *self.projected))),
        )

    def netvlad(self, path: Path | str) -> NetVLAD:
        """Return the reference module in eval mode; `path` is for errors.

        Raises: InputError if the head is another aggregator, or its tensors are not those of the module.
        """
        module = self.module(path)
        if not isinstance(module, NetVLAD):
            raise InputError(f"{path} holds {module.spec.name}, expected a NetVLAD: export it by itself")
        return module

    def module(self, path: Path | str) -> NetVLAD | Aggregator:
        """Return the torch module in eval mode; it takes over FP32 tensors without a copy. `path` is for errors.

        Raises: InputError if the tensors are not those of the module.
        """
        spec = self.spec
        with torch.device("meta"):
            module = NetVLAD.of(spec) if isinstance(spec, NetVLADSpec) else AGGREGATORS[spec.name](spec)
        tensors = {
            name: (tensor.float() if tensor.is_floating_point() else tensor).contiguous()
            for name, tensor in self.tensors.items()
        }
        for name, part in module.named_modules():
            if isinstance(part, torch.nn.BatchNorm1d):
                tensors.setdefault(f"{name}.{BATCH_NORM_COUNTER}", torch.zeros((), dtype=torch.long))
                if f"{name}.eps" in tensors:
                    if self.tensors[f"{name}.eps"].numel() != 1:
                        raise InputError(f"{path}: {name}.eps is not one number")
                    part.eps = float(self.tensors[f"{name}.eps"])
                    del tensors[f"{name}.eps"]
        try:
            module.load_state_dict(tensors, strict=True, assign=True)
        except RuntimeError as error:
            raise InputError(f"{path}: {' '.join(str(error).split())}") from error
        return module.eval()
