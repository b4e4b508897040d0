"""The weights of a backbone as a checkpoint holds them: whose they are, and the module that takes every one."""

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from netvlad_deploy.errors import InputError
from netvlad_deploy.models.backbones import BACKBONES
from netvlad_deploy.models.backbones.base import Backbone
from netvlad_deploy.models.backbones.custom import FAULTS
from netvlad_deploy.models.dialects.base import BackboneState, names
from netvlad_deploy.spec.images import CHANNELS, ImageInput

StateShapes = Mapping[str, tuple[int, ...]]

COUNTER = "num_batches_tracked"
TOKENS = re.compile(r"token|pos(ition)?_emb|positional_emb")
"""Names that a transformer alone has."""

CONVOLUTION_OF_BLOCK = re.compile(r"(?:layer)?(?P<stage>\d+)\.(?P<block>\d+)\.conv\d+\.weight$")
"""A convolution of a ResNet's block, by torchvision's names or by those of its children in a row."""

RESNET_DEPTHS = {
    False: {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)},
    True: {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)},
}
"""Blocks in each stage by depth, of basic blocks and of bottlenecks. Source: He et al. 2016, table 1."""

USUAL_SIDE = 224
"""Height and width of the image that tries a backbone which does not say its own."""


def identify(state: BackboneState) -> Backbone:
    """Return which of its candidates a backbone is: the one of which most tensors are there, and no other tensor.

    `inspect` and `export` ask here alone, so that what the one names the other takes.

    Raises: InputError if it is none of them, or not one of them with every tensor in the right shape.
    """
    found = {name: tuple(tensor.shape) for name, tensor in state.tensors.items()}

    def near(backbone: Backbone) -> tuple[int, int]:
        wanted = _shapes(backbone)
        return sum(found.get(name) == shape for name, shape in wanted.items()), -len(wanted)

    nearest = max((BACKBONES[name] for name in state.candidates), key=near, default=None)
    if nearest is not None and 2 * near(nearest)[0] > len(_shapes(nearest)) and not _is_another(nearest, found):
        taken_from(state, nearest)
        return nearest
    known = f"none of {', '.join(state.candidates)}" if state.candidates else "none that this dialect has"
    raise InputError(
        f"the backbone {state.root}* ({len(found)} tensors) is {describe(found)}, {known}: pass --backbone with its "
        "name or with package.module:callable of your own, or --input features for the head alone"
    )


def load_weights(backbone: Backbone, state: BackboneState) -> tuple[nn.Module, tuple[str, ...]]:
    """Return the backbone with these weights in eval mode, and the names that stand behind its cut.

    Raises: InputError if a tensor is missing, of another shape, not finite or unknown.
    """
    module, tensors, beyond = taken_from(state, backbone)
    module.load_state_dict(tensors, strict=True, assign=True)
    return module.eval(), tuple(state.root + name for name in beyond)


def taken_from(state: BackboneState, backbone: Backbone) -> tuple[nn.Module, dict[str, Tensor], tuple[str, ...]]:
    """Return the backbone without weights, the tensors that it takes, and the names behind its cut.

    Raises: as `load_weights`.
    """
    if backbone.trained:
        module = backbone.build()
    else:
        with torch.device("meta"):  # every tensor is replaced: initialising it would be wasted
            module = backbone.build()
    wanted = module.state_dict()
    tensors = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.tensors.items()}
    for name, tensor in wanted.items():
        if name.endswith(COUNTER) and name not in tensors:
            tensors[name] = torch.zeros_like(tensor, device="cpu")
    beyond = tuple(name for name in tensors if name not in wanted and name.startswith(backbone.beyond))
    _check(backbone.name, state.root, wanted, {name: each for name, each in tensors.items() if name not in beyond})
    return module, {name: tensors[name] for name in wanted}, beyond


def check_map(module: nn.Module, name: str, images: ImageInput) -> int:
    """Run a backbone on one black image and return the width D of its feature map.

    Raises: InputError if it fails, or what it returns is no feature map.
    """
    side = images.size or (USUAL_SIDE, USUAL_SIDE)
    try:
        with torch.inference_mode():
            output = module(torch.zeros(1, CHANNELS, *side))
    except FAULTS as error:
        said = " ".join(str(error).split())[:300]
        shape = f"(1, {CHANNELS}, {side[0]}, {side[1]})"
        raise InputError(f"the backbone {name} does not take an image {shape} ({said}): pass --resize") from error
    if not isinstance(output, Tensor):
        raise InputError(f"the backbone {name} returned a {type(output).__name__}, expected one tensor (B, D, h, w)")
    if output.ndim != 4 or not output.shape[0] == 1:
        raise InputError(
            f"the backbone {name} returned {tuple(output.shape)}, expected a feature map (B, D, h, w): tokens must be "
            "brought back to rows and columns"
        )
    return output.shape[1]


def describe(shapes: StateShapes) -> str:
    """Return in words which network tensors of these names and shapes are: kind, depth and channels, or tokens."""
    if any(TOKENS.search(name) for name in shapes):
        return f"a transformer, whose tokens are no feature map ({names(filter(TOKENS.search, shapes))})"
    ordered = sorted(shapes, key=lambda name: [(len(part), part) for part in name.split(".")])
    convolutions = [name for name in ordered if len(shapes[name]) == 4 and "downsample" not in name]
    if not convolutions:
        return "a network without convolutions"
    blocks: dict[str, set[str]] = {}
    for match in filter(None, map(CONVOLUTION_OF_BLOCK.match, convolutions)):
        blocks.setdefault(match["stage"], set()).add(match["block"])
    kind = f"a network of {len(convolutions)} convolution{'' if len(convolutions) == 1 else 's'}"
    if blocks:
        counts = tuple(map(len, blocks.values()))
        bottleneck = any(name.endswith(".conv3.weight") for name in convolutions)
        depth = next((each for each, own in RESNET_DEPTHS[bottleneck].items() if own[: len(counts)] == counts), None)
        kind = f"a ResNet{'' if depth is None else f'-{depth}'} of {' + '.join(map(str, counts))} blocks"
    channels, width = shapes[convolutions[0]][1], shapes[convolutions[-1]][0]
    return f"{kind}, from {channels} input channel{'' if channels == 1 else 's'} to {width}"


def _is_another(backbone: Backbone, found: StateShapes) -> bool:
    """Return whether tensors are of another network than a backbone, and not those of one that is damaged."""
    wanted = _shapes(backbone)
    own = {name: shape for name, shape in found.items() if name in wanted or not name.startswith(backbone.beyond)}
    damaged = all(wanted.get(name) == shape for name, shape in own.items() if not name.endswith(COUNTER))
    return not damaged and describe(own) != describe(wanted)


def _shapes(backbone: Backbone) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor but the counters of BatchNorm."""
    with torch.device("meta"):
        state = backbone.build().state_dict()
    return {name: tuple(tensor.shape) for name, tensor in state.items() if not name.endswith(COUNTER)}


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
