"""A small image pipeline as an artifact, made without torch, and what it must compute."""

from pathlib import Path

import numpy as np
import onnx

from netvlad_deploy.artifact import FileReference, OnnxArtifact, stage_artifact
from netvlad_deploy.spec.graph_options import FeatureRange
from netvlad_deploy.spec.images import IMAGES, ImageInput, Resize
from netvlad_deploy.spec.layer import DESCRIPTOR, NetVLADSpec
from netvlad_deploy.support.arrays import Array, Float64
from netvlad_deploy.support.files import stage_files

BANDS = 4
"""The descriptor is the mean of each channel in each of this many bands of height, less the mean grey, normalised."""


def band_pipeline(path: Path, resize: Resize | None = None, *, convolutions: int = 0) -> OnnxArtifact:
    """Write an artifact that pools colours by band; convolutions that change nothing make it slow."""
    node, tensor = onnx.helper.make_node, onnx.helper.make_tensor_value_info
    constants = {"grey": np.float32(127), "sizes": np.array([1, 1, BANDS, 1], np.int64)}
    nodes = [
        node("Cast", [IMAGES], ["float"], to=onnx.TensorProto.FLOAT),
        node("Sub", ["float", "grey"], ["centred"]),
        node("Transpose", ["centred"], ["x0"], perm=[0, 3, 1, 2]),
    ]
    width = 3
    for index in range(convolutions):  # (B,3,H,W) -> (B,64,H,W) -> ... the first three channels stay
        kernel = np.zeros((64, width, 3, 3), np.float32)
        kernel[range(3), range(3), 1, 1] = 1
        constants[f"w{index}"] = kernel
        nodes.append(node("Conv", [f"x{index}", f"w{index}"], [f"x{index + 1}"], pads=[1, 1, 1, 1]))
        width = 64
    nodes += [
        node("Split", [f"x{convolutions}"], [f"band{i}" for i in range(BANDS)], axis=2, num_outputs=BANDS),
        *(node("ReduceMean", [f"band{i}", "axes"], [f"mean{i}"], keepdims=0) for i in range(BANDS)),
        node("Concat", [f"mean{i}" for i in range(BANDS)], ["all"], axis=1),
        node("LpNormalization", ["all"], [DESCRIPTOR], axis=1, p=2),
    ]
    constants["axes"] = np.array([2, 3], np.int64)
    graph = onnx.helper.make_graph(
        nodes,
        "bands",
        [tensor(IMAGES, onnx.TensorProto.UINT8, ["batch", "height", "width", 3])],
        [tensor(DESCRIPTOR, onnx.TensorProto.FLOAT, ["batch", BANDS * width])],
        [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    artifact = OnnxArtifact(
        path=path,
        spec=NetVLADSpec(num_clusters=BANDS, feature_size=width),
        precision="fp32",
        inputs=(IMAGES,),
        outputs=(DESCRIPTOR,),
        dtypes={IMAGES: "uint8", DESCRIPTOR: "float32"},
        range=FeatureRange(norm=1, largest=None, logit_slope=2, logit_step=2.0**-22),
        origin="bands of colour",
        parent=None,
        reference=FileReference(name="none", sha256=""),
        preprocessing="none",
        images=ImageInput(resize=resize or Resize()),
        opset=18,
    )
    with stage_files(force=True) as staging:
        return stage_artifact(staging, artifact, model.SerializeToString())


def bands(image: Array) -> Float64:
    """Return the right result of `band_pipeline` for an image (H,W,3) in float64; H is a multiple of the bands."""
    means: Float64 = (image.astype(np.float64) - 127).reshape(BANDS, -1, 3).mean(axis=1).ravel()
    means /= np.linalg.norm(means)
    return means
