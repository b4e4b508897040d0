"""The process that times one candidate: a line of JSON in, a line of JSON out."""

import json
import os
import sys
import time
from dataclasses import astuple
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from netvlad_deploy.errors import NetVLADDeployError
from netvlad_deploy.measurement.candidate import Candidate
from netvlad_deploy.runner import Feeds, Runner
from netvlad_deploy.spec import FEATURES


def main() -> None:
    """Open what the first line names, warm up, then run one block for each further line."""
    answers = _claim_stdout()
    request = json.loads(sys.stdin.readline())
    candidate = Candidate(
        path=Path(request["path"]), backend=request["backend"], expect_sha256=request["expect_sha256"]
    )
    try:
        with np.load(request["feeds"]) as archive:
            feeds = {name: archive[name] for name in archive.files}
        with candidate.open(threads=request["threads"]) as runner:
            taken = {*runner.inputs, *runner.optional_inputs}
            feeds = {name: array for name, array in feeds.items() if name in taken}
            if FEATURES in feeds and feeds[FEATURES].dtype == np.float32:
                feeds[FEATURES] = feeds[FEATURES].astype(runner.dtype)
            runs = len(_run_for(runner, feeds, request["warmup_ms"]))
            _answer(answers, {"warmup_runs": runs, "conditions": runner.conditions})
            for line in sys.stdin:
                times = runner.time(feeds)  # by the device's clock; it also wakes the thread pool
                samples = _run_for(runner, feeds, json.loads(line)["block_ms"])
                _answer(answers, {"samples_ms": samples, "times_ms": times and astuple(times)})
    except NetVLADDeployError as error:
        _answer(answers, {"error": str(error), "exit_code": error.exit_code})


def _claim_stdout() -> TextIO:
    """Return the real standard output, and send what libraries print there to standard error."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return answers


def _answer(answers: TextIO, content: dict[str, Any]) -> None:
    answers.write(json.dumps(content) + "\n")
    answers.flush()


def _run_for(runner: Runner, feeds: Feeds, duration_ms: float) -> list[float]:
    """Run for at least `duration_ms`; return each run's milliseconds, inputs checked and outputs owned."""
    samples: list[float] = []
    end = time.perf_counter() + duration_ms / 1e3
    while not samples or time.perf_counter() < end:
        started = time.perf_counter()
        runner.run(feeds)
        samples.append((time.perf_counter() - started) * 1e3)
    return samples


if __name__ == "__main__":
    main()
