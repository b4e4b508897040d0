"""Batches: which items share one, and which shape some profile takes."""

import numpy as np
import pytest

from netvlad_deploy.retrieval.batches import batches, largest_batch, smallest_shape
from netvlad_deploy.runner import Runner
from netvlad_deploy.runtime.oracle_runner import OracleRunner
from netvlad_deploy.spec.images import AnyProfile, ImageProfile
from netvlad_deploy.spec.profiles import Profile

HEADS = tuple(Profile.parse(text) for text in ("3x4,3x8,4x8", "1x20,1x30,1x40"))
PHOTOS = (ImageProfile.parse("2x4x4,2x4x4,3x4x6"), ImageProfile.parse("1x9x9"))


def lengths(*sizes: int, largest: int, padded: bool = False) -> list[list[int]]:
    items = ((size, np.zeros((size, 2))) for size in sizes)
    return [[name for name, _ in group] for group in batches(items, lambda _: largest, padded=padded)]


def test_neighbours_of_one_shape_share_a_batch() -> None:
    assert lengths(5, 5, 5, 3, 5, largest=2) == [[5, 5], [5], [3], [5]]
    assert lengths(5, 4, 3, 2, largest=3, padded=True) == [[5, 4, 3], [2]]
    assert lengths(5, 5, largest=0) == [[5], [5]], "an item larger than any batch goes alone"
    assert lengths(largest=1) == []


@pytest.mark.parametrize(
    ("profiles", "shape", "grows", "expected"),
    [
        ((), (7, 9), 1, (7, 9)),
        (HEADS, (1, 5), 1, (3, 5)),
        (HEADS, (1, 3), 1, None),
        (HEADS, (1, 3), 2, (3, 4)),
        (HEADS, (1, 9), 2, (1, 20)),
        (HEADS, (2, 9), 2, None),
        (PHOTOS, (1, 4, 6), 1, (2, 4, 6)),
        (PHOTOS, (1, 9, 9), 1, (1, 9, 9)),
        (PHOTOS, (1, 3, 4), 1, None),
    ],
)
def test_a_shape_is_filled_up_to_the_smallest_that_a_profile_takes(
    profiles: tuple[AnyProfile, ...], shape: tuple[int, ...], grows: int, expected: tuple[int, ...] | None
) -> None:
    assert smallest_shape(profiles, shape, grows=grows) == expected


def test_a_batch_is_as_large_as_asked_or_as_a_profile_for_the_size_takes() -> None:
    runner: Runner = OracleRunner.__new__(OracleRunner)
    runner.profiles = PHOTOS
    assert [largest_batch(runner, asked, (4, 6)) for asked in (1, 2, 8)] == [1, 2, 3]
    assert largest_batch(runner, 8, (9, 9)) == 1
    assert largest_batch(runner, 8, (50, 50)) == 8, "the runner says what is wrong"
    runner.profiles = ()
    assert largest_batch(runner, 8, (9, 9)) == 8
