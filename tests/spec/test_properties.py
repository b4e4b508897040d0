"""Words of the command line: what is written is read again, and anything else is refused in one line."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netvlad_deploy.commands.embed import parse_part
from netvlad_deploy.spec.images import ImageProfile, Resize, parse_profile, parse_size
from netvlad_deploy.spec.profiles import AxisRange, Profile
from tests.properties import few, refusal

LENGTHS = st.lists(st.integers(1, 1024), min_size=3, max_size=3).map(sorted)


@few
@given(st.lists(LENGTHS, min_size=2, max_size=3))
def test_a_profile_is_read_as_it_is_written(axes: list[list[int]]) -> None:
    kind = Profile if len(axes) == 2 else ImageProfile
    text = ",".join("x".join(map(str, shape)) for shape in zip(*axes, strict=True))
    profile = parse_profile(text)
    assert isinstance(profile, kind)
    assert [(axis.min, axis.opt, axis.max) for axis in profile.axes.values()] == [tuple(axis) for axis in axes]
    assert parse_profile(profile.text) == profile


@few
@given(LENGTHS)
def test_a_range_is_read_as_it_is_written(lengths: list[int]) -> None:
    assert AxisRange.parse(":".join(map(str, lengths))) == AxisRange(min=lengths[0], opt=lengths[1], max=lengths[2])


@few
@given(st.integers(1, 500), st.data())
def test_a_part_of_many_is_one_of_them(count: int, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, count - 1))
    part = parse_part(f"{index}/{count}")
    assert (part.index, part.count) == (index, count)


NEAR = st.text(alphabet="0123456789x:/,=-+. ~^longestcvrsmal\n\x00٣²é", max_size=40)
"""Texts near to those that are meant, with digits of other scripts."""


@pytest.mark.parametrize("parse", [AxisRange.parse, Profile.parse, parse_profile, parse_size, Resize.parse, parse_part])
@few
@given(st.one_of(NEAR, st.text(max_size=20), st.from_regex(r"[0-9]{1,5000}([x:/,][0-9]{1,9}){0,8}", fullmatch=True)))
def test_any_text_is_read_or_refused_in_one_line(parse: Callable[[str], Any], text: str) -> None:
    line = refusal(lambda: parse(text))
    assert len(line.splitlines()) <= 1
    assert len(line) < 300
