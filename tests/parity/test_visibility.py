"""Planted faults are those of the oracle, and a case whose tolerance would hide one is no PASS."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from netvlad_deploy.export.onnx_model import export_onnx
from netvlad_deploy.models.netvlad import initialize
from netvlad_deploy.oracle.equations import BatchNorm, LinearMap, ReferenceParameters
from netvlad_deploy.oracle.reference_file import load_reference
from netvlad_deploy.parity.cases import Case, default_cases
from netvlad_deploy.parity.error_model import tolerances
from netvlad_deploy.parity.heads import compare
from netvlad_deploy.parity.localise import cluster_errors
from netvlad_deploy.parity.visibility import (
    ASSIGNMENTS,
    CERTAIN,
    SIGN,
    SWAP,
    TURN,
    Visibility,
    unseen,
    visibility,
)
from netvlad_deploy.runtime.open_runner import open_runner
from netvlad_deploy.runtime.oracle_runner import OracleRunner
from netvlad_deploy.spec.graph_options import GraphOptions
from netvlad_deploy.spec.layer import ADD, CLAMP, DESCRIPTOR, RSQRT
from netvlad_deploy.spec.profiles import AxisRange, Profile
from netvlad_deploy.spec.verdict import Verdict
from netvlad_deploy.support.arrays import Array, Float64, unit_rows
from tests.modules import features, make_module
from tests.parity.test_error_model import parameters
from tools.head_faults import permuted

K, D = 6, 16
CASE = Case(name="usual", features=unit_rows(features(3, 40, D)))
SHAPES = Profile(batch=AxisRange(min=1, opt=2, max=4), num_features=AxisRange(min=1, opt=40, max=80))


def head(clusters: int = K, ghosts: int = 2, sharpness: float = 10) -> ReferenceParameters:
    return parameters(clusters, D, ghosts, sharpness)


def with_projection(gated: bool, l2: bool = True, final_l2: bool = False) -> ReferenceParameters:
    random = np.random.default_rng(5)
    norm = BatchNorm(
        weight=-random.uniform(0.5, 1.5, 7),
        bias=random.standard_normal(7),
        running_mean=random.standard_normal(7) / 10,
        running_var=random.uniform(0.1, 1, 7),
        eps=1e-5,
    )
    projection = LinearMap(weight=random.standard_normal((7, K * D)), bias=None, batch_norm=norm)
    gating = LinearMap(weight=random.standard_normal((7, 7)), bias=random.standard_normal(7), batch_norm=None)
    return replace(head(), projection=projection, projection_l2=l2, gating=gating if gated else None, final_l2=final_l2)


def sight(p: ReferenceParameters, case: Case = CASE, precision: str = "fp32") -> Visibility:
    oracle = OracleRunner(p)
    feeds = case.feeds(oracle, masked=False)
    expected = oracle.run(feeds)
    return visibility(p, feeds, expected, tolerances(p, feeds, expected, precision)[DESCRIPTOR])


def revealed(found: Visibility) -> dict[str, int]:
    return {kind: int(faults.sum()) for kind, faults in found.revealed.items()}


def errors_and_tolerance(p: ReferenceParameters, wrong: ReferenceParameters) -> tuple[Float64, Float64]:
    feeds = CASE.feeds(OracleRunner(p), masked=False)
    expected = OracleRunner(p).run(feeds)
    difference = OracleRunner(wrong).run(feeds)[DESCRIPTOR] - expected[DESCRIPTOR]
    return cluster_errors(DESCRIPTOR, difference, p.spec), tolerances(p, feeds, expected, "fp32")[DESCRIPTOR]


def with_centroid(p: ReferenceParameters, cluster: int, factor: float) -> ReferenceParameters:
    centroids = p.centroids.copy()
    centroids[cluster] *= factor
    return replace(p, centroids=centroids)


def with_swapped(p: ReferenceParameters, one: int, other: int) -> ReferenceParameters:
    order = np.arange(p.clusters.shape[1])
    order[[one, other]] = other, one
    return permuted(p, order, order[: len(p.centroids)])


@pytest.mark.parametrize("epsilon", [CLAMP, RSQRT, ADD])
def test_planted_faults_are_those_of_the_oracle(epsilon: str) -> None:
    p = replace(head(), epsilon=epsilon)
    found = sight(p)
    assert found.reason == ""
    assert revealed(found) == {SWAP: K * (K - 1) / 2, SIGN: K, ASSIGNMENTS: K, TURN: K}
    oracle = OracleRunner(p)
    parts = oracle.run(CASE.feeds(oracle, masked=False))[DESCRIPTOR].reshape(3, D, K)
    for cluster in range(K):
        errors, _ = errors_and_tolerance(p, with_centroid(p, cluster, -1))
        moved = OracleRunner(with_centroid(p, cluster, -1)).run(CASE.feeds(oracle, masked=False))[DESCRIPTOR]
        assert errors.max() == pytest.approx(np.linalg.norm(moved.reshape(3, D, K) - parts, axis=1).max())
        assert errors[:, cluster].max() > 0
    errors, _ = errors_and_tolerance(p, with_swapped(p, 1, 4))
    assert errors.max() == pytest.approx(np.linalg.norm(parts[..., 1] - parts[..., 4], axis=1).max())


def smallest_of(p: ReferenceParameters, change: float) -> Array:
    """Return for each cluster whether such a change of its centroid is surely revealed."""
    found = []
    for cluster in range(K):
        errors, allowed = errors_and_tolerance(p, with_centroid(p, cluster, 1 + change))
        found.append((errors > CERTAIN * allowed).any())
    return np.array(found)


@pytest.mark.parametrize("sharpness", [1, 10, 100])
def test_the_smallest_fault_is_revealed_in_every_cluster_and_a_smaller_one_is_not(sharpness: float) -> None:
    p = head(sharpness=sharpness)
    smallest = sight(p).smallest_fault
    assert smallest is not None
    assert smallest < 0.01
    assert smallest_of(p, smallest).all()
    assert not smallest_of(p, 0.8 * smallest).all()


@pytest.mark.parametrize(("gated", "l2", "final_l2"), [
    (False, False, False), (False, True, False), (True, False, False), (True, True, False), (True, True, True),
])  # fmt: skip
def test_faults_before_a_projection_are_judged_after_it(gated: bool, l2: bool, final_l2: bool) -> None:
    p = with_projection(gated, l2, final_l2)
    found = sight(p)
    assert found.reason == ""
    assert revealed(found) == {SWAP: K, SIGN: K, ASSIGNMENTS: K, TURN: K}, "each cluster changes places with the next"
    assert found.smallest_fault is not None
    assert smallest_of(p, 1.05 * found.smallest_fault).all()
    assert not smallest_of(p, 0.9 * found.smallest_fault).all()


@pytest.mark.parametrize("clusters", [1, K])
@pytest.mark.parametrize("ghosts", [0, 2])
def test_usual_cases_are_judged_in_fp32(clusters: int, ghosts: int) -> None:
    p = head(clusters, ghosts)
    reasons = {case.name: sight(p, case).reason for case in default_cases(p, shapes=SHAPES)}
    assert not any(reason for name, reason in reasons.items() if "0000" not in name), reasons


def test_a_cluster_with_the_assignments_of_the_next_column_moves_as_far_as_the_oracle_says() -> None:
    """The last cluster gets a ghost's."""
    p = head()
    feeds = CASE.feeds(OracleRunner(p), masked=False)
    expected = OracleRunner(p).run(feeds)
    columns = np.roll(np.arange(p.clusters.shape[1]), -1)
    difference = OracleRunner(permuted(p, columns, np.arange(K))).run(feeds)[DESCRIPTOR] - expected[DESCRIPTOR]
    moved = cluster_errors(DESCRIPTOR, difference, p.spec)
    for cluster in range(K):
        for factor, seen in ((0.99, True), (1.01, False)):
            limit = factor * moved[:, cluster].max() / CERTAIN
            found = visibility(p, feeds, expected, np.full((3, K), limit))
            assert found.revealed[ASSIGNMENTS][cluster] == seen


def test_a_descriptor_that_no_fault_moves_is_not_judged() -> None:
    """After a projection whose bias is all that counts, every head gives the same."""
    p = with_projection(gated=False)
    assert p.projection is not None
    small = 1e-30 * p.projection.weight
    constant = replace(p, projection=replace(p.projection, weight=small))
    assert sight(constant).reason == "the descriptor is the same whatever the weights of the head are"
    short = replace(p, projection=LinearMap(weight=small, bias=None, batch_norm=None), projection_l2=False)
    assert sight(short).reason == "", "a small descriptor is as good as a long one"


@pytest.mark.parametrize("same", [0, 1e-12])
def test_a_change_that_moves_nothing_is_no_fault(same: float) -> None:
    p = head(1, 0)
    assert not sight(replace(p, centroids=same * p.centroids)).counts[SIGN].any()
    assert sight(replace(p, centroids=same * p.centroids)).reason == ""


def test_near_zero_the_fault_is_a_descriptor_that_is_not() -> None:
    p = head()
    [short] = [case for case in default_cases(p, shapes=SHAPES) if "ghosts win by 100" in case.name]
    found = sight(p, short)
    assert (found.reason, found.smallest_fault) == ("", None)
    oracle = OracleRunner(p)
    feeds = short.feeds(oracle, masked=False)
    expected = oracle.run(feeds)
    blind = np.full((2, K), 0.9)
    assert "near zero" in visibility(p, feeds, expected, blind).reason
    assert visibility(p, feeds, expected, blind, 1e-6).reason == "", "FP32 has an absolute tolerance there"
    assert "near zero" in visibility(p, feeds, expected, 2 * blind, 1e-6).reason, "but not where nothing is known"


@pytest.mark.export
@pytest.mark.ort
def test_a_head_whose_logits_fp32_cannot_tell_apart_does_not_fail_where_ghosts_win(tmp_path: Path) -> None:
    """The oracle sees ghosts win by millions, of logits of 1e15 whose steps are larger than that."""
    module = make_module(3, 600, 4)
    assert module.batch_norm is not None
    module.batch_norm.weight.data[:] = 1e15
    artifact = export_onnx(module, tmp_path / "m.onnx")
    p = load_reference(artifact.reference_path)
    with open_runner(artifact) as runner:
        report = compare(runner, p, cases=default_cases(p, shapes=SHAPES))
    assert report.verdict is not Verdict.FAIL
    judged = {case.name.split(" (")[0]: case.verdict for case in report.cases}
    assert judged["ghosts win by 100"] is Verdict.NOT_JUDGED


def test_the_same_faults_are_hidden_by_a_wide_tolerance_and_named() -> None:
    p = head()
    oracle = OracleRunner(p)
    feeds = CASE.feeds(oracle, masked=False)
    expected = oracle.run(feeds)
    share = np.linalg.norm(expected[DESCRIPTOR].reshape(3, D, K), axis=1)
    assert visibility(p, feeds, expected, 0.1 * share).reason == ""
    hidden = visibility(p, feeds, expected, 2 * share)
    assert hidden.reason == f"{SWAP} and {SIGN} and {ASSIGNMENTS} and {TURN} would be within the tolerance"
    one = np.where(np.arange(K) == 2, 2, 0.01) * share
    found = visibility(p, feeds, expected, one)
    assert revealed(found) == {SWAP: K * (K - 1) / 2, SIGN: K - 1, ASSIGNMENTS: K - 1, TURN: K - 1}
    two = np.where(np.arange(K) < 2, 2, 0.01) * share
    found = visibility(p, feeds, expected, two)
    assert found.reason
    assert unseen([found]).startswith("no case would reveal clusters in each other's place (0 and 1, nor ")
    assert unseen([found, sight(p)]) == unseen([]) == ""


@pytest.mark.export
@pytest.mark.ort
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_clusters_of_a_million_judge_nothing_in_fp16(tmp_path: Path, precision: str) -> None:
    """Negated centroids once passed here, every tolerance being over 0.1."""
    module = initialize(make_module(K, D, 0, batch_norm=False).spec, 0).eval()
    module.clusters.data *= torch.tensor(1e6)
    artifact = export_onnx(module, tmp_path / "m.onnx", GraphOptions(precision=precision, probe=True))
    right = load_reference(artifact.reference_path)
    with open_runner(artifact, backend="strict") as runner:
        reports = [
            compare(runner, p, cases=default_cases(p, shapes=SHAPES))
            for p in (right, replace(right, centroids=-right.centroids))
        ]
    assert reports[0].verdict is not Verdict.FAIL
    assert reports[1].verdict is not Verdict.PASS
    for report in reports:
        for case in report.cases:
            for output in case.outputs:
                assert output.output != DESCRIPTOR or output.verdict is not Verdict.PASS or output.tolerance < 0.2
    assert precision == "fp32" or reports[0].not_judged > len(reports[0].cases) / 2


@pytest.mark.export
@pytest.mark.ort
def test_one_cluster_of_huge_weights_is_judged_by_the_sign_of_its_centroid(tmp_path: Path) -> None:
    module = make_module(1, D, 0)
    assert module.batch_norm is not None
    module.batch_norm.weight.data *= 1e20
    module.clusters2.data *= 1e18
    artifact = export_onnx(module, tmp_path / "m.onnx")
    right = load_reference(artifact.reference_path)
    with open_runner(artifact) as runner:
        assert compare(runner, right).verdict is Verdict.PASS, "a softmax over one column is 1"
        assert compare(runner, replace(right, centroids=-right.centroids)).verdict is Verdict.FAIL
