"""Run an FP16 graph on a CPU as a strongly typed engine would: every tensor rounded to its own type.

ONNX Runtime's CPU provider computes FP16 nodes in FP32 and drops the casts between them, so it shows no FP16 error.
Here each node that reads FP16 is computed in FP32 between two casts, with all optimisations off: far faster than
`onnx.reference.ReferenceEvaluator`, with the same result but for the order of FP32 sums and the bias of Conv and Gemm.
A GPU may accumulate a matrix product in less than FP32; that shows only on the GPU.
"""

from typing import Any

from netvlad_deploy.errors import RunError
from netvlad_deploy.runtime.onnxruntime_runner import OnnxRuntimeRunner
from netvlad_deploy.support.require import require


class StrictRunner(OnnxRuntimeRunner):
    """Run an ONNX artifact on the CPU with every tensor rounded to its type; not for timing."""

    OPTIMIZED = False

    def _content(self, content: bytes) -> bytes:
        strict: bytes = strict_model(self._model(content)).SerializeToString()
        return strict


def strict_model(model: Any) -> Any:
    """Change a model, its shapes inferred, to compute every node that reads FP16 in FP32 and round at once; return it.

    A cast rounds as it is told and stays as it is.

    Raises: RunError if a node holds a graph of its own, whose tensors would not be rounded.
    """
    onnx = require("onnx", extra="strict")
    half = _half_tensors(model.graph, onnx.TensorProto.FLOAT16)
    nodes = []
    for index, original in enumerate(model.graph.node):
        node = onnx.NodeProto.FromString(original.SerializeToString())
        if any(attribute.type in (attribute.GRAPH, attribute.GRAPHS) for attribute in node.attribute):
            raise RunError(
                f"{node.op_type} {node.name} holds a graph of its own, which cannot be rounded tensor by tensor"
            )
        before, after = [], []
        if node.op_type != "Cast" and half & set(node.input):
            for position, name in enumerate(node.input):
                if name in half:
                    node.input[position] = f"{name}/fp32/{index}/{position}"
                    before.append(
                        onnx.helper.make_node("Cast", [name], [node.input[position]], to=onnx.TensorProto.FLOAT)
                    )
            for position, name in enumerate(node.output):
                if name in half:
                    node.output[position] = f"{name}/exact"
                    after.append(
                        onnx.helper.make_node("Cast", [node.output[position]], [name], to=onnx.TensorProto.FLOAT16)
                    )
        nodes += [*before, node, *after]
    del model.graph.node[:], model.graph.value_info[:]
    model.graph.node.extend(nodes)
    return model


def _half_tensors(graph: Any, float16: int) -> set[str]:
    values = (*graph.input, *graph.output, *graph.value_info)
    typed = {value.name for value in values if value.type.tensor_type.elem_type == float16}
    return typed | {tensor.name for tensor in graph.initializer if tensor.data_type == float16}
