"""The way of data through a foreign graph: what every path passes through, what is constant, and what made it.

A tensor that all paths from the input to the output pass through divides the graph in two, so that either part can be
taken out by itself. Shapes are no data: an output that follows from a Shape alone passes nothing on.
"""

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np

from netvlad_deploy.support.arrays import Array
from netvlad_deploy.support.formats import READER_ERRORS
from netvlad_deploy.support.require import require

REARRANGED: Final = frozenset(
    ("Reshape", "Transpose", "Unsqueeze", "Squeeze", "Flatten", "Identity", "Cast", "Dropout")
)
"""Operators that give all the values that they are given, each once."""

LAYOUT: Final = REARRANGED | {"Expand", "Slice", "Gather", "Concat", "Split", "Tile"}
"""Operators that move values and change none."""

ARITHMETIC: Final = frozenset(("Add", "Sub", "Mul", "Div", "Neg", "Sqrt", "Reciprocal", "Pow", "Exp", "Abs"))
SHAPES: Final = frozenset(("Shape", "Size"))
LARGEST_CONSTANT: Final = 2**28
"""Most values of a constant that is computed from others: a file of a few bytes may ask for any number."""


@dataclass(frozen=True)
class Paths:
    """A graph as its data flows to one of its outputs.

    Args:
        graph: a GraphProto.
        source: the name of the input.
        output: the name of the output.
        opset: the ONNX operator set.
    """

    graph: Any
    source: str
    output: str
    opset: int

    @cached_property
    def makers(self) -> dict[str, Any]:
        """Return the node that makes each tensor."""
        return {name: node for node in self.graph.node for name in node.output if name}

    @cached_property
    def data(self) -> frozenset[str]:
        """Return the tensors that depend on the values of the input."""
        found = {self.source}
        for node in self.graph.node:
            if node.op_type not in SHAPES and found.intersection(node.input):
                found.update(node.output)
        return frozenset(found)

    @cached_property
    def nodes(self) -> tuple[Any, ...]:
        """Return the nodes through which data reaches the output, in the order of the graph."""
        wanted, kept = {self.output}, []
        for node in reversed(self.graph.node):
            if wanted.intersection(node.output) and self.data.intersection(node.output):
                kept.append(node)
                wanted.update(name for name in node.input if name in self.data)
        return tuple(reversed(kept))

    @cached_property
    def gates(self) -> tuple[str, ...]:
        """Return the tensors that every path of data passes through, from the input to the output.

        In the order of the graph every node before such a tensor is done when it is made: it alone is then waited for.
        """
        uses: dict[str, int] = {}
        for node in self.nodes:
            for name in self.inputs(node):
                uses[name] = uses.get(name, 0) + 1
        live, found = {self.source}, [self.source]
        for node in self.nodes:
            for name in self.inputs(node):
                uses[name] -= 1
                if not uses[name] and name != self.output:
                    live.discard(name)
            live.update(name for name in node.output if uses.get(name) or name == self.output)
            if len(live) == 1:
                found.extend(live)
        return tuple(dict.fromkeys(found))

    def inputs(self, node: Any) -> list[str]:
        """Return the inputs of a node that carry data."""
        return [name for name in node.input if name in self.data]

    def between(self, first: str, last: str) -> list[Any]:
        """Return the nodes after one gate and up to another, in the order of the graph."""
        return list(self.nodes[self.position(first) + 1 : self.position(last) + 1])

    def position(self, name: str) -> int:
        """Return the place in `nodes` of the one that makes a tensor, -1 for the input."""
        return self._positions.get(name, -1)

    @cached_property
    def _positions(self) -> dict[str, int]:
        return {name: index for index, node in enumerate(self.nodes) for name in node.output}

    @cached_property
    def constants(self) -> dict[str, Array]:
        """Return the values of every constant, those computed from constants alone too."""
        onnx = require("onnx", extra="export")
        found: dict[str, Array] = {}
        for tensor in self.graph.initializer:
            with contextlib.suppress(*READER_ERRORS):  # a damaged one stays unknown
                found[tensor.name] = onnx.numpy_helper.to_array(tensor)
        for node in self.graph.node:
            if node.op_type == "Constant" or (
                node.op_type in LAYOUT | ARITHMETIC and all(name in found for name in node.input if name)
            ):
                found.update(_computed(node, found, self.opset))
        return found

    def constant(self, name: str) -> Array | None:
        """Return the value of a constant, also where it is only expanded to a dynamic shape; None if it is none."""
        while name not in self.constants and name not in self.data and name in self.makers:
            node = self.makers[name]
            if node.op_type not in ("Expand", "Identity", "Cast", "Unsqueeze"):
                return None
            name = node.input[0]
        return self.constants.get(name)

    def affine(self, name: str, stop: Any) -> Iterator[Any]:
        """Yield the nodes that made a tensor, from the last on, as long as each has one input of data.

        The node for which `stop` is true is the last.
        """
        while name in self.makers and name != self.source:
            node = self.makers[name]
            inputs = list(dict.fromkeys(self.inputs(node)))
            yield node
            if stop(node) or len(inputs) != 1:
                return
            name = inputs[0]


def _computed(node: Any, constants: dict[str, Array], opset: int) -> dict[str, Array]:
    """Return the outputs of a node whose inputs are constants; none if they would be too large or cannot be had."""
    onnx = require("onnx", extra="export")
    feeds = {name: constants[name] for name in node.input if name}
    if node.op_type in ("Expand", "Tile") or not _small(node, feeds):
        return {}
    try:
        reference = require("onnx.reference", extra="export")
        names = [name for name in node.output if name]
        inputs = [
            onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
            for name, value in feeds.items()
        ]
        outputs = [onnx.helper.make_empty_tensor_value_info(name) for name in names]
        graph = onnx.helper.make_graph([node], "constant", inputs, outputs)
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)])
        with np.errstate(all="ignore"):
            return dict(zip(names, reference.ReferenceEvaluator(model).run(names, feeds), strict=True))
    except (*READER_ERRORS, NotImplementedError):
        return {}  # it stays unknown: a head that needs it is then not found


def _small(node: Any, feeds: dict[str, Array]) -> bool:
    """Return True if a node on these constants gives no more than LARGEST_CONSTANT values."""
    values = list(feeds.values())
    if node.op_type == "Gather":
        axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)
        rows = values[0].shape[axis] if -values[0].ndim <= axis < values[0].ndim else 0
        return bool(rows) and values[0].size // rows * values[-1].size <= LARGEST_CONSTANT
    if node.op_type not in ARITHMETIC:
        return sum(value.size for value in values) <= LARGEST_CONSTANT
    try:
        shape = np.broadcast_shapes(*(value.shape for value in values))
    except ValueError:
        return False
    return math.prod(shape) <= LARGEST_CONSTANT
