"""The verb `export`: a checkpoint, or a seeded module, to an ONNX artifact."""

from pathlib import Path

from netvlad_deploy.artifact import OnnxArtifact, reference_path, sidecar_path
from netvlad_deploy.spec.graph_options import GraphOptions
from netvlad_deploy.support.files import check_suffix, check_targets
from netvlad_deploy.support.require import require
from netvlad_deploy.workflow.source import Source, load_module


def export(source: Source, target: Path, options: GraphOptions, *, force: bool = False) -> OnnxArtifact:
    """Export a checkpoint, or a seeded module, to ONNX: image to descriptor where there is a backbone.

    The untrained module of a seed needs no checkpoint:

    >>> artifact = export(Source(num_clusters=2, feature_size=4, seed=1), Path("m.onnx"), GraphOptions(masked=True))
    >>> artifact.inputs, artifact.spec.descriptor_size
    (('features', 'mask'), 8)

    Raises: MissingDependencyError without torch, onnx or onnxscript, and UsageError or OutputError for a target that
        cannot be written, all before the checkpoint is read; InputError for an unusable checkpoint; ExportError.
    """
    check_targets(check_suffix(target, ".onnx"), sidecar_path(target), reference_path(target), force=force)
    for package in ("torch", "onnx", "onnxscript"):  # torch alone takes seconds to import
        require(package, extra="export")
    module, origin, parent, preprocessing = load_module(source)
    from netvlad_deploy.export.onnx_model import export_onnx

    return export_onnx(module, target, options, origin=origin, parent=parent, preprocessing=preprocessing, force=force)
