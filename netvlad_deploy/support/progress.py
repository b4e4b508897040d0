"""How far a long work is: a line in the log from time to time, or whatever watches, such as the bars of a terminal."""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from typing import TypeAlias

LOG = logging.getLogger(__name__)

LINE_S = 10.0
"""Least seconds between two lines of the log about one work."""


class Progress:
    """The steps of one work, of which `done` of `total` are done.

    A work that takes less than `line_s` seconds says nothing.

    Args:
        what: the work in a word or two, with which a line starts.
        unit: what a step is, in the plural.
        line_s: least seconds between two lines.

    >>> images = Progress("embedding", 3, "images")
    >>> images.advance(2)
    >>> str(images)
    'embedding: 2 of 3 images'
    """

    def __init__(self, what: str, total: int, unit: str, *, line_s: float = LINE_S) -> None:
        self.what, self.total, self.unit, self.done = what, total, unit, 0
        self.line_s = line_s
        self._said_s, self._has_said = time.monotonic(), False
        self.reach(0)

    def advance(self, steps: int = 1) -> None:
        """Count some more steps."""
        self.reach(self.done + steps)

    def reach(self, done: int) -> None:
        """Set the number of steps that are done, and say so if it is time."""
        self.done = done
        if _watchers:
            _watchers[-1](self)
        elif time.monotonic() - self._said_s >= self.line_s or (self._has_said and done >= self.total):
            self._said_s, self._has_said = time.monotonic(), True
            LOG.info("%s", str(self))  # as it is now: a handler may be late

    def finish(self) -> None:
        """Say that no step is left, whether or not all of them came; a log that has said nothing stays silent."""
        if self.done < self.total:
            self.reach(self.total)

    def __str__(self) -> str:
        return f"{self.what}: {self.done} of {self.total} {self.unit}"


Watcher: TypeAlias = Callable[[Progress], None]
_watchers: list[Watcher] = []


@contextlib.contextmanager
def watched_by(watcher: Watcher) -> Iterator[None]:
    """Give `watcher` every work as often as a step is done, in place of the log."""
    _watchers.append(watcher)
    try:
        yield
    finally:
        _watchers.remove(watcher)
