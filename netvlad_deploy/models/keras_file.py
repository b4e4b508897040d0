"""Read the weights of a Keras model in HDF5, as `save` and `save_weights` of Keras 1 to 3 write `.h5`.

A file lists its layers in order, and the weights of each by name. Only these lists and the arrays that they name are
read. Links out of the file are never followed, and the configuration of the model, which may hold code, is not looked
at.

Source: keras-team/keras, keras/src/legacy/saving/legacy_h5_format.py.
"""

import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from netvlad_deploy.errors import InputError
from netvlad_deploy.support.formats import KERAS_WITHOUT_NAMES
from netvlad_deploy.support.require import require

WEIGHTS_GROUP: Final = "model_weights"
LAYER_NAMES, WEIGHT_NAMES = "layer_names", "weight_names"
MAX_ENTRIES: Final = 50_000
MAX_NAME_BYTES: Final = 1024
MAX_RATIO: Final = 32
"""Most bytes of arrays for each byte of the file: a compressed array of zeros would otherwise fill the memory."""


def read_keras(path: Path) -> dict[str, Tensor]:
    """Return the weights in the order of the layers, by names such as `net_vlad_1.cluster_centers`.

    A name is that of the layer, and of the weight in it without `:0`; `.` stands for Keras's `/`.

    Raises: InputError if the file is no list of layers, or an array is not in it, too large or of no real numbers;
        MissingDependencyError without h5py; errors of `formats.READER_ERRORS` if it is damaged.
    """
    h5py = require("h5py", extra="keras")
    left = MAX_RATIO * path.stat().st_size
    tensors: dict[str, Tensor] = {}
    with h5py.File(path, "r") as file:
        root = _inside(h5py, file, WEIGHTS_GROUP) if WEIGHTS_GROUP in file else file
        if LAYER_NAMES not in root.attrs and f"{LAYER_NAMES}0" not in root.attrs:
            if "layers" in root or "_layer_checkpoint_dependencies" in root:
                raise InputError(f"is {KERAS_WITHOUT_NAMES}")
            raise InputError(f"is no model of Keras: it lists no {LAYER_NAMES}")
        for layer in _names(root, LAYER_NAMES):
            group = _inside(h5py, root, layer)
            for weight in _names(group, WEIGHT_NAMES):
                array = _inside(h5py, group, weight)
                if not isinstance(array, h5py.Dataset) or array.dtype.kind not in "fiub":
                    raise InputError(f"holds {layer}/{weight}, which is no array of real numbers")
                left -= max(math.prod(array.shape), math.prod(array.chunks or ())) * array.dtype.itemsize
                if left < 0:
                    raise InputError(f"claims more than {MAX_RATIO} times its own size: save the weights again")
                name = _name(layer, weight)
                if name in tensors:
                    raise InputError(f"holds two weights that are called {name}: save one model alone")
                values = array[()]
                tensors[name] = torch.from_numpy(values.astype(values.dtype.newbyteorder("=")).reshape(array.shape))
    return tensors


def _inside(h5py: Any, group: Any, name: str) -> Any:
    """Return what stands below a group, each part of whose name is a link within the file.

    Raises: InputError if a part is missing, or points elsewhere.
    """
    for part in filter(None, name.split("/")):
        kind = group.get(part, getlink=True) if isinstance(group, h5py.Group) and part in group else None
        if kind is None:
            raise InputError(f"lists {name}, which is not in it")
        if not isinstance(kind, h5py.HardLink):
            raise InputError(f"has a link in place of {name}: save the model again into one file")
        group = group[part]
    external = getattr(group, "external", None)
    if external or getattr(group, "is_virtual", False):
        raise InputError(f"keeps the values of {name} in another file: save the model again into one file")
    return group


def _names(group: Any, attribute: str) -> Iterator[str]:
    """Yield the names in a list of Keras, which cuts a long one into `layer_names0`, `layer_names1` and so on.

    Raises: InputError if there are too many, or one is no name.
    """
    numbered = itertools.takewhile(lambda key: key in group.attrs, (f"{attribute}{part}" for part in itertools.count()))
    keys = [attribute] if attribute in group.attrs else list(numbered)
    held = [group.attrs.get_id(key) for key in keys]
    if sum(math.prod(each.shape) for each in held) > MAX_ENTRIES or any(len(each.shape) != 1 for each in held):
        raise InputError(f"has {attribute} that are no list, or more than {MAX_ENTRIES}")
    for each in itertools.chain.from_iterable(group.attrs[key] for key in keys):
        name = each.decode() if isinstance(each, bytes) else each
        if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME_BYTES:
            raise InputError(f"lists {str(name)[:40]!r} among its {attribute}, which is no name")
        yield name


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
