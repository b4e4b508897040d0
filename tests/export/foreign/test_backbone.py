"""Every operator of a backbone becomes torch that computes what ONNX Runtime does, or is refused by its name."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from netvlad_deploy.errors import InputError
from netvlad_deploy.export.foreign.backbone import FUNCTIONS, LAYERS, ForeignBackbone
from netvlad_deploy.export.foreign.cut import FeatureLayout
from netvlad_deploy.export.foreign.paths import Paths
from netvlad_deploy.support.arrays import Array

pytestmark = [pytest.mark.export, pytest.mark.ort]
RANDOM = np.random.default_rng(0)


def normal(*shape: int) -> Array:
    return RANDOM.standard_normal(shape).astype(np.float32)


def whole(*values: int) -> Array:
    return np.array(values, np.int64)


CASES: dict[str, tuple[str, dict[str, Array], dict[str, Any]]] = {
    "Conv": ("Conv", {"w": normal(5, 3, 3, 3), "b": normal(5)}, {"pads": [1, 1, 1, 1], "strides": [2, 1]}),
    "Conv, uneven": ("Conv", {"w": normal(5, 3, 3, 2)}, {"pads": [0, 1, 1, 0]}),
    "Conv, same": ("Conv", {"w": normal(5, 3, 4, 3)}, {"auto_pad": "SAME_UPPER"}),
    "Conv, same lower": ("Conv", {"w": normal(5, 3, 4, 3)}, {"auto_pad": "SAME_LOWER"}),
    "Conv, grouped": ("Conv", {"w": normal(6, 1, 3, 3)}, {"group": 3, "dilations": [2, 2]}),
    "BatchNormalization": (
        "BatchNormalization",
        {"g": normal(3), "b": normal(3), "m": normal(3), "v": np.abs(normal(3)) + 0.1},
        {"epsilon": 1e-3},
    ),
    "MaxPool": ("MaxPool", {}, {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    "MaxPool, uneven": ("MaxPool", {}, {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [0, 0, 1, 1]}),
    "MaxPool, ceil": ("MaxPool", {}, {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}),
    "AveragePool": ("AveragePool", {}, {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
    "AveragePool, counted": ("AveragePool", {}, {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1}),
    "GlobalAveragePool": ("GlobalAveragePool", {}, {}),
    "ReduceMean": ("ReduceMean", {"axes": whole(2, 3)}, {"keepdims": 1}),
    "Clip": ("Clip", {"low": np.array(-0.5, np.float32), "high": np.array(0.5, np.float32)}, {}),
    "Pad": ("Pad", {"pads": whole(0, 0, 1, 2, 0, 0, 3, 0), "value": np.array(2, np.float32)}, {}),
    "Pad, reflect": ("Pad", {"pads": whole(0, 0, 1, 2, 0, 0, 3, 1)}, {"mode": "reflect"}),
    "Transpose": ("Transpose", {}, {"perm": [0, 1, 3, 2]}),
    "Add": ("Add", {"c": normal(3, 1, 1)}, {}),
    "Sub": ("Sub", {"c": normal(3, 1, 1)}, {}),
    "Mul": ("Mul", {"c": normal(1)}, {}),
    "Div": ("Div", {"c": normal(3, 1, 1)}, {}),
    "PRelu": ("PRelu", {"slope": normal(3, 1, 1)}, {}),
    "LeakyRelu": ("LeakyRelu", {}, {"alpha": 0.2}),
    "Elu": ("Elu", {}, {"alpha": 0.7}),
    "HardSigmoid": ("HardSigmoid", {}, {"alpha": 0.3, "beta": 0.4}),
    **{kind: (kind, {}, {}) for kind in ("Relu", "Sigmoid", "Tanh", "HardSwish", "Softplus", "Identity", "Dropout")},
}


def graph_of(node: Any, constants: dict[str, Array]) -> Any:
    return helper.make_graph(
        [node, helper.make_node("Add", ["first", "first"], ["y"])],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3, None, None])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )


@pytest.mark.parametrize("name", CASES)
def test_an_operator_computes_what_onnx_runtime_does(name: str) -> None:
    kind, constants, settings = CASES[name]
    graph = graph_of(helper.make_node(kind, ["x", *constants], ["first"], **settings), constants)
    backbone = ForeignBackbone(
        Paths(graph, "x", "y", 18),
        "y",
        FeatureLayout(rank=4, axis=1, batch=None, positions=(None, None)),
        channels_last=False,
    ).eval()
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    images = normal(2, 3, 9, 11)
    expected = session.run(None, {"x": images})[0]
    with torch.no_grad():
        got = backbone(torch.from_numpy(images))
        wide = backbone.double()(torch.from_numpy(images).double())
    assert np.allclose(got, expected, rtol=1e-5, atol=1e-5)
    assert wide.dtype is torch.float64
    assert np.allclose(wide, expected, rtol=1e-5, atol=1e-5)


def test_every_operator_is_tried() -> None:
    assert {kind for kind, *_ in CASES.values()} == {*LAYERS, *FUNCTIONS} - {"Concat"}


@pytest.mark.parametrize(
    ("node", "words"),
    [
        (
            helper.make_node("LRN", ["x"], ["first"], size=3),
            "its backbone has LRN, expected operators",
        ),
        (helper.make_node("Conv", ["x", "w"], ["first"], auto_pad="SAME_UPPER", strides=[2, 2]), "auto_pad SAME_UPPER"),
        (helper.make_node("ReduceMean", ["x"], ["first"]), r"not supported \(no axes\)"),
    ],
)
def test_what_is_not_known_is_refused(node: Any, words: str, tmp_path: Path) -> None:
    graph = graph_of(node, {"w": normal(3, 3, 3, 3)})
    with pytest.raises(InputError, match=words):
        ForeignBackbone(
            Paths(graph, "x", "y", 18),
            "y",
            FeatureLayout(rank=4, axis=1, batch=None, positions=()),
            channels_last=False,
        )


def test_images_whose_channels_come_last_and_a_map_like_that() -> None:
    """As TensorFlow has it: (B,H,W,3) to (B,h,w,D)."""
    kernels = normal(5, 3, 3, 3)
    nodes = [
        helper.make_node("Transpose", ["x"], ["first"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["first", "w"], ["map"]),
        helper.make_node("Transpose", ["map"], ["y"], perm=[0, 2, 3, 1]),
    ]
    graph = helper.make_graph(
        nodes,
        "last",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, None, None, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(kernels, "w")],
    )
    layout = FeatureLayout(rank=4, axis=3, batch=None, positions=(None, None))
    backbone = ForeignBackbone(Paths(graph, "x", "y", 18), "y", layout, channels_last=True)
    images = torch.from_numpy(normal(2, 3, 9, 11))
    with torch.no_grad():
        expected = torch.conv2d(images, torch.from_numpy(kernels))
        assert torch.equal(backbone(images), expected)
