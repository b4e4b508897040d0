"""An ONNX graph from a torch module: traced, pruned, checked, cleaned and written.

Ensures: no BatchNormalization, no loop, no scatter; in a head no maximum over the local descriptors; only the axes
asked for are dynamic; no stack trace or path of the exporting machine in the file. Until a graph is written, its large
constants stand apart as inputs, so that no pass copies them.
"""

import gc
import json
import logging
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from netvlad_deploy.artifact import OnnxArtifact
from netvlad_deploy.errors import ExportError, UsageError
from netvlad_deploy.spec.graph_options import OperatorTypes
from netvlad_deploy.support.require import require

FORBIDDEN_OPS = frozenset(("BatchNormalization", "ScatterND", "Loop", "Scan", "If", "ReduceLogSumExp"))
"""Operators that no graph may have."""

SHAPE_OPS = frozenset(("Shape", "Size", "Expand"))
"""Operators that compute with shapes: a head never needs them, and a backbone should not."""

COPYING_OPS = frozenset(("Cast", "Transpose", "Reshape", "Slice", "Unsqueeze"))
"""Operators that convert or move values and compute none."""

LARGE_BYTES = 2**20
"""Constants of at least this size stand apart while the graph is worked on."""

Axes = tuple[Mapping[int, str], ...]
"""The names of the dynamic axes of each input."""


@dataclass
class Graph:
    """An ONNX model whose large constants stand apart.

    Args:
        model: the ModelProto, in which each large constant is an input.
        large: those constants by name, as onnx_ir tensors that share the memory of the torch module.
    """

    model: Any
    large: dict[str, Any]

    @property
    def size_bytes(self) -> int:
        """Return the size in bytes of the file with all constants inside."""
        return int(self.model.ByteSize() + sum(tensor.nbytes for tensor in self.large.values()))

    def write_external(self, stream: IO[bytes], location: str) -> None:
        """Write the large constants to `stream`, and their places in the file `location` to the graph."""
        graph = self._without_inputs().graph
        for name, tensor in self.large.items():
            proto = graph.initializer.add(name=name, data_type=int(tensor.dtype), dims=tensor.shape.numpy())
            proto.data_location = proto.EXTERNAL
            for key, value in (("location", location), ("offset", stream.tell()), ("length", tensor.nbytes)):
                proto.external_data.add(key=key, value=str(value))
            stream.write(_raw(tensor))
        self.large = {}

    def parts(self) -> Iterator[bytes | memoryview]:
        """Yield the file in parts: the graph without its large constants, then each of them, not copied.

        Each large constant is written as a second model that holds nothing else: protobuf merges messages that stand
        one after the other. Its header is encoded here, because protobuf copies a constant three times to write it
        (docs/adr/0018-own-writer-and-own-picture.md).
        """
        onnx = require("onnx", extra="export")
        yield self._without_inputs().SerializeToString(deterministic=True)
        for name, tensor in self.large.items():
            raw = _raw(tensor)
            proto = onnx.TensorProto(name=name, data_type=int(tensor.dtype), dims=tensor.shape.numpy())
            header = proto.SerializeToString(deterministic=True) + _field(onnx.TensorProto, "raw_data", len(raw))
            for message, field in ((onnx.GraphProto, "initializer"), (onnx.ModelProto, "graph")):
                header = _field(message, field, len(header) + len(raw)) + header
            yield header
            yield raw

    def _without_inputs(self) -> Any:
        """Return the model, its large constants removed from the inputs."""
        graph = self.model.graph
        for value in [value for value in graph.input if value.name in self.large]:
            graph.input.remove(value)
        return self.model


def _field(message: Any, name: str, length: int) -> bytes:
    """Return the tag and length that precede a field's bytes. Source: protobuf's encoding, wire type LEN."""
    number = message.DESCRIPTOR.fields_by_name[name].number
    return _varint(number << 3 | 2) + _varint(length)


def _varint(value: int) -> bytes:
    """Return a protobuf varint: seven bits a byte, the lowest first, the top bit set in all bytes but the last."""
    groups = [value >> shift & 0x7F for shift in range(0, max(value.bit_length(), 1), 7)]
    return bytes([*(group | 0x80 for group in groups[:-1]), groups[-1]])


def _raw(tensor: Any) -> memoryview:
    """Return the bytes of a constant, without a copy where its memory is contiguous."""
    array = np.ascontiguousarray(tensor.numpy())
    return array.reshape(-1).view(np.uint8).data


LEAST_LENGTHS = {"height": 32, "width": 32}
"""Shortest image axes given to torch: a backbone of stride 32 has no output below, and torch would trace it twice."""


def trace(
    module: torch.nn.Module,
    examples: Sequence[torch.Tensor],
    axes: Axes,
    *,
    inputs: Sequence[str],
    outputs: Sequence[str],
    opset: int,
    variadic: bool = False,
) -> Any:
    """Return the onnx_ir model that torch traces of a module for these examples, `axes` dynamic.

    `variadic` says that the module takes its inputs as `*args`, which torch counts as one argument.

    Raises: ExportError if torch refuses the module.
    """
    dims = {
        name: torch.export.Dim(name, min=min(LEAST_LENGTHS.get(name, 1), example.shape[index]))
        for example, names in zip(examples, axes, strict=True)
        for index, name in names.items()
    }
    dynamic: tuple[Any, ...] = tuple({index: dims[name] for index, name in names.items()} for names in axes)
    with _quiet_exporter():
        try:
            program = torch.onnx.export(
                module,
                tuple(examples),
                input_names=list(inputs),
                output_names=list(outputs),
                dynamic_shapes=(dynamic,) if variadic else dynamic,
                opset_version=opset,
                dynamo=True,
                external_data=False,
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            raise ExportError(f"torch.onnx.export refused the module at opset {opset}: {error}") from error
    if program is None:
        raise ExportError(f"torch.onnx.export returned nothing at opset {opset}")
    return program.model


def keep_outputs(model: Any, outputs: Sequence[str]) -> None:
    """Keep these outputs of an onnx_ir model, in this order, and remove every node and constant that none needs."""
    found = {value.name: value for value in model.graph.outputs}
    for name in found.keys() - set(outputs):  # of its stages, a file describes those alone that are outputs
        found[name].type = found[name].shape = None
        found[name].metadata_props.clear()
    model.graph.outputs[:] = [found[name] for name in outputs]
    require("onnx_ir.passes.common", extra="export").RemoveUnusedNodesPass()(model)


def fix_reshape(model: Any, tensor: str, shape: Sequence[int]) -> None:
    """Give the Reshape that makes `tensor` a constant shape in place of one computed from other tensors' shapes.

    Raises: ExportError if no Reshape makes `tensor`.
    """
    onnx_ir = require("onnx_ir", extra="export")
    node = next((node for node in model.graph if tensor in (value.name for value in node.outputs)), None)
    if node is None or node.op_type != "Reshape":
        raise ExportError(f"torch {torch.__version__} wrote {tensor} without a Reshape: use another version")
    constant = onnx_ir.Value(name=f"{tensor}_shape", const_value=onnx_ir.tensor(np.array(shape)))
    model.graph.register_initializer(constant)
    node.replace_input_with(1, constant)
    node.attributes.clear()  # without allowzero, a 0 in the shape keeps the input's length


def without_large(model: Any) -> Graph:
    """Return the graph of an onnx_ir model, its large constants apart."""
    graph, large = model.graph, {}
    for name, value in list(graph.initializers.items()):
        if value.const_value.nbytes >= LARGE_BYTES:
            large[name] = graph.initializers.pop(name).const_value
            graph.inputs.append(value)
    return Graph(require("onnx_ir", extra="export").to_proto(model), large)


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Silence the warnings of torch's exporter about packages and internals that this export does not use.

    The garbage collector is off meanwhile: the exporter makes millions of small objects and keeps most, and looking
    through them again and again takes a tenth of its time.
    """
    with ExitStack() as undo, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in (logging.getLogger("torch.onnx"), logging.getLogger("onnxscript")):
            undo.callback(logger.setLevel, logger.level)
            logger.setLevel(logging.ERROR)
        if gc.isenabled():
            undo.callback(gc.enable)
            gc.disable()
        yield


def check_graph(traced: Graph, axes: Axes, dtypes: Mapping[str, str], opset: int, *, head: bool) -> None:
    """Check a graph against the promises of this module, then with ONNX's full checker.

    Inputs and outputs have these `dtypes` and no other dynamic axes than these; no operator set but `opset` is
    imported. The graph of a `head` alone has no SHAPE_OPS and no maximum over local descriptors.

    Raises: ExportError naming the first promise that is broken.
    """
    model = traced.model
    operators = {node.op_type for node in model.graph.node}
    found = sorted(operators & (FORBIDDEN_OPS | SHAPE_OPS if head else FORBIDDEN_OPS))
    found += extremes_over_axes(model) if head else []
    if found:
        raise ExportError(f"torch {torch.__version__} wrote a graph with {', '.join(found)}: use another version")
    written = {entry.domain: entry.version for entry in model.opset_import}
    if written != {"": opset}:
        raise ExportError(f"asked for opset {opset}, torch wrote {written}")
    known = {name for names in axes for name in names.values()}
    for value in (*model.graph.input, *model.graph.output):
        if value.name in traced.large:
            continue
        names = [dim.dim_param for dim in value.type.tensor_type.shape.dim if dim.dim_param]
        if not set(names) <= known:
            raise ExportError(f"{value.name} has the dynamic axes {names}, expected {' and '.join(sorted(known))}")
        dtype = require("onnx", extra="export").helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name
        if dtype != dtypes[value.name]:
            raise ExportError(f"{value.name} is {dtype}, asked for {dtypes[value.name]}")
    require("onnx", extra="export").checker.check_model(model, full_check=True)


def extremes_over_axes(model: Any) -> Iterator[str]:
    """Yield each maximum or minimum that is not over the last axis alone, or whose last axis is dynamic, in words.

    TensorRT 11.2 computed NaN for a maximum over N. The axes are an attribute up to opset 17, a constant input from 18.
    """
    onnx = require("onnx", extra="export")
    graph = onnx.shape_inference.infer_shapes(model).graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    typed = (*graph.input, *graph.value_info, *graph.output)
    shapes = {value.name: value.type.tensor_type.shape.dim for value in typed}
    for node in graph.node:
        if node.op_type not in ("ReduceMax", "ReduceMin"):
            continue
        axes = [axis for attribute in node.attribute if attribute.name == "axes" for axis in attribute.ints]
        if len(node.input) > 1 and node.input[1] in constants:
            axes = onnx.numpy_helper.to_array(constants[node.input[1]]).tolist()
        dims = shapes.get(node.input[0], ())
        if axes not in ([-1], [len(dims) - 1]) or not dims or not dims[-1].dim_value:
            yield f"{node.op_type} over axes {axes} of {[dim.dim_param or dim.dim_value for dim in dims]}"


def operator_types(path: Path) -> tuple[OperatorTypes, ...]:
    """Return the computing operators of an ONNX file by name, with the number of their FP16 and FP32 results."""
    onnx = require("onnx", extra="export")
    graph = onnx.shape_inference.infer_shapes(onnx.load(path), strict_mode=True).graph
    types = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.output)}
    counts = Counter((node.op_type, types[node.output[0]]) for node in graph.node if node.op_type not in COPYING_OPS)
    operators = sorted({operator for operator, _ in counts})
    return tuple(
        OperatorTypes(
            operator=operator,
            half=counts[operator, onnx.TensorProto.FLOAT16],
            single=counts[operator, onnx.TensorProto.FLOAT],
        )
        for operator in operators
    )


def rename(traced: Graph, names: Mapping[str, str]) -> None:
    """Give tensors of a graph other names.

    Raises: UsageError if another tensor has such a name.
    """
    graph = traced.model.graph
    new = {old: name for old, name in names.items() if old != name}
    taken = {name for node in graph.node for name in (*node.input, *node.output)} | {each.name for each in graph.input}
    if found := taken & set(new.values()):
        raise UsageError(f"the graph has a tensor {', '.join(sorted(found))} already: choose other --tensor-names")
    for value in (*graph.input, *graph.output, *graph.value_info):
        value.name = new.get(value.name, value.name)
    for node in graph.node:
        node.input[:] = [new.get(name, name) for name in node.input]
        node.output[:] = [new.get(name, name) for name in node.output]


def clean(traced: Graph, artifact: OnnxArtifact) -> Graph:
    """Return a graph, changed in place: no stack traces and paths of this machine, but producer, spec and parent."""
    model, graph = traced.model, traced.model.graph
    for record in (model, graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        record.doc_string = ""
        del record.metadata_props[:]
    graph.name = "netvlad"
    model.producer_name = "netvlad-deploy"
    model.producer_version = version("netvlad-deploy")
    metadata = {"spec": asdict(artifact.spec), "parent": artifact.parent and asdict(artifact.parent)}
    if artifact.external_data is not None:  # the graph's own hash then changes with its weights
        metadata["external_data"] = asdict(artifact.external_data)
    for key, value in metadata.items():
        model.metadata_props.add(key=f"netvlad_deploy.{key}", value=json.dumps(value, sort_keys=True))
    return traced
