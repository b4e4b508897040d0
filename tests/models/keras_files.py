"""Write Keras models as Keras 2 saves them: layers in order, and the names of their weights, as attributes."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from netvlad_deploy.support.arrays import Array


def layers_of(state: Mapping[str, Array]) -> dict[str, dict[str, Array]]:
    """Return the weights of a state, `layer.weight`, by their layers, named as Keras 2 does."""
    layers: dict[str, dict[str, Array]] = {}
    for name, array in state.items():
        layer, _, weight = name.partition(".")
        layers.setdefault(layer, {})[f"{layer}/{weight}:0"] = np.ascontiguousarray(array)
    return layers


def write_layers(group: Any, layers: Mapping[str, Mapping[str, Array]], extra: Iterable[str] = ()) -> None:
    """Write layers into a group; `extra` are the names of layers without weights."""
    group.attrs["layer_names"] = [name.encode() for name in (*extra, *layers)]
    for layer in extra:
        group.create_group(layer).attrs["weight_names"] = np.zeros(0)
    for layer, weights in layers.items():
        below = group.create_group(layer)
        below.attrs["weight_names"] = [name.encode() for name in weights]
        for name, array in weights.items():
            below.create_dataset(name, data=array)


def write_keras(path: Path, state: Mapping[str, Array], *, whole: bool = False) -> Path:
    """Write the weights of a state, or a whole model with its configuration and its optimizer beside them."""
    with h5py.File(path, "w") as file:
        root = file.create_group("model_weights") if whole else file
        write_layers(root, layers_of(state), extra=("input_1", "lambda_1"))
        if whole:
            file.attrs["model_config"] = '{"class_name": "Lambda", "config": {"function": ["code"]}}'
            file["optimizer_weights/Adam/iterations:0"] = np.int64(7)
    return path
