"""Fuzz every parser for some seconds: `python -m tools.fuzz --seconds N [--target PARSER]`.

Each has a process of its own, as many at once as there are cores. Where atheris is installed it is guided by coverage,
else files are damaged at random, which is said. Exit 1 if a parser ends with an error that is not ours, hangs, takes
too much memory, or dies.
"""

import argparse
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

START_S = 300
"""How long a worker may take to import torch on a busy machine."""
WORKER = "--worker"
INSTRUMENTED = ("netvlad_deploy", "rosbags", "PIL")
"""What is guided by coverage: this package, and the libraries whose readers are written in Python."""
IN_MEMORY = Path("/dev/shm")
"""Where files are damaged if it is there: a disk makes a parser wait for each file that it writes."""


def main(arguments: list[str]) -> int:
    """Fuzz the parsers named, or all; print a line each."""
    from tools.fuzz.parsers import PARSERS

    options = argparse.ArgumentParser(prog="tools.fuzz")
    options.add_argument("--seconds", type=float, default=60.0, help="for each parser")
    options.add_argument("--target", action="append", choices=list(PARSERS), help="a parser; may be given again")
    given = options.parse_args(arguments)
    if not is_guided():
        print("atheris is not installed: files are damaged at random, without coverage to guide it")
    names = given.target or list(PARSERS)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        outcomes = pool.map(partial(_fuzzed, seconds=given.seconds), names)
        sound = [_report(name, outcome) for name, outcome in zip(names, outcomes, strict=True)]
    return 0 if all(sound) else 1


def is_guided() -> bool:
    """Return True if atheris is installed."""
    return importlib.util.find_spec("atheris") is not None


def worker(name: str, seconds: float, folder: Path) -> None:
    """Fuzz one parser in this process."""
    if not is_guided():
        from tools.fuzz.harness import fuzz, limit_memory
        from tools.fuzz.parsers import PARSERS

        PARSERS[name].seeds()
        limit_memory()
        print(json.dumps(asdict(fuzz(PARSERS[name], folder, seconds=seconds))))
        return
    import atheris

    with atheris.instrument_imports(include=list(INSTRUMENTED)):  # also what is imported when a first file is read
        from tools.fuzz.guided import guide
        from tools.fuzz.harness import Campaign
        from tools.fuzz.parsers import PARSERS

        campaign = Campaign(PARSERS[name], folder)
    guide(atheris, campaign, seconds, partial(print, flush=True))


def _fuzzed(name: str, seconds: float) -> dict[str, Any]:
    folder = tempfile.mkdtemp(prefix="netvlad-fuzz-", dir=IN_MEMORY if IN_MEMORY.is_dir() else None)
    environment = {**os.environ, "TMPDIR": folder}
    command = [sys.executable, "-m", "tools.fuzz", WORKER, name, str(seconds), folder]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=seconds + START_S, env=environment,
            check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return {"faults": {"does not end": folder}}
    if done.returncode:
        return {"faults": {f"dies with {done.returncode}: {done.stderr[-300:]}": folder}}
    outcome: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    edges = [int(found) for found in re.findall(r"^#\d+\s.*?cov: (\d+)", done.stderr, re.MULTILINE)]
    reached = {"edges of the seeds": edges[0], "edges": edges[-1]} if edges else {}
    return {"a second": (outcome["read"] + outcome["refused"]) / seconds, **outcome, **reached}


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
