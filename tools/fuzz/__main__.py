"""Fuzz every parser for some seconds, each in a process of its own: `python -m tools.fuzz [SECONDS] [PARSER...]`.

Exit 1 if a parser ends with an error that is not ours, hangs, takes too much memory, or dies.
"""

import json
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tools.fuzz.harness import fuzz, limit_memory
from tools.fuzz.parsers import PARSERS

START_S = 300
"""How long a worker may take to import torch on a busy machine."""
WORKER = "--worker"


def main(arguments: list[str]) -> int:
    """Fuzz the parsers named, or all; print a line each."""
    seconds = float(arguments[0]) if arguments else 60.0
    names = arguments[1:] or list(PARSERS)
    failed = [name for name in names if not _report(name, _fuzzed(name, seconds))]
    return 1 if failed else 0


def worker(name: str, seconds: float, folder: Path) -> None:
    """Fuzz one parser in this process."""
    PARSERS[name].seeds()
    limit_memory()
    print(json.dumps(asdict(fuzz(PARSERS[name], folder, seconds=seconds))))


def _fuzzed(name: str, seconds: float) -> dict[str, Any]:
    folder = tempfile.mkdtemp(prefix="netvlad-fuzz-")
    command = [sys.executable, "-m", "tools.fuzz", WORKER, name, str(seconds), folder]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + START_S, check=False)
    except subprocess.TimeoutExpired:
        return {"faults": {"does not end": folder}}
    if done.returncode:
        return {"faults": {f"dies with {done.returncode}: {done.stderr[-300:]}": folder}}
    outcome: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return outcome


def _report(name: str, outcome: dict[str, Any]) -> bool:
    faults = outcome.pop("faults")
    print(name, *(f"{key} {value:.4g}" for key, value in outcome.items()), f"faults {len(faults)}", flush=True)
    for fault, kept in faults.items():
        print(f"  {fault}: {kept}")
    return not faults


if __name__ == "__main__":
    if sys.argv[1:2] == [WORKER]:
        worker(sys.argv[2], float(sys.argv[3]), Path(sys.argv[4]))
    else:
        sys.exit(main(sys.argv[1:]))
