"""The names of a checkpoint's tensors: without torch's wrappers, and as one line of a message."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping

import torch

from netvlad_deploy.errors import InputError
from netvlad_deploy.support.formats import shown

BATCH_NORM_COUNTER = "num_batches_tracked"
"""Last part of the name of BatchNorm's count of training steps, which inference does not need."""

MAX_NAMES_SHOWN, MAX_NAME_SHOWN = 12, 200

WRAPPERS = re.compile(r"(?:(?<=\.)|^)(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""Parts of a name that torch adds when DataParallel, compile, FSDP or activation checkpointing wraps a module."""


def without_wrappers(name: str) -> str:
    """Return a tensor's name without the parts that torch's wrappers add.

    >>> without_wrappers("module.encoder.0._orig_mod.weight")
    'encoder.0.weight'
    """
    return WRAPPERS.sub("", name)


def unwrapped(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors under their names without wrappers.

    Raises: InputError if two tensors that differ would have the same name.
    """
    state: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        plain = without_wrappers(name)
        twin = state.get(plain)
        if twin is not None and (twin.dtype is not tensor.dtype or not torch.equal(twin, tensor)):
            raise InputError(f"holds {plain} twice, as it is and wrapped as {name}: save one of them")
        state[plain] = tensor
    return state


def names(found: Iterable[str]) -> str:
    r"""Return names in one line, sorted, at most MAX_NAMES_SHOWN of them.

    >>> names(["pool.conv.weight", "pool.centroids", "of two\nlines"])
    'of two lines, pool.centroids, pool.conv.weight'
    """
    ordered = sorted(shown(name, MAX_NAME_SHOWN) for name in found)
    more = ", ..." if len(ordered) > MAX_NAMES_SHOWN else ""
    return ", ".join(ordered[:MAX_NAMES_SHOWN]) + more or "no tensor"


def counted(found: Iterable[str]) -> str:
    """Return names in one line, grouped by their first part, with the size of each group.

    >>> counted(["encoder.0.weight", "encoder.0.bias", "step"])
    'encoder.* (2 tensors), step (1 tensor)'
    """
    parts = (shown(name, MAX_NAME_SHOWN).partition(".") for name in found)
    groups = Counter(f"{start}.*" if dot else start for start, dot, _ in parts)
    return ", ".join(f"{group} ({count} tensor{'s' if count > 1 else ''})" for group, count in sorted(groups.items()))
