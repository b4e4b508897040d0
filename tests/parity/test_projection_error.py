"""After a projection: honest runners are within the tolerance, and a projection that is a little wrong is not."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from netvlad_deploy.artifact import OnnxArtifact
from netvlad_deploy.export.fold_head import FoldedNetVLAD
from netvlad_deploy.export.onnx_model import export_onnx
from netvlad_deploy.models.netvlad import NetVLAD
from netvlad_deploy.oracle.equations import ReferenceParameters
from netvlad_deploy.oracle.reference_file import load_reference
from netvlad_deploy.parity.cases import Case, default_cases
from netvlad_deploy.parity.heads import ParityReport, compare
from netvlad_deploy.parity.localise import NORMS, OR_PROJECTED, PROJECTED
from netvlad_deploy.parity.ranks import near_ties
from netvlad_deploy.report.text import departure_line
from netvlad_deploy.runtime.open_runner import open_runner
from netvlad_deploy.runtime.oracle_runner import OracleRunner
from netvlad_deploy.spec.graph_options import GraphOptions
from netvlad_deploy.spec.layer import ADD, CLAMP, CLUSTERS_FIRST, DESCRIPTOR, RSQRT, Projection
from netvlad_deploy.spec.verdict import Verdict
from netvlad_deploy.support.arrays import Array, unit_rows
from tests.heads import outputs_of
from tests.modules import features, make_module, make_projected, parameters_of

pytestmark = [pytest.mark.export, pytest.mark.ort]

WHITENING = Projection(size=8)
LOUPE = Projection(size=12, bias=False, batch_norm=True, l2=False, gating="batch_norm")
KINDS = {
    "whitening": WHITENING,
    "linear": Projection(size=9, l2=False),
    "loupe": LOUPE,
    "gated": Projection(size=20, gating="bias"),
    "one value": Projection(size=1, bias=False, l2=False),
}
PRECISIONS = (("fp32", "onnxruntime"), ("fp16", "strict"))


def judged(artifact: OnnxArtifact, backend: str, parameters: ReferenceParameters | None = None) -> ParityReport:
    right = load_reference(artifact.reference_path)
    with open_runner(artifact, backend=backend) as runner:
        return compare(runner, parameters or right, banks=[near_ties(right)])


@pytest.mark.parametrize(("precision", "backend"), PRECISIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_an_honest_projection_is_within_the_tolerance(tmp_path: Path, kind: str, precision: str, backend: str) -> None:
    """And by no more than a thousand times."""
    options = GraphOptions(precision=precision, probe=True, masked=kind == "loupe")
    report = judged(export_onnx(make_projected(KINDS[kind]), tmp_path / "m.onnx", options), backend)
    assert report.verdict is Verdict.PASS, report.departure
    found = [output.worst_ratio for _, output in outputs_of(report) if output.output == DESCRIPTOR]
    assert 1e-3 < max(found) < 0.5, max(found)
    assert all(output.cluster_errors == () for _, output in outputs_of(report) if output.output == DESCRIPTOR)
    assert report.retrieval[0].swapped_gap < (1e-6 if precision == "fp32" else 1e-2)


@pytest.mark.parametrize(("precision", "backend"), PRECISIONS)
@pytest.mark.parametrize(("epsilon", "projection"), [(ADD, None), (RSQRT, WHITENING)], ids=["head", "whitening"])
def test_every_epsilon_mode_is_within_the_tolerance(
    tmp_path: Path, epsilon: str, projection: Projection | None, precision: str, backend: str
) -> None:
    module = NetVLAD(6, 16, 2, normalize_input=True, flatten=CLUSTERS_FIRST, epsilon=epsilon, projection=projection)
    module.load_state_dict(make_module(6, 16, 2).state_dict(), strict=False)
    options = GraphOptions(precision=precision, probe=True)
    report = judged(export_onnx(module.eval(), tmp_path / "m.onnx", options), backend)
    assert report.verdict is Verdict.PASS, report.departure


def parameters(kind: str, **conventions: Any) -> ReferenceParameters:
    return parameters_of(make_projected(KINDS[kind], **conventions))


def judged_as(wrong: ReferenceParameters, right: ReferenceParameters, precision: str, **more: Any) -> ParityReport:
    """Judge the oracle of wrong parameters, as if it were a runner of this precision and of the right ones."""
    runner = OracleRunner(wrong)
    runner.spec, runner.precision = right.spec, precision
    return compare(runner, right, **more)


def changed(right: ReferenceParameters, **fields: Any) -> ReferenceParameters:
    assert right.projection is not None
    return replace(right, projection=replace(right.projection, **fields))


def weight_of(right: ReferenceParameters) -> Array:
    assert right.projection is not None
    weight: Array = right.projection.weight.copy()
    return weight


def one_row_off(right: ReferenceParameters) -> ReferenceParameters:
    weight = weight_of(right)
    weight[3] *= 1.01
    return changed(right, weight=weight)


def two_rows_swapped(right: ReferenceParameters) -> ReferenceParameters:
    weight = weight_of(right)
    weight[[1, 4]] = weight[[4, 1]]
    return changed(right, weight=weight)


def another_flatten_order(right: ReferenceParameters) -> ReferenceParameters:
    weight, spec = weight_of(right), right.spec
    inner = weight.reshape(-1, spec.feature_size, spec.num_clusters).swapaxes(1, 2)
    return changed(right, weight=inner.reshape(weight.shape))


def no_bias(right: ReferenceParameters) -> ReferenceParameters:
    return changed(right, bias=None)


def no_l2(right: ReferenceParameters) -> ReferenceParameters:
    return replace(right, projection_l2=False)


def no_epsilon(right: ReferenceParameters) -> ReferenceParameters:
    assert right.projection is not None
    assert right.projection.batch_norm is not None
    return changed(right, batch_norm=replace(right.projection.batch_norm, eps=0.0))


def no_gating(right: ReferenceParameters) -> ReferenceParameters:
    return replace(right, gating=None)


def a_gate_off(right: ReferenceParameters) -> ReferenceParameters:
    assert right.gating is not None
    weight = right.gating.weight.copy()
    weight[2] *= 1.1
    return replace(right, gating=replace(right.gating, weight=weight))


Fault = Callable[[ReferenceParameters], ReferenceParameters]
FAULTS: tuple[tuple[Fault, str], ...] = (
    (one_row_off, "whitening"), (two_rows_swapped, "whitening"), (another_flatten_order, "whitening"),
    (no_bias, "whitening"), (no_l2, "whitening"), (no_epsilon, "loupe"), (one_row_off, "loupe"), (no_gating, "loupe"),
    (a_gate_off, "loupe"), (no_bias, "linear"), (no_l2, "gated"), (a_gate_off, "gated"),
)  # fmt: skip
BELOW_FP16 = (one_row_off, no_epsilon, a_gate_off)
"""Faults of 1 % to 10 % in one value: less than FP16 may do to the vector before the projection."""


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize(("fault", "kind"), FAULTS)
def test_a_projection_that_is_a_little_wrong_fails(fault: Fault, kind: str, precision: str) -> None:
    right = parameters(kind)
    cases = [case for case in default_cases(right) if case.name in ("typical", "few features", "L2-normalised")]
    report = judged_as(fault(right), right, precision, cases=cases)
    visible = precision == "fp32" or fault not in BELOW_FP16
    assert report.verdict is (Verdict.FAIL if visible else Verdict.PASS)


@pytest.mark.parametrize(("precision", "verdict"), [("fp32", Verdict.FAIL), ("fp16", Verdict.NOT_JUDGED)])
def test_another_epsilon_mode_shows_in_rows_that_fp16_does_not_take(precision: str, verdict: Verdict) -> None:
    right = parameters("whitening", normalize_input=True, epsilon=ADD)
    rows = unit_rows(features(2, 20, 16)) * np.float32(2e-6)
    report = judged_as(replace(right, epsilon=CLAMP), right, precision, cases=[Case(name="tiny", features=rows)])
    assert report.verdict is verdict


def test_one_wrong_row_is_one_value(tmp_path: Path) -> None:
    artifact = export_onnx(make_projected(WHITENING), tmp_path / "m.onnx")
    wrong = two_rows_swapped(load_reference(artifact.reference_path))
    found = judged(artifact, "onnxruntime", wrong).departure
    assert found is not None
    assert (found.tensor, found.unit, found.advice) == ("descriptor", "values", PROJECTED)
    assert {1, 4} <= set(found.clusters)
    assert "values (" in departure_line(found)
    linear = export_onnx(make_projected(KINDS["linear"]), tmp_path / "linear.onnx")
    found = judged(linear, "onnxruntime", one_row_off(load_reference(linear.reference_path))).departure
    assert found is not None
    assert found.clusters == (3,)


def test_a_fault_before_the_projection_is_localised_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    straight = FoldedNetVLAD._normalize

    def transposed(folded: FoldedNetVLAD, mean_residual: Tensor, assignment_sum: Tensor) -> Tensor:
        return straight(folded, mean_residual, assignment_sum).reshape(-1, 16, 6).transpose(1, 2).flatten(1)

    monkeypatch.setattr(FoldedNetVLAD, "_normalize", transposed)
    found = judged(export_onnx(make_projected(WHITENING), tmp_path / "m.onnx"), "onnxruntime").departure
    assert found is not None
    assert (found.tensor, found.unit, found.advice) == ("aggregate", "clusters", NORMS)


def test_without_the_stage_before_it_the_projection_may_be_wrong_or_not() -> None:
    right = parameters("whitening")
    found = judged_as(two_rows_swapped(right), right, "fp32").departure
    assert found is not None
    assert (found.tensor, found.advice) == ("descriptor", OR_PROJECTED)
