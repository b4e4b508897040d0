"""What other processes there are, by a variable of their environment."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

HANG_S = 120.0
"""Seconds after which a test gives up: far more than any machine takes, so that they decide nothing but a hang."""


def until(holds: Callable[[], bool]) -> None:
    """Wait until something holds, which it must on any machine; fail if that hangs."""
    end = time.monotonic() + HANG_S
    while not holds():
        assert time.monotonic() < end, "it hangs"
        time.sleep(0.005)


def alive(name: str, value: str) -> list[int]:
    """Return the processes whose environment has this variable, without those that only wait to be reaped."""
    return [int(folder.name) for folder in Path("/proc").glob("[0-9]*") if _has(folder, f"{name}={value}".encode())]


def _has(folder: Path, variable: bytes) -> bool:
    try:
        environment = (folder / "environ").read_bytes().split(b"\0")
        state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
    except OSError:  # it has ended, or is somebody else's
        return False
    return variable in environment and state != "Z" and int(folder.name) != os.getpid()


def catches(process: int, number: signal.Signals) -> bool:
    """Return True if a process has a handler of its own for a signal."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return False
    caught = next(int(line.partition(":")[2], 16) for line in lines if line.startswith("SigCgt:"))
    return bool(caught >> (number - 1) & 1)
