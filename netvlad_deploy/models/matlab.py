"""Relja's NetVLAD as MATLAB saves it: a network of MatConvNet, turned into named tensors.

The file must hold structs: its custom layers are MATLAB objects, which only MATLAB reads (HOW_TO_CONVERT). The files
that hloc and netvlad_tf_open offer are converted already.

Source: Relja/netvlad, addLayers.m, addPCA.m and layerVLAD.m; uzh-rpg/netvlad_tf_open, matlab/net_class2struct.m.
"""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from netvlad_deploy.errors import InputError
from netvlad_deploy.models.matlab_file import read_variable
from netvlad_deploy.support.formats import naming, reading

VLAD_ASSIGNMENT, VLAD_ASSIGNMENT_BIAS = "vlad.assignment", "vlad.assignment_bias"
VLAD_NEGATED_CENTRES = "vlad.negated_centres"
PCA_WEIGHT, PCA_BIAS = "pca.weight", "pca.bias"
BACKBONE, AVERAGE_IMAGE = "backbone.", "average_image"
"""Names of the tensors; a convolution has `backbone.N.weight` and `backbone.N.bias`; N is the index of its layer.

`average_image` (3,) is the mean RGB, from 0 to 255, that the network subtracts.
"""

HEAD_LAYERS = ("preL2", "vlad:core", "vlad:intranorm", "postL2")
PCA_LAYERS, WHOLE_L2_LAYERS = ("WPCA", "PCA_LAYERS"), ("postL2", "finalL2", "wholeL2")
HOW_TO_CONVERT = "run net.layers{i}= struct(net.layers{i}(1)) for every layer in MATLAB and save it with -v7"


def read_matlab(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a `.mat` file: the backbone in torch's layout, the head and the PCA in MATLAB's.

    Raises: InputError if the file is missing, damaged, or holds something else.
    """
    with reading(path):
        net, variables = read_variable(path, "net")
    layers = net.get("layers", []) if isinstance(net, dict) else []
    layers = layers if isinstance(layers, list) else [layers]
    found = [_name(layer) for layer in layers]
    if "vlad:core" not in found:
        if all(found) or not any(found):
            held = ", ".join(sorted(name for name in variables if name)) or "nothing"
            raise InputError(f"{path} is no NetVLAD of MatConvNet: expected net.layers with vlad:core, found {held}")
        raise InputError(f"{path} has layers that are MATLAB objects: {HOW_TO_CONVERT}")
    core = found.index("vlad:core")
    with naming(path):
        tensors = _backbone(layers[: core - 1]) | _head(layers[core - 1 :], found[core - 1 :])
    average: Any = net
    for field in ("meta", "normalization", "averageImage"):
        average = average.get(field) if isinstance(average, dict) else None
    if isinstance(average, np.ndarray) and average.size and average.size % 3 == 0:
        tensors[AVERAGE_IMAGE] = _tensor(np.reshape(average, (-1, 3))[0])
    return tensors


def _backbone(layers: Any) -> dict[str, Tensor]:
    """Return the convolutions of the layers before the head, from MATLAB's (H,W,I,O) to torch's (O,I,H,W)."""
    tensors = {}
    for number, layer in enumerate(layers):
        if isinstance(layer, dict) and layer.get("type") == "conv":
            weight, bias = _weights(layer, (2,))
            if weight.ndim != 4:
                raise InputError(
                    f"layer {_name(layer)} has weights of shape {tuple(weight.shape)}, expected (H, W, I, O)"
                )
            tensors[f"{BACKBONE}{number}.weight"] = weight.permute(3, 2, 0, 1)
            tensors[f"{BACKBONE}{number}.bias"] = bias
    return tensors


def _head(layers: Any, found: list[str]) -> dict[str, Tensor]:
    """Return the tensors of the head and the PCA in these layers, which are called `found`."""
    with_pca = len(found) > len(HEAD_LAYERS)
    wanted = [*((name,) for name in HEAD_LAYERS[:3]), WHOLE_L2_LAYERS, *([PCA_LAYERS, WHOLE_L2_LAYERS] * with_pca)]
    if len(found) != len(wanted) or any(name not in names for name, names in zip(found, wanted, strict=True)):
        expected = ", ".join(HEAD_LAYERS)
        raise InputError(f"the head is {', '.join(found)}, expected {expected}, and WPCA, finalL2 or nothing")
    core = _weights(layers[1], (2, 3))
    tensors = {VLAD_ASSIGNMENT: core[0], VLAD_NEGATED_CENTRES: core[-1]}
    if len(core) == 3:
        tensors[VLAD_ASSIGNMENT_BIAS] = core[1].reshape(-1)
    if with_pca:
        tensors[PCA_WEIGHT], tensors[PCA_BIAS] = _weights(layers[4], (2,))
    return tensors


def _weights(layer: Any, counts: tuple[int, ...]) -> list[Tensor]:
    weights = layer.get("weights") if isinstance(layer, dict) else None
    weights = weights if isinstance(weights, list) else []
    if len(weights) not in counts or not all(isinstance(each, np.ndarray) for each in weights):
        expected = " or ".join(map(str, counts))
        raise InputError(f"layer {_name(layer)} has {len(weights)} weights, expected {expected} arrays")
    return [_tensor(each) for each in weights]


def _name(layer: Any) -> str:
    name = layer.get("name") if isinstance(layer, dict) else None
    return name if isinstance(name, str) else ""


def _tensor(values: Any) -> Tensor:
    """Return an array as an FP32 tensor, without a copy if it is FP32 already.

    Raises: InputError if it is complex.
    """
    if np.iscomplexobj(values):
        raise InputError("an array is complex, expected real numbers")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch warns of read-only arrays, to which nothing is written
        return torch.from_numpy(np.asarray(values, dtype=np.float32))
