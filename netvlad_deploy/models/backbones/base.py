"""What a backbone is: a network from normalised images (B,3,H,W) to a feature map (B,D,h,w), and its images."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import nn

from netvlad_deploy.spec.images import ImageInput


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """A backbone by its name.

    Args:
        name: what `--backbone` calls it.
        build: makes the module; its weights are trained only if `trained` says so.
        width: channels D of its feature map, None if only running it tells.
        images: what it takes where no checkpoint says otherwise, None if it does not say.
        trained: `build` brings trained weights.
        renames: starts of names in a file of the whole network, and what they are here.
        beyond: starts of names after the cut, which are left out.
    """

    name: str
    build: Callable[[], nn.Module]
    width: int | None = None
    images: ImageInput | None = None
    trained: bool = False
    renames: Mapping[str, str] = field(default_factory=dict)
    beyond: tuple[str, ...] = ()
