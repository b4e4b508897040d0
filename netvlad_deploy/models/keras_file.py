"""Read the weights of a Keras model in HDF5, as `save` and `save_weights` of Keras 1 to 3 write `.h5`.

Below a group for each layer stand its weights, by their names. Only these arrays are read: links out of the file are
never followed, and neither the configuration of the model, which may hold code, nor any other text is looked at.

Source: keras-team/keras, keras/src/legacy/saving/legacy_h5_format.py.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from netvlad_deploy.errors import InputError
from netvlad_deploy.support.formats import KERAS_WITHOUT_NAMES
from netvlad_deploy.support.hdf5 import member, open_hdf5
from netvlad_deploy.support.require import require

WEIGHTS_GROUP: Final = "model_weights"
LISTED: Final = ("layer_names", "layer_names0")
"""Names of the attribute by which Keras marks a list of layers."""

MAX_ENTRIES, MAX_LAYER_DEPTH = 50_000, 16
MAX_NUMBER_DIGITS: Final = 10
MAX_RATIO: Final = 32
"""Most bytes of arrays for each byte of the file: a compressed array of zeros would otherwise fill the memory."""


def read_keras(path: Path) -> dict[str, Tensor]:
    """Return the weights in the order of the layers, by names such as `net_vlad_1.cluster_centers`.

    A name is that of the layer, and of the weight in it without `:0`; `.` stands for Keras's `/`.

    Raises: InputError if the file is no model, or an array stands elsewhere, is too large or of no real numbers;
        MissingDependencyError without h5py; errors of `formats.READER_ERRORS` if it is damaged.
    """
    h5py = require("h5py", extra="keras")
    left = MAX_RATIO * path.stat().st_size
    tensors: dict[str, Tensor] = {}
    with open_hdf5(h5py, path) as file:
        root = member(h5py, file, WEIGHTS_GROUP) if WEIGHTS_GROUP in file else file
        if not any(mark in root.attrs for mark in LISTED):
            if "layers" in root or "_layer_checkpoint_dependencies" in root:
                raise InputError(f"is {KERAS_WITHOUT_NAMES}")
            raise InputError(f"is no model of Keras: it has no {LISTED[0]}")
        for layer, weight, array in _arrays(h5py, root):
            left -= max(math.prod(array.shape), math.prod(array.chunks or ())) * array.dtype.itemsize
            if left < 0:
                raise InputError(f"claims more than {MAX_RATIO} times its own size: save the weights again")
            name = _name(layer, weight)
            if name in tensors:
                raise InputError(f"holds two weights that are called {name}: save one model alone")
            values = array[()]
            tensors[name] = torch.from_numpy(values.astype(values.dtype.newbyteorder("=")).reshape(array.shape))
    return tensors


def _arrays(h5py: Any, root: Any) -> Iterator[tuple[str, str, Any]]:
    """Yield layer, name and array of every weight, the layers in the order of the numbers that Keras gives them.

    Raises: InputError if there are too many, or one is no array of real numbers.
    """
    waiting = [(layer, "", member(h5py, root, layer)) for layer in sorted(root, key=_numbered, reverse=True)]
    for _ in range(MAX_ENTRIES):
        if not waiting:
            return
        layer, name, found = waiting.pop()
        if isinstance(found, h5py.Group) and name.count("/") < MAX_LAYER_DEPTH:
            below = [(layer, f"{name}/{each}", member(h5py, found, each)) for each in found]
            waiting += reversed(below)
        elif isinstance(found, h5py.Dataset) and found.dtype.kind in "fiub" and name:
            yield layer, name, found
        else:
            raise InputError(f"holds {layer}{name}, which is no array of real numbers")
    raise InputError(f"holds more than {MAX_ENTRIES} groups and arrays")


def _numbered(layer: str) -> tuple[str, int]:
    """Return the name of a layer without its number, and the number.

    >>> sorted(["conv2d_10", "conv2d", "conv2d_9"], key=_numbered)
    ['conv2d', 'conv2d_9', 'conv2d_10']
    """
    start, _, number = layer.rpartition("_")
    return (start, int(number)) if start and number.isdecimal() and len(number) < MAX_NUMBER_DIGITS else (layer, 0)


def _name(layer: str, weight: str) -> str:
    """Return the name of a weight behind that of its layer, which it may repeat behind that of the model.

    >>> _name("net_vlad", "sequential/net_vlad/conv2d/kernel:0")
    'net_vlad.conv2d.kernel'
    >>> _name("vgg16", "block1_conv1/kernel:0")
    'vgg16.block1_conv1.kernel'
    """
    parts = [part for part in weight.partition(":")[0].split("/") if part]
    own = parts[parts.index(layer) + 1 :] if layer in parts[:-1] else parts
    return ".".join((layer, *own))
