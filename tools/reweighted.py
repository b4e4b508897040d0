"""Another head's weights in an exported graph of its shape: the same file as an export, at a tenth of its time."""

from dataclasses import replace

import numpy as np
import onnx

from netvlad_deploy.artifact import OnnxArtifact, stage_artifact
from netvlad_deploy.export import onnx_model
from netvlad_deploy.export.audit import audit
from netvlad_deploy.export.fold_head import fold
from netvlad_deploy.export.onnx_model import export_onnx
from netvlad_deploy.models.netvlad import NetVLAD
from netvlad_deploy.oracle.reference_file import reference_arrays
from netvlad_deploy.spec.graph_options import GraphOptions
from netvlad_deploy.support.arrays import npz_content
from netvlad_deploy.support.files import stage_files


def reweighted(template: OnnxArtifact, module: NetVLAD, options: GraphOptions) -> OnnxArtifact:
    """Put another layer's weights into an exported graph of its shape, or export it where the graph lost a constant.

    Raises: FoldError, as an export would.
    """
    folded = fold(module, options)
    limits, findings = audit(folded)
    buffers = {name: tensor.numpy() for name, tensor in folded.named_buffers()}
    model = onnx.load(template.path)
    if buffers.keys() - {tensor.name for tensor in model.graph.initializer}:
        return export_onnx(module, template.path.with_name(f"own-{template.path.name}"), options, force=True)
    for tensor in model.graph.initializer:
        if tensor.name in buffers:
            tensor.raw_data = np.ascontiguousarray(buffers[tensor.name]).tobytes()
    artifact = replace(template, range=limits, warnings=findings)
    artifact.reference_path.write_bytes(
        npz_content(reference_arrays(onnx_model._reference_arrays(module), module.spec))
    )
    with stage_files(force=True) as staging:
        return stage_artifact(staging, artifact, model.SerializeToString(deterministic=True))
