import pytest

from netvlad_deploy.errors import InputError, UsageError
from netvlad_deploy.spec import AxisRange, NetVLADSpec, Verdict

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
