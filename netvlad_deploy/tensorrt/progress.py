"""Log the progress of a build."""

import logging
import threading
import time
from typing import Any

from netvlad_deploy.tensorrt.api import TensorRT

LOG = logging.getLogger(__name__)

INTERVAL_S = 1.0
"""Least seconds between two lines: the builder reports hundreds of steps a second."""


class Progress:
    """The phases that a build is in, with the number of steps of each."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # the builder reports from several threads of its own
        self._steps: dict[str, int] = {}
        self._said_s = 0.0  # a step may be long after the last line, or a thousandth of a second

    def start(self, phase: str, parent: str | None, steps: int) -> None:
        """Note a phase; log it if it is no part of another."""
        with self._lock:
            self._steps[phase] = steps
            if parent is None:
                self._say(phase)

    def step(self, phase: str, step: int) -> None:
        """Log a step, counted from 0, if the last line is INTERVAL_S old."""
        with self._lock:
            if time.monotonic() - self._said_s >= INTERVAL_S:
                self._say(f"{phase}, step {step + 1} of {self._steps.get(phase, '?')}")

    def finish(self, phase: str) -> None:
        """Forget a phase."""
        with self._lock:
            self._steps.pop(phase, None)

    def _say(self, text: str) -> None:
        self._said_s = time.monotonic()
        LOG.info("build: %s", text)


def make_monitor(tensorrt: TensorRT, progress: Progress) -> Any:
    """Return a monitor of the binding's own class, which reports to `progress`."""
    base = tensorrt.module.IProgressMonitor

    class Monitor(base):  # type: ignore[misc, valid-type]
        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            progress.start(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            progress.step(phase_name, step)
            return True  # False would end the build, but Ctrl-C ends it sooner by killing its process

        def phase_finish(self, phase_name: str) -> None:
            progress.finish(phase_name)

    return Monitor()
