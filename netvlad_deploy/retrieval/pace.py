"""The number of decoder threads: more while the runner waits for images, fewer while images wait for the runner."""

import time
from collections.abc import Callable, Iterator
from typing import Any, Final, TypeVar

from netvlad_deploy.retrieval.in_order import InOrder

Made = TypeVar("Made")

PERIOD_S: Final = 0.2
"""Seconds after which the number is looked at again: some batches of a GPU, or one of a CPU."""

MOST_WAITING: Final = 0.03
"""Share of the time that a runner may wait for images before a decoder is added."""


class Pace:
    """The number of decoders, from what was seen in each period.

    One that was taken away and is missed at once comes back, and twice as many quiet periods must pass before the next
    one is: so the number settles.

    >>> pace = Pace(2, most=4)
    >>> [pace.adjust(waiting=0.5, full=False) for _ in range(3)], pace.adjust(waiting=0, full=True)
    ([3, 4, 4], 3)
    """

    def __init__(self, decoders: int, *, most: int) -> None:
        self.decoders, self.most = decoders, max(most, decoders)
        self._patience, self._quiet, self._less = 1, 0, False

    def adjust(self, *, waiting: float, full: bool) -> int:
        """Return the number of decoders for the next period.

        Args:
            waiting: share of the period in which the runner waited for images.
            full: no more images are decoded, since too many of them wait for the runner.
        """
        if waiting > MOST_WAITING and not full:
            self._patience *= 2 if self._less else 1
            missing = max(1, int(self.decoders * waiting))
            self.decoders, self._quiet, self._less = min(self.decoders + missing, self.most), 0, False
        elif full and not waiting:
            self._quiet += 1
            if self._quiet >= self._patience and self.decoders > 1:
                self.decoders, self._quiet, self._less = self.decoders - 1, 0, True
        return self.decoders


def paced(loaded: InOrder[Any, Made], runs: Callable[[], InOrder[Any, Any]], *, most: int) -> Iterator[Made]:
    """Yield what is loaded, and widen or narrow the loading by what the runs, which take it, have to wait."""
    pace = Pace(loaded.width, most=most)
    started, waited_s = time.perf_counter(), 0.0
    while True:
        before_s = loaded.waited_s
        try:
            made = next(loaded)
        except StopIteration:
            return
        if runs().idle:
            waited_s += loaded.waited_s - before_s
        now = time.perf_counter()
        if now - started >= PERIOD_S:
            loaded.widen(pace.adjust(waiting=waited_s / (now - started), full=loaded.full))
            started, waited_s = now, 0.0
        yield made
