"""Bars of the latency statistics: what is the same is not told apart, and 5 % are, beside a busy process.

`python -m tools.latency_bars` prints every measurement, and with `--threads 2` how it is on all cores at once.
"""

import argparse
import contextlib
import functools
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from netvlad_deploy.export.onnx_model import export_onnx
from netvlad_deploy.latency import process
from netvlad_deploy.latency.results import Estimate
from netvlad_deploy.latency.statistics import comparison
from netvlad_deploy.latency.timing import measure
from netvlad_deploy.runtime.open_runner import Candidate
from netvlad_deploy.spec.layer import FEATURES
from netvlad_deploy.support.arrays import unit_rows
from tests.modules import features, make_module
from tools.bar import Bar
from tools.slowed_worker import SHARE, SLOWED

TIMES_MEASURED, LEAST_RIGHT = 20, 19
ROUNDS, WARMUP_MS = 80, 200.0
ROWS, WIDTH, CLUSTERS, GHOSTS = 300, 512, 64, 8


@contextlib.contextmanager
def one_core_busy() -> Iterator[None]:
    """Keep the first core of this process busy, with another that does nothing else and ends with this one."""
    core = min(os.sched_getaffinity(0))
    program = f"import os; os.sched_setaffinity(0, {{{core}}})\nwhile os.getppid() == {os.getpid()}: sum(range(10**6))"
    hog = subprocess.Popen([sys.executable, "-c", program])
    try:
        yield
    finally:
        hog.kill()
        hog.wait()


def ratios(folder: Path, times: int, threads: int, rounds: int) -> Iterator[tuple[Estimate, Estimate]]:
    """Yield the time of a file over its own, and that of a copy which is slowed by 5 %, measured in the same rounds."""
    module = make_module(CLUSTERS, WIDTH, GHOSTS)
    same, slowed = (export_onnx(module, folder / name, force=True).path for name in ("same.onnx", SLOWED))
    feeds = {FEATURES: unit_rows(features(1, ROWS, WIDTH))}
    for seed in range(times):
        candidates = [Candidate(path=path, hold=False) for path in (same, same, slowed)]
        with mock.patch.object(process, "WORKER", "tools.slowed_worker"):
            report = measure(candidates, feeds, rounds=rounds, warmup_ms=WARMUP_MS, threads=threads, seed=seed)
        itself, slower = (one.ratio for one in report.candidates[1:])
        assert itself is not None
        assert slower is not None
        yield itself, slower


def told_apart(folder: Path) -> Iterator[Bar]:
    """The two bars, of the same measurements; they are measured anew up to twice if one does not hold."""
    for _ in range(3):
        with one_core_busy():
            found = list(ratios(folder, TIMES_MEASURED, 1, ROUNDS))
        equal = sum(not comparison(itself) for itself, _ in found)
        slower = sum(comparison(slowed) == "slower" for _, slowed in found)
        if min(equal, slower) >= LEAST_RIGHT:
            break
    beside = f"beside a process that keeps one core busy: at least {LEAST_RIGHT} times in {TIMES_MEASURED}"
    yield Bar(f"a file against itself is not told apart, {beside}", f"{equal}", equal >= LEAST_RIGHT)
    yield Bar(f"{SHARE:.0%} longer is called slower, {beside}", f"{slower}", slower >= LEAST_RIGHT)


TIMES = (told_apart,)


def main() -> None:
    """Print both ratios of each measurement, and how many were right."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    number = functools.partial(parser.add_argument, type=int)
    number("--times", default=TIMES_MEASURED)
    number("--threads", default=1)
    number("--rounds", default=ROUNDS)
    parser.add_argument("--idle", action="store_true", help="without the busy process")
    options = parser.parse_args()
    right = [0, 0]
    beside = contextlib.nullcontext() if options.idle else one_core_busy()
    with tempfile.TemporaryDirectory() as name, beside:
        for pair in ratios(Path(name), options.times, options.threads, options.rounds):
            right[0] += not comparison(pair[0])
            right[1] += comparison(pair[1]) == "slower"
            print(*(f"{each.value:.4f} [{each.low:.4f}, {each.high:.4f}]" for each in pair), flush=True)
    print(f"itself not told apart {right[0]}, slower {right[1]}, of {options.times}")


if __name__ == "__main__":
    main()
