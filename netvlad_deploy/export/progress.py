"""How far the builder is, in the log, and a builder that stops at Ctrl-C."""

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from netvlad_deploy.runtime.trt_api import TensorRT

LOG = logging.getLogger(__name__)

INTERVAL_S = 1.0
"""Least time between two lines: the builder reports hundreds of steps a second."""


class Progress:
    """What the builder's threads report of their phases."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._cancelled = threading.Event()
        self._steps: dict[str, int] = {}
        self._said_s = 0.0

    def start(self, phase: str, parent: str | None, steps: int) -> None:
        """Note a phase; one that is no part of another is worth a line."""
        with self._lock:
            self._steps[phase] = steps
            if parent is None:
                self._say(phase)

    def step(self, phase: str, step: int) -> bool:
        """Note a step, counted from 0, and return whether the builder may go on."""
        with self._lock:
            if time.monotonic() - self._said_s >= INTERVAL_S:
                self._say(f"{phase}, step {step + 1} of {self._steps.get(phase, '?')}")
        return not self._cancelled.is_set()

    def finish(self, phase: str) -> None:
        """Forget a phase."""
        with self._lock:
            self._steps.pop(phase, None)

    def cancel(self) -> None:
        """Make the builder stop at its next step."""
        self._cancelled.set()

    def _say(self, text: str) -> None:
        self._said_s = time.monotonic()
        LOG.info("build: %s", text)


def make_monitor(tensorrt: TensorRT, progress: Progress) -> Any:
    """Return the binding's own kind of monitor, which reports to `progress` from whichever thread."""
    base = tensorrt.module.IProgressMonitor

    class Monitor(base):  # type: ignore[misc, valid-type]
        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            progress.start(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return progress.step(phase_name, step)

        def phase_finish(self, phase_name: str) -> None:
            progress.finish(phase_name)

    return Monitor()


def run_builder(
    tensorrt: TensorRT, builder: Any, network: Any, config: Any, prepare: Callable[[], None] | None = None
) -> Any:
    """Return the serialized engine, or None if the builder gives none.

    The builder works in a thread of its own and leaves Python to this one, which Ctrl-C reaches. `prepare` is called
    in that thread first: a new thread starts on GPU 0, whichever this one chose.

    Raises: KeyboardInterrupt once the builder has stopped.
    """
    progress = Progress()
    monitor = make_monitor(tensorrt, progress)
    config.progress_monitor = monitor
    with ThreadPoolExecutor(max_workers=1, initializer=prepare) as pool:
        try:
            return pool.submit(builder.build_serialized_network, network, config).result()
        except KeyboardInterrupt:
            progress.cancel()
            raise  # leaving the pool waits for the builder
