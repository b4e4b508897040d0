"""A foreign graph as it is, with the inputs and the output of an artifact: uint8 images or features, `descriptor`."""

import copy
from collections.abc import Iterator
from typing import Any, Final

import numpy as np

from netvlad_deploy.errors import InputError
from netvlad_deploy.export.foreign.cut import needed, shape_of
from netvlad_deploy.export.foreign.read import ForeignModel
from netvlad_deploy.export.make_goldens import VELTKAMP_FACTOR
from netvlad_deploy.spec.images import CHANNELS, IMAGES, ImageInput
from netvlad_deploy.spec.layer import DESCRIPTOR, FEATURES
from netvlad_deploy.support.arrays import Array
from netvlad_deploy.support.require import require

OWN: Final = "adopted/"
"""Start of the names of tensors that are added to a foreign graph."""

THEIRS: Final = "file/"
"""Start of the names of tensors of the file, so that none has the name of one that is added."""

ROUNDED: Final = frozenset(("Conv", "MatMul", "Gemm", "ConvTranspose", "Einsum"))
"""Operators whose operands are rounded."""

IMAGE_AXES: Final = ("batch", "height", "width")
FEATURE_AXES: Final = ("batch", "num_features")


def takes_images(model: ForeignModel) -> bool:
    """Return True if the input of a model is images of 3 channels, False if it is features (B,N,D).

    Raises: InputError if it is neither.
    """
    shape = model.source_shape
    if len(shape) == 4 and CHANNELS in (shape[1], shape[3]):
        return True
    if len(shape) == 3 and shape[2] is not None:
        return False
    words = "x".join("?" if length is None else str(length) for length in shape) or "no shape"
    raise InputError(f"it takes {words}, expected images of 3 channels, or features (batch, num_features, D)")


def only_output(model: ForeignModel, name: str | None) -> str:
    """Return the name of the descriptor among the outputs of a model: the only one, or the one of this name.

    Raises: InputError if there are several and none is named, or none has this name.
    """
    names = [value.name for value in model.proto.graph.output]
    if name is None and len(names) > 1:
        raise InputError(f"it has {len(names)} outputs, {', '.join(names)}: name its descriptor with --head")
    if name is not None and name not in names:
        raise InputError(f"it has no output {name!r}, but {', '.join(names)}: choose one of these with --head")
    chosen = name or str(names[0])
    kinds = require("onnx", extra="export").TensorProto.DataType
    kind = next(value.type.tensor_type.elem_type for value in model.proto.graph.output if value.name == chosen)
    if kind != kinds.Value("FLOAT"):
        raise InputError(f"its output {chosen} is {kinds.Name(kind).lower()}, expected float or float16")
    return chosen


def fixed_lengths(model: ForeignModel) -> dict[str, int]:
    """Return the lengths of the axes of a model's input that are not dynamic, by the names that an artifact has."""
    shape = model.source_shape
    if not takes_images(model):
        lengths = dict(zip(FEATURE_AXES, shape, strict=False))
    else:
        lengths = dict(zip(IMAGE_AXES, (shape[0], *(shape[2:] if shape[1] == CHANNELS else shape[1:3])), strict=True))
    return {axis: length for axis, length in lengths.items() if length is not None}


def wrapped(model: ForeignModel, output: str, images: ImageInput | None, size: int) -> Any:
    """Return the ModelProto of an artifact: a foreign graph behind normalised images, or features as they are.

    `size` is the length P of the descriptor. Nodes that the output does not need are left out.
    """
    onnx = require("onnx", extra="export")
    helper, types = onnx.helper, onnx.TensorProto
    graph = _renamed(model.proto.graph)
    source, last = (f"{THEIRS}{name}" for name in (model.source, output))
    fixed = fixed_lengths(model)
    axes = FEATURE_AXES if images is None else IMAGE_AXES
    shape: list[int | str | None] = [fixed.get(axis, axis) for axis in axes]
    nodes, constants = [], {}
    if images is None:
        name, kind, shape = FEATURES, types.FLOAT, [*shape, model.source_shape[2]]
        nodes.append(helper.make_node("Identity", [FEATURES], [source]))
    else:
        name, kind, shape = IMAGES, types.UINT8, [*shape, CHANNELS]
        constants = {"mean": np.array(images.mean, np.float32), "std": np.array(images.std, np.float32)}
        nodes += _normalisation(helper, source, channels_last=model.source_shape[1] != CHANNELS)
    nodes += needed(graph.node, last)
    rank = len(shape_of(model, output) or ())
    nodes.append(helper.make_node("Identity" if rank == 2 else "Flatten", [last], [DESCRIPTOR]))
    used = {name for node in nodes for name in node.input}
    made = helper.make_graph(
        nodes,
        "netvlad",
        [helper.make_tensor_value_info(name, kind, shape)],
        [helper.make_tensor_value_info(DESCRIPTOR, types.FLOAT, [shape[0], size])],
        [tensor for tensor in graph.initializer if tensor.name in used]
        + [onnx.numpy_helper.from_array(value, f"{OWN}{key}") for key, value in constants.items()],
    )
    whole = helper.make_model(made, opset_imports=[helper.make_opsetid("", model.opset)])
    whole.ir_version = min(model.proto.ir_version or 8, 10)
    return whole


def _normalisation(helper: Any, source: str, *, channels_last: bool) -> Iterator[Any]:
    """Yield the nodes from uint8 images (B,H,W,3) to the input of a foreign graph."""
    yield helper.make_node("Cast", [IMAGES], [f"{OWN}float"], to=1)
    yield helper.make_node("Sub", [f"{OWN}float", f"{OWN}mean"], [f"{OWN}centred"])
    yield helper.make_node("Div", [f"{OWN}centred", f"{OWN}std"], [source if channels_last else f"{OWN}scaled"])
    if not channels_last:
        yield helper.make_node("Transpose", [f"{OWN}scaled"], [source], perm=[0, 3, 1, 2])


def _renamed(graph: Any) -> Any:
    """Return a copy of a graph in which every tensor has a name of its own, that no artifact uses."""
    copied = copy.deepcopy(graph)
    for tensor in copied.initializer:
        tensor.name = f"{THEIRS}{tensor.name}"
    for node in copied.node:
        for names in (node.input, node.output):
            names[:] = [name and f"{THEIRS}{name}" for name in names]
    return copied


def rounded(model: Any, seed: int, *, bits: int, sums: bool = False) -> Any:
    """Return a model in which all operands of products are rounded to `bits`, 11 or 24, on grids drawn from a seed.

    With `sums` those of sums are rounded too, which an FP16 graph has stored in FP16.

    Every operand is multiplied by a random factor, rounded, and divided by it again: equal values are rounded equally.
    """
    onnx = require("onnx", extra="export")
    random = np.random.default_rng(seed)
    changed = copy.deepcopy(model)
    nodes: list[Any] = []
    constants: dict[str, Array] = {f"{OWN}splitter": np.array(VELTKAMP_FACTOR, np.float32)}
    chosen = ROUNDED | {"Add"} if sums else ROUNDED
    floats = float_tensors(model)
    for index, node in enumerate(model.graph.node):
        copied = copy.deepcopy(node)
        for place, name in enumerate(copied.input[:2] if node.op_type in chosen else ()):
            if name not in floats:
                continue
            start, factor = f"{OWN}{index}/{place}", np.float32(random.uniform(0.5, 1))
            constants |= {f"{start}/up": np.array(factor), f"{start}/down": np.array(1 / factor, np.float32)}
            nodes += _rounding(onnx.helper, name, start, split=bits != 24)
            copied.input[place] = f"{start}/rounded"
        nodes.append(copied)
    del changed.graph.node[:]
    changed.graph.node.extend(nodes)
    changed.graph.initializer.extend(onnx.numpy_helper.from_array(value, name) for name, value in constants.items())
    return changed


def float_tensors(model: Any) -> set[str]:
    """Return the names of the FP32 tensors of a model, its constants among them."""
    onnx = require("onnx", extra="export")
    graph, single = onnx.shape_inference.infer_shapes(model).graph, onnx.TensorProto.FLOAT
    values = (*graph.input, *graph.output, *graph.value_info)
    found = {value.name for value in values if value.type.tensor_type.elem_type == single}
    return found | {tensor.name for tensor in graph.initializer if tensor.data_type == single}


def _rounding(helper: Any, name: str, start: str, *, split: bool) -> Iterator[Any]:
    """Yield the nodes that round a tensor on a grid: to 11 bits if it is split, else as FP32 does."""
    kept = f"{start}/scaled"
    yield helper.make_node("Mul", [name, f"{start}/up"], [kept])
    if split:
        kept = f"{start}/kept"
        yield helper.make_node("Mul", [f"{start}/scaled", f"{OWN}splitter"], [f"{start}/large"])
        yield helper.make_node("Sub", [f"{start}/large", f"{start}/scaled"], [f"{start}/rest"])
        yield helper.make_node("Sub", [f"{start}/large", f"{start}/rest"], [kept])
    yield helper.make_node("Mul", [kept, f"{start}/down"], [f"{start}/rounded"])
