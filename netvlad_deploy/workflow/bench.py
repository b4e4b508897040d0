"""The verb `bench`: artifacts timed against each other."""

from collections.abc import Sequence

from netvlad_deploy.errors import UsageError
from netvlad_deploy.latency.feeds import random_feeds
from netvlad_deploy.latency.results import LatencyReport
from netvlad_deploy.latency.timing import BLOCK_MS, measure
from netvlad_deploy.runtime.open_runner import Candidate
from netvlad_deploy.support.machine import available_cores
from netvlad_deploy.workflow.baseline import BaselineOptions, baseline_step
from netvlad_deploy.workflow.peers import prepared, with_peers

NO_BASELINE = BaselineOptions()

FEWEST_ROUNDS, MOST_ROUNDS = 10, 1000
"""Rounds of a bench; its blocks are shorter or longer than usual where its duration asks for it."""


def bench(
    candidates: Sequence[Candidate],
    *,
    batch: int = 1,
    num_features: int | None = None,
    image_size: tuple[int, int] | None = None,
    duration_s: float = 3.0,
    threads: int | None = None,
    concurrency: int = 1,
    budget_p99_ms: float | None = None,
    baselines: BaselineOptions = NO_BASELINE,
    peers: bool = False,
    seed: int = 0,
) -> LatencyReport:
    """Time artifacts against each other on the same random input: L2-normalised features, or images.

    `num_features` is 300 by default; `image_size`, height and width, is as the first pipeline's images are resized.
    `peers` adds all of ALL_PEERS that can run here; a candidate on the backend `limit` is what `over_limit` is over.

    >>> from pathlib import Path
    >>> from netvlad_deploy.spec.graph_options import GraphOptions
    >>> from netvlad_deploy.workflow.export import export
    >>> from netvlad_deploy.workflow.source import Source
    >>> exported = Candidate.of(export(Source(num_clusters=2, feature_size=4), Path("m.onnx"), GraphOptions()))
    >>> report = bench([exported.on("oracle"), exported], num_features=5, duration_s=0.1, threads=1)
    >>> [(result.name, result.verdict.value, result.ratio is not None) for result in report.candidates]
    [('m.onnx on oracle', 'PASS', False), ('m.onnx', 'PASS', True)]

    Raises: UsageError if the candidates cannot be timed together, or one is an emulation, and as `baseline_step` for a
        baseline; RunError if a process fails.
    """
    if any(candidate.backend == "strict" for candidate in candidates):
        raise UsageError("backend strict emulates FP16 and says nothing about time: leave it out")
    feeds = random_feeds(candidates, batch, num_features, image_size, seed=seed)
    rounds = min(max(FEWEST_ROUNDS, round(duration_s * 1e3 / BLOCK_MS)), MOST_ROUNDS)
    load = {"threads": threads or available_cores(), "concurrency": concurrency}
    everyone = with_peers(candidates, concurrency) if peers else candidates
    step = baseline_step(everyone, feeds, baselines, **load)
    with prepared(everyone, drop=everyone[len(candidates) :]) as ready:
        report = measure(
            [step.rival, *ready.candidates] if step and step.rival else ready.candidates,
            feeds,
            limit=ready.limit,
            rounds=rounds,
            block_ms=duration_s * 1e3 / rounds,
            **load,
            budget_p99_ms=budget_p99_ms,
            seed=seed,
        )
    return step.finish(report) if step else report
