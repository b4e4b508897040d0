"""Read a trained NetVLAD from a checkpoint file, without ever running code that the file brings.

A checkpoint is a flat or nested dictionary of arrays in `.safetensors`, `.pt`, `.pth`, `.pth.tar` or `.npz`.
Its keys are those of the reference, possibly inside `state_dict`, behind `module.`, or behind a prefix.
"""

import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from netvlad_deploy.arrays import read_arrays
from netvlad_deploy.errors import InputError, UsageError
from netvlad_deploy.models.netvlad import NetVLAD
from netvlad_deploy.require import require
from netvlad_deploy.spec import NetVLADSpec

CONTAINERS = ("state_dict", "model_state_dict", "model")
TORCH_SUFFIXES = (".pt", ".pth", ".tar")
SUFFIXES = (".safetensors", ".npz", *TORCH_SUFFIXES)
COUNTER = "batch_norm.num_batches_tracked"
EPS = "batch_norm.eps"


def load_checkpoint(path: Path | str, *, prefix: str = "") -> NetVLAD:
    """Return the reference module of a checkpoint in eval mode; K, G, D and BatchNorm come from its arrays.

    Args: prefix: what stands before the layer's own names, for example `text_pooling`.

    Raises: InputError if the file is unreadable, runs code, or its keys and shapes are not a NetVLAD's.
    """
    path = Path(path)
    tensors = _select(_read(path), prefix, path)
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise InputError(f"{path}: {name} is not finite: the checkpoint is damaged or training diverged")
    eps = tensors.pop(EPS, None)
    spec = _infer_spec(tensors, path)
    module = NetVLAD(spec.num_clusters, spec.feature_size, spec.num_ghost_clusters, spec.batch_norm)
    if spec.batch_norm:
        tensors.setdefault(COUNTER, torch.zeros((), dtype=torch.long))
    try:
        module.load_state_dict(tensors, strict=True)
    except RuntimeError as error:
        raise InputError(f"{path}: {' '.join(str(error).split())}") from error
    if eps is not None and module.batch_norm is not None:
        module.batch_norm.eps = float(eps)
    return module.eval()


def check_options(spec: NetVLADSpec, path: Path, **given: int | bool | None) -> None:
    """Raise UsageError if an option that was given contradicts what the checkpoint holds."""
    for name, value in given.items():
        if value is not None and value != getattr(spec, name):
            raise UsageError(f"{path} has {name} {getattr(spec, name)}, the options say {value}: leave the option out")


def _read(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise InputError(f"{path} is not a file")
    if path.suffix not in SUFFIXES:
        raise InputError(f"{path} is no checkpoint: expected one of {', '.join(SUFFIXES)}")
    try:
        if path.suffix == ".safetensors":
            loaded: Any = require("safetensors.torch", extra="export").load_file(path)
        elif path.suffix == ".npz":
            arrays = read_arrays(path)
            loaded = (
                {name: torch.from_numpy(array) for name, array in arrays.items()} if isinstance(arrays, dict) else {}
            )
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of pickle protocols other than torch's own
                loaded = torch.load(path, map_location="cpu", weights_only=True)
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


def _select(loaded: Mapping[str, Any], prefix: str, path: Path) -> dict[str, torch.Tensor]:
    """Strip containers, `module.` and the prefix; keep the tensors."""
    for container in CONTAINERS:
        if isinstance(loaded.get(container), Mapping):
            loaded = loaded[container]
    tensors = {str(name): value for name, value in loaded.items() if isinstance(value, torch.Tensor)}
    flat = {name.removeprefix("module."): value for name, value in tensors.items()}
    if prefix:
        start = prefix.rstrip(".") + "."
        flat = {name.removeprefix(start): value for name, value in flat.items() if name.startswith(start)}
    found = sorted(flat)
    if "clusters" not in flat or "clusters2" not in flat:
        prefixes = sorted(name.removesuffix("clusters2") for name in tensors if name.endswith(".clusters2"))
        hint = f": export it with --prefix {prefixes[0].removeprefix('module.').rstrip('.')}" if prefixes else ""
        raise InputError(f"{path} lacks clusters or clusters2, found {', '.join(found) or 'no tensor'}{hint}")
    return flat


def _infer_spec(tensors: Mapping[str, torch.Tensor], path: Path) -> NetVLADSpec:
    clusters, clusters2 = tensors["clusters"], tensors["clusters2"]
    if clusters.ndim != 2 or clusters2.ndim != 3 or clusters2.shape[:2] != (1, clusters.shape[0]):
        raise InputError(
            f"{path}: clusters {tuple(clusters.shape)} and clusters2 {tuple(clusters2.shape)} "
            "are not (D, K+G) and (1, D, K)"
        )
    return NetVLADSpec(
        num_clusters=clusters2.shape[2],
        feature_size=clusters.shape[0],
        num_ghost_clusters=clusters.shape[1] - clusters2.shape[2],
        batch_norm=any(name.startswith("batch_norm.") for name in tensors),
    )
