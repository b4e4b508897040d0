"""Put a backbone with its weights under a head: both from one checkpoint, or each from its own source.

A backbone comes from the registry or from the user's command line, its weights from the checkpoint if it holds them.
Its image input comes from the first of these that says it: a vocabulary's own record, the user's own backbone, the
dialect, and the registry.
"""

import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from netvlad_deploy.errors import InputError, UsageError
from netvlad_deploy.models.aggregators.base import Aggregator
from netvlad_deploy.models.backbones import find_backbone, is_custom
from netvlad_deploy.models.backbones.networks import Backbone
from netvlad_deploy.models.backbones.weights import check_map, fix_size, identify, load_weights, of_own_size
from netvlad_deploy.models.checkpoints import find_head
from netvlad_deploy.models.dialects import places
from netvlad_deploy.models.head import BackboneState, Head
from netvlad_deploy.models.netvlad import NetVLAD
from netvlad_deploy.models.pipeline import Pipeline
from netvlad_deploy.models.tensor_names import counted, unwrapped
from netvlad_deploy.models.weights_file import read_tensors
from netvlad_deploy.spec.images import NO_CHANGES, ImageChanges, ImageInput
from netvlad_deploy.support.formats import naming

LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ReadyBackbone:
    """A backbone in eval mode with its weights, the width D of its feature map, and its image input."""

    module: nn.Module
    name: str
    width: int
    images: ImageInput

    def under(self, head: NetVLAD | Aggregator) -> Pipeline:
        """Return this backbone with a head on it as one module in eval mode.

        Raises: InputError if the head takes another width.
        """
        if head.spec.feature_size != self.width:
            raise InputError(
                f"the backbone {self.name} gives {self.width} channels, the head takes {head.spec.feature_size}: name "
                "another with --backbone"
            )
        return Pipeline(self.module, head, self.images, name=self.name).eval()


def pipeline_of(head: Head, path: Path | str, *, backbone: str | None, changes: ImageChanges) -> Pipeline:
    """Return a head and its backbone as one module in eval mode.

    `head` was read from the file `path`. Without the name of a `backbone` its tensors show it; where the checkpoint
    holds none, the backbone of this name must bring its own weights. `changes` are the user's, to the image input.

    Raises: InputError if a tensor of the backbone is missing, of another shape or unknown, or the head takes another
        width; UsageError for an unknown backbone, or if there is none.
    """
    with naming(path):
        named = None if backbone is None else find_backbone(backbone)
        return _ready(head.backbone, named, changes).under(head.module(path))


def read_backbone(
    name: str | None, checkpoint: Path | None = None, *, changes: ImageChanges = NO_CHANGES, seed: int | None = None
) -> ReadyBackbone:
    """Return a backbone with its own weights, with those of a NetVLAD's checkpoint, or with those of a whole network.

    Args:
        name: name of the backbone, None to recognise it by the tensors of a NetVLAD's checkpoint.
        checkpoint: file of its weights, None for a backbone that brings its own.
        changes: the user's changes to its usual image input.
        seed: seed of untrained weights, None to refuse a backbone that brings none.

    Raises: UsageError if nothing says which backbone, or it has no weights; InputError if the file is unusable.
    """
    if checkpoint is None:
        if name is None:
            raise UsageError("nothing says which backbone: pass --backbone, or --checkpoint of a NetVLAD with one")
        return _ready(None, find_backbone(name), changes, seed)
    tensors = unwrapped(read_tensors(checkpoint))
    backbone = None if name is None else find_backbone(name)
    state = find_head(checkpoint, state=tensors).backbone if places(tensors) else None
    if state is None:
        if backbone is None:
            raise UsageError(f"{checkpoint} is no NetVLAD with a backbone: say with --backbone whose weights it has")
        state = _whole_network(backbone, tensors)
    with naming(checkpoint):
        return _ready(state, backbone, changes)


def _ready(
    state: BackboneState | None, backbone: Backbone | None, changes: ImageChanges, seed: int | None = None
) -> ReadyBackbone:
    """Return a backbone with the weights of a checkpoint, or with its own if `state` is None.

    Without `backbone`, it is the one that `state` records, or that its tensors show.
    """
    if backbone is None:
        backbone = _shown(state)
    images = backbone.images or ImageInput()
    if state is None and backbone.weights is not None:
        state = BackboneState(root="", tensors=backbone.weights(), candidates=(), images=images)
    if state is not None:
        module, beyond = load_weights(backbone, state)
        if beyond:
            LOG.info("ignored: %s", counted(beyond))
    else:
        module = _own_weights(backbone, seed)
    if state is not None and (state.recorded or backbone.images is None or not is_custom(backbone.name)):
        images = state.images if state.recorded else of_own_size(module, state.images)
    images = fix_size(module, backbone.name, changes.on(images))
    width = check_map(module, backbone.name, images) if backbone.width is None else backbone.width
    LOG.info("backbone %s, images: %s", backbone.name, images)
    return ReadyBackbone(module=module, name=backbone.name, width=width, images=images)


def inspect_backbone(state: BackboneState) -> tuple[str, ImageInput | None]:
    """Return the name and the image input of the backbone in a checkpoint, or the reason against an export and None."""
    if state.recorded:
        return state.candidates[0], state.images
    try:
        backbone = identify(state)
        module, _ = load_weights(backbone, state)  # as `export` does, so that `inspect` names none that it refuses
    except InputError as error:
        return str(error), None
    return backbone.name, of_own_size(module, state.images)


def _shown(state: BackboneState | None) -> Backbone:
    """Return the backbone that a checkpoint records, or that its tensors show.

    Raises: InputError if it is unknown; UsageError if there is none, or it is code that the user must name.
    """
    if state is None:
        raise UsageError("the checkpoint holds no image backbone: pass --backbone, or --input features")
    if not state.recorded:
        return identify(state)
    (recorded,) = state.candidates
    if is_custom(recorded):
        raise UsageError(f"the vocabulary was fitted on a backbone from elsewhere: pass --backbone {recorded} again")
    return find_backbone(recorded)


def _own_weights(backbone: Backbone, seed: int | None) -> nn.Module:
    if backbone.trained:
        return backbone.build().eval()
    if seed is None:
        raise UsageError(f"the backbone {backbone.name} brings no weights: pass a checkpoint that holds them")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return backbone.build().eval()


def _whole_network(backbone: Backbone, tensors: dict[str, torch.Tensor]) -> BackboneState:
    """Return the tensors of a whole network, such as torchvision's, under the names that the cut backbone has."""
    renamed = {}
    for key, tensor in tensors.items():
        start = next((each for each in backbone.renames if key.startswith(each)), "")
        renamed[backbone.renames.get(start, "") + key.removeprefix(start)] = tensor
    return BackboneState(root="", tensors=renamed, candidates=(), images=backbone.images or ImageInput())
