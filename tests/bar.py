"""What a bar is, and the stopwatch."""

import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

MIB = 2**20


@dataclass(frozen=True)
class Bar:
    """A promise, what was measured, and whether it holds."""

    name: str
    measured: str
    holds: bool


def fastest(command: list[str], folder: Path, times: int = 5) -> float:
    """Return the seconds of the fastest of several runs."""
    seconds = []
    for _ in range(times):
        started = time.perf_counter()
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
        seconds.append(time.perf_counter() - started)
    return min(seconds)
