"""Relja's own NetVLAD, trained in MATLAB: `vlad` and `vladv2`, with or without PCA; its `.mat` files and its dialect.

A file holds a network of MatConvNet, as structs: its custom layers are MATLAB objects, which only MATLAB reads
(HOW_TO_CONVERT). The files that hloc and netvlad_tf_open offer are converted already. Centres are stored negated, and
MatConvNet divides by sqrt(|x|^2 + 1e-12).

Source: Relja/netvlad, addLayers.m, addPCA.m, layerVLAD.m and layerVLADv2.m; uzh-rpg/netvlad_tf_open,
matlab/net_class2struct.m.
"""

import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from netvlad_deploy.errors import InputError
from netvlad_deploy.models.dialects.base import Dialect
from netvlad_deploy.models.dialects.convolution import LAST_CONVOLUTION_OF, MATCONVNET
from netvlad_deploy.models.head import Head
from netvlad_deploy.models.matlab_file import read_variable
from netvlad_deploy.spec.layer import ADD, NetVLADSpec, Projection
from netvlad_deploy.support.formats import naming, shown

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

    Raises: InputError if it holds something else; errors of `formats.READER_ERRORS` if it is damaged.
    """
    net, variables = read_variable(path, "net")
    layers = net.get("layers", []) if isinstance(net, dict) else []
    layers = layers if isinstance(layers, list) else [layers]
    found = [_name(layer) for layer in layers]
    if "vlad:core" not in found:
        if all(found) or not any(found):
            held = ", ".join(sorted(shown(name) for name in variables if name)) or "nothing"
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


class Relja(Dialect):
    """A layer with descriptors d*K + k, which L2-normalises local descriptors and the result of a PCA."""

    def convert(self, state: Mapping[str, Tensor], root: str) -> Head:
        """Return the head with the signs of the centres turned and the matrix of the PCA transposed."""
        first, second = tuple(state[VLAD_ASSIGNMENT].shape), tuple(state[VLAD_NEGATED_CENTRES].shape)
        if len(first) != 2 or first != second:
            raise InputError(f"{VLAD_ASSIGNMENT} {first} and {VLAD_NEGATED_CENTRES} {second} are not both (D, K)")
        feature_size, num_clusters = first
        tensors = {"clusters": state[VLAD_ASSIGNMENT], "clusters2": -state[VLAD_NEGATED_CENTRES][None]}
        if VLAD_ASSIGNMENT_BIAS in state:
            tensors["assignment_bias"] = self.vector(state, VLAD_ASSIGNMENT_BIAS, num_clusters, VLAD_ASSIGNMENT)
        spec = NetVLADSpec(
            num_clusters=num_clusters,
            feature_size=feature_size,
            batch_norm=False,
            assignment_bias=VLAD_ASSIGNMENT_BIAS in state,
            normalize_input=True,
            epsilon=ADD,
        )
        used = (VLAD_ASSIGNMENT, VLAD_NEGATED_CENTRES, VLAD_ASSIGNMENT_BIAS, PCA_WEIGHT, PCA_BIAS)
        others = self.others(state, f"{root}vlad.", used)
        head = Head(spec=spec, tensors=tensors, ignored=others)
        if PCA_WEIGHT not in state and PCA_BIAS not in state:
            return head
        weight = self.matrix(state, PCA_WEIGHT, spec.aggregate_size, by_column=True)
        following = {
            "projection.weight": weight,
            "projection.bias": self.vector(state, PCA_BIAS, len(weight), PCA_WEIGHT),
        }
        return head.followed_by(Projection(size=len(weight)), following, (PCA_WEIGHT, PCA_BIAS))


RELJA = Relja(
    name="relja",
    needs=(VLAD_ASSIGNMENT, VLAD_NEGATED_CENTRES),
    unused=(AVERAGE_IMAGE,),  # by the head: it is subtracted from the images of the backbone
    preprocessing=LAST_CONVOLUTION_OF.format("VGG16"),
    backbone=replace(MATCONVNET, mean=AVERAGE_IMAGE),
)
