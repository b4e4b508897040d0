from dataclasses import replace

import numpy as np
import pytest

from netvlad_deploy.oracle.equations import ReferenceParameters, assignment_logits, soft_assignment
from netvlad_deploy.oracle.reference_file import parameters_from_arrays
from netvlad_deploy.parity.cases import EMPTY_MARGIN, default_cases, won_by
from netvlad_deploy.parity.error_model import tolerances
from netvlad_deploy.runtime.oracle_runner import OracleRunner
from netvlad_deploy.spec.layer import DESCRIPTOR, FEATURES, MASK
from netvlad_deploy.spec.profiles import AxisRange, Profile
from tests.modules import RANGE
from tests.parity.test_error_model import parameters

SHAPES = Profile(batch=AxisRange(min=2, opt=3, max=4), num_features=AxisRange(min=5, opt=6, max=9))


@pytest.fixture(scope="module")
def head() -> ReferenceParameters:
    return parameters(6, 32, 2, 10)


def test_the_default_cases_by_name(head: ReferenceParameters) -> None:
    names = [case.name for case in default_cases(head, masked=True)]
    assert names == [
        "typical", "few features", "zero rows", "num_features 1", "num_features 1024", "batch 1", "batch 16",
        "L2-normalised x 0.0001", "L2-normalised", "L2-normalised x 100", "L2-normalised x 10000",
        "near centroids", "empty clusters", "ghosts win by 30", "ghosts win by 60", "ghosts win by 100", "padded",
    ]  # fmt: skip


def test_every_case_stays_within_the_profile_and_float32(head: ReferenceParameters) -> None:
    for case in default_cases(head, shapes=SHAPES, masked=True):
        batch, length, width = case.features.shape
        assert 2 <= batch <= 4, case.name
        assert 5 <= length <= 9, case.name
        assert width == 32
        assert case.features.dtype == np.float32
        feeds = case.feeds(OracleRunner(head), masked=True)
        assert feeds[MASK].shape == feeds[FEATURES].shape[:2]


def test_both_ends_of_the_profile_are_tried(head: ReferenceParameters) -> None:
    shapes = [case.features.shape for case in default_cases(head, shapes=SHAPES)]
    assert {2, 4} <= {shape[0] for shape in shapes}
    assert {5, 9} <= {shape[1] for shape in shapes}


def test_the_cases_are_the_same_each_time(head: ReferenceParameters) -> None:
    for first, again in zip(default_cases(head), default_cases(head), strict=True):
        assert np.array_equal(first.features, again.features)


@pytest.mark.parametrize("margin", [30.0, 60.0, 100.0])
def test_ghosts_win_by_the_margin_in_every_row(head: ReferenceParameters, margin: float) -> None:
    logits = assignment_logits(head, won_by(head, slice(6, None), margin, 2, 20, np.random.default_rng(0)))
    gap = logits[..., 6:].min(axis=-1) - logits[..., :6].max(axis=-1)
    assert np.abs(gap - margin).max() < 1.5


def test_empty_clusters_are_empty(head: ReferenceParameters) -> None:
    logits = assignment_logits(head, won_by(head, slice(1), EMPTY_MARGIN, 2, 20, np.random.default_rng(0)))
    assignment = soft_assignment(logits, 6)
    assert assignment[..., 0].min() > 0.999
    assert assignment[..., 1:].max() < 1e-80


def test_the_padded_case_has_an_item_without_a_valid_row(head: ReferenceParameters) -> None:
    *_, padded = default_cases(head, masked=True)
    assert padded.mask is not None
    assert not padded.mask[-1].any()
    assert padded.mask[0].any()


def test_without_ghosts_there_is_no_ghost_case() -> None:
    assert not [case.name for case in default_cases(parameters(6, 32, 0, 10)) if "ghosts" in case.name]


def test_few_features_see_an_epsilon_that_many_average_away() -> None:
    """The planted fault: epsilon 0 instead of 1e-5, with variances down to 0.01."""
    width, clusters, ghosts = 512, 64, 8
    random = np.random.default_rng(1)
    columns = clusters + ghosts
    head = parameters_from_arrays(
        {
            "clusters": random.standard_normal((width, columns)) / np.sqrt(width),
            "clusters2": random.standard_normal((1, width, clusters)) / np.sqrt(width),
            "batch_norm.weight": random.uniform(0.5, 2, columns),
            "batch_norm.bias": random.standard_normal(columns),
            "batch_norm.running_mean": random.standard_normal(columns),
            "batch_norm.running_var": random.uniform(0.01, 3, columns),
            "batch_norm.eps": np.array(1e-5),
        }
    )
    assert head.batch_norm is not None
    wrong = replace(head, batch_norm=replace(head.batch_norm, eps=0.0))
    ratios = {}
    for case in default_cases(head):
        if case.name in ("typical", "few features"):
            feeds = case.feeds(OracleRunner(head), masked=False)
            expected = OracleRunner(head).run(feeds)
            difference = OracleRunner(wrong).run(feeds)[DESCRIPTOR] - expected[DESCRIPTOR]
            errors = np.linalg.norm(difference.reshape(-1, width, clusters), axis=1)
            ratios[case.name] = (errors / tolerances(head, feeds, expected, "fp32")[DESCRIPTOR]).max()
    assert ratios["typical"] < 1 < ratios["few features"]


def test_a_margin_that_cannot_be_reached_is_in_the_name() -> None:
    names = [case.name for case in default_cases(parameters(16, 4, 4, 1))]
    constructed = [name for name in names if name.startswith(("ghosts", "empty"))]
    assert len(constructed) == 4
    assert all("(reached " in name for name in constructed)


def scaled(head: ReferenceParameters, clusters: float = 1, centroids: float = 1) -> ReferenceParameters:
    return replace(head, clusters=clusters * head.clusters, centroids=centroids * head.centroids)


def doubts(p: ReferenceParameters, dtype: type, **limits: float) -> dict[str, str]:
    """Return why cases are left out, by name."""
    known = replace(RANGE, largest=limits["largest"], smallest=limits["smallest"]) if limits else None
    cases = [case.rounded(dtype) for case in default_cases(p, shapes=SHAPES)]
    return {case.name.split(" (")[0]: why for case in cases if (why := case.doubt(known))}


def test_usual_cases_satisfy_their_claims(head: ReferenceParameters) -> None:
    for dtype in (np.float32, np.float16):
        assert doubts(head, dtype) == {}
    for case in default_cases(parameters(16, 4, 4, 1)):
        assert case.doubt(None) == ""


@pytest.mark.parametrize(("dtype", "centroids"), [
    (np.float32, 1e-44), (np.float32, 1e39), (np.float16, 1e6), (np.float16, 1e18), (np.float16, 1e-7),
])  # fmt: skip
def test_features_that_cannot_be_near_a_centroid_are_left_out(
    head: ReferenceParameters, dtype: type, centroids: float
) -> None:
    found = doubts(scaled(head, centroids=centroids), dtype)
    assert list(found) == ["near centroids"]
    assert "centroid" in found["near centroids"] or "not finite" in found["near centroids"]


@pytest.mark.parametrize("centroids", [1e-30, 1e5, 1e18])
def test_features_near_centroids_of_any_size_are_made_in_fp32(head: ReferenceParameters, centroids: float) -> None:
    p = scaled(head, centroids=centroids)
    assert doubts(p, np.float32) == {}
    assert list(doubts(p, np.float32, smallest=1e-15, largest=1e4 if centroids > 1 else 1e30)) == ["near centroids"]
    normalised = replace(p, normalize_input=True)
    assert "length 1" in doubts(normalised, np.float32)["near centroids"]


@pytest.mark.parametrize("clusters", [1e-42, 1e20])
def test_a_margin_that_float32_cannot_hold_leaves_the_case_out(head: ReferenceParameters, clusters: float) -> None:
    plain = replace(scaled(head, clusters=clusters), batch_norm=None)
    expected = ["empty clusters", *(f"ghosts win by {margin}" for margin in (30, 60, 100))]
    assert list(doubts(plain, np.float32)) == (expected if clusters < 1 else [])
    assert set(doubts(plain, np.float16)) == set(expected)
