"""Put a backbone and a head together: a pipeline out of one checkpoint, or out of parts.

A backbone comes from the registry or from the user's command line, its weights from the checkpoint where it holds
them. What an image must be comes, in this order, from a vocabulary's own record, from the user's own backbone, from
the dialect, and from the registry.
"""

import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from netvlad_deploy.errors import InputError, UsageError
from netvlad_deploy.models.backbones import Backbone, find_backbone, is_custom
from netvlad_deploy.models.backbones.weights import check_map, identify, load_weights
from netvlad_deploy.models.checkpoints import counted, find_head, module_of, read_head, unwrapped
from netvlad_deploy.models.dialects import Head, places
from netvlad_deploy.models.dialects.base import BackboneState
from netvlad_deploy.models.netvlad import NetVLAD
from netvlad_deploy.models.pipeline import Pipeline
from netvlad_deploy.models.weights_file import read_tensors
from netvlad_deploy.spec.images import NO_CHANGES, ImageChanges, ImageInput

LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ReadyBackbone:
    """A backbone in eval mode: D is `width`, `images` is what it takes."""

    module: nn.Module
    name: str
    width: int
    images: ImageInput

    def under(self, head: NetVLAD) -> Pipeline:
        """Return the pipeline of this backbone and a head.

        Raises: InputError if they do not fit.
        """
        if head.spec.feature_size != self.width:
            raise InputError(
                f"the backbone {self.name} gives {self.width} channels, the head takes {head.spec.feature_size}: name "
                "another with --backbone"
            )
        return Pipeline(self.module, head, self.images, name=self.name).eval()


def read_pipeline(
    path: Path | str,
    *,
    prefix: str = "",
    dialect: str | None = None,
    head_only: bool = False,
    backbone: str | None = None,
    changes: ImageChanges = NO_CHANGES,
) -> Pipeline:
    """Return backbone and head of a checkpoint in eval mode.

    Args:
        path: the file.
        prefix: what stands before the layer's own names.
        dialect: the dialect of its names, None to find it by them.
        head_only: leave out a projection after the head.
        backbone: which backbone it is, None to find it by its tensors; where the checkpoint holds none, one that
            brings its own weights.
        changes: what is done to an image otherwise than the checkpoint's own code does.

    Raises: InputError if the file is unusable, or a tensor of the backbone is missing, of another shape or unknown;
        UsageError for an unknown dialect or backbone.
    """
    head = read_head(
        path,
        prefix=prefix,
        dialect=dialect,
        head_only=head_only,
        with_backbone=True,
        resized=changes.resize is not None,
    )
    return pipeline_of(head, path, backbone=backbone, changes=changes)


def pipeline_of(head: Head, path: Path | str, *, backbone: str | None, changes: ImageChanges) -> Pipeline:
    """Return the pipeline of a head and its backbone; the arguments are those of `read_pipeline`."""
    try:
        ready = ready_backbone(head.backbone, _named(backbone), changes=changes)
        return ready.under(module_of(head, path))
    except InputError as error:
        raise InputError(str(error) if str(error).startswith(str(path)) else f"{path}: {error}") from error


def read_backbone(
    name: str | None, checkpoint: Path | None = None, *, changes: ImageChanges = NO_CHANGES, seed: int | None = None
) -> ReadyBackbone:
    """Return a backbone with the weights that it brings, of a checkpoint, or of a file of the whole network.

    Args:
        name: which backbone, None to find it by the tensors of a NetVLAD's checkpoint.
        checkpoint: where its weights are, None for those that it brings.
        changes: what is done to an image otherwise than is usual for it.
        seed: of untrained weights, None to refuse a backbone that brings none.

    Raises: UsageError if nothing says which backbone, or it has no weights; InputError if the file is unusable.
    """
    if checkpoint is None:
        if name is None:
            raise UsageError("nothing says which backbone: pass --backbone, or --checkpoint of a NetVLAD with one")
        return ready_backbone(None, find_backbone(name), changes=changes, seed=seed)
    tensors, backbone = unwrapped(read_tensors(checkpoint)), _named(name)
    state = find_head(checkpoint).backbone if places(tensors) else None
    if state is None:
        if backbone is None:
            raise UsageError(f"{checkpoint} is no NetVLAD with a backbone: say with --backbone whose weights it has")
        state = _whole_network(backbone, tensors)
    try:
        return ready_backbone(state, backbone, changes=changes)
    except InputError as error:
        raise InputError(f"{checkpoint}: {error}") from error


def ready_backbone(
    state: BackboneState | None,
    backbone: Backbone | None,
    *,
    changes: ImageChanges = NO_CHANGES,
    seed: int | None = None,
) -> ReadyBackbone:
    """Return a backbone with these weights, or with those that it brings; None is the backbone that they show.

    Raises: as `read_backbone`.
    """
    if backbone is None:
        backbone = _shown(state)
    if state is not None:
        module, beyond = load_weights(backbone, state)
        if beyond:
            LOG.info("ignored: %s", counted(beyond))
    else:
        module = _own_weights(backbone, seed)
    images = backbone.images or ImageInput()
    if state is not None and (state.recorded or backbone.images is None or not is_custom(backbone.name)):
        images = state.images
    images = changes.on(images)
    width = check_map(module, backbone.name, images) if backbone.width is None else backbone.width
    LOG.info("backbone %s, images: %s", backbone.name, images)
    return ReadyBackbone(module=module, name=backbone.name, width=width, images=images)


def inspect_backbone(state: BackboneState) -> tuple[str, ImageInput | None]:
    """Return the name of the backbone in a checkpoint and what it takes, or why it cannot be exported and None."""
    try:
        return state.candidates[0] if state.recorded else identify(state).name, state.images
    except InputError as error:
        return str(error), None


def _named(name: str | None) -> Backbone | None:
    return None if name is None else find_backbone(name)


def _shown(state: BackboneState | None) -> Backbone:
    """Return the backbone that a checkpoint shows by its record or its tensors."""
    if state is None:
        raise UsageError("the checkpoint holds no image backbone: pass --backbone, or --input features")
    if not state.recorded:
        return identify(state)
    (recorded,) = state.candidates
    if is_custom(recorded):
        raise UsageError(f"the vocabulary was fitted on code of your own: pass --backbone {recorded} again")
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
    """Return the tensors of a whole network, such as torchvision's, by the names of its cut."""
    renamed = {}
    for key, tensor in tensors.items():
        start = next((each for each in backbone.renames if key.startswith(each)), "")
        renamed[backbone.renames.get(start, "") + key.removeprefix(start)] = tensor
    return BackboneState(root="", tensors=renamed, candidates=(), images=backbone.images or ImageInput())
