"""Measure latency fairly: each candidate in a process of its own, one active at a time, in random order.

Candidates in one process disturb each other through their spinning thread pools. So every candidate gets a process, and
many short rounds run, of one block for each: in a drawn order, then in its reverse, from cores that are drawn for the
round. Two candidates are compared round by round: a ratio stays fair while the machine's speed changes. What is claimed
and what is not, with the figures behind it, is in docs/latency.md.
"""

import io
import logging
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Final

import numpy as np

from netvlad_deploy.errors import ParityError
from netvlad_deploy.latency.advice import machine_advice
from netvlad_deploy.latency.machine_state import read_state
from netvlad_deploy.latency.process import CandidateProcess, result_of
from netvlad_deploy.latency.results import LatencyReport
from netvlad_deploy.latency.statistics import LEAST_ROUNDS
from netvlad_deploy.runner import Feeds, check_finite
from netvlad_deploy.runtime.open_runner import Candidate
from netvlad_deploy.spec.images import IMAGES
from netvlad_deploy.spec.layer import MASK, TOKEN
from netvlad_deploy.support.limits import check_limit
from netvlad_deploy.support.machine import available_cores, describe_machine, installed_versions

LOG = logging.getLogger(__name__)

BLOCK_MS: Final = 20.0
"""Long beside the change from one process to another, short beside what disturbs a machine."""

PROGRESS_LINES: Final = 10


def measure(
    candidates: Sequence[Candidate],
    feeds: Feeds,
    *,
    limit: Candidate | None = None,
    rounds: int = 100,
    block_ms: float = BLOCK_MS,
    warmup_ms: float = 500.0,
    threads: int | None = None,
    concurrency: int = 1,
    budget_p99_ms: float | None = None,
    seed: int = 0,
) -> LatencyReport:
    """Time every candidate on the same feeds, of which each takes the inputs it has, and compare it with the first.

    A candidate that cannot run on this machine is NOT_RUN with its reason; the others go on.

    Args:
        limit: runs in the same rounds and gets a row of its own; `over_limit` of the others is relative to it.
        rounds: blocks of each candidate. Where a single run is longer than a block there are so many fewer that the
            time stays the same, but LEAST_ROUNDS at least, if so many are asked for: fewer give no ratio.
        warmup_ms: the least warm-up of each candidate, which goes on until runs get no faster.
        concurrency: requests in flight at once, each from a thread of its own; see `Runner.concurrent`.

    >>> from netvlad_deploy import export_onnx
    >>> from netvlad_deploy.models.netvlad import NetVLADSpec, initialize
    >>> exported = export_onnx(initialize(NetVLADSpec(num_clusters=2, feature_size=4), seed=0), "m.onnx")
    >>> feeds = {"features": np.ones((1, 5, 4), np.float32)}
    >>> report = measure([Candidate.of(exported)], feeds, rounds=1, block_ms=1, warmup_ms=1)
    >>> report.verdict.value, report.candidates[0].runs > 0
    ('PASS', True)

    Raises: ParityError if there is no candidate; UsageError for several requests of a runner that takes one at a time;
        RunError if a process fails.
    """
    if not candidates or rounds < 1:
        raise ParityError("no candidate or no round to measure: a measurement of nothing is none")
    check_limit("concurrency", concurrency)
    for name in feeds.keys() - {IMAGES, MASK, TOKEN}:
        check_finite(feeds[name])
    threads = threads or available_cores()
    with ExitStack() as stack:
        np.savez(archive := io.BytesIO(), allow_pickle=False, **feeds)
        everyone = [*candidates, *([] if limit is None else [limit])]
        processes = [CandidateProcess(candidate, threads, concurrency, stack) for candidate in everyone]
        for process in processes:  # all of them before the first block: opening one would disturb a measurement
            process.warm_up(archive.getvalue(), warmup_ms=warmup_ms)
        for process in processes[: len(candidates)]:
            process.compare_with(processes[0])
        running = [process for process in processes if not process.reason]
        slowest_ms = max((process.run_ms for process in running), default=0.0)
        rounds = max(int(rounds * min(1.0, block_ms / max(slowest_ms, block_ms))), min(rounds, LEAST_ROUNDS))
        pids = [process.pid for process in running]
        before = read_state(pids)
        _run_rounds(running, rounds, block_ms, np.random.default_rng(seed))
        after = read_state(pids)
        images, main = feeds.get(IMAGES), next(iter(feeds.values()))
        last = None if limit is None else processes[-1]
        results = [
            result_of(each, processes[0], last, batch=len(main), block_ms=block_ms, budget_p99_ms=budget_p99_ms)
            for each in processes
        ]
    return LatencyReport(
        batch=len(main),
        num_features=main.shape[1] if images is None else None,
        image_size=None if images is None else (images.shape[1], images.shape[2]),
        threads=threads,
        concurrency=concurrency,
        rounds=rounds,
        block_ms=block_ms,
        warmup_ms=warmup_ms,
        machine=describe_machine() | installed_versions(),
        before=before.facts(),
        after=after.facts(),
        limit="" if limit is None else limit.name,
        advice=machine_advice(before, after),
        candidates=tuple(results),
    )


def _run_rounds(running: Sequence[CandidateProcess], rounds: int, block_ms: float, random: np.random.Generator) -> None:
    """Run the rounds: each second one in the reverse order of the first, so that all follow each other as often."""
    order, cores = np.arange(len(running)), available_cores()
    for number in range(rounds if running else 0):
        if number % max(1, rounds // PROGRESS_LINES) == 0:
            LOG.info("round %d of %d", number + 1, rounds)
        order = order[::-1] if number % 2 else random.permutation(len(running))
        place = int(random.integers(cores))
        for index in order:
            running[index].run_block(block_ms, place)
