"""A gated descriptor that is L2-normalised at last, from the spec to the error model, as in OverlapTransformer."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from netvlad_deploy.artifact import load_artifact
from netvlad_deploy.errors import InputError
from netvlad_deploy.export.fold_head import fold
from netvlad_deploy.export.onnx_model import export_onnx
from netvlad_deploy.models.affine import in_float64
from netvlad_deploy.models.checkpoints import load_checkpoint
from netvlad_deploy.oracle.equations import ReferenceParameters
from netvlad_deploy.oracle.reference_file import load_reference
from netvlad_deploy.parity.cases import Case, default_cases
from netvlad_deploy.parity.heads import compare
from netvlad_deploy.runtime.open_runner import open_runner
from netvlad_deploy.runtime.oracle_runner import OracleRunner
from netvlad_deploy.spec.graph_options import GraphOptions
from netvlad_deploy.spec.layer import DESCRIPTOR, FEATURES, NetVLADSpec, Projection
from netvlad_deploy.spec.verdict import Verdict
from tests.heads import outputs_of
from tests.modules import features, make_projected, parameters_of

pytestmark = [pytest.mark.export, pytest.mark.ort]

OVERLAPTRANSFORMER = Projection(size=12, bias=False, l2=False, gating="bias", final_l2=True)
NORMALIZED = Projection(size=9, bias=False, batch_norm=True, gating="batch_norm", final_l2=True)
KINDS = [OVERLAPTRANSFORMER, NORMALIZED]


def parameters(projection: Projection) -> ReferenceParameters:
    return parameters_of(make_projected(projection))


def test_it_belongs_to_a_gated_projection() -> None:
    assert OVERLAPTRANSFORMER.unit_length
    assert not replace(OVERLAPTRANSFORMER, final_l2=False).unit_length
    assert NetVLADSpec(num_clusters=2, feature_size=3, projection=OVERLAPTRANSFORMER).unit_length
    with pytest.raises(InputError, match="a projection without gating has no final_l2: l2 normalises its result"):
        Projection(size=3, final_l2=True)


@pytest.mark.parametrize("projection", KINDS)
def test_module_fold_and_oracle_equal_the_equation(projection: Projection) -> None:
    module, x = make_projected(projection), features(3, 20, 16)
    gated = make_projected(replace(projection, final_l2=False))
    with torch.inference_mode():
        before = in_float64(gated)(torch.from_numpy(x).double()).numpy()
        got = in_float64(module)(torch.from_numpy(x).double()).numpy()
        folded = fold(module)(torch.from_numpy(x))[-1].double().numpy()
    expected = before / np.sqrt((before**2).sum(axis=1, keepdims=True))
    assert np.abs(got - expected).max() < 1e-12
    assert np.abs(folded - expected).max() < 1e-5
    assert np.abs(OracleRunner(parameters(projection)).run({FEATURES: x})[DESCRIPTOR] - expected).max() < 1e-6
    assert np.abs(expected - before).max() > 1e-2


@pytest.mark.parametrize("projection", KINDS)
@pytest.mark.parametrize(("precision", "backend"), [("fp32", "onnxruntime"), ("fp16", "strict")])
def test_an_honest_graph_is_within_the_tolerance(
    tmp_path: Path, projection: Projection, precision: str, backend: str
) -> None:
    options = GraphOptions(precision=precision, probe=True)
    artifact = export_onnx(make_projected(projection), tmp_path / "m.onnx", options)
    assert load_artifact(artifact.path).spec.projection == projection
    assert load_reference(artifact.reference_path).spec == artifact.spec
    assert load_checkpoint(artifact.reference_path).spec == artifact.spec
    assert len(onnx.load(artifact.path).graph.node) <= (40 if precision == "fp32" else 60)
    with open_runner(artifact, backend=backend) as runner:
        report = compare(runner, load_reference(artifact.reference_path))
    assert report.verdict is Verdict.PASS, report.departure
    ratios = [output.worst_ratio for _, output in outputs_of(report) if output.output == DESCRIPTOR]
    assert 1e-3 < max(ratios) < 0.5, max(ratios)


def test_a_projection_may_lengthen_a_descriptor_that_is_nearly_zero(tmp_path: Path) -> None:
    """Where ghosts take all, the aggregate is 1e-19, in FP32 0: a map without a bias normalises them to 1e-7 and 0."""
    module = make_projected(Projection(size=8, bias=False))
    artifact = export_onnx(module, tmp_path / "m.onnx", GraphOptions(probe=True))
    with open_runner(artifact, backend="onnxruntime") as runner:
        report = compare(runner, load_reference(artifact.reference_path))
    assert report.verdict is Verdict.PASS, report.departure


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_graph_without_it_or_with_another_gate_fails(precision: str) -> None:
    right = parameters(OVERLAPTRANSFORMER)
    cases: list[Case] = [case for case in default_cases(right) if case.name in ("typical", "few features")]
    assert right.gating is not None
    weight = right.gating.weight.copy()
    weight[2] *= 3
    for wrong in (
        replace(right, final_l2=False),
        replace(right, gating=None, final_l2=False),
        replace(right, gating=replace(right.gating, weight=weight)),
    ):
        runner = OracleRunner(wrong)
        runner.spec, runner.precision = right.spec, precision
        assert compare(runner, right, cases=cases).verdict is Verdict.FAIL
