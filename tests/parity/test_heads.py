"""Every planted fault that is not uniform must FAIL; faults that no descriptor shows are asserted, too."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from netvlad_deploy.artifact import OnnxArtifact
from netvlad_deploy.errors import ParityError
from netvlad_deploy.oracle.equations import (
    ReferenceParameters,
    aggregate,
    assignment_logits,
    residual_sum,
    soft_assignment,
)
from netvlad_deploy.oracle.reference_file import load_reference
from netvlad_deploy.parity.cases import Case
from netvlad_deploy.parity.heads import compare
from netvlad_deploy.runner import Runner
from netvlad_deploy.runtime.open_runner import open_runner
from netvlad_deploy.spec.layer import DESCRIPTOR, FEATURES, MASK, PROBES, RESIDUAL_SUM, SOFT_ASSIGNMENT
from netvlad_deploy.spec.verdict import Verdict
from netvlad_deploy.support.arrays import Array, Arrays
from tests.heads import outputs_of
from tests.modules import features

pytestmark = [pytest.mark.export, pytest.mark.ort]

Stage = Callable[[Array], Array]


class PlantedRunner(Runner):
    """The layer in FP32 outputs with a fault planted after one of its stages."""

    def __init__(
        self, parameters: ReferenceParameters, faults: dict[str, Stage] | None = None, *, probe: bool = False
    ) -> None:
        outputs = (DESCRIPTOR, *PROBES) if probe else (DESCRIPTOR,)
        super().__init__("planted", parameters.spec, inputs=(FEATURES,), optional_inputs=(MASK,), outputs=outputs)
        self.parameters = parameters
        self.faults = faults or {}

    def _run(self, feeds: Arrays) -> Arrays:
        x = feeds[FEATURES].astype(np.float64)
        logits = self._fault("logits", assignment_logits(self.parameters, x))
        assignment = self._fault(
            "assignment", soft_assignment(logits, self.parameters.spec.num_clusters, feeds.get(MASK))
        )
        residuals = self._fault("residuals", residual_sum(assignment, x, self.parameters.centroids))
        everything = {
            SOFT_ASSIGNMENT: assignment,
            RESIDUAL_SUM: residuals,
            DESCRIPTOR: self._fault("descriptor", aggregate(self.parameters, residuals)),
        }
        return {name: everything[name].astype(np.float32) for name in self.outputs}

    def _fault(self, stage: str, values: Array) -> Array:
        return self.faults[stage](values) if stage in self.faults else values


@pytest.fixture(scope="module")
def parameters(exported: OnnxArtifact) -> ReferenceParameters:
    return load_reference(exported.reference_path)


def swap(values: Array, axis: int = -1) -> Array:
    order = np.arange(values.shape[axis])
    order[[0, 1]] = [1, 0]
    return np.take(values, order, axis=axis)


def at(index: Any, change: Callable[[Array], Array]) -> Stage:
    def stage(values: Array) -> Array:
        values = values.copy()
        values[index] = change(values[index])
        return values

    return stage


FAULTS: dict[str, dict[str, Stage]] = {
    "two clusters swapped": {"residuals": lambda v: swap(v, axis=1)},
    "k*D + d instead of d*K + k": {"descriptor": lambda v: v.reshape(-1, 16, 6).swapaxes(1, 2).reshape(len(v), -1)},
    "one logit shifted by 0.001": {"logits": at((..., 2), lambda v: v + 1e-3)},
    "one cluster's assignments bent by 5 %": {"assignment": at((..., 0), lambda v: v * (1 + 0.05 * v))},
    "one residual 0.01 % off": {"residuals": at((slice(None), 3, 0), lambda v: v * 1.0001)},
    "one value not finite": {"descriptor": at((0, 5), lambda v: v * np.nan)},
    "not normalised": {"descriptor": lambda v: v * 1.001},
    "all zero": {"descriptor": np.zeros_like},
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_fails_without_probes(parameters: ReferenceParameters, fault: str) -> None:
    report = compare(PlantedRunner(parameters, FAULTS[fault]), parameters)
    assert report.verdict is Verdict.FAIL


PARAMETER_FAULTS: dict[str, Callable[[ReferenceParameters], ReferenceParameters]] = {
    "centroid sign flipped": lambda p: replace(p, centroids=-p.centroids),
    "one centroid 0.1 % off": lambda p: replace(p, centroids=at((2,), lambda c: c * 1.001)(p.centroids)),
    "two centroids swapped": lambda p: replace(p, centroids=swap(p.centroids, axis=0)),
    "no residual": lambda p: replace(p, centroids=0 * p.centroids),
    "BatchNorm forgotten": lambda p: replace(p, batch_norm=None),
}


@pytest.mark.parametrize("fault", PARAMETER_FAULTS)
def test_wrong_parameters_fail(parameters: ReferenceParameters, fault: str) -> None:
    planted = PlantedRunner(PARAMETER_FAULTS[fault](parameters))
    planted.spec = parameters.spec
    assert compare(planted, parameters).verdict is Verdict.FAIL


def test_ghosts_not_dropped_before_the_softmax_fail(parameters: ReferenceParameters) -> None:
    def without_ghosts(logits: Array) -> Array:
        logits = logits.copy()
        logits[..., 6:] = -1e9
        return logits

    assert compare(PlantedRunner(parameters, {"logits": without_ghosts}), parameters).verdict is Verdict.FAIL


def test_no_fault_passes(parameters: ReferenceParameters) -> None:
    report = compare(PlantedRunner(parameters, probe=True), parameters)
    assert report.verdict is Verdict.PASS
    assert {output.output for _, output in outputs_of(report)} == {DESCRIPTOR, *PROBES}


UNIFORM: dict[str, tuple[dict[str, Stage], str]] = {
    "a scale on every residual": ({"residuals": lambda v: v * 1.5}, RESIDUAL_SUM),
    "a scale on every assignment": ({"assignment": lambda v: v * 1.5}, SOFT_ASSIGNMENT),
    "a factor on one cluster's assignments": ({"assignment": at((..., 1), lambda v: v * 0.5)}, SOFT_ASSIGNMENT),
}


@pytest.mark.parametrize("fault", UNIFORM)
def test_only_the_probes_show_a_fault_that_intra_normalisation_hides(
    parameters: ReferenceParameters, fault: str
) -> None:
    faults, where = UNIFORM[fault]
    cases = [Case(name="typical", features=features(2, 20, 16))]
    assert compare(PlantedRunner(parameters, faults), parameters, cases=cases).verdict is Verdict.PASS
    report = compare(PlantedRunner(parameters, faults, probe=True), parameters, cases=cases)
    assert report.verdict is Verdict.FAIL
    assert Verdict.FAIL in {output.verdict for _, output in outputs_of(report) if output.output == where}


def test_a_constant_added_to_all_logits_is_no_fault(parameters: ReferenceParameters) -> None:
    planted = PlantedRunner(parameters, {"logits": lambda v: v + 3}, probe=True)
    assert compare(planted, parameters).verdict is Verdict.PASS


def test_the_report_names_the_cluster(parameters: ReferenceParameters) -> None:
    planted = PlantedRunner(parameters, {"residuals": at((slice(None), 3, 0), lambda v: v * 1.01)})
    report = compare(planted, parameters, cases=[Case(name="typical", features=features(2, 20, 16))])
    output = report.cases[0].outputs[0]
    assert output.worst_cluster == 3
    assert int(np.argmax(output.cluster_errors)) == 3
    assert int(np.argmax(output.cluster_ratios)) == 3
    assert max(output.cluster_ratios) == output.worst_ratio, "each error over the tolerance of its own cluster"
    assert output.worst_error > output.tolerance


def test_values_that_are_not_finite_are_counted(parameters: ReferenceParameters) -> None:
    planted = PlantedRunner(parameters, {"descriptor": at((0, slice(3)), lambda v: v * np.inf)})
    report = compare(planted, parameters, cases=[Case(name="typical", features=features(2, 20, 16))])
    assert report.cases[0].outputs[0].non_finite == 3


def test_short_descriptors_have_no_cosine_and_an_absolute_bar(exported: OnnxArtifact) -> None:
    parameters = load_reference(exported.reference_path)
    with open_runner(exported) as runner:
        report = compare(runner, parameters)
    short = [output for case, output in outputs_of(report) if "ghosts win by 100" in case.name]
    assert short[0].output == DESCRIPTOR
    assert (short[0].cosine_min, short[0].cosine_rows, short[0].short_rows) == (None, 0, 2)
    planted = PlantedRunner(parameters, {"descriptor": lambda v: v + 2e-6 * (np.linalg.norm(v) < 0.5)})
    assert compare(planted, parameters).verdict is Verdict.FAIL


def test_every_output_and_case_of_the_exported_graph_passes(exported: OnnxArtifact, masked: OnnxArtifact) -> None:
    for artifact in (exported, masked):
        with open_runner(artifact) as runner:
            report = compare(runner, load_reference(artifact.reference_path))
        assert report.verdict is Verdict.PASS
        assert len(report.cases) == 16 + (artifact is masked)


def test_nothing_to_compare_is_an_error(exported: OnnxArtifact, parameters: ReferenceParameters) -> None:
    with open_runner(exported) as runner:
        with pytest.raises(ParityError, match="a comparison of nothing is not a pass"):
            compare(runner, parameters, cases=[])
        other = PlantedRunner(parameters)
        other.outputs = ()
        with pytest.raises(ParityError, match="share no output"):
            compare(other, parameters)


def test_another_layer_is_an_error(parameters: ReferenceParameters) -> None:
    planted = PlantedRunner(parameters)
    planted.spec = replace(parameters.spec, num_clusters=3)
    with pytest.raises(ParityError, match="the reference is"):
        compare(planted, parameters)
    with pytest.raises(ParityError, match="has descriptors of 96 values, planted of 48"):
        compare(PlantedRunner(parameters), parameters, against=planted)


def test_against_another_runner(exported: OnnxArtifact, masked: OnnxArtifact, parameters: ReferenceParameters) -> None:
    with open_runner(exported) as runner, open_runner(masked) as other:
        report = compare(runner, parameters, against=other)
        assert (report.verdict, report.reference) == (Verdict.PASS, "m.onnx")
        planted = PlantedRunner(parameters, FAULTS["one logit shifted by 0.001"])
        assert compare(runner, parameters, against=planted).verdict is Verdict.FAIL


def test_a_reference_with_an_optional_mask_gets_the_mask(masked: OnnxArtifact) -> None:
    parameters = load_reference(masked.reference_path)
    with open_runner(masked) as runner, open_runner(masked, backend="torch") as reference:
        assert compare(runner, parameters, against=reference).verdict is Verdict.PASS


def test_a_reference_without_a_mask_is_refused_for_a_candidate_with_one(
    exported: OnnxArtifact, masked: OnnxArtifact, parameters: ReferenceParameters
) -> None:
    with open_runner(masked) as runner, open_runner(exported) as reference:
        with pytest.raises(ParityError, match=r"takes a mask, m.onnx does not"):
            compare(runner, parameters, against=reference)


def test_no_error_within_no_tolerance_passes(parameters: ReferenceParameters) -> None:
    dead = replace(parameters, centroids=0 * parameters.centroids)
    blank = [Case(name="blank image", features=np.zeros((1, 4, 16), np.float32))]
    assert compare(PlantedRunner(dead), dead, cases=blank).verdict is Verdict.PASS
    planted = PlantedRunner(dead, {"descriptor": lambda v: v + 1e-7})
    assert compare(planted, dead, cases=blank).verdict is Verdict.FAIL


def test_an_output_that_the_reference_lacks_is_judged_by_the_oracle(exported: OnnxArtifact) -> None:
    parameters = load_reference(exported.reference_path)
    planted = PlantedRunner(parameters, {"assignment": at((..., 1), lambda v: v * 0.5)}, probe=True)
    cases = [Case(name="typical", features=features(2, 20, 16))]
    with open_runner(exported, backend="torch") as reference:
        report = compare(planted, parameters, against=reference, cases=cases)
    verdicts = {output.output: output.verdict for _, output in outputs_of(report)}
    assert verdicts[DESCRIPTOR] is Verdict.PASS
    assert verdicts[SOFT_ASSIGNMENT] is verdicts[RESIDUAL_SUM] is Verdict.FAIL
