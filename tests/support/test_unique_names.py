"""A name that comes twice is found, however far apart the two stand."""

from collections.abc import Iterator
from contextlib import closing

import pytest

from netvlad_deploy.support.unique_names import UniqueNames


@pytest.fixture
def names() -> Iterator[UniqueNames]:
    with closing(UniqueNames()) as opened:
        yield opened


def test_names_that_differ_in_anything_are_two(names: UniqueNames) -> None:
    assert names.first_repeated(["a", "A", "a ", "", "\u00e9", "e\u0301", "\udcff", "a\0"]) is None
    assert names.first_repeated([]) is None


@pytest.mark.parametrize("repeated", ["first", "0", "9999", "\udcff"])
def test_a_name_of_any_call_before_is_found(names: UniqueNames, repeated: str) -> None:
    assert names.first_repeated(["first", "\udcff"]) is None
    assert names.first_repeated(list(map(str, range(10_000)))) is None
    assert names.first_repeated(["x", "y", repeated, "z"]) == 2


def test_a_name_of_the_same_call_is_found(names: UniqueNames) -> None:
    assert names.first_repeated(["x", "y", "x"]) == 2
