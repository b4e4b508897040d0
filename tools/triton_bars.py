"""What a Triton server adds to this package's runtime, measured for `make bars`: one client, and 64 for a minute."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from netvlad_deploy.artifact import OnnxArtifact
from netvlad_deploy.oracle.goldens import golden_image
from netvlad_deploy.retrieval.decoding import decode_image
from netvlad_deploy.runtime.open_runner import open_runner
from netvlad_deploy.spec.graph_options import GraphOptions
from netvlad_deploy.spec.images import IMAGES, ImageChanges, Resize
from netvlad_deploy.support.arrays import Array
from netvlad_deploy.support.machine import available_cores
from netvlad_deploy.workflow.export import export
from netvlad_deploy.workflow.package import package_triton
from netvlad_deploy.workflow.source import Source
from tests.serving import triton
from tests.serving.test_triton import encoded
from tests.serving.triton import Server
from tools.bar import Bar, steady

CLIENTS, LOAD_S = 64, 60.0
ONE_CLIENT, LOAD = (
    "Triton, one client: p99 at most 1.5 times that of the same runner called directly",
    f"Triton, {CLIENTS} clients for {LOAD_S:.0f} s: no error, and the values of one client",
)
MOST_RATIO, ROUNDS, A_ROUND, RESAMPLES = 1.5, 10, 20, 2_000
SIZE = (240, 320)
ROUNDING = 2e-5
"""Most that a value of a unit descriptor of a whole ResNet differs in a batch of another size."""


def serving(folder: Path) -> Iterator[Bar]:
    """Yield the bars of a ResNet-18 with a head of 16 clusters, at 240 x 320; without a server none is measured."""
    if not triton.installed():
        words = "not measured: run make .venv-triton/.installed"
        yield from (Bar(name, words, os.environ.get("CI") != "true") for name in (ONE_CLIENT, LOAD))
        return
    source = Source(backbone="resnet18-conv4", num_clusters=16, changes=ImageChanges(resize=Resize(size=SIZE)))
    artifact = export(source, folder / "served.onnx", GraphOptions())
    photo = encoded(7, SIZE, "JPEG")
    with served(artifact, folder) as server:
        yield steady(lambda: one_client(artifact, server, photo))
        yield many_clients(artifact, server)


@contextmanager
def served(artifact: OnnxArtifact, folder: Path) -> Iterator[Server]:
    package_triton(artifact.path, folder / "repository", force=True)
    with triton.open_client() as client, triton.running(folder / "repository", folder / "triton.log", client) as server:
        yield server


def one_client(artifact: OnnxArtifact, server: Server, photo: bytes) -> Bar:
    """Time rounds through the server and rounds of the same work in this process, in turn."""
    assert artifact.images is not None
    with open_runner(artifact, threads=available_cores()) as runner:

        def direct() -> float:
            started = time.perf_counter()
            right.append(runner.run({IMAGES: decode_image(photo, artifact.images)[None]})["descriptor"][0])  # type: ignore[arg-type]
            return time.perf_counter() - started

        right: list[Array] = []
        direct()
        sides: list[list[list[float]]] = [[], []]
        for _ in range(ROUNDS):
            done = server.load("served", [photo], right[:1], clients=1, rounds=A_ROUND + 1)
            assert not done["errors"]
            assert done["worst"] < ROUNDING
            sides[0].append(done["times"][1:])  # the first opens the connection
            sides[1].append([direct() for _ in range(A_ROUND)])
    times = np.array(sides)  # (2, rounds, requests)
    p99, p50 = (np.percentile(times.reshape(2, -1), percent, axis=1) * 1e3 for percent in (99, 50))
    low, high = interval(times)
    text = (
        f"{p99[0] / p99[1]:.2f} [{low:.2f}, {high:.2f}]: {p99[0]:.1f} of {p99[1]:.1f} ms; "
        f"p50 {p50[0]:.1f} of {p50[1]:.1f} ms"
    )
    return Bar(ONE_CLIENT, text, bool(low <= MOST_RATIO))


def interval(times: Array) -> tuple[float, float]:
    """Return the 99 % interval of the ratio of p99 by resampling whole rounds, which a busy machine slows together."""
    rng = np.random.default_rng(0)
    picks = rng.integers(times.shape[1], size=(RESAMPLES, times.shape[1]))
    p99 = np.percentile(times[:, picks].reshape(2, RESAMPLES, -1), 99, axis=2)
    low, high = np.percentile(p99[0] / p99[1], (0.5, 99.5))
    return float(low), float(high)


def many_clients(artifact: OnnxArtifact, server: Server) -> Bar:
    photos = [golden_image(*SIZE, seed=seed)[None] for seed in range(4)]
    with open_runner(artifact) as runner:
        right = [runner.run({IMAGES: photo})["descriptor"][0] for photo in photos]
    done = server.load("served", photos, right, clients=CLIENTS, seconds=LOAD_S)
    count, wrong = len(done["times"]), len(done["errors"])
    holds = not wrong and count >= CLIENTS and done["worst"] < ROUNDING
    (statistics,) = server.statistics("served")["model_stats"]
    together = int(statistics["inference_count"]) / int(statistics["execution_count"])
    text = f"{count} requests, {wrong} errors, largest difference {done['worst']:.1e}, {together:.1f} images at once"
    return Bar(LOAD, text, holds)


TIMES = (serving,)
