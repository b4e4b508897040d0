"""The emulator against ONNX's own reference implementation, one node at a time and on whole graphs.

Node by node, because one sum added in another order may round to the neighbouring FP16 number, and every later tensor
then differs: what an order of summation allows is known for each node alone.
"""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from netvlad_deploy.artifact import OnnxArtifact
from netvlad_deploy.errors import RunError, UsageError
from netvlad_deploy.export.onnx_model import export_onnx
from netvlad_deploy.models.netvlad import NetVLAD
from netvlad_deploy.runtime.onnxruntime_runner import OnnxRuntimeRunner
from netvlad_deploy.runtime.open_runner import open_runner, parity_backend
from netvlad_deploy.runtime.strict_runner import StrictRunner, strict_model
from netvlad_deploy.spec.graph_options import GraphOptions
from netvlad_deploy.spec.layer import (
    ASSIGNMENT_LOGITS,
    DESCRIPTOR,
    FEATURES,
    MASK,
    MEAN_RESIDUAL,
    RESIDUAL_SUM,
    SOFT_ASSIGNMENT,
)
from netvlad_deploy.support.arrays import Array, Arrays
from tests.modules import features
from tests.test_artifact import engine_artifact

pytestmark = [pytest.mark.export, pytest.mark.ort]

GRAPHS = {
    "plain": GraphOptions(precision="fp16"),
    "masked": GraphOptions(precision="fp16", masked=True),
    "probe": GraphOptions(precision="fp16", probe=True, output_dtype="float16"),
    "wide logits": GraphOptions(precision="fp16", wide_logits=True),
    "float32 input": GraphOptions(precision="fp16", input_dtype="float32"),
}
SCALES = (1e-4, 1.0, 100.0, 6.5e4)
SUMS = frozenset(("AveragePool", "Conv", "Gemm", "GlobalAveragePool", "MatMul", "ReduceSum"))
TERMS = 32
"""At least as many as any sum of these graphs has."""


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory, module: NetVLAD) -> dict[str, OnnxArtifact]:
    folder = tmp_path_factory.mktemp("strict")
    return {name: export_onnx(module, folder / f"{name}.onnx", options) for name, options in GRAPHS.items()}


def feeds_of(artifact: OnnxArtifact, scale: float) -> Arrays:
    x = features(3, 7, 16, scale=scale)
    x = np.clip(x, -65440, 65440).astype(artifact.dtypes[FEATURES])
    mask = np.arange(7) < np.array([7, 3, 0])[:, None]
    return {FEATURES: x, MASK: mask} if MASK in artifact.inputs else {FEATURES: x}


def strict_tensors(model: Any, feeds: Arrays) -> Arrays:
    """Return every tensor of a model: those given, its constants, and the intermediate ones of strict rounding."""
    model = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    computed = {name for node in model.graph.node for name in node.output}
    model.graph.output.extend([value for value in model.graph.value_info if value.name in computed])
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    content = strict_model(model).SerializeToString()
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    return {**constants, **feeds, **dict(zip(names, session.run(names, feeds), strict=True))}


def evaluate(node: Any, inputs: Iterable[Array]) -> Array:
    with np.errstate(all="ignore"):
        [value] = ReferenceEvaluator(node).run(None, dict(zip(node.input, inputs, strict=True)))
    return np.asarray(value)


def widened(array: Array) -> Array:
    return array.astype(np.float32) if array.dtype == np.float16 else array


def allowed(node: Any, inputs: list[Array], got: Array, expected: Array) -> Array:
    """Return the largest distance of two right results: 0, but for exponentials and the order of FP32 sums."""
    if node.op_type == "Exp":
        return np.abs(expected) * 2.0**-20 + 2.0**-126
    if node.op_type not in SUMS:
        return np.zeros(expected.shape)
    sizes = evaluate(node, [np.abs(widened(array)) if array.dtype.kind == "f" else array for array in inputs])
    order = sizes * (TERMS * 2.0**-24)
    if expected.dtype != np.float16:
        return order
    return np.asarray(order + np.spacing(np.maximum(np.abs(got), np.abs(expected))).astype(np.float64))


def assert_every_node_rounds_once(nodes: Iterable[Any], tensors: Arrays, *, widen: bool = False) -> None:
    """Compare each tensor with the reference implementation's, which starts from the same inputs of the node."""
    equal = []
    for node in nodes:
        inputs = [tensors[name] for name in node.input]
        got = tensors[node.output[0]]
        expected = evaluate(node, map(widened, inputs) if widen else inputs)
        expected = expected.astype(got.dtype) if widen else expected
        assert got.dtype == expected.dtype, node.name
        assert not np.isnan(got).any(), node.name
        with np.errstate(invalid="ignore"):
            close = np.abs(got.astype(np.float64) - expected) <= allowed(node, inputs, got, expected)
        assert (close | (got == expected)).all(), node.name
        if got.dtype == np.float16:
            equal.append(np.ravel(got == expected))
    assert np.concatenate(equal).mean() > 0.98


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", GRAPHS)
def test_every_node_of_an_exported_graph_is_the_reference_s(
    artifacts: dict[str, OnnxArtifact], name: str, scale: float
) -> None:
    model, feeds = onnx.load(artifacts[name].path), feeds_of(artifacts[name], scale)
    tensors = strict_tensors(model, feeds)
    assert_every_node_rounds_once(model.graph.node, tensors)
    with StrictRunner(artifacts[name]) as runner:
        for output, got in runner.run(feeds).items():
            assert np.array_equal(got, tensors[output]), output
            assert got.dtype == artifacts[name].dtypes[output]


@pytest.mark.parametrize("scale", SCALES)
def test_the_logits_of_a_whole_graph_are_the_reference_s(artifacts: dict[str, OnnxArtifact], scale: float) -> None:
    feeds = feeds_of(artifacts["probe"], scale)
    with StrictRunner(artifacts["probe"]).tapped() as strict, OnnxRuntimeRunner(artifacts["probe"]).tapped() as plain:
        got, unrounded = (runner.run(feeds)[ASSIGNMENT_LOGITS] for runner in (strict, plain))
    model = onnx.load(artifacts["probe"].path)
    model.graph.output.append(helper.make_tensor_value_info(ASSIGNMENT_LOGITS, TensorProto.FLOAT, None))
    with np.errstate(divide="ignore"):
        [expected] = ReferenceEvaluator(model).run([ASSIGNMENT_LOGITS], feeds)
    assert np.mean(got == expected) > 0.98
    assert np.mean(unrounded == expected) < 0.5


def convolutions() -> Any:
    """Return a small backbone: x (1,3,9,9) to y (1,5), all in FP16."""
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["conv1"], "conv1", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["conv1"], ["relu1"], "relu1"),
        helper.make_node("MaxPool", ["relu1"], ["pool1"], "pool1", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Conv", ["pool1", "w2", "b2"], ["conv2"], "conv2", pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["conv2", "pool1"], ["add"], "add"),
        helper.make_node("AveragePool", ["add"], ["pool2"], "pool2", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("GlobalAveragePool", ["pool2"], ["pooled"], "pooled"),
        helper.make_node("Flatten", ["pooled"], ["flat"], "flat"),
        helper.make_node("Gemm", ["flat", "w3", "b3"], ["y"], "gemm", transB=1),
    ]
    shapes = {"w1": (3, 3, 3, 3), "b1": (3,), "w2": (3, 3, 3, 3), "b2": (3,), "w3": (5, 3), "b3": (5,)}
    return half_model(nodes, {"x": (1, 3, 9, 9)}, {"y": (1, 5)}, shapes)


def half_model(nodes: list[Any], inputs: dict[str, Any], outputs: dict[str, Any], constants: dict[str, Any]) -> Any:
    """Return a model of FP16 tensors of these shapes, its constants gaussian."""
    given, wanted = (
        [helper.make_tensor_value_info(name, TensorProto.FLOAT16, shape) for name, shape in values.items()]
        for values in (inputs, outputs)
    )
    weights = [
        numpy_helper.from_array(features(*shape, seed=seed).astype(np.float16), name)
        for seed, (name, shape) in enumerate(constants.items())
    ]
    graph = helper.make_graph(nodes, "half", given, wanted, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


@pytest.mark.parametrize("scale", [1e-3, 1, 300])
def test_every_node_of_a_convolutional_graph_is_rounded_once(scale: float) -> None:
    # ONNX's reference adds the biases of Conv and Gemm after rounding to FP16: here it computes in FP32 instead.
    model = convolutions()
    tensors = strict_tensors(model, {"x": features(1, 3, 9, 9, scale=scale).astype(np.float16)})
    assert {tensor.dtype.name for tensor in tensors.values()} == {"float16"}
    assert_every_node_rounds_once(model.graph.node, tensors, widen=True)


def product_minus_first(x: list[float]) -> float:
    """Return x . (1, 1) - x[0], the product rounded to FP16 before the difference."""
    nodes = [helper.make_node("MatMul", ["x", "ones"], ["sum"]), helper.make_node("Sub", ["sum", "first"], ["y"])]
    model = half_model(nodes, {"x": (1, 2), "ones": (2, 1), "first": (1, 1)}, {"y": (1, 1)}, {})
    row = np.array([x], np.float16)
    return float(strict_tensors(model, {"x": row, "ones": np.ones((2, 1), np.float16), "first": row[:, :1]})["y"][0, 0])


def test_a_tensor_between_two_nodes_is_rounded() -> None:
    assert product_minus_first([1, 2**-11]) == 0
    assert product_minus_first([1, 2**-10]) == 2**-10
    assert product_minus_first([60000, 6000]) == np.inf


def test_fp16_shows_on_strict_alone(artifacts: dict[str, OnnxArtifact]) -> None:
    feeds = feeds_of(artifacts["plain"], 1.0)
    with open_runner(artifacts["plain"], backend="strict") as strict, open_runner(artifacts["plain"]) as plain:
        difference = np.abs(strict.run(feeds)[DESCRIPTOR] - plain.run(feeds)[DESCRIPTOR])
    assert 1e-5 < difference.max() < 1e-2


@pytest.mark.parametrize("scale", SCALES)
def test_an_fp32_graph_is_the_same_on_strict(exported: OnnxArtifact, scale: float) -> None:
    feeds = feeds_of(exported, scale)
    with open_runner(exported, backend="strict") as strict, open_runner(exported) as plain:
        assert np.abs(strict.run(feeds)[DESCRIPTOR] - plain.run(feeds)[DESCRIPTOR]).max() < 1e-6


def test_a_node_that_holds_a_graph_is_refused_by_name() -> None:
    same = helper.make_tensor_value_info("same", TensorProto.FLOAT16, [1])
    branch = helper.make_graph([helper.make_node("Identity", ["x"], ["same"])], "branch", [], [same])
    nodes = [
        helper.make_node("Cast", ["x"], ["condition"], to=TensorProto.BOOL),
        helper.make_node("If", ["condition"], ["y"], "choose", then_branch=branch, else_branch=branch),
    ]
    model = half_model(nodes, {"x": (1,)}, {"y": (1,)}, {})
    with pytest.raises(RunError, match="If choose holds a graph of its own"):
        strict_model(model)


@pytest.mark.parametrize("runner", [StrictRunner, OnnxRuntimeRunner])
@pytest.mark.parametrize("name", ["plain", "probe"])
def test_a_tapped_runner_gives_the_stages(
    artifacts: dict[str, OnnxArtifact], runner: type[OnnxRuntimeRunner], name: str
) -> None:
    feeds = feeds_of(artifacts[name], 1.0)
    with runner(artifacts[name], threads=1) as untapped, untapped.tapped() as tapped:
        assert type(tapped) is runner
        stages, outputs = tapped.run(feeds), untapped.run(feeds)
    residual_sum = {RESIDUAL_SUM: (3, 6, 16)} if name == "probe" else {}
    assert {stage: array.shape for stage, array in stages.items()} == {
        ASSIGNMENT_LOGITS: (3, 7, 8),
        SOFT_ASSIGNMENT: (3, 7, 6),
        MEAN_RESIDUAL: (3, 6, 16),
        DESCRIPTOR: (3, 96),
        **residual_sum,
    }
    assert set(outputs) == set(GRAPHS[name].outputs)
    if runner is StrictRunner:
        assert all(np.array_equal(array, stages[output]) for output, array in outputs.items())


@pytest.mark.parametrize("as_path", [True, False])
def test_strict_is_opened_by_name(artifacts: dict[str, OnnxArtifact], as_path: bool) -> None:
    artifact = artifacts["wide logits"]
    with open_runner(artifact.path if as_path else artifact, backend="strict", threads=1) as runner:
        assert type(runner) is StrictRunner
        assert (runner.dtype.name, runner.half, runner.largest_feature) == ("float16", True, 65440)
    with open_runner(artifact) as runner:
        assert type(runner) is OnnxRuntimeRunner


def test_strict_runs_no_checkpoint(exported: OnnxArtifact, checkpoint: Path) -> None:
    for path in (checkpoint, exported.reference_path):
        with pytest.raises(UsageError, match="cannot run on strict: choose torch or oracle"):
            open_runner(path, backend="strict")


def test_strict_runs_no_engine() -> None:
    with pytest.raises(UsageError, match="cannot run on strict: leave --backend out for tensorrt"):
        open_runner(engine_artifact(Path("m.engine")), backend="strict")


@pytest.mark.parametrize("name", GRAPHS)
def test_parity_of_an_fp16_graph_is_strict(artifacts: dict[str, OnnxArtifact], name: str) -> None:
    assert parity_backend(artifacts[name]) == "strict"


def test_parity_of_anything_else_is_its_own(exported: OnnxArtifact) -> None:
    assert parity_backend(exported) is None
    assert parity_backend(replace(engine_artifact(Path("m.engine")), precision="fp16")) is None
