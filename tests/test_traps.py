"""Every known numeric trap, planted in a real export, and the check of the product that catches it.

Each test also shows that the same weights without the fault pass, so it is the fault that is caught.
"""

import copy
import math
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from netvlad_deploy import workflow
from netvlad_deploy.artifact import Kernel, OnnxArtifact
from netvlad_deploy.errors import BuildError, ExportError, UsageError
from netvlad_deploy.export import onnx_model
from netvlad_deploy.export.engine import build_engine, check_types
from netvlad_deploy.export.fold import FoldedNetVLAD, fold
from netvlad_deploy.export.onnx_model import FORBIDDEN_OPS, export_onnx
from netvlad_deploy.measurement.candidate import open_runner
from netvlad_deploy.measurement.cases import Case, default_cases
from netvlad_deploy.measurement.localise import Departure
from netvlad_deploy.measurement.parity import OutputParity, ParityReport, compare
from netvlad_deploy.models.netvlad import NetVLAD
from netvlad_deploy.oracle import assignment_logits, load_reference, soft_assignment
from netvlad_deploy.runtime.trt_api import TensorRT, open_tensorrt
from netvlad_deploy.spec import DESCRIPTOR, FEATURES, NORM_FLOOR, AxisRange, GraphOptions, Profile, Verdict
from tests.heads import sharp_head
from tests.modules import make_module

pytestmark = [pytest.mark.export, pytest.mark.ort]
rtx = pytest.mark.rtx

SINGLE, HALF = GraphOptions(), GraphOptions(precision="fp16")
WIDE = GraphOptions(precision="fp16", wide_logits=True, masked=True, probe=True)
NEWEST = onnx.defs.onnx_opset_version()
SMALL = Profile(batch=AxisRange(min=1, opt=2, max=4), num_features=AxisRange(min=1, opt=10, max=20))
MIB = 2**20
SIZE = 256
"""D*K of the heads below."""


def sharp() -> NetVLAD:
    return sharp_head(8, 32, 2, 30, 0)


def sharp_near_the_origin() -> NetVLAD:
    """Return the sharp head with centroids so short that their residuals are as short as the features."""
    module = sharp()
    module.clusters2.data *= 1e-4
    return module


Head = Callable[[], NetVLAD]
Fault = Callable[..., Tensor | tuple[Tensor, ...]]
Plant = Callable[..., OnnxArtifact]


class Sound(NamedTuple):
    artifact: OnnxArtifact
    report: ParityReport


SoundExport = Callable[[Head, GraphOptions], Sound]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> SoundExport:
    """Return a function that exports a head without a fault and validates it, once."""

    @cache
    def export(head: Head, options: GraphOptions) -> Sound:
        artifact = export_onnx(head(), tmp_path_factory.mktemp("sound") / "m.onnx", options)
        return Sound(artifact, workflow.validate(artifact.path))

    return export


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plant:
    """Return a function that exports a head with one method of the folded layer replaced, during the export alone."""

    def export(method: str, fault: Fault, head: Head = sharp, options: GraphOptions = HALF) -> OnnxArtifact:
        with monkeypatch.context() as patch:
            patch.setattr(FoldedNetVLAD, method, fault)
            return export_onnx(head(), tmp_path / "m.onnx", options)

    return export


def failure(artifact: OnnxArtifact) -> tuple[ParityReport, Departure]:
    report = workflow.validate(artifact.path)
    assert report.verdict is Verdict.FAIL
    assert report.departure is not None
    return report, report.departure


def outcome(report: ParityReport, case: str) -> OutputParity:
    """Return how the descriptor of one case differs."""
    [found] = [output for entry in report.cases if entry.name == case for output in entry.outputs]
    assert found.output == DESCRIPTOR
    return found


def case_of(artifact: OnnxArtifact, name: str) -> Case:
    cases = default_cases(load_reference(artifact.reference_path), largest=artifact.range.largest)
    [found] = [case for case in cases if case.name == name]
    return found.rounded(artifact.dtypes[FEATURES])


def departure_in(artifact: OnnxArtifact, name: str) -> Departure:
    """Return the first departure in one case alone."""
    with open_runner(artifact, backend="strict") as runner:
        report = compare(runner, load_reference(artifact.reference_path), cases=[case_of(artifact, name)])
    assert report.departure is not None
    return report.departure


def graph_of(artifact: OnnxArtifact) -> Any:
    return onnx.load(artifact.path).graph


def operators(artifact: OnnxArtifact) -> Counter[str]:
    return Counter(node.op_type for node in graph_of(artifact).node)


def norms(vectors: Tensor) -> Tensor:
    return (vectors * vectors).sum(-1, keepdim=True).sqrt()


def scaled_once(folded: FoldedNetVLAD, mean_residual: Tensor, norm: Tensor, divisor: Tensor) -> Tensor:
    """Return the descriptor from norms and divisors (B,K,1), as the layer computes it."""
    ratio = norm / divisor
    global_norm = torch.maximum((ratio * ratio).sum(1, keepdim=True).sqrt(), folded.norm_floor)
    return (mean_residual / (divisor * global_norm)).transpose(1, 2).flatten(1)


def floor_in_fp16(folded: FoldedNetVLAD, mean_residual: Tensor, assignment_sum: Tensor) -> Tensor:
    norm, floor = norms(mean_residual), folded.norm_floor.half() / assignment_sum.half()
    return scaled_once(folded, mean_residual, norm, torch.maximum(norm, floor.float()))


def test_trap_a_a_norm_floor_in_fp16_is_zero(planted: Plant, sound: SoundExport) -> None:
    assert torch.tensor(NORM_FLOOR).half() == 0
    report, departure = failure(planted("_normalize", floor_in_fp16))
    assert (departure.tensor, departure.error) == ("descriptor", math.inf)
    assert outcome(report, "empty clusters").non_finite == 2 * SIZE
    assert sound(sharp, HALF).report.verdict is Verdict.PASS


def squares_in_fp16(folded: FoldedNetVLAD, mean_residual: Tensor, assignment_sum: Tensor) -> Tensor:
    norm = norms(mean_residual.half()).float()
    return scaled_once(folded, mean_residual, norm, torch.maximum(norm, folded.norm_floor / assignment_sum))


def test_trap_b_squares_in_fp16_overflow(planted: Plant, sound: SoundExport) -> None:
    report, departure = failure(planted("_normalize", squares_in_fp16))
    assert (departure.tensor, departure.case) == ("descriptor", "L2-normalised x 10000")
    assert outcome(report, "L2-normalised x 10000").non_finite == 2 * SIZE
    assert outcome(report, "L2-normalised x 100").verdict is Verdict.PASS
    assert sound(sharp, HALF).report.verdict is Verdict.PASS


def test_trap_b_squares_in_fp16_vanish(planted: Plant, sound: SoundExport) -> None:
    report, departure = failure(planted("_normalize", squares_in_fp16, sharp_near_the_origin))
    assert (departure.tensor, departure.case) == ("descriptor", "L2-normalised x 0.0001")
    small = outcome(report, "L2-normalised x 0.0001")
    assert small.non_finite == 0
    assert small.norm_error > 1
    assert sound(sharp_near_the_origin, HALF).report.verdict is Verdict.PASS


def twice_normalised(folded: FoldedNetVLAD, residual_sum: Tensor) -> Tensor:
    """Return the descriptor with both norms computed and clamped in FP32, one after the other."""
    intra = residual_sum / torch.maximum(norms(residual_sum), folded.norm_floor)
    flat = intra.transpose(1, 2).flatten(1)
    return flat / torch.maximum(norms(flat), folded.norm_floor)


def without_mean_form(*, half_assignment: bool, half_product: bool) -> Fault:
    """Return a forward pass that sums residuals with the assignments themselves, in FP16 where it is told."""

    def forward(folded: FoldedNetVLAD, features: Tensor, mask: Tensor | None = None) -> tuple[Tensor, ...]:
        narrow = features.half()
        logits = folded._logits(features, narrow)
        assignment = folded._soft_assignment(logits, mask)
        narrow_assignment = assignment.half()
        if half_assignment:
            assignment = narrow_assignment.float()
        if half_product:
            product = (narrow_assignment.transpose(1, 2) @ narrow).float()
        else:
            product = assignment.transpose(1, 2) @ narrow.float()
        total = assignment.sum(1, keepdim=True).transpose(1, 2)
        residual_sum = product - total * folded.centroids
        mean_residual = residual_sum / torch.maximum(total, folded.assignment_floor)
        return logits, assignment, mean_residual, residual_sum, twice_normalised(folded, residual_sum)

    return forward


def test_trap_c_assignments_in_fp16_without_the_mean_form_are_flushed(planted: Plant, sound: SoundExport) -> None:
    artifact = planted("forward", without_mean_form(half_assignment=True, half_product=False))
    report, departure = failure(artifact)
    assert (departure.tensor, departure.case) == ("soft_assignment", "few features")
    few = outcome(report, "few features")
    assert few.non_finite == 0
    assert few.cosine_min is not None
    assert few.cosine_min < 0.75
    parameters = load_reference(artifact.reference_path)
    logits = assignment_logits(parameters, case_of(artifact, "few features").features)
    largest = soft_assignment(logits, artifact.spec.num_clusters).max(axis=1)
    flushed = ((largest > 1e-12) & (largest < 2.0**-25)).any(axis=0)
    assert flushed.sum() >= 4
    assert (np.array(few.cluster_errors)[flushed] > 0.1).all()
    assert sound(sharp, HALF).report.verdict is Verdict.PASS


def test_trap_c_is_the_rounding_and_not_the_missing_mean_form(planted: Plant) -> None:
    artifact = planted("forward", without_mean_form(half_assignment=False, half_product=False))
    assert workflow.validate(artifact.path).verdict is Verdict.PASS


def test_trap_d_a_product_in_fp16_without_the_mean_form_overflows(planted: Plant, sound: SoundExport) -> None:
    largest = "largest values, 65440"
    artifact = planted("forward", without_mean_form(half_assignment=False, half_product=True))
    report, _ = failure(artifact)
    assert outcome(report, largest).non_finite == 2 * SIZE
    departure = departure_in(artifact, largest)
    assert (departure.tensor, departure.error) == ("residual_sum", math.inf)
    assert sound(sharp, HALF).report.verdict is Verdict.PASS
    assert outcome(sound(sharp, HALF).report, largest).verdict is Verdict.PASS


def added_epsilon(_: FoldedNetVLAD, mean_residual: Tensor, assignment_sum: Tensor) -> Tensor:
    residual_sum = mean_residual * assignment_sum
    flat = (residual_sum / (norms(residual_sum) + 1e-12)).transpose(1, 2).flatten(1)
    return flat / (norms(flat) + 1e-12)


def floors(artifact: OnnxArtifact) -> list[float]:
    """Return the constants of a graph that are as small as the floor of a norm."""
    graph = graph_of(artifact)
    tensors = [*graph.initializer, *(a.t for node in graph.node if node.op_type == "Constant" for a in node.attribute)]
    constants = [np.ravel(onnx.numpy_helper.to_array(tensor)) for tensor in tensors]
    return [float(value[0]) for value in constants if value.size == 1 and np.isclose(value[0], 1e-12, rtol=0.1, atol=0)]


@pytest.mark.parametrize("options", [SINGLE, HALF], ids=lambda options: options.precision_name)
def test_trap_e_an_added_epsilon_is_deleted_by_the_exporter(
    planted: Plant, sound: SoundExport, monkeypatch: pytest.MonkeyPatch, options: GraphOptions
) -> None:
    artifact = planted("_normalize", added_epsilon, sharp, options)
    assert operators(artifact)["Add"] == operators(sound(sharp, options).artifact)["Add"] == 1
    assert floors(artifact) == []
    assert len(floors(sound(sharp, options).artifact)) == 1
    features = torch.from_numpy(case_of(artifact, "empty clusters").features)
    with monkeypatch.context() as patch:
        patch.setattr(FoldedNetVLAD, "_normalize", added_epsilon)
        with torch.inference_mode():
            assert fold(sharp(), options)(features)[-1].isfinite().all()
    report, departure = failure(artifact)
    assert (departure.tensor, departure.error) == ("descriptor", math.inf)
    assert outcome(report, "empty clusters").non_finite == 2 * SIZE
    assert sound(sharp, options).report.verdict is Verdict.PASS


def normalize_of_torch(_: FoldedNetVLAD, mean_residual: Tensor, assignment_sum: Tensor) -> Tensor:
    intra = functional.normalize(mean_residual * assignment_sum, dim=-1)
    return functional.normalize(intra.transpose(1, 2).flatten(1), dim=1)


@pytest.mark.parametrize("options", [SINGLE, HALF], ids=lambda options: options.precision_name)
def test_trap_f_normalize_of_torch_is_refused(planted: Plant, tmp_path: Path, options: GraphOptions) -> None:
    with pytest.raises(ExportError, match="a graph with Expand, Shape:"):
        planted("_normalize", normalize_of_torch, sharp, options)
    assert not list(tmp_path.iterdir())


def test_trap_g_a_batch_norm_left_behind_the_product_is_refused(planted: Plant, tmp_path: Path) -> None:
    module = sharp()
    clusters, norm = module.clusters.detach(), module.batch_norm
    assert norm is not None
    running = norm.running_mean, norm.running_var, norm.weight.detach(), norm.bias.detach()

    def unfolded(_: FoldedNetVLAD, features: Tensor, narrow: Tensor) -> Tensor:
        logits = (features.float() @ clusters).transpose(1, 2)
        return functional.batch_norm(logits, *running, eps=norm.eps).transpose(1, 2)

    with pytest.raises(ExportError, match="a graph with BatchNormalization:"):
        planted("_logits", unfolded)
    assert not list(tmp_path.iterdir())


def softmax_of_logsumexp(folded: FoldedNetVLAD, logits: Tensor, mask: Tensor | None) -> Tensor:
    return (logits - logits.logsumexp(-1, keepdim=True)).exp()[..., : folded.spec.num_clusters]


def test_trap_h_logsumexp_is_refused(planted: Plant, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="a graph with ReduceLogSumExp:"):
        planted("_soft_assignment", softmax_of_logsumexp)
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def own_graphs(sound: SoundExport) -> dict[str, OnnxArtifact]:
    options = {"fp32": SINGLE, "fp16": HALF, "wide logits, masked, probe": WIDE}
    return {name: sound(sharp, option).artifact for name, option in options.items()}


def test_traps_h_and_i_are_in_none_of_our_graphs(own_graphs: dict[str, OnnxArtifact]) -> None:
    maxima = {}
    for name, artifact in own_graphs.items():
        found = operators(artifact)
        assert not set(found) & FORBIDDEN_OPS, name
        assert not set(found) & {"ReduceMin", "ReduceLogSum", "ReduceL2", "TopK", "ArgMax"}, name
        assert list(onnx_model._wide_extremes(onnx.load(artifact.path))) == [], name
        maxima[name] = found["ReduceMax"]
    assert maxima == {"fp32": 0, "fp16": 1, "wide logits, masked, probe": 1}


def weights_by_the_largest(folded: FoldedNetVLAD, logits: Tensor, mask: Tensor | None) -> Tensor:
    assignment = softmax_by_maximum(logits)[..., : folded.spec.num_clusters]
    return assignment / assignment.amax(1, keepdim=True)


def softmax_by_maximum(logits: Tensor) -> Tensor:
    exponentials = (logits - logits.amax(-1, keepdim=True)).exp()
    return exponentials / exponentials.sum(-1, keepdim=True)


def test_trap_i_a_maximum_over_the_rows_is_refused(planted: Plant, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"a graph with ReduceMax over axes \[1\] of \['batch', 'num_features', 8\]:"):
        planted("_soft_assignment", weights_by_the_largest)
    assert not list(tmp_path.iterdir())


class LargestRow(nn.Module):
    def forward(self, features: Tensor) -> Tensor:
        return features.amax(1)


def reduction(operator: str, opset: int, axes: list[int], shape: tuple[str | int, ...]) -> Any:
    """Return the model of one reduction, its axes where this opset keeps them."""
    helper = onnx.helper
    tensor = helper.make_tensor_value_info(FEATURES, onnx.TensorProto.FLOAT, shape)
    result = helper.make_tensor_value_info(DESCRIPTOR, onnx.TensorProto.FLOAT, None)
    constant = helper.make_tensor("axes", onnx.TensorProto.INT64, [len(axes)], axes)
    given: dict[str, Any] = {"axes": axes} if opset < 18 and axes else {}
    inputs = [FEATURES, "axes"] if opset >= 18 and axes else [FEATURES]
    node = helper.make_node(operator, inputs, [DESCRIPTOR], **given)
    graph = helper.make_graph([node], "reduction", [tensor], [result], [constant])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])


ROWS: tuple[str | int, ...] = ("batch", "num_features", 4)


@pytest.mark.parametrize("opset", [17, NEWEST])
def test_trap_i_is_refused_at_other_opsets(opset: int) -> None:
    options = GraphOptions(opset=opset)
    model = onnx_model.trace(LargestRow(), options, 4, (DESCRIPTOR,))
    with pytest.raises(ExportError, match=r"ReduceMax over axes \[1\] of"):
        onnx_model._check_graph(model, options)


@pytest.mark.parametrize("opset", [17, 18, NEWEST])
class TestTrapI:
    @pytest.mark.parametrize("operator", ["ReduceMax", "ReduceMin"])
    @pytest.mark.parametrize("axis", [-1, 2])
    def test_a_maximum_over_the_last_axis_passes(self, opset: int, operator: str, axis: int) -> None:
        onnx_model._check_graph(reduction(operator, opset, [axis], ROWS), GraphOptions(opset=opset))

    @pytest.mark.parametrize("operator", ["ReduceMax", "ReduceMin"])
    @pytest.mark.parametrize(
        ("axes", "shape"), [([1], ROWS), ([-2], ROWS), ([1, 2], ROWS), ([], ROWS), ([-1], ("batch", 4, "num_features"))]
    )
    def test_any_other_maximum_is_refused(
        self, opset: int, operator: str, axes: list[int], shape: tuple[str | int, ...]
    ) -> None:
        with pytest.raises(ExportError, match=re.escape(f"a graph with {operator} over axes {axes} of {[*shape]}:")):
            onnx_model._check_graph(reduction(operator, opset, axes, shape), GraphOptions(opset=opset))


@pytest.mark.parametrize("opset", [17, NEWEST])
def test_our_own_maximum_passes_at_every_opset(tmp_path: Path, opset: int) -> None:
    artifact = export_onnx(make_module(3, 8, 1), tmp_path / "m.onnx", replace(HALF, opset=opset))
    assert operators(artifact)["ReduceMax"] == 1


def in_tf32(model: Any) -> Any:
    """Round both inputs of every matrix product of an FP32 model to 10 bits of mantissa, by Dekker's splitting."""
    make_node, nodes = onnx.helper.make_node, []
    for index, original in enumerate(model.graph.node):
        node = copy.deepcopy(original)
        for position, name in enumerate(node.input if node.op_type == "MatMul" else ()):
            large, rest, rounded = (f"{name}/{index}/{position}/{part}" for part in ("large", "rest", "rounded"))
            nodes += [
                make_node("Mul", [name, "splitter"], [large]),
                make_node("Sub", [large, name], [rest]),
                make_node("Sub", [large, rest], [rounded]),
            ]
            node.input[position] = rounded
        nodes.append(node)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(2**13 + 1, np.float32), "splitter"))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def test_trap_j_products_in_tf32_fail_as_fp32(
    sound: SoundExport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = onnx_model._trace
    with monkeypatch.context() as patch:
        patch.setattr(onnx_model, "_trace", lambda *arguments: in_tf32(trace(*arguments)))
        artifact = export_onnx(sharp(), tmp_path / "m.onnx")
    report, departure = failure(artifact)
    assert (report.precision, departure.tensor) == ("fp32", "assignment_logits")
    assert "without TF32" in departure.advice
    assert outcome(report, "few features").worst_ratio > 50
    assert sound(sharp, SINGLE).report.verdict is Verdict.PASS
    with open_runner(replace(artifact, precision="tf32")) as runner:
        assert compare(runner, load_reference(artifact.reference_path)).verdict is Verdict.PASS


class WatchedBuilder:
    """A builder that notes whether TF32 is on when it builds."""

    def __init__(self, builder: Any, flag: Any, seen: list[bool]) -> None:
        self._builder, self._flag, self._seen = builder, flag, seen

    def __getattr__(self, name: str) -> Any:
        return getattr(self._builder, name)

    def build_serialized_network(self, network: Any, config: Any) -> Any:
        self._seen.append(config.get_flag(self._flag))
        return self._builder.build_serialized_network(network, config)


@pytest.fixture
def tf32_seen(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    seen: list[bool] = []
    straight = TensorRT.builder

    def watched(tensorrt: TensorRT, logger: Any) -> WatchedBuilder:
        return WatchedBuilder(straight(tensorrt, logger), tensorrt.module.BuilderFlag.TF32, seen)

    monkeypatch.setattr(TensorRT, "builder", watched)
    return seen


@rtx
@pytest.mark.parametrize("tf32", [False, True])
def test_trap_j_an_engine_is_built_with_tf32_only_where_asked(
    sound: SoundExport, tmp_path: Path, tf32_seen: list[bool], tf32: bool
) -> None:
    source = sound(sharp, SINGLE).artifact
    build_engine(source, tmp_path / "m.engine", flavor="tensorrt-rtx", profile=SMALL, tf32=tf32)
    assert tf32_seen == [tf32]


@rtx
def test_trap_j_tf32_stays_on_where_nobody_clears_it(
    sound: SoundExport, tmp_path: Path, tf32_seen: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = sound(sharp, SINGLE).artifact
    config = open_tensorrt("tensorrt-rtx").module.IBuilderConfig
    monkeypatch.setattr(config, "clear_flag", lambda *_: None)
    build_engine(source, tmp_path / "m.engine", flavor="tensorrt-rtx", profile=SMALL)
    assert tf32_seen == [True]


def test_trap_j_an_fp16_graph_takes_no_tf32(sound: SoundExport, tmp_path: Path) -> None:
    source = sound(sharp, HALF).artifact.path
    with pytest.raises(UsageError, match=r"TF32 is for FP32 graphs, .* is fp16: leave --tf32 out"):
        workflow.build(source, tmp_path / "m.engine", flavor="tensorrt-rtx", profile=SMALL, tf32=True)


@rtx
def test_trap_k_features_in_fp32_cost_a_copy_of_them(tmp_path: Path) -> None:
    module, sizes, warnings = make_module(64, 512, 8), {}, {}
    for options in (HALF, replace(HALF, input_dtype="float32")):
        artifact = export_onnx(module, tmp_path / "m.onnx", options, force=True)
        engine = build_engine(
            artifact,
            tmp_path / "m.engine",
            flavor="tensorrt-rtx",
            profile=Profile(batch=AxisRange.parse("1:8:64"), num_features=AxisRange.parse("1:300:4096")),
            force=True,
        )
        dtype = artifact.dtypes[FEATURES]
        sizes[dtype] = (engine.figures.activation_bytes or 0) / MIB
        warnings[dtype] = artifact.warnings
        assert engine.warnings == artifact.warnings
    assert 0 < sizes["float16"] <= 116 < sizes["float32"]
    assert sizes["float32"] - sizes["float16"] == pytest.approx(256, abs=1)
    assert warnings == {
        "float16": (),
        "float32": ("FP32 features are copied to FP16: 1024 bytes each, 256 MiB for 64 images of the largest",),
    }


def kernel(dtype: str, kind: str = "gemm") -> Kernel:
    return Kernel(name=f"{dtype} {kind}", kind=kind, inputs=(dtype, dtype), outputs=(dtype,))


HALF_PRODUCT, SINGLE_PRODUCT, SOFTMAX = kernel("Half"), kernel("Float"), kernel("Float", "kgen")
CAST = Kernel(name="cast", kind="kgen", inputs=("Float",), outputs=("Half",))


@pytest.mark.parametrize(
    ("precision", "kernels", "wrong"),
    [
        ("fp16", [SINGLE_PRODUCT, SOFTMAX, SINGLE_PRODUCT], "Float gemm, Float gemm"),
        ("fp16", [SINGLE_PRODUCT, SOFTMAX, HALF_PRODUCT], "Float gemm"),
        ("fp16", [kernel("Float", "runtime_fusion"), HALF_PRODUCT], "Float runtime_fusion"),
        ("fp16-wide-logits", [SINGLE_PRODUCT, SOFTMAX, SINGLE_PRODUCT], "Float gemm, Float gemm"),
        ("fp16-wide-logits", [SINGLE_PRODUCT], "Float gemm"),
        ("fp32", [SINGLE_PRODUCT, SOFTMAX, HALF_PRODUCT], "Half gemm"),
        ("fp32", [SINGLE_PRODUCT, CAST, SINGLE_PRODUCT], "cast"),
        ("tf32", [HALF_PRODUCT, SOFTMAX, HALF_PRODUCT], "Half gemm, Half gemm"),
    ],
)
def test_kernels_of_another_type_are_refused(precision: str, kernels: list[Kernel], wrong: str) -> None:
    with pytest.raises(BuildError, match=f"graph in {precision} has other types in {wrong}: nothing was written"):
        check_types(kernels, precision)


@pytest.mark.parametrize(
    ("precision", "kernels"),
    [
        ("fp16", [HALF_PRODUCT, SOFTMAX, CAST, HALF_PRODUCT, SOFTMAX]),
        ("fp16-wide-logits", [SINGLE_PRODUCT, SOFTMAX, CAST, HALF_PRODUCT]),
        ("fp32", [SINGLE_PRODUCT, SOFTMAX, SINGLE_PRODUCT]),
        ("tf32", [SINGLE_PRODUCT, SOFTMAX, SINGLE_PRODUCT]),
        ("fp16", []),
    ],
)
def test_kernels_of_the_types_of_the_graph_pass(precision: str, kernels: list[Kernel]) -> None:
    check_types(kernels, precision)


@rtx
@pytest.mark.parametrize(
    ("graph", "precision"),
    [
        ("fp32", "fp16"),
        ("fp32", "fp16-wide-logits"),
        ("fp16", "fp32"),
        ("wide logits, masked, probe", "fp32"),
        ("wide logits, masked, probe", "fp16"),
    ],
)
def test_an_engine_that_came_out_in_another_precision_is_not_written(
    own_graphs: dict[str, OnnxArtifact], tmp_path: Path, graph: str, precision: str
) -> None:
    build_engine(own_graphs[graph], tmp_path / "right.engine", flavor="tensorrt-rtx", profile=SMALL)
    with pytest.raises(BuildError, match=f"graph in {precision} has other types in "):
        build_engine(
            replace(own_graphs[graph], precision=precision),
            tmp_path / "wrong.engine",
            flavor="tensorrt-rtx",
            profile=SMALL,
        )
    assert not (tmp_path / "wrong.engine").exists()
