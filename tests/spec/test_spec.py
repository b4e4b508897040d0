"""Verdicts, ranges of axes, and the shapes and conventions that are refused."""

from dataclasses import replace
from typing import Any

import pytest

from netvlad_deploy.errors import InputError, UsageError
from netvlad_deploy.spec.layer import NetVLADSpec, Projection
from netvlad_deploy.spec.profiles import AxisRange
from netvlad_deploy.spec.verdict import Verdict

PASS, FAIL, NOT_RUN = Verdict.PASS, Verdict.FAIL, Verdict.NOT_RUN


@pytest.mark.parametrize(
    ("verdicts", "combined"),
    [
        ([PASS, PASS], PASS),
        ([PASS, FAIL, NOT_RUN], FAIL),
        ([PASS, NOT_RUN], NOT_RUN),
        ([NOT_RUN], NOT_RUN),
        ([], NOT_RUN),
    ],
)
def test_not_run_is_never_a_pass(verdicts: list[Verdict], combined: Verdict) -> None:
    assert Verdict.combine(verdicts) is combined


def test_range_is_read_and_written() -> None:
    assert AxisRange.parse("1:8:64") == AxisRange(min=1, opt=8, max=64)
    assert str(AxisRange.parse("4")) == "4:4:4"


@pytest.mark.parametrize("text", ["", "1:2", "a:b:c", "1:2:3:4", "-1:2:3", "0:1:2", "3:2:4", "1:9:4"])
def test_a_bad_range_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="range"):
        AxisRange.parse(text)


@pytest.mark.parametrize("sizes", [(0, 4, 0), (4, 0, 0), (4, 4, -1)])
def test_impossible_sizes_are_refused(sizes: tuple[int, int, int]) -> None:
    with pytest.raises(InputError, match="expected at least"):
        NetVLADSpec(num_clusters=sizes[0], feature_size=sizes[1], num_ghost_clusters=sizes[2])


def test_a_projection_decides_the_size_and_whether_the_length_is_1() -> None:
    head = NetVLADSpec(num_clusters=3, feature_size=5)
    assert (head.descriptor_size, head.aggregate_size, head.unit_length) == (15, 15, True)
    for l2, gating, unit in ((True, None, True), (False, None, False), (True, "bias", False)):
        spec = replace(head, projection=Projection(size=4, l2=l2, gating=gating))
        assert (spec.descriptor_size, spec.aggregate_size, spec.unit_length) == (4, 15, unit)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"size": 0}, "expected at least 1"),
        ({"size": 4, "gating": "always"}, "gating is 'always', expected bias, batch_norm or None"),
        ({"size": 4, "batch_norm": True}, "BatchNorm or a bias, not both"),
    ],
)
def test_an_impossible_projection_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Projection(**fields)


def test_an_unknown_epsilon_mode_is_refused() -> None:
    with pytest.raises(InputError, match="epsilon is 'none', expected one of clamp, rsqrt, add"):
        NetVLADSpec(num_clusters=3, feature_size=5, epsilon="none")
