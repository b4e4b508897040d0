"""The short form of `python -m tools.kills`."""

import signal

import pytest

from tests.processes import HANG_S
from tools import kills
from tools.kills import kill

pytestmark = [pytest.mark.export, pytest.mark.ort, pytest.mark.rtx, pytest.mark.slow]


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let processes take as long as they need on a busy machine; `python -m tools.kills` gives them a second."""
    monkeypatch.setattr(kills, "GONE_S", HANG_S)


@pytest.mark.parametrize("verb", ["build", "embed"])
def test_a_killed_verb_leaves_nothing_after_the_next_run(verb: str) -> None:
    tally = kill(verb, 2)
    assert (tally.killed, tally.faults) == (2, [])


def test_an_interrupted_verb_leaves_nothing_at_all() -> None:
    tally = kill("embed", 1, signal.SIGINT)
    assert (tally.killed, tally.faults) == (1, [])
