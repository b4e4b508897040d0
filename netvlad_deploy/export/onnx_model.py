"""Export the folded module to an ONNX file: dynamic axes, weights inside, the same bytes for the same input.

Requires: a reference module in eval mode. Ensures: no BatchNormalization, no loop, no scatter, no maximum over the
local descriptors, no arithmetic on shapes; only `batch` and `num_features` are dynamic; no stack trace or path of the
exporting machine in the file.
"""

import copy
import json
import logging
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from netvlad_deploy.arrays import Array
from netvlad_deploy.artifact import FileReference, OnnxArtifact, reference_path, stage_artifact
from netvlad_deploy.errors import ExportError, UsageError
from netvlad_deploy.export.audit import audit
from netvlad_deploy.export.fold import FoldedNetVLAD, fold
from netvlad_deploy.files import check_suffix, stage_files
from netvlad_deploy.models.dialects.base import PREPROCESSING
from netvlad_deploy.models.netvlad import NetVLAD
from netvlad_deploy.oracle import reference_content
from netvlad_deploy.require import installed_version, require
from netvlad_deploy.spec import DESCRIPTOR, FEATURES, OLDEST_OPSET, GraphOptions

FORBIDDEN_OPS = frozenset(
    ("BatchNormalization", "ScatterND", "Shape", "Expand", "Loop", "Scan", "If", "ReduceLogSumExp")
)
EXPORTERS = ("torch", "onnx", "onnxscript")


def export_onnx(
    module: NetVLAD,
    target: Path | str,
    options: GraphOptions | None = None,
    *,
    origin: str = "module",
    parent: FileReference | None = None,
    preprocessing: str = PREPROCESSING,
    force: bool = False,
) -> OnnxArtifact:
    """Write `target`, its sidecar and the oracle's reference file; return the artifact.

    Args:
        module: the reference in eval mode.
        target: the ONNX file.
        options: precision, inputs and outputs; FP32 from features to descriptor by default.
        origin: where the weights come from, in words.
        parent: the file they come from, None if they come from no file.
        preprocessing: what the local descriptors must be, in words.
        force: overwrite files that exist.

    Raises: FoldError, ExportError, UsageError if the target exists or the opset is unknown, OutputError.
    """
    options = _check_opset(options or GraphOptions())
    target = check_suffix(Path(target), ".onnx")
    with stage_files(force=force) as staging:
        staging.check(target)
        folded = fold(module, options)
        feature_range, findings = audit(folded)
        model = _check_graph(_trace(folded, options), options)
        reference = reference_content(_reference_arrays(module), module.spec)
        artifact = OnnxArtifact(
            path=target,
            spec=module.spec,
            precision=options.precision_name,
            inputs=options.inputs,
            outputs=options.outputs,
            dtypes=options.dtypes,
            range=feature_range,
            warnings=findings,
            origin=origin,
            parent=parent,
            reference=FileReference(name=reference_path(target).name, sha256=sha256(reference).hexdigest()),
            preprocessing=preprocessing,
            opset=options.opset,
            versions={name: installed_version(name) or "unknown" for name in EXPORTERS},
        )
        _clean(model, artifact)
        staging.write(reference_path(target), reference)
        return stage_artifact(staging, artifact, model.SerializeToString(deterministic=True))


def export_plain(module: NetVLAD, like: OnnxArtifact, target: Path) -> OnnxArtifact:
    """Write the layer as a general exporter would, `module.half()` as it is, beside the proper export `like`.

    For comparison only: its descriptors drift or are not finite.
    """
    options = GraphOptions(precision="fp16", output_dtype="float16")
    model = trace(copy.deepcopy(module).half(), options, module.spec.feature_size, (DESCRIPTOR,))
    with stage_files(force=False) as staging:
        artifact = replace(like, path=target, inputs=options.inputs, outputs=options.outputs, dtypes=options.dtypes)
        return stage_artifact(staging, artifact, model.SerializeToString(deterministic=True))


def _check_opset(options: GraphOptions) -> GraphOptions:
    """Return the options; raise UsageError if there is no such opset."""
    require("onnxscript", extra="export")
    newest = require("onnx", extra="export").defs.onnx_opset_version()
    if not OLDEST_OPSET <= options.opset <= newest:
        raise UsageError(f"opset {options.opset} is outside {OLDEST_OPSET} to {newest}")
    return options


def _reference_arrays(module: NetVLAD) -> dict[str, Array]:
    state = {name: tensor.detach().cpu() for name, tensor in module.state_dict().items()}
    arrays = {
        name: (tensor.float() if tensor.dtype is torch.bfloat16 else tensor).numpy() for name, tensor in state.items()
    }
    for name, part in module.named_modules():
        if isinstance(part, torch.nn.BatchNorm1d):
            arrays[f"{name}.eps"] = torch.tensor(part.eps, dtype=torch.float64).numpy()
    return arrays


def _trace(folded: FoldedNetVLAD, options: GraphOptions) -> Any:
    """Return the ONNX model of the folded module, its tensors named as the stages and those asked for as outputs."""
    model = trace(folded, options, folded.spec.feature_size, folded.spec.stages)
    _keep_outputs(model.graph, options.outputs)
    return model


def trace(module: torch.nn.Module, options: GraphOptions, feature_size: int, outputs: Sequence[str]) -> Any:
    """Return the ONNX model of a module of features (B,N,D) and optionally a mask, as torch writes it."""
    inputs, opset = options.inputs, options.opset
    axes = {0: torch.export.Dim("batch", min=1), 1: torch.export.Dim("num_features", min=1)}
    examples = (
        torch.zeros(2, 3, feature_size, dtype=getattr(torch, options.dtypes[FEATURES])),
        torch.ones(2, 3, dtype=torch.bool),
    )
    with _quiet_exporter():
        try:
            program = torch.onnx.export(
                module,
                examples[: len(inputs)],
                input_names=list(inputs),
                output_names=list(outputs),
                dynamic_shapes=(axes,) * len(inputs),
                opset_version=opset,
                dynamo=True,
                external_data=False,
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            raise ExportError(f"torch.onnx.export refused the layer at opset {opset}: {error}") from error
    if program is None:
        raise ExportError(f"torch.onnx.export returned nothing at opset {opset}")
    return program.model_proto


def _keep_outputs(graph: Any, outputs: Sequence[str]) -> None:
    """Leave these outputs alone, in this order, and drop the nodes and constants that only others needed."""
    found = {value.name: value for value in graph.output}
    needed, nodes = set(outputs), []
    for node in reversed(graph.node):
        if needed & set(node.output):
            nodes.append(node)
            needed.update(node.input)
    _replace(graph.node, reversed(nodes))
    _replace(graph.output, [found[name] for name in outputs])
    _replace(graph.initializer, [tensor for tensor in graph.initializer if tensor.name in needed])
    _replace(graph.value_info, [value for value in graph.value_info if value.name in needed])


def _replace(field: Any, values: Iterable[Any]) -> None:
    values = [copy.deepcopy(value) for value in values]
    del field[:]
    field.extend(values)


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Keep torch's exporter from warning about packages and internals that this export does not use."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _check_graph(model: Any, options: GraphOptions) -> Any:
    """Return the model; raise ExportError unless its graph keeps what the module docstring promises."""
    found = [*sorted({node.op_type for node in model.graph.node} & FORBIDDEN_OPS), *_wide_extremes(model)]
    if found:
        raise ExportError(f"torch {torch.__version__} wrote a graph with {', '.join(found)}: use another version")
    written = {entry.domain: entry.version for entry in model.opset_import}
    if written != {"": options.opset}:
        raise ExportError(f"asked for opset {options.opset}, torch wrote {written}")
    for value in (*model.graph.input, *model.graph.output):
        names = [dim.dim_param for dim in value.type.tensor_type.shape.dim if dim.dim_param]
        if not set(names) <= {"batch", "num_features"}:
            raise ExportError(f"{value.name} has the dynamic axes {names}, expected batch and num_features")
        dtype = require("onnx", extra="export").helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name
        if dtype != options.dtypes[value.name]:
            raise ExportError(f"{value.name} is {dtype}, asked for {options.dtypes[value.name]}")
    return model


def _wide_extremes(model: Any) -> Iterator[str]:
    """Yield each maximum or minimum over more than a last axis of fixed length: TensorRT 11.2 made NaN of one over N.

    The axes are an attribute up to opset 17, and a constant input from 18 on.
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


def _clean(model: Any, artifact: OnnxArtifact) -> None:
    """Remove stack traces and machine paths, write what the file is, and let the full checker see the result."""
    graph = model.graph
    for record in (model, graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        record.doc_string = ""
        del record.metadata_props[:]
    graph.name = "netvlad"
    model.producer_name = "netvlad-deploy"
    model.producer_version = version("netvlad-deploy")
    metadata = {"spec": asdict(artifact.spec), "parent": artifact.parent and asdict(artifact.parent)}
    for key, value in metadata.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = f"netvlad_deploy.{key}", json.dumps(value, sort_keys=True)
    require("onnx", extra="export").checker.check_model(model, full_check=True)
