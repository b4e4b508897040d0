"""Read a trained NetVLAD from a checkpoint file, without ever running code that the file brings.

A checkpoint is a flat or nested dictionary of arrays in `.safetensors`, `.pt`, `.pth`, `.pth.tar` or `.npz`, or a
network of MatConvNet in `.mat`.
Its keys are those of a dialect, possibly inside `state_dict`, behind `module.`, or behind a prefix.
"""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import torch

from netvlad_deploy.errors import InputError, UsageError
from netvlad_deploy.models.affine import is_finite
from netvlad_deploy.models.dialects import Head, detect, matching
from netvlad_deploy.models.dialects.base import BackboneState, names
from netvlad_deploy.models.netvlad import NetVLAD
from netvlad_deploy.models.record import VocabularyRecord
from netvlad_deploy.models.weights_file import is_safetensors, read_tensors
from netvlad_deploy.require import require
from netvlad_deploy.spec import NetVLADSpec

LOG = logging.getLogger(__name__)

COUNTER = "num_batches_tracked"


def load_checkpoint(
    path: Path | str, *, prefix: str = "", dialect: str | None = None, head_only: bool = False
) -> NetVLAD:
    """Return the reference module of a checkpoint in eval mode; K, G, D and all conventions come from its arrays.

    Args:
        path: the file.
        prefix: what stands before the layer's own names, for example `text_pooling`.
        dialect: the dialect of its names, None to find it by them.
        head_only: leave out a projection after the head.

    Raises: InputError if the file is unreadable, runs code, or its keys and shapes are not a NetVLAD's; UsageError if
        there is no such dialect.
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
    if head_only and (left_out := (*head.projected, *head.projections)):
        LOG.warning("left out: %s: the descriptor is the one before the projection", names(left_out))
        head = head.alone()
    used = head.backbone.root if with_backbone and head.backbone is not None else None
    if ignored := [name for name in head.ignored if used is None or not name.startswith(used)]:
        LOG.info("ignored: %s", counted(ignored))
    return head


def find_head(path: Path | str, *, prefix: str = "", dialect: str | None = None) -> Head:
    """Return the head of a checkpoint whatever stands after it: look at `projections`.

    Raises: as `load_checkpoint`.
    """
    path = Path(path)
    everything = read_tensors(path)
    state = _below(everything, prefix) if prefix else everything
    try:
        chosen = detect(state, dialect)
    except InputError as error:
        raise InputError(f"{path}: {error}{_prefix_hint(everything)}") from error
    try:
        head = chosen.convert(state)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    for name, tensor in state.items():
        if name not in head.ignored and not is_finite(tensor):
            raise InputError(f"{path}: {name} is not finite: the checkpoint is damaged or training diverged")
    projections = tuple(chosen.projections(state, head))
    backbone = chosen.backbone.find(state) if chosen.backbone is not None else None
    return replace(head, dialect=chosen.name, projections=projections, backbone=_recorded(backbone, path))


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
    return replace(backbone, candidates=(record.backbone,), images=record.images, recorded=True)


def _below(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """Return the tensors behind a prefix, without it."""
    start = prefix.rstrip(".") + "."
    return {name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)}


def _prefix_hint(tensors: Mapping[str, torch.Tensor]) -> str:
    """Name the first prefix behind which there is a dialect."""
    prefixes = {name[:end] for name in tensors for end, letter in enumerate(name) if letter == "."}
    for prefix in sorted(prefixes):
        if matching(_below(tensors, prefix)):
            return f": export it with --prefix {prefix}"
    return ""


def counted(ignored: Iterable[str]) -> str:
    """Return names in one line, those of a common start together: `encoder.* (26 tensors)`."""
    groups = Counter(f"{start}.*" if dot else start for start, dot, _ in (name.partition(".") for name in ignored))
    return ", ".join(f"{group} ({count} tensor{'s' if count > 1 else ''})" for group, count in sorted(groups.items()))
