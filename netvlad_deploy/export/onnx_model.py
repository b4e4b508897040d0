"""Export the folded module to an ONNX file: dynamic axes, weights inside, the same bytes for the same input.

Requires: a reference module in eval mode. Ensures: no BatchNormalization, no loop, no scatter, no arithmetic on
shapes; only `batch` and `num_features` are dynamic; no stack trace or path of the exporting machine in the file.
"""

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from netvlad_deploy.arrays import Array
from netvlad_deploy.artifact import (
    FileReference,
    OnnxArtifact,
    check_suffix,
    reference_path,
    stage_artifact,
    stage_files,
)
from netvlad_deploy.errors import ExportError, UsageError
from netvlad_deploy.export.fold import FoldedNetVLAD, fold
from netvlad_deploy.models.netvlad import NetVLAD
from netvlad_deploy.oracle import reference_content
from netvlad_deploy.require import installed_version, require
from netvlad_deploy.spec import DESCRIPTOR, FEATURES, MASK, PROBES

DEFAULT_OPSET = 18
OLDEST_OPSET = 17
FORBIDDEN_OPS = frozenset(
    ("BatchNormalization", "ScatterND", "Shape", "Expand", "Loop", "Scan", "If", "ReduceLogSumExp")
)
EXPORTERS = ("torch", "onnx", "onnxscript")
PREPROCESSING = "none: local descriptors (batch, num_features, D) as the layer was trained on"


def export_onnx(
    module: NetVLAD,
    target: Path | str,
    *,
    masked: bool = False,
    probe: bool = False,
    opset: int = DEFAULT_OPSET,
    origin: str = "module",
    parent: FileReference | None = None,
    force: bool = False,
) -> OnnxArtifact:
    """Write `target`, its sidecar and the oracle's reference file; return the artifact.

    Args:
        module: the reference in eval mode.
        target: the ONNX file.
        masked: add the input `mask` (batch, num_features) bool.
        probe: add the outputs `soft_assignment` (B,N,K) and `residual_sum` (B,K,D).
        opset: ONNX operator set, from 17 to the newest that torch and onnx know.
        origin: where the weights come from, in words.
        parent: the file they come from, None if they come from no file.
        force: overwrite files that exist.

    Raises: FoldError, ExportError, UsageError if the target exists or the opset is unknown, OutputError.
    """
    _check_opset(opset)
    target = check_suffix(Path(target), ".onnx")
    inputs = (FEATURES, MASK) if masked else (FEATURES,)
    outputs = (DESCRIPTOR, *PROBES) if probe else (DESCRIPTOR,)
    with stage_files(force=force) as staging:
        staging.check(target)
        model = _trace(fold(module, probe=probe), inputs, outputs, opset)
        _check_graph(model, opset)
        reference = reference_content(_reference_arrays(module))
        artifact = OnnxArtifact(
            path=target,
            spec=module.spec,
            precision="fp32",
            inputs=inputs,
            outputs=outputs,
            origin=origin,
            parent=parent,
            reference=FileReference(name=reference_path(target).name, sha256=sha256(reference).hexdigest()),
            preprocessing=PREPROCESSING,
            opset=opset,
            versions={name: installed_version(name) or "unknown" for name in EXPORTERS},
        )
        _clean(model, artifact)
        staging.write(reference_path(target), reference)
        return stage_artifact(staging, artifact, model.SerializeToString(deterministic=True))


def _check_opset(opset: int) -> None:
    require("onnxscript", extra="export")
    newest = require("onnx", extra="export").defs.onnx_opset_version()
    if not OLDEST_OPSET <= opset <= newest:
        raise UsageError(f"opset {opset} is outside {OLDEST_OPSET} to {newest}")


def _reference_arrays(module: NetVLAD) -> dict[str, Array]:
    state = {name: tensor.detach().cpu() for name, tensor in module.state_dict().items()}
    arrays = {
        name: (tensor.float() if tensor.dtype is torch.bfloat16 else tensor).numpy() for name, tensor in state.items()
    }
    if module.batch_norm is not None:
        arrays["batch_norm.eps"] = torch.tensor(module.batch_norm.eps, dtype=torch.float64).numpy()
    return arrays


def _trace(folded: FoldedNetVLAD, inputs: tuple[str, ...], outputs: tuple[str, ...], opset: int) -> Any:
    """Return the ONNX model of the folded module, as torch writes it."""
    axes = {0: torch.export.Dim("batch", min=1), 1: torch.export.Dim("num_features", min=1)}
    examples = (torch.zeros(2, 3, folded.spec.feature_size), torch.ones(2, 3, dtype=torch.bool))
    with _quiet_exporter():
        try:
            program = torch.onnx.export(
                folded,
                examples[: len(inputs)],
                input_names=list(inputs),
                output_names=list(outputs),
                dynamic_shapes=dict.fromkeys(inputs, axes),
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


def _check_graph(model: Any, opset: int) -> None:
    """Raise ExportError unless the graph keeps what the module docstring promises."""
    found = sorted({node.op_type for node in model.graph.node} & FORBIDDEN_OPS)
    if found:
        raise ExportError(f"torch {torch.__version__} wrote a graph with {', '.join(found)}: use another version")
    written = {entry.domain: entry.version for entry in model.opset_import}
    if written != {"": opset}:
        raise ExportError(f"asked for opset {opset}, torch wrote {written}")
    for value in (*model.graph.input, *model.graph.output):
        names = [dim.dim_param for dim in value.type.tensor_type.shape.dim if dim.dim_param]
        if not set(names) <= {"batch", "num_features"}:
            raise ExportError(f"{value.name} has the dynamic axes {names}, expected batch and num_features")


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
