"""What a bar is, and what several of them measure with: stopwatches, memory, programs in processes of their own."""

import functools
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

MIB = 2**20


@dataclass(frozen=True)
class Bar:
    """A promise, what was measured, and whether it holds."""

    name: str
    measured: str
    holds: bool


YARDSTICK = """
import onnxscript, sympy, torch, torch.export
left, right = torch.ones(512, 4608, dtype=torch.float64), torch.ones(4608, 1200, dtype=torch.float64)
for _ in range(30): left @ right
"""
YARDSTICK_S = 4.5
"""Usual seconds of the yardstick on two idle cores, where VGG16 with a whitening exports in 18 to 19 s."""


def slowness() -> float:
    """Return the ratio of the time of fixed work now to the usual YARDSTICK_S seconds, at least 1.

    The work is most of what an export does: imports, and float64 products on all cores. A shared machine is up to a
    third slower in some minutes than in others: the same export took from 18.0 to 23.7 s within one hour.
    """
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", YARDSTICK], check=True)
    return max(1.0, (time.perf_counter() - started) / YARDSTICK_S)


def allowed(limit_s: float, seconds: float) -> float:
    """Return a limit, times how slow the machine is now if the seconds are over it: what is in time needs no excuse."""
    return limit_s if seconds <= limit_s else limit_s * slowness()


def timed(work: Callable[[], object]) -> float:
    """Return the seconds of one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def fastest(command: list[str], folder: Path, times: int = 5) -> float:
    """Return the seconds of the fastest of several runs."""
    run = functools.partial(subprocess.run, command, cwd=folder, check=True, capture_output=True)
    return min(timed(run) for _ in range(times))


def printed(program: str, *arguments: object, folder: Path | None = None) -> list[float]:
    """Return the numbers that a program prints, in a fresh process of Python."""
    command = [sys.executable, "-c", program, *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    return [float(word) for word in done.stdout.split()]


def resident_bytes() -> int:
    """Return the memory that this process has now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def most_resident(work: Callable[[], object]) -> int:
    """Return the most memory that this process has while it does some work."""
    peak, done = [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            peak[0] = max(peak[0], resident_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        work()
    finally:
        done.set()
        watcher.join()
    return peak[0]


def steady(bar: Callable[[], Bar]) -> Bar:
    """Measure a bar of time, up to three times where it does not hold: machines are noisy for a while."""
    for _ in range(2):
        if (found := bar()).holds:
            return found
        time.sleep(20)
    return bar()
