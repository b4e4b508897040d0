"""Write a foreign graph as an artifact: the file, its golden inputs and its sidecar."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from netvlad_deploy.artifact import FileReference, OnnxArtifact, reference_path, stage_artifact
from netvlad_deploy.errors import ExportError
from netvlad_deploy.export import graph
from netvlad_deploy.export.fold_backbone import HALF_MAX
from netvlad_deploy.export.onnx_model import EXPORTERS, LARGEST_INSIDE
from netvlad_deploy.oracle.goldens import FP32, Golden, doubts, golden_arrays
from netvlad_deploy.oracle.reference_file import reference_arrays
from netvlad_deploy.spec.graph_options import FeatureRange
from netvlad_deploy.spec.images import IMAGES, ImageInput
from netvlad_deploy.spec.layer import DESCRIPTOR, FEATURES, AggregatorSpec
from netvlad_deploy.support.arrays import write_npz
from netvlad_deploy.support.files import stage_files
from netvlad_deploy.support.require import installed_version, require


def write_foreign(
    model: Any,
    target: Path,
    spec: AggregatorSpec,
    goldens: tuple[Golden, ...],
    images: ImageInput | None,
    parent: FileReference,
    *,
    precision: str,
    warnings: tuple[str, ...] = (),
) -> OnnxArtifact:
    """Write `target`, its sidecar and the file of its golden inputs; return the artifact.

    Args:
        model: a ModelProto with the inputs and the output of an artifact.
        target: the ONNX file.
        spec: what is known of it.
        goldens: its golden inputs.
        images: the preparation of its images, None if it takes features.
        parent: the file that it comes from.
        precision: that of the graph.
        warnings: sentences for the sidecar.

    Raises: ExportError if ONNX's checker refuses the graph; UsageError or OutputError if a file cannot be written.
    """
    onnx = require("onnx", extra="export")
    if model.ByteSize() > LARGEST_INSIDE:
        raise ExportError(f"{target} would have {model.ByteSize()} bytes, expected at most {LARGEST_INSIDE}")
    onnx.checker.check_model(model)
    with stage_files(force=False) as staging:
        path = reference_path(target)
        with staging.open(path) as stream:
            write_npz(stream, reference_arrays(golden_arrays(goldens), spec))
        reference = FileReference(name=path.name, sha256=staging.sha256(path))
        opset = next(each.version for each in model.opset_import if each.domain == "")
        artifact = _record(target, spec, images, parent, reference, precision)
        warnings = (*artifact.warnings, *warnings, *doubts(goldens, precision))
        artifact = replace(artifact, opset=opset, warnings=warnings)
        written = graph.Graph(model, {})
        graph.clean(written, artifact)
        return stage_artifact(staging, artifact, written.parts())


def _record(
    target: Path,
    spec: AggregatorSpec,
    images: ImageInput | None,
    parent: FileReference,
    reference: FileReference,
    precision: str,
) -> OnnxArtifact:
    source, dtype = (FEATURES, "float32") if images is None else (IMAGES, "uint8")
    said = f"its golden inputs have the descriptors of {parent.name}: they prove what is made of it, not the file"
    largest = HALF_MAX if images is None and precision != FP32 else None
    return OnnxArtifact(
        path=target,
        spec=spec,
        precision=precision,
        inputs=(source,),
        outputs=(DESCRIPTOR,),
        dtypes={source: dtype, DESCRIPTOR: "float32"},
        range=FeatureRange(norm=1.0, largest=largest, logit_slope=0.0, logit_step=0.0),
        warnings=(said,),
        origin=parent.name,
        parent=parent,
        reference=reference,
        preprocessing="features as the file takes them"
        if images is None
        else f"RGB from 0 to 255, {images.preparation}; the graph normalises",
        images=images,
        opset=0,
        versions={name: installed_version(name) or "unknown" for name in EXPORTERS},
    )
