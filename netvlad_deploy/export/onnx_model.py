"""Export a head or a pipeline to an ONNX file: the same bytes for the same input.

Requires: a torch module in eval mode. Ensures: the promises of `export.graph`; a head's graph has no arithmetic on
shapes either. Weights are inside the file; if it would exceed LARGEST_INSIDE, large ones stand in `NAME.onnx.data`.
"""

import copy
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from netvlad_deploy.artifact import (
    FileReference,
    OnnxArtifact,
    external_path,
    reference_path,
    sidecar_path,
    stage_artifact,
)
from netvlad_deploy.errors import UsageError
from netvlad_deploy.export import graph
from netvlad_deploy.export.audit import LARGEST_FEATURE, audit, overflow_alone
from netvlad_deploy.export.fold_aggregators import fold_aggregator
from netvlad_deploy.export.fold_backbone import check_backbone
from netvlad_deploy.export.fold_head import FoldedNetVLAD, fold
from netvlad_deploy.export.fold_heads import fold_heads
from netvlad_deploy.export.fold_pipeline import fold_pipeline, fold_size
from netvlad_deploy.export.golden_features import golden_features
from netvlad_deploy.export.make_goldens import make_goldens
from netvlad_deploy.models.aggregators.base import Aggregator
from netvlad_deploy.models.head import PREPROCESSING
from netvlad_deploy.models.heads import Heads
from netvlad_deploy.models.netvlad import NetVLAD
from netvlad_deploy.models.pipeline import Pipeline
from netvlad_deploy.oracle.goldens import doubts, golden_arrays
from netvlad_deploy.oracle.reference_file import heads_arrays, reference_arrays
from netvlad_deploy.spec.graph_options import OLDEST_OPSET, FeatureRange, GraphOptions, HeadsRange
from netvlad_deploy.spec.images import IMAGES, LOCAL_DESCRIPTORS, ImageInput
from netvlad_deploy.spec.layer import DESCRIPTOR, FEATURES, TOKEN, AggregatorSpec, AnySpec, HeadsSpec, input_shape
from netvlad_deploy.spec.layouts import LAYOUTS, UINT8
from netvlad_deploy.support.arrays import Array, write_npz
from netvlad_deploy.support.files import Staging, check_suffix, stage_files
from netvlad_deploy.support.require import installed_version, require

EXPORTERS = ("torch", "onnx", "onnxscript")
"""Packages whose versions stand in the sidecar."""

LARGEST_INSIDE = 2_000_000_000
"""Size in bytes up to which a file holds all of its weights: protobuf messages end at 2 GiB."""

PIPELINE_AXES: graph.Axes = ({0: "batch", 1: "height", 2: "width"},)
BATCH_AXIS: graph.Axes = ({0: "batch"},)
"""The dynamic axis of a pipeline whose backbone takes images of one size alone."""


@dataclass(frozen=True, kw_only=True)
class _Subject:
    """All that an export needs to know of a head, another aggregator or a pipeline.

    `module` is the folded module that is traced with the `examples`; it returns the stages of its layer's `spec`, after
    the local descriptors if it takes images. `axes` names the dynamic axes of each input, `dtypes` has the dtype of
    every input and output. `arrays` is the content of the reference file, `range` that of the features, `preprocessing`
    describes the required input, `images` is None for a head, and `warnings` are sentences for the sidecar.
    """

    module: nn.Module
    spec: AnySpec
    examples: tuple[Tensor, ...]
    axes: graph.Axes
    inputs: tuple[str, ...]
    dtypes: Mapping[str, str]
    arrays: dict[str, Array]
    range: FeatureRange | HeadsRange
    preprocessing: str
    images: ImageInput | None = None
    warnings: tuple[str, ...] = ()
    outputs: tuple[str, ...] = (DESCRIPTOR,)


def export_onnx(
    module: NetVLAD | Aggregator | Pipeline | Heads,
    target: Path | str,
    options: GraphOptions | None = None,
    *,
    origin: str = "module",
    parent: FileReference | None = None,
    preprocessing: str = PREPROCESSING,
    force: bool = False,
) -> OnnxArtifact:
    """Write `target`, its sidecar and the reference file; return the artifact.

    Args:
        module: the reference in eval mode: a head or another aggregator, which takes local descriptors, several heads,
            of which each takes its own, or a pipeline, which takes images.
        target: the ONNX file.
        options: precision, inputs and outputs; FP32 from features to descriptor by default.
        origin: where the weights come from, in words.
        parent: the file they come from, None if they come from no file.
        preprocessing: the required local descriptors of a head, in words.
        force: overwrite files that exist.

    Raises: FoldError if the module cannot be folded; ExportError if torch or a check refuses it; UsageError if the
        target exists, the opset is unknown or an option is not for a pipeline; OutputError if a file cannot be written.

    >>> from netvlad_deploy import GraphOptions, NetVLAD, export_onnx
    >>> artifact = export_onnx(NetVLAD(4, 8).eval(), "head.onnx", GraphOptions(precision="fp16"))
    >>> artifact.path.name, artifact.precision, artifact.dtypes
    ('head.onnx', 'fp16', {'features': 'float16', 'descriptor': 'float32'})
    """
    options = options or GraphOptions()
    require("onnxscript", extra="export")
    newest = require("onnx", extra="export").defs.onnx_opset_version()
    if not OLDEST_OPSET <= options.opset <= newest:
        raise UsageError(f"opset {options.opset} is outside {OLDEST_OPSET} to {newest}")
    target = check_suffix(Path(target), ".onnx")
    with stage_files(force=force) as staging:
        for path in (target, sidecar_path(target), reference_path(target)):
            staging.check(path)
        return _stage(staging, _subject(module, options, preprocessing), target, options, origin, parent)


def _subject(module: NetVLAD | Aggregator | Pipeline | Heads, options: GraphOptions, preprocessing: str) -> _Subject:
    if isinstance(module, Heads):
        return _heads(module, options, preprocessing)
    if isinstance(module, Pipeline):
        return _pipeline(module, options)
    if options.layout != UINT8 or options.tensor_names is not None:
        raise UsageError("--layout and --tensor-names are for images: leave them out, or export with a backbone")
    if isinstance(module, Aggregator):
        return _aggregator(module, options, preprocessing)
    return _head(module, options, preprocessing)


def _stage(
    staging: Staging, subject: _Subject, target: Path, options: GraphOptions, origin: str, parent: FileReference | None
) -> OnnxArtifact:
    """Stage the ONNX file, its external data if any, the reference file and the sidecar; return the artifact."""
    with ThreadPoolExecutor(1) as beside:  # torch traces longer than the weights take to write
        reference = beside.submit(stage_reference, staging, target, subject.arrays, subject.spec)
        traced = _trace(subject, options)
        plain = subject.images is None and not isinstance(subject.spec, AggregatorSpec)
        graph.check_graph(traced, subject.axes, subject.dtypes, options.opset, head=plain)
    names = options.pipeline_names if subject.images is not None else {}
    graph.rename(traced, names)
    warnings = list(subject.warnings)
    if shaped := sorted({node.op_type for node in traced.model.graph.node} & graph.SHAPE_OPS):
        layer = "layer" if subject.images is None else "backbone"
        warnings.append(f"the {layer} computes with shapes ({', '.join(shaped)}), which may cost time")
    external = _stage_weights(staging, traced, target)
    artifact = OnnxArtifact(
        path=target,
        spec=subject.spec,
        precision=options.precision_name,
        inputs=tuple(names.get(name, name) for name in subject.inputs),
        outputs=tuple(names.get(name, name) for name in subject.outputs),
        dtypes={names.get(name, name): dtype for name, dtype in subject.dtypes.items()},
        range=subject.range,
        warnings=tuple(warnings),
        origin=origin,
        parent=parent,
        reference=reference.result(),
        preprocessing=subject.preprocessing,
        images=subject.images,
        opset=options.opset,
        external_data=external,
        versions={name: installed_version(name) or "unknown" for name in EXPORTERS},
    )
    return stage_artifact(staging, artifact, graph.clean(traced, artifact).parts())


def _stage_weights(staging: Staging, traced: graph.Graph, target: Path) -> FileReference | None:
    """Stage the large constants as external data if the file would exceed LARGEST_INSIDE; return a reference to it."""
    if traced.size_bytes <= LARGEST_INSIDE:
        return None
    path = external_path(target)
    with staging.open(path) as stream:
        traced.write_external(stream, path.name)
    return FileReference(name=path.name, sha256=staging.sha256(path))


def stage_reference(staging: Staging, target: Path, arrays: Mapping[str, Array], spec: AnySpec) -> FileReference:
    """Stage the reference file of an ONNX file, and return a reference to it."""
    path = reference_path(target)
    with staging.open(path) as stream:
        write_npz(stream, reference_arrays(arrays, spec))
    return FileReference(name=path.name, sha256=staging.sha256(path))


def feature_inputs(spec: AnySpec, dtypes: Mapping[str, str]) -> tuple[tuple[Tensor, ...], graph.Axes]:
    """Return an example of each input of a layer by its dtype, and the names of their dynamic axes."""
    lengths = 2, spec.least_features + 2
    examples = tuple(
        torch.zeros(input_shape(spec, name, lengths), dtype=getattr(torch, dtype)) for name, dtype in dtypes.items()
    )
    if isinstance(spec, HeadsSpec):
        return examples, tuple({0: "batch", 1: f"num_features_{number}"} for number in range(len(examples)))
    return examples, tuple(BATCH_AXIS[0] if name == TOKEN else {0: "batch", 1: "num_features"} for name in dtypes)


def _head(module: NetVLAD, options: GraphOptions, preprocessing: str) -> _Subject:
    folded = fold(module, options)
    feature_range, findings = audit(folded)
    examples, axes = feature_inputs(folded.spec, {name: options.dtypes[name] for name in options.inputs})
    return _Subject(
        module=folded,
        spec=folded.spec,
        examples=examples,
        axes=axes,
        inputs=options.inputs,
        outputs=options.outputs,
        dtypes=options.dtypes,
        arrays=_reference_arrays(module),
        range=feature_range,
        preprocessing=preprocessing,
        warnings=findings,
    )


def _heads(module: Heads, options: GraphOptions, preprocessing: str) -> _Subject:
    if options.masked or options.probe:
        raise UsageError("several heads take no mask and give no probes: leave --masked and --probe out")
    spec = module.spec
    folded, feature_range, findings = fold_heads(module, options)
    dtypes = dict.fromkeys(spec.inputs, options.dtypes[FEATURES])
    examples, axes = feature_inputs(spec, dtypes)
    return _Subject(
        module=folded,
        spec=spec,
        examples=examples,
        axes=axes,
        inputs=spec.inputs,
        outputs=spec.outputs,
        dtypes={**dtypes, **dict.fromkeys(spec.outputs, options.output_dtype)},
        arrays=heads_arrays({name: (_reference_arrays(head), head.spec) for name, head in module.by_name().items()}),
        range=feature_range,
        preprocessing=preprocessing,
        warnings=findings,
    )


def _aggregator(module: Aggregator, options: GraphOptions, preprocessing: str) -> _Subject:
    spec = module.spec
    if options.masked or options.probe or options.wide_logits or options.feature_norm != 1:
        raise UsageError(f"{spec.name} takes no mask: leave --masked, --probe, --wide-logits and --feature-norm out")
    if spec.takes_map:
        raise UsageError(f"{spec.name} takes a feature map, not features: export it with its backbone")
    goldens = golden_features(module, options.precision_name)
    dtypes = dict.fromkeys(spec.inputs, options.dtypes[FEATURES])
    examples, axes = feature_inputs(spec, dtypes)
    return _Subject(
        module=fold_aggregator(module, options),
        spec=spec,
        examples=examples,
        axes=axes,
        inputs=spec.inputs,
        dtypes={**dtypes, DESCRIPTOR: options.output_dtype},
        arrays={**_reference_arrays(module), **golden_arrays(goldens)},
        range=overflow_alone(LARGEST_FEATURE if options.half else None),
        preprocessing=preprocessing,
        warnings=doubts(goldens, options.precision_name),
    )


def _pipeline(pipeline: Pipeline, options: GraphOptions) -> _Subject:
    if options.masked or options.probe or options.input_dtype is not None or options.feature_norm != 1:
        raise UsageError(
            "a pipeline takes uint8 images and measures its local descriptors itself: leave --masked, --probe, "
            "--input-dtype and --feature-norm out, or export the head alone with --input features"
        )
    check_backbone(pipeline.backbone)
    layout = LAYOUTS[options.layout]
    pipeline = copy.copy(pipeline)
    pipeline.images = replace(pipeline.images, layout=options.layout)
    goldens, norm = make_goldens(pipeline, options.precision_name)
    warnings = doubts(goldens, options.precision_name)
    if not norm:
        warnings += ("every local descriptor of every golden image is 0: the descriptor says nothing of an image",)
    # Without the last golden image, which may be large.
    folded, peaks = fold_pipeline(pipeline, replace(options, feature_norm=norm or 1.0), goldens[:-1])
    if isinstance(folded.head, FoldedNetVLAD):
        feature_range, findings = audit(folded.head, alone=False)
    else:
        feature_range, findings = overflow_alone(None), ()
    size = pipeline.images.size or fold_size(pipeline.images)
    return _Subject(
        module=folded,
        spec=folded.spec,
        examples=(torch.zeros(layout.shape((2, *size)), dtype=getattr(torch, layout.dtype)),),
        axes=BATCH_AXIS if pipeline.images.fixed else (dict(zip(layout.axes, PIPELINE_AXES[0].values(), strict=True)),),
        inputs=(IMAGES,),
        dtypes={IMAGES: layout.dtype, DESCRIPTOR: options.output_dtype},
        arrays={**_reference_arrays(pipeline.head), **golden_arrays(goldens)},
        range=feature_range,
        preprocessing=f"{layout.words}, {pipeline.images.preparation}; the graph normalises",
        images=pipeline.images,
        warnings=(*findings, *warnings, *peaks),
    )


def _reference_arrays(module: NetVLAD | Aggregator) -> dict[str, Array]:
    state = {name: tensor.detach().cpu() for name, tensor in module.state_dict().items()}
    arrays = {
        name: (tensor.float() if tensor.dtype is torch.bfloat16 else tensor).numpy() for name, tensor in state.items()
    }
    for name, part in module.named_modules():
        if isinstance(part, torch.nn.BatchNorm1d):
            arrays[f"{name}.eps"] = torch.tensor(part.eps, dtype=torch.float64).numpy()
    return arrays


def _trace(subject: _Subject, options: GraphOptions) -> graph.Graph:
    """Return the graph of the folded module: its stages named, the outputs of `options` alone."""
    stages = subject.spec.stages
    model = graph.trace(
        subject.module,
        subject.examples,
        subject.axes,
        inputs=subject.inputs,
        outputs=stages if subject.images is None else (LOCAL_DESCRIPTORS, *stages),
        opset=options.opset,
        variadic=isinstance(subject.spec, HeadsSpec),
    )
    if subject.images is not None and not subject.images.fixed:  # for one size all shapes are constants already
        graph.fix_reshape(model, LOCAL_DESCRIPTORS, (0, -1, subject.spec.feature_size))
    graph.keep_outputs(model, subject.outputs)
    return graph.without_large(model)
