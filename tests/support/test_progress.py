"""How far a work is: a line now and then, and every step to a watcher."""

import logging
import sys
from pathlib import Path

import pytest

from netvlad_deploy.support import progress
from netvlad_deploy.support.children import Child
from netvlad_deploy.support.progress import Progress, watched_by


class Clock:
    now_s = 100.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Clock:
    caplog.set_level(logging.INFO)
    made = Clock()
    monkeypatch.setattr(progress, "time", made)
    return made


def work(clock: Clock, steps_s: list[float], *, total: int) -> None:
    """Do steps, each of which takes some seconds, and finish."""
    images = Progress("embedding", total, "images")
    for step_s in steps_s:
        clock.now_s += step_s
        images.advance()
    images.finish()


@pytest.mark.parametrize(
    ("steps_s", "total", "said"),
    [
        ([3.0, 3.0, 3.0], 3, []),
        ([6.0, 6.0, 6.0], 3, ["embedding: 2 of 3 images", "embedding: 3 of 3 images"]),
        ([6.0, 6.0, 6.0], 9, ["embedding: 2 of 9 images", "embedding: 9 of 9 images"]),
        ([11.0, 11.0], 9, ["embedding: 1 of 9 images", "embedding: 2 of 9 images", "embedding: 9 of 9 images"]),
    ],
)
def test_a_line_comes_every_ten_seconds_and_an_end_after_a_line(
    clock: Clock, caplog: pytest.LogCaptureFixture, steps_s: list[float], total: int, said: list[str]
) -> None:
    work(clock, steps_s, total=total)
    assert caplog.messages == said


def test_a_watcher_gets_each_step_and_the_log_none(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    seen: list[int] = []
    with watched_by(lambda each: seen.append(each.done)):
        work(clock, [11.0, 11.0], total=3)
    assert (seen, caplog.messages) == ([0, 1, 2, 3], [])
    work(clock, [11.0], total=2)
    assert caplog.messages == ["embedding: 1 of 2 images", "embedding: 2 of 2 images"]


def test_the_work_of_a_child_is_seen_in_its_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a_counter.py").write_text(
        "from netvlad_deploy.support.progress import Progress\n"
        "def serve(channel):\n"
        "    for what in ('one', 'two', 'one'):\n"
        "        Progress(what, 500, 'steps').finish()\n"
        "    work = Progress('many', 500, 'steps')\n"
        "    for _ in range(500):\n"
        "        work.advance()\n"
        "    channel.send({})\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    seen: list[tuple[str, int, int]] = []
    with watched_by(lambda each: seen.append((each.what, each.done, each.total))), Child("a_counter", "it") as child:
        child.receive()
    whole = [(what, done, 500) for what in ("one", "two", "one", "many") for done in (0, 0, 500)]
    assert [each for each in seen if each[1] in (0, 500)] == whole, "made here, then as it came"
    assert len(seen) < 100, "not every step is sent"
    assert "a_counter" not in sys.modules
