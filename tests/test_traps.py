"""Every known numeric trap, planted in a real export, and the check of the product that catches it."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from netvlad_deploy.artifact import OnnxArtifact
from netvlad_deploy.errors import BuildError, ExportError, UsageError
from netvlad_deploy.export.fold_head import FoldedNetVLAD
from netvlad_deploy.export.graph import FORBIDDEN_OPS, SHAPE_OPS, extremes_over_axes
from netvlad_deploy.export.onnx_model import export_onnx
from netvlad_deploy.models.netvlad import NetVLAD
from netvlad_deploy.oracle.equations import assignment_logits, soft_assignment
from netvlad_deploy.oracle.reference_file import load_reference
from netvlad_deploy.parity.cases import default_cases
from netvlad_deploy.parity.heads import OutputParity, ParityReport, compare
from netvlad_deploy.runtime.open_runner import Candidate, open_runner
from netvlad_deploy.spec.build_options import BuildOptions
from netvlad_deploy.spec.graph_options import GraphOptions
from netvlad_deploy.spec.profiles import AxisRange, Profile
from netvlad_deploy.spec.verdict import Verdict
from netvlad_deploy.tensorrt import engine
from netvlad_deploy.tensorrt.api import open_tensorrt
from netvlad_deploy.tensorrt.builder import build_here
from netvlad_deploy.tensorrt.engine import build_engine
from netvlad_deploy.workflow.build import build
from netvlad_deploy.workflow.validate import validate
from tests.heads import sharp_head
from tests.modules import make_module

pytestmark = [pytest.mark.export, pytest.mark.ort]
rtx = pytest.mark.rtx

RTX = "tensorrt-rtx"
SINGLE, HALF = GraphOptions(), GraphOptions(precision="fp16")
WIDE = replace(HALF, wide_logits=True, masked=True, probe=True)
BOTH = pytest.mark.parametrize("options", [SINGLE, HALF], ids=lambda options: options.precision_name)
NEWEST = onnx.defs.onnx_opset_version()
SMALL, USUAL = Profile(batch=AxisRange.parse("1:2:4")), Profile()
EVERY_VALUE = 2 * 8 * 32
"""Two descriptors of the heads below."""

Plant = Callable[..., OnnxArtifact]


def sharp() -> NetVLAD:
    return sharp_head(8, 32, 2, 30, 0)


def sharp_near_the_origin() -> NetVLAD:
    """Return the sharp head with centroids so short that residuals are as short as the features."""
    module = sharp()
    module.clusters2.data *= 1e-4
    return module


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Plant:
    """Return a function that exports a head as it is, once, and sees it pass."""

    @cache
    def export(head: Callable[[], NetVLAD], options: GraphOptions) -> OnnxArtifact:
        artifact = export_onnx(head(), tmp_path_factory.mktemp("sound") / "m.onnx", options)
        assert validate(Candidate(path=artifact.path)).verdict is Verdict.PASS
        return artifact

    return export


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sound: Plant) -> Plant:
    """Return a function that exports a head with one method of the folded layer replaced, and sees it pass without."""

    def export(method: str, fault: Any, head: Any = sharp, options: GraphOptions = HALF) -> OnnxArtifact:
        sound(head, options)
        with monkeypatch.context() as patch:
            patch.setattr(FoldedNetVLAD, method, fault)
            return export_onnx(head(), tmp_path / "m.onnx", options)

    return export


def failure(artifact: OnnxArtifact, tensor: str, case: str) -> ParityReport:
    """Return the report of a failure that first shows in this tensor of this case."""
    report = validate(Candidate(path=artifact.path))
    assert report.verdict is Verdict.FAIL
    assert report.departure is not None
    assert (report.departure.tensor, report.departure.case) == (tensor, case)
    return report


def outcome(report: ParityReport, case: str) -> OutputParity:
    """Return the difference of one case's descriptor."""
    [found] = [output for entry in report.cases if entry.name == case for output in entry.outputs]
    return found


def operators(artifact: OnnxArtifact) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(artifact.path).graph.node)


def norms(vectors: Tensor) -> Tensor:
    return (vectors * vectors).sum(-1, keepdim=True).sqrt()


def scaled_once(folded: FoldedNetVLAD, mean_residual: Tensor, norm: Tensor, floor: Tensor) -> Tensor:
    divisor = torch.maximum(norm, floor)
    ratio = norm / divisor
    global_norm = torch.maximum((ratio * ratio).sum(1, keepdim=True).sqrt(), folded.norm_floor)
    return (mean_residual / (divisor * global_norm)).transpose(1, 2).flatten(1)


def test_trap_a_a_norm_floor_in_fp16_is_zero(planted: Plant) -> None:
    def normalize(folded: FoldedNetVLAD, mean_residual: Tensor, assignment_sum: Tensor) -> Tensor:
        floor = (folded.norm_floor.half() / assignment_sum.half()).float()
        return scaled_once(folded, mean_residual, norms(mean_residual), floor)

    report = failure(planted("_normalize", normalize), "descriptor", "few features")
    assert outcome(report, "empty clusters").non_finite == EVERY_VALUE


def squares_in_fp16(folded: FoldedNetVLAD, mean_residual: Tensor, assignment_sum: Tensor) -> Tensor:
    return scaled_once(folded, mean_residual, norms(mean_residual.half()).float(), folded.norm_floor / assignment_sum)


def test_trap_b_squares_in_fp16_overflow(planted: Plant) -> None:
    report = failure(planted("_normalize", squares_in_fp16), "descriptor", "L2-normalised x 10000")
    assert outcome(report, "L2-normalised x 10000").non_finite == EVERY_VALUE
    assert outcome(report, "L2-normalised x 100").verdict is not Verdict.FAIL


def test_trap_b_squares_in_fp16_vanish(planted: Plant) -> None:
    artifact = planted("_normalize", squares_in_fp16, sharp_near_the_origin)
    small = outcome(failure(artifact, "descriptor", "L2-normalised x 0.0001"), "L2-normalised x 0.0001")
    assert small.non_finite == 0
    assert small.norm_error > 1


def twice_normalised(residual_sum: Tensor, clamp: Callable[[Tensor], Tensor]) -> Tensor:
    flat = (residual_sum / clamp(norms(residual_sum))).transpose(1, 2).flatten(1)
    return flat / clamp(norms(flat))


def without_mean_form(assignment_dtype: torch.dtype, product_dtype: torch.dtype) -> Any:
    def forward(folded: FoldedNetVLAD, features: Tensor) -> tuple[Tensor, ...]:
        logits = folded._logits(features, features, None)
        assignment = folded._soft_assignment(logits, None).to(assignment_dtype).float()
        product = assignment.to(product_dtype).transpose(1, 2) @ features.to(product_dtype)
        total = assignment.sum(1, keepdim=True).transpose(1, 2)
        residual_sum = product.float() - total * folded.centroids
        descriptor = twice_normalised(residual_sum, lambda norm: torch.maximum(norm, folded.norm_floor))
        return logits, assignment, residual_sum / total, residual_sum, descriptor

    return forward


def test_trap_c_assignments_in_fp16_without_the_mean_form_are_flushed(planted: Plant) -> None:
    artifact = planted("forward", without_mean_form(torch.float16, torch.float32))
    few = outcome(failure(artifact, "soft_assignment", "few features"), "few features")
    assert few.non_finite == 0
    assert (few.cosine_min or 0) < 0.75
    parameters = load_reference(artifact.reference_path)
    cases = default_cases(parameters, largest=artifact.range.largest)
    [case] = [case for case in cases if case.name == "few features"]
    largest = soft_assignment(assignment_logits(parameters, case.features), 8).max(axis=1)
    flushed = ((largest > 1e-12) & (largest < 2.0**-25)).any(axis=0)
    assert flushed.sum() >= 4
    assert (np.array(few.cluster_errors)[flushed] > 0.1).all()


def test_trap_c_is_the_rounding_and_not_the_missing_mean_form(planted: Plant) -> None:
    unrounded = planted("forward", without_mean_form(torch.float32, torch.float32))
    assert validate(Candidate(path=unrounded.path)).verdict is Verdict.PASS


def test_trap_d_a_product_in_fp16_without_the_mean_form_overflows(planted: Plant) -> None:
    fault = without_mean_form(torch.float32, torch.float16)
    report = failure(planted("forward", fault), "residual_sum", "few features")
    assert outcome(report, "largest values, 65440").non_finite == EVERY_VALUE


def constants_near_the_floor(artifact: OnnxArtifact) -> int:
    arrays = [onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(artifact.path).graph.initializer]
    return sum(array.size == 1 and 1e-13 < float(array.item()) < 1e-11 for array in arrays)


@BOTH
def test_trap_e_the_exporter_deletes_an_added_epsilon(planted: Plant, sound: Plant, options: GraphOptions) -> None:
    def normalize(_: FoldedNetVLAD, mean_residual: Tensor, assignment_sum: Tensor) -> Tensor:
        return twice_normalised(mean_residual * assignment_sum, lambda norm: norm + 1e-12)

    artifact = planted("_normalize", normalize, sharp, options)
    assert operators(artifact)["Add"] == operators(sound(sharp, options))["Add"] == 1
    assert [constants_near_the_floor(graph) for graph in (artifact, sound(sharp, options))] == [0, 1]
    report = failure(artifact, "descriptor", "few features")
    assert outcome(report, "empty clusters").non_finite == EVERY_VALUE


@BOTH
def test_trap_f_normalize_of_torch_is_refused(planted: Plant, options: GraphOptions) -> None:
    with pytest.raises(ExportError, match="a graph with Expand, Shape:"):
        planted("_normalize", lambda _, v, a: functional.normalize((v * a).flatten(1), dim=1), sharp, options)


def test_trap_g_a_batch_norm_left_behind_the_product_is_refused(planted: Plant) -> None:
    norm, clusters = sharp().batch_norm, sharp().clusters.detach()
    assert norm is not None
    statistics = norm.running_mean, norm.running_var, norm.weight.detach(), norm.bias.detach()

    def unfolded(_: FoldedNetVLAD, features: Tensor, __: Tensor) -> Tensor:
        logits = (features.float() @ clusters).transpose(1, 2)
        return functional.batch_norm(logits, *statistics, eps=norm.eps).transpose(1, 2)

    with pytest.raises(ExportError, match="a graph with BatchNormalization:"):
        planted("_logits", unfolded)


def test_trap_h_logsumexp_is_refused(planted: Plant) -> None:
    with pytest.raises(ExportError, match="a graph with ReduceLogSumExp:"):
        planted("_soft_assignment", lambda _, logits, __: (logits - logits.logsumexp(-1, keepdim=True)).exp()[..., :8])


@pytest.mark.parametrize("options", [SINGLE, HALF, WIDE, replace(HALF, opset=17), replace(HALF, opset=NEWEST)])
def test_traps_h_and_i_are_in_none_of_our_graphs(sound: Plant, options: GraphOptions) -> None:
    found = operators(sound(sharp, options))
    assert not set(found) & {*FORBIDDEN_OPS, *SHAPE_OPS, "ReduceMin", "TopK", "ArgMax"}
    assert found["ReduceMax"] == options.half


def test_trap_i_a_maximum_over_the_rows_is_refused(planted: Plant) -> None:
    straight = FoldedNetVLAD._soft_assignment
    with pytest.raises(ExportError, match=r"a graph with ReduceMax over axes \[1\] of \['batch', 'num_features', 8\]:"):
        planted("_soft_assignment", lambda *given: (a := straight(*given)) / a.amax(1, keepdim=True))


def extremes(operator: str, opset: int, axes: list[int], shape: str) -> list[str]:
    """Return the census's finding on one reduction, whose axes are where this opset keeps them."""
    attribute, name = (f"<axes = {axes}>", "") if opset < 18 else ("", ", axes")
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["": {opset}]> reduction (float{shape} features) => (float descriptor)'
        f"<int64[{len(axes)}] axes = {{{str(axes)[1:-1]}}}>"
        f"{{ descriptor = {operator} {attribute if axes else ''} (features{name}) }}"
    )
    return list(extremes_over_axes(model))


@pytest.mark.parametrize("operator", ["ReduceMax", "ReduceMin"])
@pytest.mark.parametrize("opset", [17, 18, NEWEST])
def test_trap_i_at_every_opset(opset: int, operator: str) -> None:
    rows, columns = "['batch', 'num_features', 4]", "['batch', 4, 'num_features']"
    for axes, shape in (([1], rows), ([-2], rows), ([1, 2], rows), ([], rows), ([-1], columns), ([2], columns)):
        assert extremes(operator, opset, axes, shape.replace("'", "")) == [f"{operator} over axes {axes} of {shape}"]
    for axes, shape in (([-1], rows), ([2], rows)):
        assert extremes(operator, opset, axes, shape.replace("'", "")) == []


def to_tf32(values: Tensor) -> Tensor:
    large = values * (2**13 + 1)  # Dekker's splitting, which leaves 10 bits of mantissa
    return large - (large - values)


def in_tf32(folded: FoldedNetVLAD, features: Tensor) -> tuple[Tensor, ...]:
    assert folded.assignment_bias is not None
    logits = to_tf32(features) @ to_tf32(folded.assignment_weight) + folded.assignment_bias
    assignment = folded._soft_assignment(logits, None)
    total = assignment.sum(1, keepdim=True)
    weights = to_tf32(assignment / torch.maximum(total, folded.assignment_floor))
    mean_residual = weights.transpose(1, 2) @ to_tf32(features) - folded.centroids
    total = total.transpose(1, 2)
    return logits, assignment, mean_residual, mean_residual * total, folded._normalize(mean_residual, total)


def test_trap_j_products_in_tf32_fail_as_fp32(planted: Plant) -> None:
    artifact = planted("forward", in_tf32, sharp, SINGLE)
    report = failure(artifact, "assignment_logits", "few features")
    assert "without TF32" in str(report.departure)
    assert outcome(report, "few features").worst_ratio > 50
    with open_runner(replace(artifact, precision="tf32")) as runner:
        assert compare(runner, load_reference(artifact.reference_path)).verdict is Verdict.PASS


@rtx
@pytest.mark.parametrize("asked", [False, True])
def test_trap_j_tf32_is_on_only_where_asked(sound: Plant, tmp_path: Path, monkeypatch: Any, asked: bool) -> None:
    trt = open_tensorrt(RTX).module
    build, seen = trt.Builder.build_serialized_network, []

    def watched(builder: Any, network: Any, config: Any) -> Any:
        seen.append(config.get_flag(trt.BuilderFlag.TF32))
        return build(builder, network, config)

    monkeypatch.setattr(trt.Builder, "build_serialized_network", watched)
    monkeypatch.setattr(engine, "build_apart", build_here)
    build_engine(sound(sharp, SINGLE), tmp_path / "m.engine", BuildOptions(flavor=RTX, profiles=(SMALL,), tf32=asked))
    assert seen == [asked]


@rtx
def test_trap_j_tf32_that_stays_on_is_refused(sound: Plant, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(open_tensorrt(RTX).module.IBuilderConfig, "clear_flag", lambda *_: None)
    monkeypatch.setattr(engine, "build_apart", build_here)
    with pytest.raises(BuildError, match="did not keep TF32: got True, expected False"):
        build_engine(sound(sharp, SINGLE), tmp_path / "m.engine", BuildOptions(flavor=RTX, profiles=(SMALL,)))


def test_trap_j_an_fp16_graph_takes_no_tf32(sound: Plant, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"TF32 is for FP32 graphs, .* is fp16: leave --tf32 out"):
        build(sound(sharp, HALF).path, tmp_path / "m.engine", BuildOptions(flavor=RTX, profiles=(SMALL,), tf32=True))


@rtx
def test_trap_k_features_in_fp32_cost_a_copy_of_them(tmp_path: Path) -> None:
    module, found = make_module(64, 512, 8), []
    assert str(USUAL) == "batch 1:8:64, num_features 1:300:4096"
    for options in (HALF, replace(HALF, input_dtype="float32")):
        artifact = export_onnx(module, tmp_path / "m.onnx", options, force=True)
        engine = build_engine(artifact, tmp_path / "m.engine", BuildOptions(flavor=RTX, profiles=(USUAL,)), force=True)
        found.append(((engine.figures.activation_bytes or 0) / 2**20, artifact.warnings))
    (half, silence), (single, warnings) = found
    assert 0 < half <= 116 < single
    assert single - half == pytest.approx(256, abs=1)
    assert silence == ()
    assert warnings == ("FP32 features are copied to FP16: 1024 bytes each, 256 MiB for 64 images of the largest",)
