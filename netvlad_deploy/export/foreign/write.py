"""Write a foreign graph as an artifact: the file, its golden inputs and its sidecar."""

from pathlib import Path
from typing import Any, Final

from netvlad_deploy.artifact import FileReference, OnnxArtifact, stage_artifact
from netvlad_deploy.errors import ExportError
from netvlad_deploy.export import graph
from netvlad_deploy.export.audit import overflow_alone
from netvlad_deploy.export.fold_backbone import HALF_MAX
from netvlad_deploy.export.onnx_model import EXPORTERS, LARGEST_INSIDE, stage_reference
from netvlad_deploy.oracle.goldens import FP32, Golden, doubts, golden_arrays
from netvlad_deploy.spec.images import IMAGES, ImageInput
from netvlad_deploy.spec.layer import DESCRIPTOR, FEATURES, AggregatorSpec
from netvlad_deploy.support.files import stage_files
from netvlad_deploy.support.require import installed_version, require

PROVES: Final = "its golden inputs have the descriptors of {}: they prove what is made of it, not the file"


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
    if model.ByteSize() > LARGEST_INSIDE:
        raise ExportError(f"{target} would have {model.ByteSize()} bytes, expected at most {LARGEST_INSIDE}")
    require("onnx", extra="export").checker.check_model(model)
    source, dtype, prepared = FEATURES, "float32", "features as the file takes them"
    if images is not None:
        source, dtype, prepared = IMAGES, "uint8", f"RGB from 0 to 255, {images.preparation}; the graph normalises"
    with stage_files(force=False) as staging:
        artifact = OnnxArtifact(
            path=target,
            spec=spec,
            precision=precision,
            inputs=(source,),
            outputs=(DESCRIPTOR,),
            dtypes={source: dtype, DESCRIPTOR: "float32"},
            range=overflow_alone(HALF_MAX if images is None and precision != FP32 else None),
            warnings=(PROVES.format(parent.name), *warnings, *doubts(goldens, precision)),
            origin=parent.name,
            parent=parent,
            reference=stage_reference(staging, target, golden_arrays(goldens), spec),
            preprocessing=prepared,
            images=images,
            opset=next(each.version for each in model.opset_import if each.domain == ""),
            versions={name: installed_version(name) or "unknown" for name in EXPORTERS},
        )
        return stage_artifact(staging, artifact, graph.clean(graph.Graph(model, {}), artifact).parts())
