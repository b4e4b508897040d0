"""Read a trained NetVLAD from a checkpoint file, without ever running code that the file brings.

A checkpoint is a flat or nested dictionary of arrays in `.safetensors`, `.pt`, `.pth`, `.pth.tar` or `.npz`, or a
network of MatConvNet in `.mat`.
Its keys are those of a dialect, possibly inside `state_dict`, behind a prefix, and with the names of wrappers in them.
Whatever else it holds is used, refused, or left out by an option that says so.
"""

import logging
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import torch

from netvlad_deploy.errors import InputError, UsageError
from netvlad_deploy.models.affine import is_finite
from netvlad_deploy.models.dialects import Head, Place, find_head_in, places
from netvlad_deploy.models.dialects.base import BACKBONE_PREFIXES, LOSSES, PROJECTION_KEY, BackboneState, names
from netvlad_deploy.models.netvlad import NetVLAD
from netvlad_deploy.models.vocabulary_record import VocabularyRecord
from netvlad_deploy.models.weights_file import is_safetensors, read_tensors
from netvlad_deploy.spec.layer import NetVLADSpec
from netvlad_deploy.support.require import require

LOG = logging.getLogger(__name__)

COUNTER = "num_batches_tracked"
WRAPPERS = re.compile(r"(?:(?<=\.)|^)(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""What torch puts into names when it wraps a module, wherever that stands: DataParallel, compile, FSDP, checkpoints of
activations.
"""


def load_checkpoint(
    path: Path | str, *, prefix: str = "", dialect: str | None = None, head_only: bool = False
) -> NetVLAD:
    """Return the reference module of a checkpoint in eval mode; K, G, D and all conventions come from its arrays.

    Args:
        path: the file.
        prefix: which of several layers: what stands before its own names, for example `text_pooling`.
        dialect: the dialect of its names, None to find it by them.
        head_only: leave out a projection after the head.

    Raises: InputError if the file is unreadable, or its keys and shapes are not a NetVLAD's; UsageError if there is no
        such dialect.
    """
    return module_of(read_head(path, prefix=prefix, dialect=dialect, head_only=head_only), path)


def read_head(
    path: Path | str,
    *,
    prefix: str = "",
    dialect: str | None = None,
    head_only: bool = False,
    with_backbone: bool = False,
) -> Head:
    """Return the head of a checkpoint in the reference's form; the arguments are those of `load_checkpoint`.

    With `with_backbone` an image backbone is not left out: make a pipeline of it.

    Raises: as `load_checkpoint`.
    """
    head = find_head(path, prefix=prefix, dialect=dialect)
    if head.projections and not head_only:
        raise InputError(
            f"{path} holds a projection after the head that {head.dialect} does not have: {names(head.projections)}: "
            "pass --head-only for the descriptor before it"
        )
    unplaced = head.unplaced if with_backbone else ()
    if unplaced and not head_only:
        raise InputError(
            f"{path} holds {counted(unplaced)} beside the head, and nothing says whether that stands before or after "
            "it: pass --input features for the head on its local descriptors, or --head-only to leave it out"
        )
    for assumed in (head.assumed, head.backbone.assumed if with_backbone and head.backbone is not None else ""):
        if assumed:
            LOG.warning("assumed: %s", assumed)
    if head_only and (left_out := (*head.projected, *head.projections, *unplaced)):
        LOG.warning("left out: %s: the descriptor is the one before the projection", names(left_out))
        head = head.alone()
    used = head.backbone.root if with_backbone and head.backbone is not None else None
    if ignored := [name for name in head.ignored if used is None or not name.startswith(used)]:
        LOG.info("ignored: %s", counted(ignored))
    return head


def find_head(path: Path | str, *, prefix: str = "", dialect: str | None = None) -> Head:
    """Return the head of a checkpoint whatever stands beside it: look at `projections`, `unplaced` and `backbone`.

    Raises: as `load_checkpoint`.
    """
    path = Path(path)
    tensors = read_tensors(path)
    try:
        state = unwrapped(tensors)
        place, head = find_head_in(state, prefix=WRAPPERS.sub("", f"{prefix}.").rstrip("."), name=dialect)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    for name, tensor in state.items():
        if name not in head.ignored and not is_finite(tensor):
            raise InputError(f"{path}: {name} is not finite: the checkpoint is damaged or training diverged")
    backbone = _recorded(place.backbone(state, head.ignored), path)
    if backbone is not None and dialect is not None:
        backbone = replace(backbone, assumed="")
    head = replace(head, backbone=backbone)
    return _beside(state, place, head)


def unwrapped(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return tensors by the names that they have without WRAPPERS.

    Raises: InputError if two different ones have the same name then.
    """
    state: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        plain = WRAPPERS.sub("", name)
        twin = state.get(plain)
        if twin is not None and (twin.dtype is not tensor.dtype or not torch.equal(twin, tensor)):
            raise InputError(f"holds {plain} twice, as it is and wrapped as {name}: save one of them")
        state[plain] = tensor
    return state


def _beside(state: Mapping[str, torch.Tensor], place: Place, head: Head) -> Head:
    """Return the head with what of the ignored tensors may change its descriptor.

    Those are no longer asked about that are the backbone's, another head's, or known to change nothing. What is left
    is a projection by its name or by its width, also its BatchNorm alone, or else of several values of which nothing
    says where they stand.
    """
    elsewhere = {each.start for each in places(state) if each.start not in ("", place.start)}
    unused = (start + loss for start in {place.before, ""} for loss in LOSSES)
    known = (*elsewhere, *unused, *(place.before + start for start in place.dialect.unused))
    roots = tuple(start + root for start in {place.before, ""} for root in BACKBONE_PREFIXES)
    root = head.backbone.root if head.backbone is not None else None
    sizes = (head.spec.aggregate_size, head.spec.descriptor_size)
    projections, unplaced = [], []
    for name in head.ignored:
        shape = state[name].shape
        if name.startswith(known) or (root is not None and name.startswith(root)):
            continue
        mapping = sizes[0] in shape[:2] if len(shape) != 2 else any(size in shape for size in sizes)
        if not name.startswith(roots) and (PROJECTION_KEY.search(name) or mapping):
            projections.append(name)
        elif state[name].numel() > 1 and state[name].is_floating_point():
            unplaced.append(name)
    return replace(head, projections=tuple(projections), unplaced=tuple(unplaced))


def module_of(head: Head, path: Path | str) -> NetVLAD:
    """Return the reference module of a head in eval mode, which takes over its FP32 tensors without a copy.

    Raises: InputError if its tensors are not the module's.
    """
    with torch.device("meta"):
        module = NetVLAD.of(head.spec)
    tensors = {
        name: (tensor.float() if tensor.is_floating_point() else tensor).contiguous()
        for name, tensor in head.tensors.items()
    }
    for name, part in module.named_modules():
        if isinstance(part, torch.nn.BatchNorm1d):
            tensors.setdefault(f"{name}.{COUNTER}", torch.zeros((), dtype=torch.long))
            if f"{name}.eps" in tensors:
                if head.tensors[f"{name}.eps"].numel() != 1:
                    raise InputError(f"{path}: {name}.eps is not one number")
                part.eps = float(head.tensors[f"{name}.eps"])
                del tensors[f"{name}.eps"]
    try:
        module.load_state_dict(tensors, strict=True, assign=True)
    except RuntimeError as error:
        raise InputError(f"{path}: {' '.join(str(error).split())}") from error
    return module.eval()


def read_record(path: Path) -> VocabularyRecord | None:
    """Return what a vocabulary file says of itself, None if it is another file.

    Raises: InputError if the record is damaged.
    """
    if not is_safetensors(path):
        return None
    with require("safetensors", extra="export").safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
    try:
        return VocabularyRecord.parse(metadata)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def check_options(spec: NetVLADSpec, path: Path, **given: int | bool | None) -> None:
    """Raise UsageError if an option that was given contradicts what the checkpoint holds."""
    for name, value in given.items():
        if value is not None and value != getattr(spec, name):
            raise UsageError(f"{path} has {name} {getattr(spec, name)}, the options say {value}: leave the option out")


def _recorded(backbone: BackboneState | None, path: Path) -> BackboneState | None:
    """Add what a vocabulary file says of its backbone."""
    record = read_record(path) if backbone is not None else None
    if backbone is None or record is None:
        return backbone
    return replace(backbone, candidates=(record.backbone,), images=record.images, recorded=True, assumed="")


def counted(ignored: Iterable[str]) -> str:
    """Return names in one line, those of a common start together: `encoder.* (26 tensors)`."""
    groups = Counter(f"{start}.*" if dot else start for start, dot, _ in (name.partition(".") for name in ignored))
    return ", ".join(f"{group} ({count} tensor{'s' if count > 1 else ''})" for group, count in sorted(groups.items()))
