"""The process that times one candidate: it opens it, warms up, then runs a block at each request.

It answers only when it is asked, so that one process is busy at a time: two that ran at once would time each other.
"""

import io
import time
from dataclasses import astuple
from pathlib import Path

import numpy as np

from netvlad_deploy.runner import Feeds, Runner
from netvlad_deploy.runtime.open_runner import Candidate
from netvlad_deploy.support.children import Channel


def serve(channel: Channel) -> None:
    """Open the candidate of the first message, warm up, then run one block for each further message.

    The file is read here for itself, with the hash that the asking process found.
    """
    request, content = channel.receive()
    candidate = Candidate(
        path=Path(request["path"]), backend=request["backend"], expect_sha256=request["expect_sha256"]
    )
    with np.load(io.BytesIO(content)) as archive:
        feeds = {name: archive[name] for name in archive.files}
    with candidate.open(threads=request["threads"]) as runner:
        taken = {*runner.inputs, *runner.optional_inputs}
        feeds = {name: array for name, array in feeds.items() if name in taken}
        feeds = {name: each.astype(runner.dtype) if each.dtype == np.float32 else each for name, each in feeds.items()}
        runs = len(_run_for(runner, feeds, request["warmup_ms"]))
        channel.send({"warmup_runs": runs, "conditions": runner.conditions})
        while True:
            request, _ = channel.receive()
            times = runner.time(feeds)  # by the device's clock; it also wakes the thread pool
            samples = _run_for(runner, feeds, request["block_ms"])
            channel.send({"samples_ms": samples, "times_ms": times and astuple(times)})


def _run_for(runner: Runner, feeds: Feeds, duration_ms: float) -> list[float]:
    """Run for at least `duration_ms`; return each run's milliseconds, inputs checked and outputs owned."""
    samples: list[float] = []
    end = time.perf_counter() + duration_ms / 1e3
    while not samples or time.perf_counter() < end:
        started = time.perf_counter()
        runner.run(feeds)
        samples.append((time.perf_counter() - started) * 1e3)
    return samples
