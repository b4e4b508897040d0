"""Read the tensors of a file of weights by their names, without ever running code that the file brings.

A file holds arrays by name (`.safetensors`, `.npz`), a dictionary of tensors or a whole module as torch saves them, an
archive of TorchScript, a network of MatConvNet (`.mat`), a checkpoint of TensorFlow (`.index`), or a model of Keras in
HDF5 (`.h5`). Its weights may stand in containers (`state_dict`, `model`, `ema`). Of several containers, each name
begins with the container's, which is then a prefix to choose by.
"""

import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch

from netvlad_deploy.errors import InputError
from netvlad_deploy.models.dialects.relja import read_matlab
from netvlad_deploy.models.keras_file import read_keras
from netvlad_deploy.models.pickled import NumpyArray, Standin, StoredTensor
from netvlad_deploy.models.tensor_names import names
from netvlad_deploy.models.tensorflow_bundle import read_bundle
from netvlad_deploy.models.torch_file import open_pickled
from netvlad_deploy.support.arrays import read_arrays
from netvlad_deploy.support.formats import (
    CHECKPOINT_SUFFIXES,
    HDF5_MAGIC,
    INDEX_SUFFIX,
    first_bytes,
    foreign,
    is_checkpoint,
    naming,
    reading,
    shown,
)
from netvlad_deploy.support.require import require

TENSOR_TYPES: Final = (torch.Tensor, StoredTensor)

LOG = logging.getLogger(__name__)

SAVE_ALONE: Final = "load it with the code it came from, and save its state_dict alone"
REAL_DTYPES: Final = frozenset(
    {
        *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.bool),
        *(torch.int8, torch.int16, torch.int32, torch.int64),
        *(torch.uint8, torch.uint16, torch.uint32, torch.uint64),
    }
)
SPECIAL_TENSORS: Final = {
    "_rebuild_sparse_tensor": "a sparse tensor: save it after to_dense()",
    "_rebuild_sparse_csr_tensor": "a sparse tensor: save it after to_dense()",
    "_rebuild_qtensor": "a quantized tensor: save it after dequantize()",
    "_rebuild_meta_tensor_no_storage": "a tensor of the meta device, which has no values: save the trained model",
    "_rebuild_nested_tensor": "a nested tensor: save it after to_padded_tensor()",
}
"""By the last part of the function's name in torch, the kinds of tensors that are refused, with a remedy."""

TORCH_NAME_PREFIXES: Final = ("torch._", "torch.nn.", "torch.storage.", "torch.Tensor", "__torch__.")
"""Prefixes of the classes and functions that torch saves with every tensor and module."""

OPTIMIZER_PREFIX = "optim"
"""Start of the names of containers that hold an optimizer's tensors."""

MAX_TENSORS, MAX_NAME_LENGTH, MAX_CONTAINER_DEPTH, MAX_VALUES_VISITED = 50_000, 512, 64, 250_000
"""Bounds far above those of any network; the length of a name is in characters."""


@dataclass(frozen=True, kw_only=True)
class _Leaf:
    """A value of a file, the containers in which it stands, outermost first, and its name in the last of them."""

    containers: tuple[str, ...]
    name: str
    value: Any


def read_tensors(path: Path | str, *, lone: str = "") -> dict[str, torch.Tensor]:
    """Return the tensors of a file of weights by their names in its container; names keep the parts of wrappers.

    `lone` is the name of the tensor of a file that holds one tensor and no name; without it such a file is refused.

    Raises: InputError if it is missing, damaged, something else, or holds no weights.
    """
    path = Path(path)
    if kind := foreign(path):
        raise InputError(f"{path} is {kind}")
    if not is_checkpoint(path):
        raise InputError(f"{path} is no checkpoint: expected one of {', '.join(CHECKPOINT_SUFFIXES)}")
    suffix = path.suffix.lower()
    with reading(path), naming(path):
        if suffix == ".mat":
            return read_matlab(path)
        if suffix == INDEX_SUFFIX:
            return _tensors_in(path, read_bundle(path))
        if first_bytes(path).startswith(HDF5_MAGIC):
            return _tensors_in(path, read_keras(path))
        if is_safetensors(path):
            return _tensors_in(path, _read_safetensors(path))
        if suffix == ".npz":
            return _tensors_in(path, _read_npz(path))
        with open_pickled(path) as (content, skipped):
            named = {lone: content} if lone and isinstance(content, TENSOR_TYPES) else content
            return _tensors_in(path, named, skipped)


def is_safetensors(path: Path) -> bool:
    """Return True if a file is of the format safetensors, by its suffix or by the JSON at its start.

    Raises: InputError if it is missing or may not be read.
    """
    return path.suffix.lower() == ".safetensors" or first_bytes(path)[8:9] == b"{"


def _read_safetensors(path: Path) -> Mapping[str, torch.Tensor]:
    module = require("safetensors.torch", extra="export")
    try:
        tensors: dict[str, torch.Tensor] = module.load_file(path)
    except require("safetensors", extra="export").SafetensorError as error:
        raise ValueError(str(error)) from error
    return tensors


def _read_npz(path: Path) -> Mapping[str, torch.Tensor]:
    arrays = read_arrays(path)
    if not isinstance(arrays, dict):
        raise InputError(f"{path} holds one array without a name: save arrays by name with numpy.savez")
    return {name: _of_array(array, name, path) for name, array in arrays.items()}


def _of_array(array: Any, name: str, path: Path) -> torch.Tensor:
    try:
        return torch.from_numpy(array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("=")))
    except TypeError as error:
        raise InputError(f"{path} holds {name}, an array that torch cannot take: it is of {array.dtype}") from error


def _tensors_in(path: Path, content: Any, skipped: frozenset[str] = frozenset()) -> dict[str, torch.Tensor]:
    """Return the tensors in the content of a file, out of their containers.

    Raises: InputError if there is none, two have the same name, or one is no tensor of real numbers.
    """
    walk = _Walk(path)
    kept = _unwrapped(list(walk.below(content)))
    if not any(_shape(leaf.value) is not None for leaf in kept):
        raise InputError(f"{path} {_no_weights(content)}")
    if walk.objects:
        LOG.info("%s: read the weights of an object of %s, whose code did not run", path.name, names(walk.objects))
    if beside := [name for name in skipped - walk.parts if not name.startswith(TORCH_NAME_PREFIXES)]:
        LOG.info("%s: left out, and not run: objects beside the weights of %s", path.name, names(beside))
    if len(kept) > MAX_TENSORS:
        raise InputError(f"{path} is no checkpoint: it has {len(kept)} tensors, expected {MAX_TENSORS} at most")
    tensors: dict[str, torch.Tensor] = {}
    for leaf in kept:
        if leaf.name in tensors:
            raise InputError(f"{path} holds two tensors named {leaf.name}: save one state_dict alone")
        if (tensor := _tensor(leaf.value, leaf.name, path)) is not None:
            tensors[leaf.name] = tensor
    return tensors


class _Walk:
    """A walk through all values of a file, within bounds: a pickle can hold itself.

    `objects` has the classes of the outermost modules that were entered, `parts` the classes of all modules.
    """

    def __init__(self, path: Path) -> None:
        self.objects: set[str] = set()
        self.parts: set[str] = set()
        self._path = path
        self._visited = 0

    def below(self, node: Any, containers: tuple[str, ...] = (), start: str = "", depth: int = 0) -> Iterator[_Leaf]:
        """Yield every tensor and every stand-in below a value of the file, which stands in these containers.

        Raises: InputError if the values are nested too deep or too many, or a name is too long.
        """
        attributes = _attributes(node)
        if attributes is not None:
            self.parts.add(node.name)
            self.objects.update([] if start else [node.name])
        elif not isinstance(node, Mapping):
            return
        for key, value in (node if attributes is None else attributes).items():
            self._visited += 1
            if depth > MAX_CONTAINER_DEPTH or self._visited > MAX_VALUES_VISITED:
                raise InputError(f"{self._path} is nested without an end: save its state_dict alone")
            may_hold = isinstance(value, Standin | Mapping) or _shape(value) is not None  # no number, text or list can
            if not may_hold or not isinstance(key, str | int):
                continue
            if (length := sum(map(len, (*containers, start, name := str(key))))) > MAX_NAME_LENGTH:
                raise InputError(
                    f"{self._path} is no checkpoint: a name of {length} characters begins {shown(name, 40)}"
                )
            if _attributes(value) is not None and attributes is not None:
                yield from self.below(value, containers, f"{start}{name}.", depth + 1)
            elif _attributes(value) is not None or (isinstance(value, Mapping) and isinstance(key, str)):
                yield from self.below(value, (*containers, name), "", depth + 1)
            elif not isinstance(value, Mapping):
                yield _Leaf(containers=containers, name=f"{start}{name}", value=value)


def _attributes(value: Any) -> Mapping[str, Any] | None:
    """Return the parameters, buffers and submodules of a module, also of TorchScript; None for any other value."""
    state = value.state if isinstance(value, Standin) else None
    if not isinstance(state, dict):
        return None
    if value.name.startswith("__torch__."):
        return state
    parts = [state.get(name) for name in ("_parameters", "_buffers", "_modules")]
    if not all(isinstance(part, dict) for part in parts):
        return None
    hidden = state.get("_non_persistent_buffers_set")
    merged = {name: each for part in parts if isinstance(part, dict) for name, each in part.items()}
    return {name: each for name, each in merged.items() if not isinstance(hidden, set) or name not in hidden}


def _shape(value: Any) -> tuple[int, ...] | None:
    """Return the shape of a tensor or array of numbers, None for any other value."""
    if isinstance(value, NumpyArray):
        return None if value.array is None else value.array.shape
    return tuple(value.shape) if isinstance(value, TENSOR_TYPES) else None


def _unwrapped(leaves: list[_Leaf]) -> list[_Leaf]:
    """Return the values of the containers that hold weights; of several containers, each name begins with its own.

    Containers that hold matrices are preferred, as tensors or else as arrays of NumPy: training also saves numbers and
    rows of numbers, which are not weights.
    """
    own = [leaf for leaf in leaves if not any(each.startswith(OPTIMIZER_PREFIX) for each in leaf.containers)]
    for kinds, axes in ((TENSOR_TYPES, 2), (NumpyArray, 2), (TENSOR_TYPES, 1), ((*TENSOR_TYPES, NumpyArray), 0)):
        holding = {
            leaf.containers for leaf in own if isinstance(leaf.value, kinds) and len(_shape(leaf.value) or ()) >= axes
        }
        if holding:
            base = os.path.commonprefix(list(holding))  # noqa: RUF071 - of tuples, not of paths
            depth = len(base)
            return [
                replace(leaf, name=".".join((*leaf.containers[depth:], leaf.name)))
                for leaf in own
                if leaf.containers[:depth] == base
                and (leaf.containers in holding or isinstance(leaf.value, (*TENSOR_TYPES, Standin)))
            ]
    return []


def _tensor(value: Any, name: str, path: Path) -> torch.Tensor | None:
    """Return a value as a tensor; None for an object beside the weights, which is left out.

    Raises: InputError if it is a special tensor, not of real numbers, or an object within the weights.
    """
    if isinstance(value, Standin):
        if "." not in name and not value.name.startswith(TORCH_NAME_PREFIXES):
            return None
        kind = SPECIAL_TENSORS.get(value.name.rpartition(".")[2], f"an object of {value.name}: {SAVE_ALONE}")
        raise InputError(f"{path} holds {name}, {kind}")
    if isinstance(value, NumpyArray):
        value = _of_array(value.array, name, path)
    if value.dtype not in REAL_DTYPES:
        raise InputError(f"{path} holds {name} of {value.dtype}, expected real numbers: save it as float32")
    if isinstance(value, StoredTensor):
        try:
            return value.read(path.stat().st_size)
        except InputError as error:
            raise InputError(f"{path} holds {name}, which {error}") from error
    tensor: torch.Tensor = value
    return tensor


def _no_weights(content: Any) -> str:
    """Return the content of a file without weights in words, and a remedy."""
    if isinstance(content, Standin) and content.name.startswith("__torch__."):
        return "is a TorchScript archive without named weights, as torch.jit.freeze leaves it: save it unfrozen"
    if isinstance(content, TENSOR_TYPES):
        return f"holds one tensor instead of tensors by name: choose --dialect if it is a vocabulary, or {SAVE_ALONE}"
    if not isinstance(content, Mapping):
        return f"holds {_kind(content)} instead of tensors by name: {SAVE_ALONE}"
    kinds = (Standin, list, tuple)
    held = [f"{key}"[:80] + (f" ({_kind(each)})" if isinstance(each, kinds) else "") for key, each in content.items()]
    return f"holds no weights by name, found {names(held) if held else 'nothing'}: {SAVE_ALONE}"


def _kind(value: Any) -> str:
    """Return the kind of a value in words."""
    if isinstance(value, Standin):
        return f"an object of {value.name}"
    return "one tensor" if isinstance(value, TENSOR_TYPES) else f"a {type(value).__name__}"
