"""Take a part out of a foreign graph, and say how local descriptors (B,N,D) lie in the tensor at which it begins."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from netvlad_deploy.export.foreign.read import ForeignModel
from netvlad_deploy.support.arrays import Array
from netvlad_deploy.support.require import require


@dataclass(frozen=True, kw_only=True)
class FeatureLayout:
    """The arrangement of local descriptors in a tensor: its rank, the axis of D, and fixed lengths of the others.

    >>> FeatureLayout(rank=4, axis=1, batch=None, positions=(None, None)).arranged(np.zeros((2, 6, 8))).shape  # B,D,h,w
    (2, 8, 1, 6)
    """

    rank: int
    axis: int
    batch: int | None
    positions: tuple[int | None, ...]

    @property
    def num_features(self) -> int | None:
        """Return N if it is fixed, or its least value where one of two axes is fixed; None if it is free."""
        fixed = [length for length in self.positions if length is not None]
        return int(np.prod(fixed)) if fixed else None

    def arranged(self, features: Array) -> Array:
        """Return features (B,N,D) as the tensor wants them."""
        if self.rank == 2:  # a single image
            return np.ascontiguousarray(features[0])
        items, rows, width = features.shape
        lengths = [1 if length is None else length for length in self.positions]
        if self.num_features is None:
            lengths[-1] = rows
        shaped = features.reshape(items, *lengths, width)
        return np.ascontiguousarray(np.moveaxis(shaped, -1, self.axis))


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part of a foreign graph as a model of its own.

    `content` is its bytes, `source` its input, `output` its output. Where shapes of the whole graph's input matter,
    `whole` is the name and shape of that input, of which no value matters.
    """

    content: bytes
    source: str
    output: str
    whole: tuple[str, tuple[int | None, ...]] | None = None


def layouts(model: ForeignModel, tensor: str, width: int) -> Iterator[FeatureLayout]:
    """Yield the ways in which local descriptors of D values may lie in a tensor, the likeliest first."""
    shape = shape_of(model, tensor)
    if shape is not None and len(shape) == 2 and shape[1] in (None, width):
        yield FeatureLayout(rank=2, axis=1, batch=1, positions=shape[:1])
    if shape is None or len(shape) not in (3, 4):
        return
    rank = len(shape)
    axes = (1, rank - 1) if rank == 4 else (rank - 1, 1)
    for axis in [axis for axis in axes if shape[axis] == width] or axes:
        if shape[axis] in (None, width):
            others = tuple(length for index, length in enumerate(shape) if index not in (0, axis))
            yield FeatureLayout(rank=rank, axis=axis, batch=shape[0], positions=others)


def shape_of(model: ForeignModel, tensor: str) -> tuple[int | None, ...] | None:
    """Return the shape of a tensor, None for a dynamic axis; None if its rank is unknown."""
    graph = model.proto.graph
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.name == tensor and value.type.tensor_type.HasField("shape"):
            return tuple(dim.dim_value or None for dim in value.type.tensor_type.shape.dim)
    return None


def needed(nodes: Sequence[Any], last: str, first: str | None = None) -> list[Any]:
    """Return those of the nodes of a graph that make a tensor, in their order, but for those up to the first."""
    wanted, kept = {last}, []
    for node in reversed(nodes):
        if wanted.intersection(node.output) and first not in list(node.output):
            kept.append(node)
            wanted.update(node.input)
    return kept[::-1]


def cut(model: ForeignModel, first: str, last: str, whole_shape: tuple[int | None, ...] | None = None) -> Part:
    """Return the part of a graph between two tensors, with the first as its input.

    `whole_shape` is the shape of the whole graph's input, where the part uses it; by default as the graph says it.
    """
    onnx = require("onnx", extra="export")
    graph = model.proto.graph
    nodes = needed(graph.node, last, first)
    used = {name for node in nodes for name in node.input}
    inputs = [onnx.helper.make_tensor_value_info(first, onnx.TensorProto.FLOAT, shape_of(model, first))]
    whole = None
    if first != model.source and model.source in used:
        whole = (model.source, whole_shape or model.source_shape)
        inputs.extend(value for value in graph.input if value.name == model.source)
    made = onnx.helper.make_graph(
        nodes,
        "part",
        inputs,
        [onnx.helper.make_tensor_value_info(last, onnx.TensorProto.FLOAT, None)],
        [tensor for tensor in graph.initializer if tensor.name in used],
    )
    part = onnx.helper.make_model(made, opset_imports=[onnx.helper.make_opsetid("", model.opset)])
    part.ir_version = min(model.proto.ir_version or 8, 10)
    return Part(content=part.SerializeToString(), source=first, output=last, whole=whole)


def feeds_of(part: Part, arranged: Array) -> dict[str, Any]:
    """Return the feeds of a part for its arranged input; of the whole graph's input, zeros of a fitting batch."""
    feeds: dict[str, Any] = {part.source: arranged}
    if part.whole is not None:
        name, shape = part.whole
        feeds[name] = np.zeros([len(arranged), *(length or 1 for length in shape[1:])], np.float32)
    return feeds
