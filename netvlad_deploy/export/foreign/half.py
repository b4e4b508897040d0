"""Turn a wrapped foreign graph into FP16 around its products, and leave everything else in FP32.

A product reads FP16 and gives FP16, with its constants rounded. What only carries or adds values goes on in FP16 if all
that it reads is FP16. Every other operator, such as a normalisation, a softmax, a mean or a power, is an island in
FP32, with casts before and after it. So there is no operator that cannot be converted.
"""

import copy
from typing import Any, Final

import numpy as np
import torch

from netvlad_deploy.errors import ExportError
from netvlad_deploy.export.fold_backbone import HALF_MAX, round_kernels
from netvlad_deploy.export.foreign.wrap import OWN, float_tensors
from netvlad_deploy.spec.layer import DESCRIPTOR
from netvlad_deploy.support.arrays import Array
from netvlad_deploy.support.require import require

HALF_PRODUCTS: Final = frozenset(("Conv", "ConvTranspose", "MatMul", "Gemm"))

CARRIERS: Final = frozenset(
    (
        *("Add", "Concat", "Dropout", "Flatten", "GlobalMaxPool", "Identity", "LeakyRelu", "MaxPool", "Pad", "Relu"),
        *("Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"),
    )
)
"""Operators that stay in FP16 between products."""


class _Halved:
    """A graph on its way into FP16: its new nodes and constants, and which of its tensors are FP16."""

    def __init__(self, model: Any) -> None:
        self._onnx = require("onnx", extra="export")
        self.constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self.floats = float_tensors(model)
        self.half: set[str] = set()
        self.nodes: list[Any] = []
        self.added: dict[str, Any] = {}
        for node in model.graph.node:
            self._take(node)

    def _take(self, node: Any) -> None:
        """Add a node, with what it reads and gives in the type that is its own."""
        copied = copy.deepcopy(node)
        read = [name for name in node.input if name in self.floats and name not in self.constants]
        carried = node.op_type in CARRIERS and bool(read) and self.half.issuperset(read)
        half = node.op_type in HALF_PRODUCTS or carried
        for place, name in enumerate(node.input):
            if name in self.constants and name in self.floats and half:
                copied.input[place] = self._rounded(name, kernels=node.op_type == "Conv" and place == 1)
            elif name in self.floats and (name in self.half) != half:
                copied.input[place] = self._cast(name, half=half)
        self.nodes.append(copied)
        if half:
            self.half.update(node.output)

    def _cast(self, name: str, *, half: bool) -> str:
        """Return the name of a tensor in the other type; it is cast once."""
        wanted = f"{OWN}{name}/{'fp16' if half else 'fp32'}"
        if wanted not in self.added:
            to = self._onnx.TensorProto.FLOAT16 if half else self._onnx.TensorProto.FLOAT
            self.nodes.append(self._onnx.helper.make_node("Cast", [name], [wanted], to=to))
            self.added[wanted] = None
        return wanted

    def _rounded(self, name: str, *, kernels: bool) -> str:
        """Return the name of a constant in FP16.

        Raises: ExportError if it overflows.
        """
        wanted = f"{OWN}{name}/{'kernels' if kernels else 'fp16'}"
        if wanted not in self.added:
            value = self._onnx.numpy_helper.to_array(self.constants[name])
            if value.size and not np.abs(value).max() <= HALF_MAX:
                raise ExportError(f"{name} is beyond {HALF_MAX:g}, where FP16 ends: adopt it in fp32")
            half = _kernels(value) if kernels and value.ndim > 2 else value.astype(np.float16)
            self.added[wanted] = self._onnx.numpy_helper.from_array(half, wanted)
        return wanted


def _kernels(value: Array) -> Array:
    """Return kernels (O,I,...) in FP16, each with the sum that it had."""
    kept: Array = round_kernels(torch.from_numpy(value.reshape(*value.shape[:2], -1, 1).copy())).numpy()
    return kept.reshape(value.shape)


def halved(model: Any) -> tuple[Any, tuple[str, ...]]:
    """Return a wrapped model in FP16 around its products, and the tensors of the old model that are now FP16.

    Raises: ExportError if a constant overflows FP16, or there is no product.
    """
    onnx = require("onnx", extra="export")
    found = _Halved(model)
    if not found.half:
        raise ExportError("it has no product to compute in FP16: adopt it in fp32")
    changed = copy.deepcopy(model)
    graph = changed.graph
    del graph.node[:], graph.initializer[:]
    graph.node.extend(found.nodes)
    if DESCRIPTOR in found.half:
        graph.node[-1].output[0] = f"{OWN}{DESCRIPTOR}/half"
        graph.node.append(
            onnx.helper.make_node("Cast", [f"{OWN}{DESCRIPTOR}/half"], [DESCRIPTOR], to=onnx.TensorProto.FLOAT)
        )
    used = {name for node in graph.node for name in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    graph.initializer.extend([*kept, *(tensor for tensor in found.added.values() if tensor is not None)])
    return changed, tuple(sorted(found.half))


def with_peaks(model: Any, names: tuple[str, ...]) -> tuple[Any, dict[str, str]]:
    """Return a model that also gives the largest absolute value of each named tensor, and those outputs by name."""
    onnx = require("onnx", extra="export")
    changed = copy.deepcopy(model)
    outputs = {name: f"{OWN}{name}/peak" for name in names}
    for name, peak in outputs.items():
        changed.graph.node.append(onnx.helper.make_node("Abs", [name], [f"{peak}/abs"]))
        changed.graph.node.append(onnx.helper.make_node("ReduceMax", [f"{peak}/abs"], [peak], keepdims=0))
        changed.graph.output.append(onnx.helper.make_tensor_value_info(peak, onnx.TensorProto.FLOAT, None))
    return changed, outputs
