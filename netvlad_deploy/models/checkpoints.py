"""Read a trained NetVLAD, or another aggregator, from a file, without ever running code that the file brings.

Its keys are those of a dialect, possibly inside `state_dict`, behind a prefix, and with the names of wrappers in them.
Every other tensor that may change a descriptor is used, refused, or left out by an option that says so.
"""

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from netvlad_deploy.errors import InputError, UsageError
from netvlad_deploy.models.affine import is_finite
from netvlad_deploy.models.dialects import find_dialect, find_head_in, find_heads_in, places
from netvlad_deploy.models.dialects.base import BACKBONE_PREFIXES, LOSS_PREFIXES, PROJECTION_NAME, Place
from netvlad_deploy.models.head import BackboneState, Head
from netvlad_deploy.models.heads import safe_names
from netvlad_deploy.models.netvlad import NetVLAD
from netvlad_deploy.models.tensor_names import counted, names, unwrapped, without_wrappers
from netvlad_deploy.models.vocabulary import VocabularyRecord
from netvlad_deploy.models.weights_file import is_safetensors, read_tensors
from netvlad_deploy.spec.layer import AggregatorSpec, AnySpec, NetVLADSpec
from netvlad_deploy.support.formats import naming
from netvlad_deploy.support.require import require

LOG = logging.getLogger(__name__)


def load_checkpoint(
    path: Path | str, *, prefix: str = "", dialect: str | None = None, head_only: bool = False
) -> NetVLAD:
    """Return the reference module of a checkpoint in eval mode; K, G, D and all conventions come from its arrays.

    For another aggregator than NetVLAD take `read_head(path).module(path)`.

    Args:
        path: the file.
        prefix: the prefix of the layer's names, for example `text_pooling`, to choose one of several layers.
        dialect: the dialect of its names, None to recognise it by them.
        head_only: leave out a projection after the head.

    Raises: InputError if the file is unreadable, or its keys and shapes are not a NetVLAD's; UsageError if there is no
        such dialect.

    >>> torch.save({"clusters": torch.ones(8, 3), "clusters2": torch.ones(1, 8, 2)}, "head.pt")
    >>> module = load_checkpoint("head.pt")
    >>> module.spec.num_clusters, module.spec.num_ghost_clusters, module(torch.ones(1, 5, 8)).shape
    (2, 1, torch.Size([1, 16]))
    """
    return read_head(path, prefix=prefix, dialect=dialect, head_only=head_only).netvlad(path)


def read_head(
    path: Path | str,
    *,
    prefix: str = "",
    dialect: str | None = None,
    head_only: bool = False,
    with_backbone: bool = False,
    resized: bool = False,
) -> Head:
    """Return the head of a checkpoint in the reference's form, and log assumptions, and tensors left out or ignored.

    The arguments are those of `load_checkpoint`. With `with_backbone` a pipeline will use the image backbone too: then
    tensors that may stand between both are refused. With `resized` the caller says how large images become, so that
    nothing is assumed of that.

    Raises: as `load_checkpoint`.
    """
    head = find_head(path, prefix=prefix, dialect=dialect)
    _check_projections(head, path, head_only=head_only)
    unplaced = head.unplaced if with_backbone else ()
    if unplaced and not head_only:
        raise InputError(
            f"{path} holds {counted(unplaced)} beside the head, and nothing says whether that stands before or after "
            "it: pass --input features for the head on its local descriptors, or --head-only to leave it out"
        )
    backbone = head.backbone if with_backbone else None
    of_images = "" if backbone is None or resized else backbone.assumed
    for assumed in filter(None, (head.assumed, of_images)):
        LOG.warning("assumed: %s", assumed)
    head = _alone(head, unplaced) if head_only else head
    if ignored := [name for name in head.ignored if backbone is None or not name.startswith(backbone.root)]:
        LOG.info("ignored: %s", counted(ignored))
    return head


def read_heads(path: Path | str, *, dialect: str | None = None, head_only: bool = False) -> dict[str, Head]:
    """Return every head of a checkpoint by its name in a graph, and log assumptions and what is left out or ignored.

    What stands between a backbone and the heads is not looked at: they are exported on local descriptors.

    Raises: as `load_checkpoint`; UsageError if there is one head alone.
    """
    path = Path(path)
    with naming(path):
        state = unwrapped(read_tensors(path))
        found = find_heads_in(state, name=dialect)
        if len(found) < 2:
            raise UsageError(f"{path} holds one NetVLAD: leave --all-heads out")
        graph_names = safe_names(found)
        if others := [start for start, (_, head) in found.items() if not isinstance(head.spec, NetVLADSpec)]:
            raise InputError(f"holds {names(others)}, no NetVLAD: export one layer at a time with --prefix")
    unused = set(state).intersection(*(head.ignored for _, head in found.values()))
    idle = tuple(place.before + start for place, _ in found.values() for start in place.dialect.unused)
    strange = tuple(sorted(name for name in unused if not name.startswith(idle)))
    heads = {}
    for start, (place, found_head) in found.items():
        _check_finite(state, found_head, path)
        head = _beside(state, place, replace(found_head, ignored=strange))
        _check_projections(head, path, head_only=head_only)
        if head.assumed:
            LOG.warning("assumed for %s: %s", graph_names[start], head.assumed)
        heads[graph_names[start]] = _alone(head) if head_only else head
    if unused:
        LOG.info("ignored: %s", counted(sorted(unused)))
    return heads


def _check_projections(head: Head, path: Path | str, *, head_only: bool) -> None:
    if head.projections and not head_only:
        raise InputError(
            f"{path} holds a projection after the head that {head.dialect} does not have: {names(head.projections)}: "
            "pass --head-only for the descriptor before it"
        )


def _alone(head: Head, unplaced: tuple[str, ...] = ()) -> Head:
    """Return the head without a projection, and log what is left out."""
    if left_out := (*head.projected, *head.projections, *unplaced):
        LOG.warning("left out: %s: the descriptor is the one before the projection", names(left_out))
        return head.alone()
    return head


def find_head(
    path: Path | str, *, prefix: str = "", dialect: str | None = None, state: Mapping[str, torch.Tensor] | None = None
) -> Head:
    """Return the head of a checkpoint even if its descriptor may be changed by tensors beside it.

    The fields `projections`, `unplaced` and `backbone` name those tensors. `state` has the tensors of the file under
    names without wrappers, where it has been read already.

    Raises: as `load_checkpoint`.
    """
    path = Path(path)
    lone = "" if dialect is None else find_dialect(dialect).lone
    with naming(path):
        state = unwrapped(read_tensors(path, lone=lone)) if state is None else state
        place, head = find_head_in(state, prefix=without_wrappers(f"{prefix}.").rstrip("."), name=dialect)
    _check_finite(state, head, path)
    backbone = place.backbone(state, head.ignored)
    if backbone is not None:
        backbone = _recorded(backbone, path)
        if dialect is not None:
            backbone = replace(backbone, assumed="")
    return _beside(state, place, replace(head, backbone=backbone))


def _check_finite(state: Mapping[str, torch.Tensor], head: Head, path: Path) -> None:
    """Raise InputError if a tensor of the head is not finite."""
    for name, tensor in state.items():
        if name not in head.ignored and not is_finite(tensor):
            raise InputError(f"{path}: {name} is not finite: the checkpoint is damaged or training diverged")


def _recorded(backbone: BackboneState, path: Path) -> BackboneState:
    """Return the backbone with the name and the image input that a vocabulary file records, or as it is.

    Raises: InputError if the record is damaged.
    """
    if not is_safetensors(path):
        return backbone
    with require("safetensors", extra="export").safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
    with naming(path):
        record = VocabularyRecord.parse(metadata)
    if record is None:
        return backbone
    return replace(backbone, candidates=(record.backbone,), images=record.images, recorded=True, assumed="")


def _beside(state: Mapping[str, torch.Tensor], place: Place, head: Head) -> Head:
    """Return the head with its fields `projections` and `unplaced`: ignored tensors that may change its descriptor.

    The tensors of the backbone, of another head, and those known to change no descriptor are passed over. A tensor is
    of a projection by its name or by its width. The rest are unplaced if they have several values: nothing says whether
    they stand before the head or after it.
    """
    elsewhere = {each.start for each in places(state) if each.start not in ("", place.start)}
    unused = (start + loss for start in {place.before, ""} for loss in LOSS_PREFIXES)
    known = (*elsewhere, *unused, *(place.before + start for start in place.dialect.unused))
    roots = tuple(start + root for start in {place.before, ""} for root in BACKBONE_PREFIXES)
    roots += tuple(place.before + start for start in place.dialect.upstream)
    after = tuple(place.before + start for start in place.dialect.after)
    root = head.backbone.root if head.backbone is not None else None
    size = head.spec.descriptor_size
    sizes = (head.spec.aggregate_size if isinstance(head.spec, NetVLADSpec) else size, size)
    projections, unplaced = [], []
    for name in head.ignored:
        shape = state[name].shape
        if not name.startswith(after) and (name.startswith(known) or (root is not None and name.startswith(root))):
            continue
        mapping = sizes[0] in shape[:2] if len(shape) != 2 else any(size in shape for size in sizes)
        by_name = not name.startswith(roots) and (PROJECTION_NAME.search(name) or mapping)
        if by_name or name.startswith(after):
            projections.append(name)
        elif state[name].numel() > 1 and state[name].is_floating_point():
            unplaced.append(name)
    return replace(head, projections=tuple(projections), unplaced=tuple(unplaced))


def check_options(spec: AnySpec, path: Path, **given: int | bool | None) -> None:
    """Raise UsageError if a given option differs from the field, or setting, of its name in the checkpoint's spec."""
    settings = spec.settings if isinstance(spec, AggregatorSpec) else {}
    for name, value in given.items():
        found = getattr(spec, name, settings.get(name, "none"))
        if value is not None and value != found:
            raise UsageError(f"{path} has {name} {found}, the options say {value}: leave the option out")
