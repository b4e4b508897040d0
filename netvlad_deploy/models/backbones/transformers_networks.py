"""Networks of the library transformers, up to their last hidden state, which becomes a feature map.

The blocks are the library's own modules. What stands around them is done here, so that a graph holds constants: the
position embeddings are resized once for the one size of images (`fix_size`), and attention is written as two matrix
products and a softmax. Local descriptors are the tokens of patches after the last LayerNorm; the class token is given
beside them, register tokens are dropped. MobileNetV2 is of one size too, since its padding depends on the size.

Source: huggingface/transformers, models/dinov2, dinov2_with_registers, vit, resnet, mobilenet_v2 and efficientnet;
facebookresearch/dinov2, dinov2/models/vision_transformer.py, for the position embeddings of its own files.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from netvlad_deploy.errors import InputError
from netvlad_deploy.models.backbones.networks import Backbone, SizedBackbone
from netvlad_deploy.models.backbones.transformers_names import canonical, canonical_tensors, is_of_torch_hub
from netvlad_deploy.spec.images import ImageInput, Resize, Size
from netvlad_deploy.support.formats import READER_ERRORS
from netvlad_deploy.support.require import require

ATTENTION: Final = "netvlad_deploy_plain"
"""Name under which `attention` is known to the library."""

TORCH_HUB_OFFSET: Final = 0.1
"""Added to rows and columns by the code of DINOv2's files without registers before it resizes position embeddings."""

MOST_LAYERS: Final = 512
"""Most layers of a network that is built: far above any, and a damaged number ends here."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A model type of the library: how the names of its two classes begin, and how it is cut.

    `registers` resizes position embeddings with antialiasing, as the networks with registers do.
    """

    name: str
    tokens: bool = False
    registers: bool = False


KINDS: Final[Mapping[str, Kind]] = {
    "dinov2": Kind(name="Dinov2", tokens=True),
    "dinov2_with_registers": Kind(name="Dinov2WithRegisters", tokens=True, registers=True),
    "vit": Kind(name="ViT", tokens=True),
    "resnet": Kind(name="ResNet"),
    "mobilenet_v2": Kind(name="MobileNetV2"),
    "efficientnet": Kind(name="EfficientNet"),
}
"""By `model_type` of a config.json."""

BEYOND: Final = ("pooler.", "classifier.", "head.", "linear_head.", "decoder.", "embeddings.mask_token")
"""Prefixes of tensors that give no local descriptor: poolers, classifiers, and what training alone uses."""


class TokenNetwork(SizedBackbone):
    """A vision transformer: normalised images (B,3,H,W) of one size to a feature map (B,D,h,w) and class tokens (B,D).

    Args:
        network: the library's model.
        antialias: resize position embeddings with antialiasing.
        offset: what is added to rows and columns before position embeddings are resized.
    """

    positions: Tensor

    def __init__(self, network: Any, *, antialias: bool = False, offset: float = 0.0) -> None:
        super().__init__()
        network.pooler = None
        network.embeddings.mask_token = None
        self.network = network
        self.antialias, self.offset = antialias, offset
        self.multiple = network.embeddings.patch_embeddings.projection.kernel_size[0]
        self.register_buffer("positions", torch.zeros(0), persistent=False)

    def fix_size(self, size: Size) -> None:
        """Make the constant (1,1+R+h*w,D) that is added to the tokens of images of this height and width."""
        super().fix_size(size)
        embeddings = self.network.embeddings
        rows, columns = (length // self.multiple for length in size)
        table = embeddings.position_embeddings.detach()
        table = resized_positions(table, rows, columns, antialias=self.antialias, offset=self.offset)
        first = [embeddings.cls_token.detach() + table[:, :1]]
        if hasattr(embeddings, "register_tokens"):
            first.append(embeddings.register_tokens.detach())
        self.first = sum(part.shape[1] for part in first)
        self.positions = torch.cat([*first, table[:, 1:]], dim=1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the feature map (B,D,h,w) and the class tokens (B,D).

        Raises: ValueError if the images have another size than the one that was fixed.
        """
        if self.fixed_size is None or tuple(images.shape[2:]) != self.fixed_size:
            raise ValueError(f"images are {tuple(images.shape[2:])}, expected {self.fixed_size}")
        patches = self.network.embeddings.patch_embeddings.projection(images)  # (B,D,h,w)
        rows_and_columns = patches.shape[2:]
        # Padding makes room for the class token and registers without expanding them to the batch.
        tokens = functional.pad(patches.flatten(2).transpose(1, 2), (0, 0, self.first, 0)) + self.positions
        for layer in layers_of(self.network):
            tokens = layer(tokens)
        tokens = self.network.layernorm(tokens)
        feature_map = tokens[:, self.first :].transpose(1, 2).unflatten(2, rows_and_columns)
        return feature_map, tokens[:, 0]


class MapNetwork(nn.Module):
    """A convolutional network: normalised images (B,3,H,W) to its last feature map (B,D,h,w), before any pooling."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        network.pooler = nn.Identity()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Return the feature map (B,D,h,w)."""
        embed = getattr(self.network, "embedder", None) or self.network.embeddings
        feature_map: Tensor = self.network.encoder(embed(images), return_dict=False)[0]
        return feature_map


class MobileNetwork(SizedBackbone):
    """MobileNetV2: normalised images (B,3,H,W) of one size to its last feature map (B,1280,h,w)."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        network.pooler = None
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Return the feature map (B,D,h,w)."""
        feature_map: Tensor = self.network(images, return_dict=False)[0]
        return feature_map


def layers_of(network: Any) -> nn.ModuleList:
    """Return the blocks of a vision transformer, which stand in an encoder or alone."""
    layers: nn.ModuleList = network.layers if hasattr(network, "layers") else network.encoder.layer
    return layers


def resized_positions(table: Tensor, rows: int, columns: int, *, antialias: bool, offset: float) -> Tensor:
    """Return position embeddings (1,1+M*M,D) for a grid of rows and columns, (1,1+rows*columns,D).

    The first, of the class token, stays. The others are resized by bicubic interpolation; an offset counts in the
    scale, so that the sampled places move by a fraction of a step.

    Raises: InputError if the embeddings are of no square grid.
    """
    side = math.isqrt(table.shape[1] - 1)
    if side * side != table.shape[1] - 1:
        raise InputError(f"there are {table.shape[1] - 1} position embeddings of patches, expected a square number")
    if (rows, columns) == (side, side):
        return table
    grid = table[:, 1:].float().reshape(1, side, side, -1).permute(0, 3, 1, 2)
    target: dict[str, Any] = {"size": (rows, columns)}
    if offset:
        target = {"scale_factor": ((rows + offset) / side, (columns + offset) / side)}
    grid = functional.interpolate(grid, mode="bicubic", antialias=antialias, align_corners=False, **target)
    return torch.cat([table[:, :1], grid.permute(0, 2, 3, 1).reshape(1, rows * columns, -1).to(table.dtype)], dim=1)


def attention(
    _module: nn.Module, query: Tensor, key: Tensor, value: Tensor, _mask: None, scaling: float, **_: Any
) -> tuple[Tensor, Tensor]:
    """Return what each token takes from the others (B,N,heads,d), and the weights (B,heads,N,N), in the library's form.

    Queries are scaled before the product, which an FP16 graph holds in FP16.
    """
    weights = torch.softmax(torch.matmul(query * scaling, key.transpose(2, 3)), dim=-1)
    return torch.matmul(weights, value).transpose(1, 2), weights


def build(kind: str, settings: Mapping[str, Any], offset: float = 0.0) -> nn.Module:
    """Return a network of a model type with the library's initial weights, cut where NetVLAD is put on it.

    Raises: InputError if the library refuses the settings; MissingDependencyError if it is not installed.
    """
    library, record = require("transformers", extra="transformers"), KINDS[kind]
    depths = [settings.get("num_hidden_layers", 0), *settings.get("depths", ())]
    if not all(isinstance(each, int) for each in depths) or sum(depths) > MOST_LAYERS:
        raise InputError(f"the config asks for {depths} layers, expected {MOST_LAYERS} at most")
    try:
        config = getattr(library, f"{record.name}Config").from_dict(dict(settings))
        if record.tokens:
            library.AttentionInterface.register(ATTENTION, attention)
            config._attn_implementation = ATTENTION
        network = getattr(library, f"{record.name}Model")(config)
    except _refusals() as error:
        raise InputError(f"transformers refuses the config ({' '.join(str(error).split())[:200]})") from error
    if record.tokens:
        module = TokenNetwork(network, antialias=record.registers, offset=offset)
        if kind == "vit":
            module.own_size = tuple(network.embeddings.patch_embeddings.image_size)
        return module
    return MobileNetwork(network) if kind == "mobilenet_v2" else MapNetwork(network)


def _refusals() -> tuple[type[Exception], ...]:
    """Return the errors of the library for a config that it does not take: its own, and what its modules raise."""
    own = require("huggingface_hub.errors", extra="transformers").StrictDataclassError
    return (*READER_ERRORS, ImportError, own)


def shown(
    kind: str, settings: Mapping[str, Any], backbone: Backbone, tensors: Mapping[str, Tensor], *, adapts: bool
) -> tuple[Backbone, dict[str, Tensor]]:
    """Return the backbone of the origin that tensors show, and the tensors under its module's names.

    Files of torch.hub without registers have their position embeddings resized as its code does it. With `adapts` the
    grid of position embeddings is the one that the tensors show, and a ViT may have fewer layers.

    Raises: InputError if two tensors have one name in the library.
    """
    found = canonical_tensors(tensors)
    changed, offset = dict(settings), 0.0
    if KINDS[kind].tokens and is_of_torch_hub(tensors) and not KINDS[kind].registers:
        offset = TORCH_HUB_OFFSET
    if KINDS[kind].tokens and adapts:
        layers = {int(match[1]) for match in (re.match(r"layers\.(\d+)\.", name) for name in found) if match}
        if kind == "vit" and layers and len(layers) < settings["num_hidden_layers"]:
            changed["num_hidden_layers"] = len(layers)
        positions = found.get("embeddings.position_embeddings")
        if positions is not None and positions.ndim == 3:
            changed["image_size"] = math.isqrt(max(positions.shape[1] - 1, 0)) * settings["patch_size"]
    backbone = replace(backbone, build=partial(build, kind, changed, offset))
    with torch.device("meta"):
        installed = {canonical(name): name for name in backbone.build().state_dict()}
    return backbone, {installed.get(name, name): tensor for name, tensor in found.items()}


def transformers_backbone(
    name: str, kind: str, settings: Mapping[str, Any], width: int, images: ImageInput
) -> Backbone:
    """Return the record of a network of the library with these settings of its config."""
    return Backbone(
        name=name,
        build=partial(build, kind, settings),
        width=width,
        images=images,
        beyond=BEYOND,
        shown=partial(shown, kind, settings, adapts=True),
        signature="patch_embed" if KINDS[kind].tokens else "",
    )


def _named() -> tuple[Backbone, ...]:
    """Return the records of the networks that have a name of their own."""
    square = Resize(size=(224, 224))
    imagenet, benchmark = ImageInput(resize=square), ImageInput(resize=Resize(size=(480, 640)))
    halves = ImageInput(mean=(127.5,) * 3, std=(127.5,) * 3, resize=square)
    found = []
    for letter, width, heads, layers in (("s", 384, 6, 12), ("b", 768, 12, 12), ("l", 1024, 16, 24)):
        settings = {"hidden_size": width, "num_attention_heads": heads, "num_hidden_layers": layers}
        settings |= {"patch_size": 14, "image_size": 518}
        found += [
            transformers_backbone(f"dinov2-{letter}{ending}", kind, settings, width, imagenet)
            for ending, kind in (("", "dinov2"), ("-registers", "dinov2_with_registers"))
        ]
    vit = {"hidden_size": 768, "num_hidden_layers": 12, "patch_size": 16, "image_size": 224}
    b0 = {"width_coefficient": 1.0, "depth_coefficient": 1.0, "hidden_dim": 1280, "image_size": 224}
    return (
        *found,
        transformers_backbone("vit-b16", "vit", vit, 768, halves),
        transformers_backbone("mobilenetv2", "mobilenet_v2", {}, 1280, replace(halves, resize=benchmark.resize)),
        transformers_backbone("efficientnet-b0", "efficientnet", b0, 1280, benchmark),
    )


TRANSFORMERS_BACKBONES: Final = _named()
"""DINOv2 (Oquab et al. 2023; Darcet et al. 2023 for the registers), ViT (Dosovitskiy et al. 2021), MobileNetV2 (Sandler
et al. 2018) and EfficientNet-B0 (Tan & Le 2019). Images are the networks' own but for their size: 224x224 as the first
two were evaluated, 480x640 as the other convolutional networks here."""
