"""Read an ONNX file that others made: bounded, without any file outside its folder, and in FP32.

What comes out has one input and no operator that this package cannot look through: no control flow, no operator outside
the ONNX standard. Functions of the file are put in line.
"""

import contextlib
import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from netvlad_deploy.errors import InputError
from netvlad_deploy.support.external_data import read_names
from netvlad_deploy.support.files import read_bounded
from netvlad_deploy.support.formats import reading, said
from netvlad_deploy.support.require import require

OLDEST_FOREIGN_OPSET, NEWEST_FOREIGN_OPSET = 9, 23
MAX_MODEL_BYTES: Final = 2**31
"""Largest file that is read: protobuf ends there."""

MAX_EXTERNAL_BYTES: Final = 2_000_000_000
"""Most bytes of external data: parts of a model are run from memory, as one protobuf message of 2 GiB at most."""

OWN_PROPERTIES: Final = "netvlad_deploy."
"""Start of the metadata properties of a file that this package wrote."""

CONTROL_FLOW: Final = ("If", "Loop", "Scan", "SequenceMap")
RANDOM: Final = ("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike")
CURE: Final = "adopt --no-head takes the file as it is"


@dataclass(frozen=True, kw_only=True)
class ForeignModel:
    """An ONNX model of another maker.

    Args:
        proto: the ModelProto, FP32, its weights inside, its shapes inferred as far as they can be.
        sha256: the hash of the file that was read.
        source: the name of its one input.
        opset: its ONNX operator set.
        notes: what was assumed or changed when it was read, in sentences.
    """

    proto: Any
    sha256: str
    source: str
    opset: int
    notes: tuple[str, ...]

    @property
    def source_shape(self) -> tuple[int | None, ...]:
        """Return the shape of the input, None for a dynamic axis."""
        value = next(value for value in self.proto.graph.input if value.name == self.source)
        return tuple(dim.dim_value or None for dim in value.type.tensor_type.shape.dim)


def read_foreign(path: Path) -> ForeignModel:
    """Return the model of an ONNX file.

    Raises: InputError if it is missing, damaged, too large, an artifact of this package, of an unknown operator set,
        names external data that is missing or outside its folder, or has control flow, custom operators or more than
        one input.
    """
    onnx = require("onnx", extra="export")
    with reading(path), _as_input_error(path):
        content = read_bounded(path, MAX_MODEL_BYTES)
        files, properties = read_names(content)
        _check_external(path, files)
        model = onnx.load_from_string(content)
        _check_content(path, model, properties)
        if files:
            onnx.external_data_helper.load_external_data_for_model(model, str(path.parent))
        if model.functions:
            model = onnx.inliner.inline_local_functions(model)
        opset = _check_operators(path, model)
        source = _only_input(path, model)
        notes = _widen(model, onnx)
        model = onnx.shape_inference.infer_shapes(model)
    sha256 = hashlib.sha256(content).hexdigest()
    return ForeignModel(proto=model, sha256=sha256, source=source, opset=opset, notes=notes)


@contextlib.contextmanager
def _as_input_error(path: Path) -> Iterator[None]:
    """Turn the errors that protobuf and onnx raise for a damaged file into an InputError."""
    message = require("google.protobuf.message", extra="export")
    onnx = require("onnx", extra="export")
    try:
        yield
    except (message.Error, onnx.shape_inference.InferenceError, onnx.checker.ValidationError, ValueError) as error:
        raise InputError(
            f"{path} is no ONNX model that can be read ({said(error)}): fetch it again, or export it again"
        ) from error


def _check_content(path: Path, model: Any, properties: Mapping[str, str]) -> None:
    if any(name.startswith(OWN_PROPERTIES) for name in properties):
        raise InputError(f"{path} was made by this package: build, validate and embed take it as it is")
    if not model.graph.node:
        raise InputError(f"{path} has no operator: it is no ONNX model, or an empty one")


def _check_external(path: Path, files: set[str]) -> None:
    """Refuse external data that is missing, too large, or not a plain file beside the model or below its folder."""
    folder, total = path.parent.resolve(), 0
    for name in sorted(files):
        file = folder / name
        inside = not Path(name).is_absolute() and folder in Path(os.path.normpath(file)).parents
        if not inside or folder not in file.resolve().parents or file.is_symlink():
            raise InputError(f"{path} names external data outside its folder, {name[:80]!r}: put the data beside it")
        if not file.is_file():
            raise InputError(f"{path} needs its external data {name[:80]!r}, which is missing: put it beside the model")
        total += file.stat().st_size
    if total > MAX_EXTERNAL_BYTES:
        raise InputError(f"{path} has {total} bytes of external data, expected at most {MAX_EXTERNAL_BYTES}")


def _check_operators(path: Path, model: Any) -> int:
    """Return the operator set, after refusing operators that this package cannot look through."""
    versions = {each.domain: each.version for each in model.opset_import}
    opset = int(versions.get("", versions.get("ai.onnx", 0)))
    if not OLDEST_FOREIGN_OPSET <= opset <= NEWEST_FOREIGN_OPSET:
        known = f"{OLDEST_FOREIGN_OPSET} to {NEWEST_FOREIGN_OPSET}"
        raise InputError(f"{path} has operator set {opset}, expected {known}: export it again at one of them")
    custom = sorted(
        {f"{node.domain}.{node.op_type}" for node in model.graph.node if node.domain not in ("", "ai.onnx")}
    )
    if custom:
        raise InputError(
            f"{path} has custom operators, {', '.join(custom)[:200]}, expected those of ONNX alone: export it without"
        )
    flow = sorted({node.op_type for node in model.graph.node if node.op_type in CONTROL_FLOW})
    if flow:
        raise InputError(
            f"{path} has control flow, {', '.join(flow)}, expected a plain graph: export it with fixed shapes, or "
            "simplify it"
        )
    unsteady = sorted({node.op_type for node in model.graph.node if node.op_type in RANDOM or _trains(model, node)})
    if unsteady:
        raise InputError(
            f"{path} has {', '.join(unsteady)}, at random or in training mode, expected eval mode: call eval() and "
            "export it again"
        )
    return opset


def _trains(model: Any, node: Any) -> bool:
    """Return True if a Dropout or a BatchNormalization is in training mode."""
    if any(attribute.name == "training_mode" and attribute.i for attribute in node.attribute):
        return True
    if node.op_type != "Dropout" or len(node.input) < 3 or not node.input[2]:
        return False
    onnx = require("onnx", extra="export")
    known = {tensor.name: tensor for tensor in model.graph.initializer}
    known |= {each.output[0]: each.attribute[0].t for each in model.graph.node if each.op_type == "Constant"}
    mode = known.get(node.input[2])
    return mode is None or bool(onnx.numpy_helper.to_array(mode))


def _only_input(path: Path, model: Any) -> str:
    """Return the name of the one input that is no weight, after checking that it is a float tensor."""
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    kinds = require("onnx", extra="export").TensorProto.DataType
    found = [f"{value.name} ({kinds.Name(value.type.tensor_type.elem_type).lower()})" for value in inputs]
    if len(inputs) != 1:
        raise InputError(
            f"{path} takes {len(inputs)} inputs, {', '.join(found) or 'none'}, expected one of images or features: "
            "export it without a mask or other inputs"
        )
    if inputs[0].type.tensor_type.elem_type not in (kinds.Value("FLOAT"), kinds.Value("FLOAT16")):
        raise InputError(f"{path} takes {found[0]}, expected float or float16: export it with a float input")
    return str(inputs[0].name)


def _widen(model: Any, onnx: Any) -> tuple[str, ...]:
    """Turn every FP16 tensor of a model into FP32 in place; return a note if there was one."""
    half, single = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
    changed = False
    for tensor in _tensors(model.graph):
        if tensor.data_type == half:
            changed = True
            tensor.CopyFrom(
                onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor).astype(np.float32), tensor.name)
            )
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        if value.type.tensor_type.elem_type == half:
            changed = True
            value.type.tensor_type.elem_type = single
    for node in model.graph.node:
        for attribute in node.attribute:
            if node.op_type in ("Cast", "RandomNormal", "EyeLike") and attribute.name in ("to", "dtype"):
                attribute.i = single if attribute.i == half else attribute.i
    return ("float16 tensors of the file were widened to float32",) if changed else ()


def _tensors(graph: Any) -> Iterator[Any]:
    """Yield every constant of a graph: initializers, and the values of Constant and ConstantOfShape."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
