"""The limit of an artifact: what no export can leave out, alone in a graph that is only measured.

For a NetVLAD that is its two matrix products, for a pipeline its backbone.
"""

from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from pathlib import Path

import numpy as np

from netvlad_deploy.artifact import AnyArtifact, Artifact, OnnxArtifact, stage_artifact
from netvlad_deploy.errors import InputError
from netvlad_deploy.spec.graph_options import GraphOptions
from netvlad_deploy.spec.images import IMAGES, LOCAL_DESCRIPTORS
from netvlad_deploy.spec.layer import DESCRIPTOR, FEATURES, NetVLADSpec
from netvlad_deploy.spec.layouts import UINT8
from netvlad_deploy.support.files import stage_files
from netvlad_deploy.support.require import require

FLOAT = "float32"


def export_limit(like: AnyArtifact, target: Path) -> OnnxArtifact:
    """Write the limit of an artifact: for a NetVLAD its two matrix products in FP32, for a pipeline its backbone.

    Raises: InputError if the artifact has neither.
    """
    if like.images is None and isinstance(like.spec, NetVLADSpec):
        content = products_model(like.spec.feature_size, like.spec.num_clusters, like.spec.num_ghost_clusters)
        return write_like(like, target, [content], {FEATURES: FLOAT, DESCRIPTOR: FLOAT}, precision="fp32")
    if like.images is None or not isinstance(like, OnnxArtifact) or like.external_data is not None:
        raise InputError(
            f"{like.path.name} has no known limit: that is of one NetVLAD, or an ONNX file of a pipeline up to 2 GB"
        )
    onnx = require("onnx", extra="strict")
    model = onnx.shape_inference.infer_shapes(onnx.load_from_string(like.content()), strict_mode=True)
    found = [value for value in model.graph.value_info if value.name == LOCAL_DESCRIPTORS]
    if not found:
        raise InputError(f"{like.path.name} has no local descriptors inside, where its backbone would end")
    del model.graph.output[:]
    model.graph.output.extend(found)  # whoever runs it computes nothing that no output needs
    kind = onnx.helper.tensor_dtype_to_np_dtype(found[0].type.tensor_type.elem_type).name
    dtypes = {like.inputs[0]: like.dtypes[like.inputs[0]], LOCAL_DESCRIPTORS: kind}
    return write_like(like, target, [model.SerializeToString()], dtypes, precision=like.precision)


def products_model(width: int, clusters: int, ghosts: int) -> bytes:
    """Return a graph of the layer's two matrix products alone, features (B,N,D) to (B,M,D).

    The layer multiplies with K+G columns, then with K of them. Both products here have M = K + G/2, which is as much
    work in all, without an operator between them that cuts the G columns off.
    """
    onnx = require("onnx", extra="strict")
    columns = clusters + ghosts // 2
    weight = np.full((width, columns), 1 / width, np.float32)
    tensor = onnx.helper.make_tensor_value_info
    single = onnx.TensorProto.FLOAT
    nodes = [
        onnx.helper.make_node("MatMul", [FEATURES, "weight"], ["logits"]),
        onnx.helper.make_node("Transpose", ["logits"], ["assignment"], perm=[0, 2, 1]),
        onnx.helper.make_node("MatMul", ["assignment", FEATURES], [DESCRIPTOR]),
    ]
    model = onnx.helper.make_model(
        onnx.helper.make_graph(
            nodes,
            "products",
            [tensor(FEATURES, single, ["batch", "num_features", width])],
            [tensor(DESCRIPTOR, single, ["batch", columns, width])],
            [onnx.numpy_helper.from_array(weight, "weight")],
        ),
        opset_imports=[onnx.helper.make_opsetid("", GraphOptions().opset)],
        ir_version=10,
    )
    content: bytes = model.SerializeToString()
    return content


def write_like(
    like: AnyArtifact,
    target: Path,
    parts: Iterable[bytes | memoryview],
    dtypes: Mapping[str, str],
    *,
    precision: str,
) -> OnnxArtifact:
    """Write a graph with the sidecar of another artifact of the same weights, and return its artifact.

    `dtypes` has the dtype of each input of the graph, and at its end that of its one output.
    """
    *inputs, output = dtypes
    same = {field.name: getattr(like, field.name) for field in fields(Artifact)}
    same |= {"path": target, "inputs": tuple(inputs), "outputs": (output,), "dtypes": dict(dtypes)}
    same["precision"] = precision
    if like.images is not None and dtypes.get(IMAGES) == UINT8:
        same["images"] = replace(like.images, layout=UINT8)
    with stage_files(force=False) as staging:
        return stage_artifact(staging, OnnxArtifact(**same, opset=GraphOptions().opset), parts)
