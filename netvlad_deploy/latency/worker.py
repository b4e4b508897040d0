"""The process that times one candidate: it opens it, warms up, then runs a block at each request.

It answers only when it is asked, so that one process is busy at a time: two that ran at once would time each other.
"""

import contextlib
import io
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from threading import Barrier
from typing import Any, Final

import numpy as np

from netvlad_deploy.errors import UsageError
from netvlad_deploy.latency.statistics import WARM_WINDOW, settled
from netvlad_deploy.runner import Feeds, Runner
from netvlad_deploy.runtime.open_runner import Candidate
from netvlad_deploy.support.children import Channel

WARMUP_SLICES: Final = 5
"""Parts of the shortest warm-up, whose medians are compared."""

LONGEST_WARMUP: Final = 8
"""A warm-up that does not settle ends after this many times its shortest length."""

TASKS: Final = Path("/proc/self/task")


def serve(channel: Channel) -> None:
    """Open the candidate of the first message, warm up, then run one block for each further message.

    The file is read here for itself, with the hash that the asking process found.
    """
    request, content = channel.receive()
    candidate = Candidate.asked(request["candidate"])
    with np.load(io.BytesIO(content)) as archive:
        feeds = {name: archive[name] for name in archive.files}
    with (
        candidate.open_timed(threads=request["threads"]) as runner,
        _Lanes(runner, feeds, request["concurrency"]) as lanes,
    ):
        outputs = runner.run(lanes.feeds)  # what compiles does so here, and not in the warm-up
        descriptor = outputs[runner.outputs[0]][0].astype(np.float32)
        warm = {**_warm_up(lanes, request["warmup_ms"]), "conditions": runner.conditions}
        channel.send(warm, descriptor.tobytes())
        while True:
            request, _ = channel.receive()
            place_threads(request["place"])
            times = runner.time(lanes.feeds) if request["clock"] else None  # it also wakes the thread pool
            samples, completed = lanes.run_for(request["block_ms"])
            channel.send({"samples_ms": samples, "completed": completed, "times_ms": times and asdict(times)})


def place_threads(shift: int) -> None:
    """Move each thread of this process to a core of its own, counted from core number `shift`, and let it go again.

    A scheduler leaves a thread where it ran before. So of two processes one may share its core with something busy for
    a whole measurement and the other not, and a ratio of the two would tell the cores apart, not the candidates. So the
    measurement draws where a block starts, the same core for every candidate.

    Threads that may run on one core only stay there: a library has bound them. Does nothing where there is no Linux.
    """
    if not TASKS.is_dir():
        return
    cores = sorted(os.sched_getaffinity(0))
    for number, task in enumerate(sorted(int(path.name) for path in TASKS.iterdir())):
        with contextlib.suppress(ProcessLookupError):  # a thread that has ended since
            allowed = os.sched_getaffinity(task)
            if len(allowed) > 1:
                os.sched_setaffinity(task, {cores[(number + shift) % len(cores)]})
                os.sched_setaffinity(task, allowed)


def _warm_up(lanes: "_Lanes", warmup_ms: float) -> dict[str, Any]:
    """Run until it gets no faster, for `warmup_ms` at least and LONGEST_WARMUP times as long at most."""
    medians: list[float] = []
    runs, started = 0, time.perf_counter()
    while True:
        samples, _ = lanes.run_for(warmup_ms / WARMUP_SLICES)
        medians.append(float(np.median(samples)))
        runs += len(samples)
        spent_ms = (time.perf_counter() - started) * 1e3
        if spent_ms >= LONGEST_WARMUP * warmup_ms or (spent_ms >= warmup_ms and settled(medians)):
            break
    # of a few long runs nobody can say whether they settled
    warm = settled(medians) or len(medians) < 2 * WARM_WINDOW
    return {"warmup_runs": runs, "settled": warm, "run_ms": float(np.median(medians[-WARM_WINDOW:]))}


class _Lanes(contextlib.AbstractContextManager["_Lanes"]):
    """A runner and as many threads as there are requests in flight; one request runs in the thread of this process.

    `feeds` are those of the given that the runner takes, in the dtype that it takes.

    Raises: UsageError for several requests of a runner that takes one at a time.
    """

    def __init__(self, runner: Runner, feeds: Feeds, concurrency: int) -> None:
        if concurrency > 1 and not runner.concurrent:
            raise UsageError(f"{runner.name} takes one request at a time: leave --concurrency out")
        taken = {*runner.inputs, *runner.optional_inputs}
        self.feeds: Feeds = {
            name: each.astype(runner.dtype) if each.dtype == np.float32 else each
            for name, each in feeds.items()
            if name in taken
        }
        if runner.tensors is not None:
            self.feeds = runner.check_feeds(self.feeds)  # laid out once: a robot's camera gives them so
        self._runner = runner
        self._threads = ThreadPoolExecutor(concurrency) if concurrency > 1 else None
        self._barrier = Barrier(concurrency)

    def __exit__(self, *_: object) -> None:
        if self._threads is not None:
            self._threads.shutdown()

    def run_for(self, duration_ms: float) -> tuple[list[float], float]:
        """Return the milliseconds of each run, inputs checked and outputs owned, and how many runs were completed.

        A run that goes on beyond the duration is a sample, and counts as completed by its part within the duration:
        so their number over the duration is the throughput, without the wait for the last of them.
        """
        if self._threads is None:
            lanes = [list(self._lane(duration_ms))]
        else:
            jobs = [self._threads.submit(list, self._lane(duration_ms)) for _ in range(self._barrier.parties)]
            lanes = [job.result() for job in jobs]
        runs = [run for lane in lanes for run in lane]
        return [run_ms for run_ms, _ in runs], sum(completed for _, completed in runs)

    def _lane(self, duration_ms: float) -> Iterator[tuple[float, float]]:
        """Yield the milliseconds of each run of one thread, and the part of it within the duration."""
        self._barrier.wait()
        now = time.perf_counter()
        end = now + duration_ms / 1e3
        while now < end:
            started = now
            self._runner.run(self.feeds)
            now = time.perf_counter()
            yield (now - started) * 1e3, min(1.0, (end - started) / (now - started))
