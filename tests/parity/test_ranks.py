"""Agreement of two rankings, on banks small enough to rank by hand, and on near ties."""

from pathlib import Path

import numpy as np
import pytest

from netvlad_deploy.errors import InputError, ParityError
from netvlad_deploy.export.onnx_model import export_onnx
from netvlad_deploy.oracle.equations import ReferenceParameters
from netvlad_deploy.oracle.reference_file import load_reference
from netvlad_deploy.parity.heads import compare
from netvlad_deploy.parity.ranks import Bank, RetrievalParity, compare_retrieval, near_ties
from netvlad_deploy.runner import Runner
from netvlad_deploy.runtime.open_runner import open_runner
from netvlad_deploy.runtime.oracle_runner import OracleRunner
from netvlad_deploy.spec.graph_options import GraphOptions
from netvlad_deploy.spec.layer import DESCRIPTOR, FEATURES, MASK, NetVLADSpec
from netvlad_deploy.spec.profiles import AxisRange, Profile
from netvlad_deploy.spec.verdict import Verdict
from netvlad_deploy.support.arrays import Array, Arrays
from tests.heads import sharp_head
from tests.modules import features

SPEC = NetVLADSpec(num_clusters=1, feature_size=2)


class Angles(Runner):
    """Give the first local descriptor itself as the descriptor, after turning some of them by an angle."""

    def __init__(self, turns: dict[float, float] | None = None) -> None:
        super().__init__("angles", SPEC, inputs=(FEATURES,), optional_inputs=(MASK,), outputs=(DESCRIPTOR,))
        self.turns = turns or {}

    def _run(self, feeds: Arrays) -> Arrays:
        angles = np.array([np.arctan2(y, x) for x, y in feeds[FEATURES][:, 0]])
        turned = [angle + self.turns.get(round(float(angle), 3), 0.0) for angle in angles]
        return {DESCRIPTOR: np.stack([np.cos(turned), np.sin(turned)], axis=1)}


def at(*angles: float) -> Array:
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)[:, None]


def ranked(turns: dict[float, float], bank: Bank) -> list[RetrievalParity]:
    return list(compare_retrieval(Angles(turns), Angles(), bank))


def test_equal_runners_agree_in_everything() -> None:
    for figure in ranked({}, Bank(name="b", images=at(0, 0.1, 0.3, 0.7))):
        assert (figure.top1, figure.top10, figure.rank_distance, figure.swapped_gap) == (1, 1, 0, 0)
        assert (figure.bank, figure.queries, figure.images) == ("b", 4, 4)


def test_a_swap_of_the_two_best_is_one_rank_each() -> None:
    bank = Bank(name="b", images=at(0.1, 0.2, 1.0), queries=at(0.0))
    own, crossed = ranked({0.1: 0.15}, bank)  # the image at 0.1 moves behind the one at 0.2
    assert (own.arrangement, crossed.arrangement) == ("own bank", "crossed")
    assert (own.top1, own.top10) == (0, 1)
    assert own.rank_distance == pytest.approx(2 / 3)
    assert own.swapped_gap == pytest.approx(np.cos(0.1) - np.cos(0.2), abs=1e-6)
    assert (crossed.top1, crossed.rank_distance, crossed.swapped_gap) == (1, 0, 0)


def test_a_query_that_drifts_shows_in_the_crossed_ranking_too() -> None:
    bank = Bank(name="b", images=at(0.1, 0.2, 1.0), queries=at(0.0))
    own, crossed = ranked({0.0: 0.4}, bank)
    assert (own.top1, crossed.top1) == (0, 0)


def test_the_first_ten_of_many_can_lose_a_member() -> None:
    angles = [0.05 * (index + 1) for index in range(30)]
    own, _ = ranked({0.5: 0.4}, Bank(name="b", images=at(*angles), queries=at(0.0)))  # the tenth falls behind
    assert (own.top1, own.top10) == (1, 0.9)


def test_without_queries_an_image_does_not_find_itself() -> None:
    own, _ = ranked({0.1: 0.75}, Bank(name="b", images=at(0, 0.1, 0.3)))
    assert own.queries == 3
    assert own.top1 < 1


def test_one_image_is_no_bank() -> None:
    with pytest.raises(ParityError, match="fewer than two images"):
        ranked({}, Bank(name="lonely", images=at(0.1)))


def test_features_of_another_width_are_refused() -> None:
    with pytest.raises(InputError, match=r"expected \(batch, num_features, 2\)"):
        ranked({}, Bank(name="b", images=features(3, 4, 5)))


def oracle() -> ReferenceParameters:
    random = np.random.default_rng(0)
    return ReferenceParameters(
        clusters=10 * random.standard_normal((16, 8)), centroids=random.standard_normal((6, 16)), batch_norm=None
    )


def test_near_ties_are_near_and_within_the_profile() -> None:
    shapes = Profile(batch=AxisRange.parse("2:3:5"), num_features=AxisRange.parse("5:6:9"))
    bank = near_ties(oracle(), shapes=shapes)
    assert isinstance(bank.images, np.ndarray)
    assert bank.images.shape == (64, 9, 16)
    descriptors = OracleRunner(oracle()).run({FEATURES: bank.images})[DESCRIPTOR]
    similarities = np.sort(descriptors[:8] @ descriptors[:8].T, axis=1)
    assert 0 < np.diff(similarities, axis=1).min() < 1e-5


@pytest.mark.export
@pytest.mark.ort
def test_fp16_swaps_near_ties_only_and_the_verdict_does_not_mind(tmp_path: Path) -> None:
    artifact = export_onnx(sharp_head(16, 64, 2, 30, 0), tmp_path / "m.onnx", GraphOptions(precision="fp16"))
    parameters = load_reference(artifact.reference_path)
    with open_runner(artifact, backend="strict") as runner:
        report = compare(runner, parameters, banks=[near_ties(parameters)])
    own, crossed = report.retrieval
    assert 0 < own.swapped_gap < 1e-4
    assert crossed.swapped_gap < 1e-4
    assert report.verdict is Verdict.PASS


@pytest.mark.export
@pytest.mark.ort
def test_ranks_can_agree_where_the_numbers_fail(tmp_path: Path) -> None:
    module = sharp_head(16, 64, 2, 30, 0)
    artifact = export_onnx(module, tmp_path / "m.onnx")
    module.clusters2.data[0, :, 3] *= 1.02
    wrong = export_onnx(module, tmp_path / "wrong.onnx")
    bank = Bank(name="b", images=features(12, 50, 64))
    with open_runner(wrong) as runner:
        report = compare(runner, load_reference(artifact.reference_path), banks=[bank])
    assert report.verdict is Verdict.FAIL
    assert [figure.top1 for figure in report.retrieval] == [1, 1]
