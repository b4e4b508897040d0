"""Networks of the library timm by its names, up to what its `forward_features` gives.

Nothing is fetched: weights come from a checkpoint or a seed. The image input is the library's data config of that name.
Tokens become a feature map, class and register tokens are dropped from it. A network whose computation depends on the
size of images, by position embeddings, windows or padding, takes one size, which its `set_input_size` is told.

Source: huggingface/pytorch-image-models, timm/models/_factory.py and _features.py, timm/data/config.py and
transforms_factory.py, timm/layers/padding.py.
"""

import difflib
import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Final

from torch import Tensor, nn

from netvlad_deploy.errors import InputError, UsageError
from netvlad_deploy.models.backbones.networks import Backbone, SizedBackbone
from netvlad_deploy.spec.images import BICUBIC, BILINEAR, BOX, LANCZOS, NEAREST_CENTRE, ImageInput, Resize, Size
from netvlad_deploy.support.require import require

ROOT: Final = "network."

FILTERS_BY_NAME: Final = {
    "bilinear": BILINEAR,
    "bicubic": BICUBIC,
    "lanczos": LANCZOS,
    "box": BOX,
    "nearest": NEAREST_CENTRE,
}
"""By `interpolation` of a data config, the filter: the library resizes images of Pillow."""

SAME_PADDING: Final = "Same"
"""End of the names of timm's layers whose padding depends on the size of images."""


class TimmMap(nn.Module):
    """A convolutional network: normalised images (B,3,H,W) to the feature map (B,D,h,w) of `forward_features`."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Return the feature map (B,D,h,w)."""
        return _channels_first(self.network.forward_features(images), self.network.num_features)


class TimmSized(SizedBackbone):
    """A network for images of one size: (B,3,H,W) to a feature map (B,D,h,w), and class tokens (B,D) if it has them."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network
        patches = getattr(network, "patch_embed", None)
        step = getattr(patches, "patch_size", 1)
        self.multiple = step if isinstance(step, int) else max(step)
        self.grid = (0, 0)

    def fix_size(self, size: Size) -> None:
        """Tell the network the height and width of images; it resizes its position embeddings.

        Raises: UsageError if it was made for another size and takes no other.
        """
        own = tuple(self.network.pretrained_cfg["input_size"][1:])
        if hasattr(self.network, "set_input_size"):
            self.network.set_input_size(img_size=size)
        elif hasattr(self.network, "pos_embed") and size != own:
            raise UsageError(f"the network takes images of {own[0]}x{own[1]} alone: pass --resize {own[0]}x{own[1]}")
        super().fix_size(size)
        self.grid = (size[0] // self.multiple, size[1] // self.multiple)

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Return the feature map (B,D,h,w), and the class tokens (B,D) where there are any."""
        features: Tensor = self.network.forward_features(images)
        if features.ndim == 4:
            return _channels_first(features, self.network.num_features)
        prefix = getattr(self.network, "num_prefix_tokens", 0)
        feature_map = features[:, prefix:].transpose(1, 2)
        feature_map = feature_map.reshape(*feature_map.shape[:2], *self.grid)
        return (feature_map, features[:, 0]) if getattr(self.network, "cls_token", None) is not None else feature_map


def timm_backbone(name: str) -> Backbone:
    """Return the backbone of a name of timm, with or without a tag, such as `resnet50.a1_in1k`.

    Raises: UsageError if timm has no such network, with the nearest names; InputError if its images cannot be prepared
        as its data config says; MissingDependencyError if timm is not installed.
    """
    library = require("timm", extra="timm")
    known = library.list_models()
    architecture = name.partition(".")[0]
    if architecture not in known:
        near = ", ".join(difflib.get_close_matches(architecture, known, n=5)) or "none"
        raise UsageError(f"timm has no network {name!r}: near names are {near}")
    try:
        network = library.create_model(name, pretrained=False, num_classes=0)
    except (RuntimeError, ValueError, TypeError) as error:
        raise UsageError(f"timm does not make {name!r} ({' '.join(str(error).split())[:200]})") from error
    images = image_input(require("timm.data", extra="timm").resolve_model_data_config(network))
    classifier = network.pretrained_cfg.get("classifier") or ()
    return Backbone(
        name=f"timm:{name}",
        build=partial(build, name),
        images=images,
        beyond=tuple(f"{ROOT}{each}." for each in ([classifier] if isinstance(classifier, str) else classifier)),
        shown=shown,
    )


def build(name: str) -> nn.Module:
    """Return the network of a name of timm with its initial weights, cut where NetVLAD is put on it."""
    network: Any = require("timm", extra="timm").create_model(name, pretrained=False, num_classes=0)
    padded = any(type(part).__name__.endswith(SAME_PADDING) for part in network.modules())
    sized = padded or hasattr(network, "set_input_size") or hasattr(network, "pos_embed")
    return TimmSized(network) if sized else TimmMap(network)


def shown(backbone: Backbone, tensors: Mapping[str, Tensor]) -> tuple[Backbone, dict[str, Tensor]]:
    """Return the backbone, and tensors of the whole network under the names of the module around it."""
    return backbone, {ROOT + name.removeprefix(ROOT): tensor for name, tensor in tensors.items()}


def image_input(config: Mapping[str, Any]) -> ImageInput:
    """Return the image input that timm's data config describes: resized by the share that is kept, then cut.

    Raises: InputError if it has another form, or resizes in a way that no rule here has.

    >>> image_input({"input_size": (3, 224, 224), "interpolation": "bicubic", "crop_pct": 0.9, "crop_mode": "center",
    ...     "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}).preparation
    'upright by EXIF, shorter side to 248 (bicubic), the middle 224x224'
    """
    channels, height, width = config["input_size"]
    mode, share, kernel = config.get("crop_mode") or "center", float(config["crop_pct"]), config["interpolation"]
    if channels != 3:
        raise InputError(f"the network takes {channels} channels, expected 3")
    if kernel not in FILTERS_BY_NAME:
        raise InputError(f"interpolation is {kernel!r}, expected {', '.join(FILTERS_BY_NAME)}")
    larger = tuple(math.floor(length / share) for length in (height, width))
    if mode == "squash":
        resize = Resize(size=(larger[0], larger[1]), filter=FILTERS_BY_NAME[kernel])
    elif mode == "center" and height == width:
        resize = Resize(shortest=larger[0], filter=FILTERS_BY_NAME[kernel])
    else:
        raise InputError(f"crop_mode {mode!r} of {height}x{width} cannot be followed")
    red, green, blue = (255 * float(value) for value in config["mean"])
    wide_red, wide_green, wide_blue = (255 * float(value) for value in config["std"])
    whole = resize.size == (height, width)
    images = ImageInput(mean=(red, green, blue), std=(wide_red, wide_green, wide_blue), resize=resize)
    return images if whole else replace(images, crop=(height, width))


def _channels_first(features: Tensor, width: int) -> Tensor:
    """Return a feature map (B,D,h,w) of one that may have its channels last."""
    if features.shape[1] != width and features.shape[3] == width:
        return features.permute(0, 3, 1, 2)
    return features
