"""Read the tensors of a file of weights by their names, without ever running code that the file brings.

A file is a flat or nested dictionary of arrays in `.safetensors`, `.pt`, `.pth`, `.pth.tar` or `.npz`, or a network
of MatConvNet in `.mat`.
"""

import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from netvlad_deploy.arrays import read_arrays
from netvlad_deploy.errors import InputError
from netvlad_deploy.models.matlab import read_matlab
from netvlad_deploy.require import require

CONTAINERS = ("state_dict", "model_state_dict", "model")
TORCH_SUFFIXES = (".pt", ".pth", ".tar")
SUFFIXES = (".safetensors", ".npz", ".mat", *TORCH_SUFFIXES)


def read_tensors(path: Path | str) -> dict[str, torch.Tensor]:
    """Return the tensors of a file of weights without containers and `module.`.

    Raises: InputError if it is unreadable or runs code.
    """
    return _tensors(_read(Path(path)))


def _read(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise InputError(f"{path} is not a file")
    if path.suffix not in SUFFIXES:
        raise InputError(f"{path} is no checkpoint: expected one of {', '.join(SUFFIXES)}")
    try:
        loaded = _load(path)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path} is no file of torch, or holds code beside weights: save its state_dict alone"
        ) from error
    except TypeError as error:
        raise InputError(f"{path} holds an array that torch cannot take: {error}") from error
    except (OSError, ValueError, RuntimeError, EOFError, KeyError) as error:
        raise InputError(f"{path} is unreadable or truncated ({type(error).__name__}): copy it again") from error
    except require("safetensors", extra="export").SafetensorError as error:
        raise InputError(f"{path} is unreadable or truncated ({error}): copy it again") from error
    if not isinstance(loaded, Mapping):
        raise InputError(f"{path} holds a {type(loaded).__name__}, expected a dictionary of tensors")
    return loaded


def _load(path: Path) -> Any:
    if path.suffix == ".mat":
        return read_matlab(path)
    if path.suffix == ".safetensors":
        return require("safetensors.torch", extra="export").load_file(path)
    if path.suffix == ".npz":
        arrays = read_arrays(path)
        return {name: torch.from_numpy(array) for name, array in arrays.items()} if isinstance(arrays, dict) else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of pickle protocols other than torch's own
        return torch.load(path, map_location="cpu", weights_only=True)


def _tensors(loaded: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Strip containers and `module.`; keep the tensors."""
    for container in CONTAINERS:
        if isinstance(loaded.get(container), Mapping):
            loaded = loaded[container]
    tensors = {str(name): value for name, value in loaded.items() if isinstance(value, torch.Tensor)}
    return {name.removeprefix("module."): value for name, value in tensors.items()}
