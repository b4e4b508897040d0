"""Log the progress of a build."""

import logging
import threading
import time
from typing import Any

LOG = logging.getLogger(__name__)

INTERVAL_S = 1.0
"""Least seconds between two lines: the builder reports hundreds of steps a second."""


def make_monitor(binding: Any) -> Any:
    """Return a monitor of the binding's own class, which logs the phases of a build and its steps."""

    class Monitor(binding.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self._lock = threading.Lock()  # the builder reports from several threads of its own
            self._steps: dict[str, int] = {}  # the number of steps of every phase that the build is in
            self._said_s = 0.0  # a step may be long after the last line, or a thousandth of a second

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            with self._lock:
                self._steps[phase_name] = num_steps
                if parent_phase is None:  # the phase is no part of another
                    self._say(phase_name)

        def step_complete(self, phase_name: str, step: int) -> bool:
            with self._lock:
                if time.monotonic() - self._said_s >= INTERVAL_S:
                    self._say(f"{phase_name}, step {step + 1} of {self._steps.get(phase_name, '?')}")
            return True  # False would end the build, but Ctrl-C ends it sooner by killing its process

        def phase_finish(self, phase_name: str) -> None:
            with self._lock:
                self._steps.pop(phase_name, None)

        def _say(self, text: str) -> None:
            self._said_s = time.monotonic()
            LOG.info("build: %s", text)

    return Monitor()
