"""What other processes there are, by a variable of their environment."""

import os
import signal
from pathlib import Path


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
    """Return whether a process has a handler of its own for a signal."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return False
    caught = next(int(line.partition(":")[2], 16) for line in lines if line.startswith("SigCgt:"))
    return bool(caught >> (number - 1) & 1)
