"""The weights of a backbone as a checkpoint holds them: whose they are, and the module that takes every one."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from netvlad_deploy.errors import InputError
from netvlad_deploy.images import CHANNELS, ImageInput
from netvlad_deploy.models.backbones import BACKBONES
from netvlad_deploy.models.backbones.base import Backbone
from netvlad_deploy.models.backbones.custom import FAULTS
from netvlad_deploy.models.dialects.base import BackboneState, names

COUNTER = "num_batches_tracked"
USUAL_SIDE = 224
"""Height and width of the image that tries a backbone which does not say its own."""


def identify(state: BackboneState) -> Backbone:
    """Return which of its candidates a backbone is: the one of which most tensors are there, in the right shape.

    Raises: InputError if it is none of them.
    """
    found = {name: tuple(tensor.shape) for name, tensor in state.tensors.items()}

    def near(backbone: Backbone) -> tuple[int, int]:
        wanted = _shapes(backbone)
        return sum(found.get(name) == shape for name, shape in wanted.items()), -len(wanted)

    nearest = max((BACKBONES[name] for name in state.candidates), key=near, default=None)
    if nearest is None or 2 * near(nearest)[0] <= len(_shapes(nearest)):
        known = f"none of {', '.join(state.candidates)}" if state.candidates else "of an unknown network"
        raise InputError(
            f"the backbone {state.root}* ({len(found)} tensors) is {known}: name it with --backbone, or take the head "
            "alone with --input features"
        )
    return nearest


def load_weights(backbone: Backbone, state: BackboneState) -> tuple[nn.Module, tuple[str, ...]]:
    """Return the backbone with these weights in eval mode, and the names that stand behind its cut.

    Raises: InputError if a tensor is missing, of another shape, not finite or unknown.
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
    module.load_state_dict({name: tensors[name] for name in wanted}, strict=True, assign=True)
    return module.eval(), tuple(state.root + name for name in beyond)


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
