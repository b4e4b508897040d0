"""Recall and mAP against rankings written by hand and against brute force in float64."""

import numpy as np
import pytest

from netvlad_deploy.errors import InputError
from netvlad_deploy.retrieval import recall
from netvlad_deploy.retrieval.embed_images import Described
from netvlad_deploy.retrieval.recall import agree, measure_recall, rank
from netvlad_deploy.support.arrays import Array


def described(prefix: str, descriptors: Array) -> Described:
    names = tuple(f"{prefix}{index}" for index in range(len(descriptors)))
    return Described(names=names, descriptors=descriptors.astype(np.float32))


def ring(*degrees: float) -> Array:
    """Return unit vectors at these angles: the nearest is the one with the smallest difference."""
    angles = np.radians(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


QUERIES = described("q", ring(0, 90, 180))
DATABASE = described("d", ring(10, 25, 80, 100, 170, 45))
"""q0 sees d0 d1 d5 d2 d3 d4, q1 sees d2 d3 (equally near) d5 d1 d0 d4, q2 sees d4 d3 d2 d5 d1 d0."""


def test_the_figures_of_a_ranking_by_hand() -> None:
    positives = {"q0": frozenset({"d1", "d2"}), "q1": frozenset({"d2"}), "q2": frozenset({"d0", "d4", "d5"})}
    found = measure_recall(QUERIES, DATABASE, positives, alone=False)
    assert [one.first_right for one in found.queries] == [2, 1, 1]
    precisions = [(1 / 2 + 2 / 4) / 2, 1.0, (1 / 1 + 2 / 4 + 3 / 6) / 3]
    assert [one.average_precision for one in found.queries] == pytest.approx(precisions, abs=1e-12)
    assert found.mean_average_precision == pytest.approx(sum(precisions) / 3, abs=1e-12)
    assert found.recall == {1: pytest.approx(2 / 3), 5: 1.0, 10: 1.0}
    assert [match.name for match in found.queries[0].matches] == ["d0", "d1", "d5", "d2", "d3"]
    assert [match.right for match in found.queries[0].matches] == [False, True, False, True, False]
    assert found.queries[0].matches[0].similarity == pytest.approx(np.cos(np.radians(10)), abs=1e-6)


def test_the_first_right_image_is_kept_however_late() -> None:
    found = measure_recall(QUERIES, DATABASE, {"q0": frozenset({"d4"})}, alone=False)
    assert found.recall_answerable == {1: 0.0, 5: 0.0, 10: 1.0}
    assert [(match.rank, match.right) for match in found.queries[0].matches] == [
        (1, False), (2, False), (3, False), (4, False), (5, False), (6, True),
    ]  # fmt: skip


def test_queries_without_a_right_image_are_misses_of_recall_alone() -> None:
    """As the originals divide: by the number of queries."""
    positives = {"q1": frozenset({"d2"}), "q2": frozenset(), "q0": frozenset({"gone"})}
    found = measure_recall(QUERIES, DATABASE, positives, alone=False)
    assert [one.query for one in found.queries] == ["q1"]
    assert found.num_queries == 3
    assert found.recall == dict.fromkeys((1, 5, 10), pytest.approx(1 / 3))
    assert found.recall_answerable == dict.fromkeys((1, 5, 10), 1.0)
    assert found.mean_average_precision == 1.0
    with pytest.raises(InputError, match="no query has a right image"):
        measure_recall(QUERIES, DATABASE, {"q0": frozenset({"gone"})}, alone=False)


def test_equally_near_images_stand_in_the_order_of_the_database() -> None:
    same = described("d", ring(30, 30, 30))
    assert [order.tolist() for _, order in rank(described("q", ring(30)), same, alone=False)] == [[0, 1, 2]]
    assert [order.tolist() for _, order in rank(same, same, alone=True)] == [[1, 2], [0, 2], [0, 1]]


def test_an_image_never_matches_itself() -> None:
    walk = described("d", ring(0, 10, 30, 60))
    own = {name: frozenset({name}) for name in walk.names}
    assert measure_recall(walk, walk, own, alone=False).recall[1] == 1.0
    with pytest.raises(InputError, match="no query has a right image"):
        measure_recall(walk, walk, own, alone=True)
    neighbours = {"d3": frozenset({"d2", "d3"}), "d0": frozenset({"d2"})}
    found = measure_recall(walk, walk, neighbours, alone=True)
    assert [one.first_right for one in found.queries] == [2, 1]
    assert all(one.query not in [match.name for match in one.matches] for one in found.queries)


def test_a_transposed_ground_truth_gives_other_figures() -> None:
    walk = described("d", np.random.default_rng(0).standard_normal((20, 3)))
    positives = {f"d{index}": frozenset({f"d{(index + 1) % 20}"}) for index in range(20)}
    transposed = {f"d{(index + 1) % 20}": frozenset({f"d{index}"}) for index in range(20)}
    figures = [measure_recall(walk, walk, each, alone=True).mean_average_precision for each in (positives, transposed)]
    assert abs(figures[0] - figures[1]) > 0.01


@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize("block", [1, 3, 256])
@pytest.mark.parametrize("normalised", [True, False])
def test_ranks_are_those_of_brute_force(
    alone: bool, block: int, normalised: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By float64 distances, one pair at a time; lengths that differ must count, as they do in a distance."""
    monkeypatch.setattr(recall, "QUERY_BLOCK", block)
    random = np.random.default_rng(1)
    points = [random.standard_normal((count, 8)) for count in (7, 12)]
    if normalised:
        points = [each / np.linalg.norm(each, axis=1, keepdims=True) for each in points]
    database = described("d", points[1])
    queries = database if alone else described("q", points[0])
    got = [order.tolist() for _, order in rank(queries, database, alone=alone)]
    for place, query in enumerate(queries.descriptors):
        distances = [float(((query.astype(np.float64) - row) ** 2).sum()) for row in database.descriptors]
        expected = sorted(range(12), key=lambda index: distances[index])
        assert got[place] == [index for index in expected if not (alone and index == place)]


def test_agreement_finds_the_queries_that_differ() -> None:
    changed = DATABASE.descriptors.copy()
    changed[[0, 1]] = changed[[1, 0]]  # q0 now finds d1
    other = Described(names=DATABASE.names, descriptors=changed)
    same = agree(("a", "b"), (QUERIES, QUERIES), (DATABASE, DATABASE), alone=False)
    assert (same.top1, same.differing) == (1.0, ())
    assert same.distance == pytest.approx(0, abs=1e-7)
    found = agree(("a", "b"), (QUERIES, QUERIES), (other, DATABASE), alone=False)
    assert found.differing == ("q0",)
    assert found.top1 == pytest.approx(2 / 3)
    assert found.distance == pytest.approx(1 - np.cos(np.radians(15)), abs=1e-6)
    assert found.image == "d0"
    turned = Described(names=QUERIES.names, descriptors=ring(0, 90, 240).astype(np.float32))
    found = agree(("a", "b"), (turned, QUERIES), (DATABASE, DATABASE), alone=False)
    assert found.distance == pytest.approx(0.5, abs=1e-6)
    assert found.image == "q2"


def test_a_scale_alone_is_no_difference_of_direction() -> None:
    double = Described(names=DATABASE.names, descriptors=2 * DATABASE.descriptors)
    assert agree(("a", "b"), (double, DATABASE), (double, DATABASE), alone=True).distance == pytest.approx(0, abs=1e-7)


def test_descriptors_of_another_length_agree_by_rank_alone() -> None:
    longer = [Described(names=each.names, descriptors=np.pad(each.descriptors, ((0, 0), (0, 1)))) for each in
              (QUERIES, DATABASE)]  # fmt: skip
    found = agree(("a", "b"), (longer[0], QUERIES), (longer[1], DATABASE), alone=False)
    assert (found.top1, found.distance, found.image) == (1.0, None, None)


def test_only_some_of_them() -> None:
    some = DATABASE.only({"d5", "d0", "other"})
    assert some.names == ("d0", "d5")
    assert np.array_equal(some.descriptors, DATABASE.descriptors[[0, 5]])
    assert DATABASE.only(set(DATABASE.names)) is DATABASE
