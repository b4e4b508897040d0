"""The graph that torch makes of an unfolded module as it is, without fold and mean form: only for comparison."""

import copy
from pathlib import Path

import torch
from torch import nn

from netvlad_deploy.artifact import AnyArtifact, OnnxArtifact
from netvlad_deploy.errors import InputError
from netvlad_deploy.export import graph
from netvlad_deploy.export.fold_pipeline import fold_size
from netvlad_deploy.export.limit import write_like
from netvlad_deploy.export.onnx_model import BATCH_AXIS, PIPELINE_AXES, feature_inputs
from netvlad_deploy.spec.graph_options import GraphOptions
from netvlad_deploy.spec.images import CHANNELS, IMAGES
from netvlad_deploy.spec.layer import DESCRIPTOR, FEATURES, HeadsSpec, NetVLADSpec


def export_straight(module: nn.Module, like: AnyArtifact, target: Path, *, half: bool = False) -> OnnxArtifact:
    """Write the graph that torch makes of an unfolded module as it is, or with `half` of `module.half()`.

    The sidecar is that of the proper export `like`, with other inputs and outputs. After `module.half()` descriptors
    drift or are not finite.

    Raises: ExportError if torch refuses the module; InputError for several heads.
    """
    spec, images = like.spec, like.images
    if isinstance(spec, HeadsSpec):
        raise InputError(f"{like.path.name} has several heads, of which no straight export is made: export one")
    floats = "float16" if half else "float32"
    if images is not None:
        dtypes = {IMAGES: "uint8"}
        examples: tuple[torch.Tensor, ...] = (
            torch.zeros(2, *(images.size or fold_size(images)), CHANNELS, dtype=torch.uint8),
        )
        axes = BATCH_AXIS if images.fixed else PIPELINE_AXES
    else:
        dtypes = dict.fromkeys((FEATURES,) if isinstance(spec, NetVLADSpec) else spec.inputs, floats)
        examples, axes = feature_inputs(spec, dtypes)
    model = graph.trace(
        copy.deepcopy(module).half() if half else module,
        examples,
        axes,
        inputs=tuple(dtypes),
        outputs=(DESCRIPTOR,),
        opset=GraphOptions().opset,
    )
    parts = graph.without_large(model).parts()
    return write_like(like, target, parts, {**dtypes, DESCRIPTOR: floats}, precision="fp16" if half else "fp32")
