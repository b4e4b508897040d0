"""The record of a backbone: a network from normalised images (B,3,H,W) to a feature map (B,D,h,w)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import nn

from netvlad_deploy.spec.images import ImageInput


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """A backbone by its name.

    Args:
        name: its name for `--backbone`.
        build: a function that makes the module, with trained weights if `trained` is set.
        width: channels D of its feature map, None if it must be run to know.
        images: its image input if no checkpoint says otherwise, None if unknown.
        trained: `build` brings trained weights.
        renames: prefixes of names in a file of the whole network, with the prefixes of the cut network.
        beyond: prefixes of the tensors after the cut, which are left out.
    """

    name: str
    build: Callable[[], nn.Module]
    width: int | None = None
    images: ImageInput | None = None
    trained: bool = False
    renames: Mapping[str, str] = field(default_factory=dict)
    beyond: tuple[str, ...] = ()
