"""The weights of a backbone in a checkpoint: recognise the network, and load every tensor into its module."""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from netvlad_deploy.errors import InputError, UsageError
from netvlad_deploy.models.backbones import BACKBONES, USER_CODE_ERRORS
from netvlad_deploy.models.backbones.networks import RESNETS, Backbone, BasicBlock, Bottleneck, SizedBackbone
from netvlad_deploy.models.head import BackboneState
from netvlad_deploy.models.tensor_names import BATCH_NORM_COUNTER, names
from netvlad_deploy.spec.images import CHANNELS, ImageInput, Resize

StateShapes = Mapping[str, tuple[int, ...]]

TRANSFORMER_NAME = re.compile(r"token|pos(ition)?_emb|positional_emb")
"""Part of a name that only the tensors of transformers have."""

RESNET_BLOCK_NAME = re.compile(r"(?:layer)?(?P<stage>\d+)\.(?P<block>\d+)\.conv\d+\.weight$")
"""Name of a convolution in a ResNet's block, with torchvision's stage or the index of a layer in a sequence."""

DEFAULT_IMAGE_SIDE = 224
"""Height and width of the image on which a backbone is tried if its image input has no fixed size."""


def identify(state: BackboneState) -> Backbone:
    """Return the candidate of which most tensors are there in the right shape; of several, the smallest.

    Raises: InputError if half of its tensors or more are missing, or the tensors show another network.
    """
    found = {name: tuple(tensor.shape) for name, tensor in state.tensors.items()}
    read = {}
    for name in state.candidates:
        if any(BACKBONES[name].signature in key for key in found):  # a library is not imported for other networks
            backbone, tensors = BACKBONES[name].read(state.tensors)
            read[name] = backbone, {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    wanted = {name: _shapes(backbone) for name, (backbone, _) in read.items()}

    def nearness(name: str) -> tuple[int, int]:
        own = read[name][1]
        return sum(own.get(key) == shape for key, shape in wanted[name].items()), -len(wanted[name])

    nearest = max(wanted, key=nearness, default=None)
    found_most = nearest is not None and 2 * nearness(nearest)[0] > len(wanted[nearest])
    if nearest is not None and found_most and not _is_another(*read[nearest]):
        return BACKBONES[nearest]
    known = f"none of {', '.join(state.candidates)}" if state.candidates else "none that this dialect has"
    raise InputError(
        f"the backbone {state.root}* ({len(found)} tensors) is {describe(found)}, {known}: pass --backbone with its "
        "name or with package.module:callable of your own, or --input features for the head alone"
    )


def load_weights(backbone: Backbone, state: BackboneState) -> tuple[nn.Module, tuple[str, ...]]:
    """Return the backbone with these weights in eval mode, and the names of the tensors behind its cut.

    Raises: InputError if a tensor is missing, of another shape, not finite or unknown.
    """
    backbone, read = backbone.read(state.tensors)
    if backbone.trained:
        module = backbone.build()
    else:
        with torch.device("meta"):  # every tensor is replaced: initialising it would be wasted
            module = backbone.build()
    wanted = module.state_dict()
    tensors = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in read.items()}
    for name, tensor in wanted.items():
        if name.endswith(BATCH_NORM_COUNTER):
            tensors.setdefault(name, torch.zeros_like(tensor, device="cpu"))
    beyond = [name for name in tensors if name not in wanted and name.startswith(backbone.beyond)]
    _check(backbone.name, state.root, wanted, {name: each for name, each in tensors.items() if name not in beyond})
    for name, _ in module.named_parameters():
        if not tensors[name].is_floating_point():
            raise InputError(
                f"{state.root}{name} is of {tensors[name].dtype}, expected floating point: save it as float32"
            )
    module.load_state_dict({name: tensors[name] for name in wanted}, strict=True, assign=True)
    return module.eval(), tuple(state.root + name for name in beyond)


def of_own_size(module: nn.Module, images: ImageInput) -> ImageInput:
    """Return the image input of a dialect with the one size that the backbone's original takes, if it takes one."""
    size = module.own_size if isinstance(module, SizedBackbone) else None
    return images if size is None else replace(images, resize=Resize(size=size, filter=images.resize.filter))


def fix_size(module: nn.Module, name: str, images: ImageInput) -> ImageInput:
    """Return the image input of a backbone, whose constants are made for its one size if it takes no other.

    Raises: UsageError if it takes one size alone and images have several, or one that it cannot take.
    """
    if not isinstance(module, SizedBackbone):
        fixed = getattr(module, "fixed_size", None) is not None
        return replace(images, fixed=fixed)
    if images.size is None:
        said = f"images are of several ({images.preparation})"
        raise UsageError(f"the backbone {name} takes images of one size, {said}: pass --resize HxW, or --crop HxW")
    step = module.multiple
    if any(length % step for length in images.size):
        near, inside = (
            "x".join(str(max(1, round_(length / step)) * step) for length in images.size)
            for round_ in (round, math.floor)
        )
        raise UsageError(
            f"the backbone {name} takes heights and widths that are a multiple of {step}, images are "
            f"{images.size[0]}x{images.size[1]}: pass --resize {near}, or --crop {inside}"
        )
    module.fix_size(images.size)
    return replace(images, fixed=True)


def check_map(module: nn.Module, name: str, images: ImageInput) -> int:
    """Run a backbone on one black image and return the width D of its feature map.

    Raises: InputError if it fails, or does not return a feature map (1,D,h,w).
    """
    side = images.size or (DEFAULT_IMAGE_SIDE, DEFAULT_IMAGE_SIDE)
    try:
        with torch.inference_mode():
            output = module(torch.zeros(1, CHANNELS, *side))
    except USER_CODE_ERRORS as error:
        said = " ".join(str(error).split())[:300]
        shape = f"(1, {CHANNELS}, {side[0]}, {side[1]})"
        raise InputError(f"the backbone {name} does not take an image {shape} ({said}): pass --resize") from error
    if isinstance(output, tuple) and output:
        output = output[0]
    if not isinstance(output, Tensor):
        raise InputError(f"the backbone {name} returned a {type(output).__name__}, expected one tensor (B, D, h, w)")
    if output.ndim != 4 or not output.shape[0] == 1:
        raise InputError(
            f"the backbone {name} returned {tuple(output.shape)}, expected a feature map (B, D, h, w): tokens must be "
            "brought back to rows and columns"
        )
    return output.shape[1]


def describe(shapes: StateShapes) -> str:
    """Return the network that tensors of these names and shapes show, in words: kind, depth and channels.

    >>> describe({"0.weight": (64, 3, 11, 11), "3.weight": (192, 64, 5, 5)})
    'a network of 2 convolutions, from 3 input channels to 192'
    """
    if any(TRANSFORMER_NAME.search(name) for name in shapes):
        return f"a transformer ({names(filter(TRANSFORMER_NAME.search, shapes))})"
    ordered = sorted(shapes, key=lambda name: [(len(part), part) for part in name.split(".")])
    convolutions = [name for name in ordered if len(shapes[name]) == 4 and "downsample" not in name]
    if not convolutions:
        return "a network without convolutions"
    blocks: dict[str, set[str]] = {}
    for match in filter(None, map(RESNET_BLOCK_NAME.match, convolutions)):
        blocks.setdefault(match["stage"], set()).add(match["block"])
    kind = f"a network of {len(convolutions)} convolution{'' if len(convolutions) == 1 else 's'}"
    if blocks:
        counts = tuple(map(len, blocks.values()))
        shown = Bottleneck if any(name.endswith(".conv3.weight") for name in convolutions) else BasicBlock
        depths = [depth for depth, (block, own) in RESNETS.items() if block is shown and own[: len(counts)] == counts]
        kind = f"a ResNet{f'-{depths[0]}' if depths else ''} of {' + '.join(map(str, counts))} blocks"
    channels, width = shapes[convolutions[0]][1], shapes[convolutions[-1]][0]
    return f"{kind}, from {channels} input channel{'' if channels == 1 else 's'} to {width}"


def _is_another(backbone: Backbone, found: StateShapes) -> bool:
    """Return True if tensors are of another network than the backbone; False if some of the backbone's are missing."""
    wanted = _shapes(backbone)
    own = {name: shape for name, shape in found.items() if name in wanted or not name.startswith(backbone.beyond)}
    damaged = all(wanted.get(name) == shape for name, shape in own.items() if not name.endswith(BATCH_NORM_COUNTER))
    return not damaged and describe(own) != describe(wanted)


def _shapes(backbone: Backbone) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a backbone's tensors by name, without the counters of BatchNorm."""
    with torch.device("meta"):
        state = backbone.build().state_dict()
    return {name: tuple(tensor.shape) for name, tensor in state.items() if not name.endswith(BATCH_NORM_COUNTER)}


def _check(name: str, root: str, wanted: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Raise InputError for the first tensor that is not the backbone's."""

    def whole(found: Iterable[str]) -> str:
        return names(root + each for each in found)

    if missing := set(wanted) - set(tensors):
        raise InputError(f"lacks {whole(missing)} of the backbone {name}")
    for key, tensor in wanted.items():
        if tensor.is_floating_point() and not tensors[key].isfinite().all():
            raise InputError(f"{root}{key} is not finite: the checkpoint is damaged or training diverged")
        if tensors[key].shape != tensor.shape:
            raise InputError(
                f"{root}{key} is {tuple(tensors[key].shape)}, expected {tuple(tensor.shape)} of the backbone {name}"
            )
    if strange := set(tensors) - set(wanted):
        raise InputError(f"holds {whole(strange)}, which the backbone {name} does not have")
