"""Bars for long work, with rate and time left, where standard error is a terminal."""

import contextlib
import logging
import sys
import time
from collections.abc import Iterator
from typing import Any

from netvlad_deploy.commands.terminal import is_plain
from netvlad_deploy.support.progress import Progress, watched_by

REFRESH_S = 0.1
"""Least seconds between two drawings. Nothing draws between steps: what is measured meanwhile is not disturbed."""

SHOW_CURSOR = "\x1b[?25h"
"""Source: DECTCEM of VT220, as xterm and its heirs have it."""


@contextlib.contextmanager
def bars_on_a_terminal() -> Iterator[None]:
    """Show work as bars on standard error if that is a terminal; else the log has its lines."""
    if is_plain(sys.stderr):
        yield
        return
    bars = _Bars()
    with contextlib.ExitStack() as stack:
        stack.callback(bars.close)
        stack.enter_context(watched_by(bars.show))
        yield


class _Bars:
    """The bars of the works that are not finished: each goes when it is full, and nothing stays."""

    def __init__(self) -> None:
        self._display: Any = None
        self._tasks: dict[Progress, Any] = {}
        self._started: dict[Progress, float] = {}
        self._drawn_s = 0.0

    def show(self, work: Progress) -> None:
        """Draw what a work has reached."""
        if not logging.getLogger("netvlad_deploy").isEnabledFor(logging.INFO):
            return
        if work.done >= work.total:
            self._finish(work)
            return
        if work not in self._tasks:
            self._display = self._display or _open_display()
            self._tasks[work] = self._display.add_task(work.what, total=work.total, unit=work.unit, rate="")
            self._started[work] = time.monotonic()
            self._drawn_s = 0.0
        elapsed_s = time.monotonic() - self._started[work]
        rate = f"{work.done / elapsed_s:.3g} {work.unit}/s" if work.done and elapsed_s else ""
        self._display.update(self._tasks[work], completed=work.done, rate=rate)
        if time.monotonic() - self._drawn_s >= REFRESH_S:
            self._drawn_s = time.monotonic()
            self._display.refresh()

    def _finish(self, work: Progress) -> None:
        if work in self._tasks:
            self._display.remove_task(self._tasks.pop(work))
            del self._started[work]
        if not self._tasks:
            self.close()

    def close(self) -> None:
        """Leave the terminal as it was, whatever is unfinished."""
        display, self._display = self._display, None
        self._tasks.clear()
        self._started.clear()
        if display is not None:
            try:
                display.stop()
            finally:  # a second Ctrl-C may have come in between
                with contextlib.suppress(OSError):
                    sys.__stderr__.write(SHOW_CURSOR)  # type: ignore[union-attr]
                    sys.__stderr__.flush()  # type: ignore[union-attr]


def _open_display() -> Any:
    """Return a started `rich.progress.Progress`, which takes what is written to standard error above its bars."""
    from rich import progress
    from rich.console import Console

    display = progress.Progress(
        progress.TextColumn("{task.description}", markup=False),
        progress.BarColumn(bar_width=None),
        progress.TextColumn("{task.completed} of {task.total} {task.fields[unit]}", markup=False),
        progress.TextColumn("{task.fields[rate]}", markup=False),
        progress.TimeRemainingColumn(),
        console=Console(stderr=True),
        auto_refresh=False,
        transient=True,
        redirect_stdout=False,
    )
    display.start()
    return display
