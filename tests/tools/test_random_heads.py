"""A few of the random heads of `python -m tools.random_heads`."""

import pytest

from tools.random_heads import Tally, run

pytestmark = [pytest.mark.export, pytest.mark.ort, pytest.mark.slow]


def test_no_right_head_fails_and_no_wrong_one_passes() -> None:
    tally = Tally()
    run(3, 0, tally)
    assert tally.wrong == []
    assert tally.counts["heads"] == 3
    verdicts = {name.rsplit(": ", 1)[1] for name in tally.counts if name.startswith("right file")}
    assert verdicts <= {"PASS", "NOT_JUDGED"}
    assert sum(number for name, number in tally.counts.items() if name.endswith(": FAIL")) > 10
