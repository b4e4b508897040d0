"""Measure latency fairly: each candidate in a process of its own, one active at a time, in random order.

Candidates in one process disturb each other through their spinning thread pools. So every candidate gets a process, and
many short rounds run, of one block for each: in a drawn order, then in its reverse, from cores that are drawn for the
round. Two candidates are compared round by round: a ratio stays fair while the machine's speed changes. What is claimed
and what is not, with the figures behind it, is in docs/latency.md.
"""

import io
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Final

import numpy as np

from netvlad_deploy.errors import ParityError
from netvlad_deploy.latency.advice import machine_advice
from netvlad_deploy.latency.feeds import lengths_of
from netvlad_deploy.latency.machine_state import MachineState, read_state
from netvlad_deploy.latency.process import CandidateProcess, result_of
from netvlad_deploy.latency.results import LatencyReport
from netvlad_deploy.latency.statistics import LEAST_ROUNDS
from netvlad_deploy.runner import Feeds, check_finite
from netvlad_deploy.runtime.open_runner import Candidate
from netvlad_deploy.spec.images import IMAGES
from netvlad_deploy.spec.layer import MASK, TOKEN
from netvlad_deploy.support.limits import check_limit
from netvlad_deploy.support.machine import available_cores, describe_machine, installed_versions
from netvlad_deploy.support.progress import Progress

BLOCK_MS: Final = 20.0
"""Long beside the change from one process to another, short beside what disturbs a machine."""

PROGRESS_LINE_S: Final = 1.0


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
    """Time every candidate on the same feeds, compare it with the first, and return the report, times in ms.

    A candidate that cannot run on this machine is NOT_RUN with its reason; the others go on. The `limit` runs in the
    same rounds and gets a row of its own. A round is one block of each. Where a run is longer than a block there are
    fewer rounds in the same time, but LEAST_ROUNDS, if so many are asked for. A warm-up of `warmup_ms` goes on until
    runs get no faster. `concurrency` requests are in flight at once, each from a thread: see `Runner.concurrent`.

    >>> from netvlad_deploy import export_onnx
    >>> from netvlad_deploy.models.netvlad import NetVLADSpec, initialize
    >>> exported = export_onnx(initialize(NetVLADSpec(num_clusters=2, feature_size=4), seed=0), "m.onnx")
    >>> report = measure([Candidate.of(exported)], {"features": np.ones((1, 5, 4), np.float32)}, rounds=1)
    >>> report.verdict.value, report.candidates[0].runs > 0
    ('PASS', True)

    Raises: ParityError if there is no candidate; UsageError for requests at once where one is taken; RunError if a
        process fails.
    """
    _check(candidates, feeds, rounds, concurrency)
    threads = threads or available_cores()
    everyone = [*candidates, *([] if limit is None else [limit])]
    with ExitStack() as stack:
        processes = [CandidateProcess(candidate, threads, concurrency, stack) for candidate in everyone]
        running = _warmed_up(processes, feeds, warmup_ms)
        rounds = _affordable(running, rounds, block_ms)
        before, after = _run_rounds(running, rounds, block_ms, np.random.default_rng(seed))
    rivals = processes[0], None if limit is None else processes[-1]
    lengths = lengths_of(feeds)
    rows = [result_of(each, *rivals, batch=lengths["batch"], budget_p99_ms=budget_p99_ms) for each in processes]
    return LatencyReport(
        **lengths, threads=threads, concurrency=concurrency, rounds=rounds, block_ms=block_ms, warmup_ms=warmup_ms,
        machine=describe_machine() | installed_versions(), before=before.facts(), after=after.facts(),
        limit="" if limit is None else limit.name, advice=machine_advice(before, after), candidates=tuple(rows),
    )  # fmt: skip


def _check(candidates: Sequence[Candidate], feeds: Feeds, rounds: int, concurrency: int) -> None:
    if not candidates or rounds < 1:
        raise ParityError("no candidate or no round to measure: a measurement of nothing is none")
    check_limit("concurrency", concurrency)
    for name in feeds.keys() - {IMAGES, MASK, TOKEN}:
        check_finite(feeds[name])


def _warmed_up(processes: Sequence[CandidateProcess], feeds: Feeds, warmup_ms: float) -> list[CandidateProcess]:
    """Open and warm up all before the first block, since opening one would disturb another; return those to time."""
    np.savez(archive := io.BytesIO(), allow_pickle=False, **feeds)
    for process in processes:
        process.warm_up(archive.getvalue(), warmup_ms=warmup_ms)
        process.compare_with(processes[0])
    return [process for process in processes if not process.reason]


def _affordable(running: Sequence[CandidateProcess], rounds: int, block_ms: float) -> int:
    """Return as many rounds as take the time that was asked for, where the slowest run is longer than a block."""
    slowest_ms = max((process.run_ms for process in running), default=0.0)
    return max(int(rounds * min(1.0, block_ms / max(slowest_ms, block_ms))), min(rounds, LEAST_ROUNDS))


def _run_rounds(
    running: Sequence[CandidateProcess], rounds: int, block_ms: float, random: np.random.Generator
) -> tuple[MachineState, MachineState]:
    """Run the rounds and return the state of the machine before and after them.

    Each second round has the reverse order of the one before, so that all follow each other as often.
    """
    pids = [process.pid for process in running]
    order, cores = list(range(len(running))), available_cores()
    before = read_state(pids)
    progress = Progress("measuring", rounds if running else 0, "rounds", line_s=PROGRESS_LINE_S)
    for number in range(progress.total):
        order = order[::-1] if number % 2 else random.permutation(len(running)).tolist()
        place = int(random.integers(cores))
        for index in order:
            running[index].run_block(block_ms, place)
        progress.advance()
    return before, read_state(pids)
