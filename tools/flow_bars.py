"""The promises about the stream from files to descriptors, measured for `make bars`: a runner that never waits.

Runners and decoders that only sleep show what the stream itself costs, on any machine. What decoding on the same cores
takes from a real session, `image_bars` shows.
"""

import math
import threading
import time
import tracemalloc
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from unittest.mock import patch

import numpy as np

from netvlad_deploy.bulk.flow import embed_shards
from netvlad_deploy.bulk.plan import remove_plan
from netvlad_deploy.retrieval import loading, stream
from netvlad_deploy.retrieval.stream import describe
from netvlad_deploy.runner import Runner
from netvlad_deploy.spec.images import IMAGES, ImageInput
from netvlad_deploy.spec.items import Item, Load
from netvlad_deploy.spec.layer import DESCRIPTOR, NetVLADSpec
from netvlad_deploy.support.arrays import Array, Arrays
from tests.bulk.conftest import plan_of, write_photos
from tools.bar import MIB, Bar, steady

BATCH, COUNT, ALONE = 8, 480, 10
LARGE, MANY = (480, 640, 3), 600
RUN_S, COPY_S = 0.040, 0.010
LEAST_SHARE = 0.95
SHARDS, SHARD_SIZE, SHARD_BATCH, VALUES = 8, 256, 16, 4096
"""Each takes the runner 0.64 s, as 1,024 items do at 1,600 a second."""
DECODERS = (1, 4, 16)
SPARE = 0.75
"""Share of the time of all decoders that their work takes: where it is 1 nobody could keep up."""


class Device(Runner):
    """A runner that computes one batch after the other, as a GPU does, and copies beside that: all of it is sleep."""

    concurrent = True

    def __init__(self, *, run_s: float = RUN_S, copy_s: float = 0.0, values: int = 3) -> None:
        spec = NetVLADSpec(num_clusters=1, feature_size=values)
        super().__init__("device", spec, inputs=(IMAGES,), outputs=(DESCRIPTOR,), dtype=np.dtype(np.uint8))
        self.run_s, self.copy_s, self._computes = run_s, copy_s, threading.Lock()

    def _run(self, feeds: Arrays) -> Arrays:
        time.sleep(self.copy_s)
        with self._computes:
            time.sleep(self.run_s)
        time.sleep(self.copy_s)
        return {DESCRIPTOR: np.repeat(feeds[IMAGES][:, 0, 0, :1].astype(np.float32), self.spec.descriptor_size, axis=1)}


def contents(count: int, decode_s: float, shape: tuple[int, int, int] = (24, 32, 3)) -> Iterator[tuple[Item, Load]]:
    """Yield items that take so long to decode."""

    def load(number: int) -> Array:
        time.sleep(decode_s)
        return np.full(shape, number % 256, np.uint8)

    for number in range(count):
        yield Item(name=f"{number}", path=Path(f"{number}"), size_bytes=1, modified_ns=0), partial(load, number)


def rate(runner: Runner, decode_s: float, *, decoders: int | None, lanes: int) -> float:
    """Return the items a second of the stream, without its first third, in which it starts and finds its pace."""
    times = []
    for number, (item, _) in enumerate(
        describe(runner, ImageInput(), contents(COUNT, decode_s), batch=BATCH, decoders=decoders, lanes=lanes)
    ):
        assert item.name == f"{number}"
        times.append(time.perf_counter())
    start = COUNT // 3
    return (COUNT - start) / (times[-1] - times[start - 1])


def alone(runner: Device, batch: int = BATCH) -> float:
    """Return the items a second of the runner's work alone: its copies are done beside it."""
    started = time.perf_counter()
    for _ in range(ALONE):
        time.sleep(runner.run_s)
    return ALONE * batch / (time.perf_counter() - started)


def share(needed: int, *, decoders: int | None, lanes: int, copy_s: float = 0.0) -> Bar:
    """Measure the stream where decoding keeps a number of threads busy."""
    runner = Device(copy_s=copy_s)
    before = alone(runner)
    got = rate(runner, SPARE * needed * RUN_S / BATCH, decoders=decoders, lanes=lanes)
    most = (before + alone(runner)) / 2
    threads = f"{needed} decoders' work" + ("" if decoders else ", their number found")
    name = f"stream, {threads}, {lanes} in flight: at least {LEAST_SHARE:.0%} of the runner alone"
    return Bar(name, f"{got / most:.1%}, {got:.0f} of {most:.0f} images/s", got >= LEAST_SHARE * most)


def throughput(folder: Path) -> Iterator[Bar]:
    """A runner and decoders that only sleep: how long the runner waits for anything."""
    for needed in DECODERS:
        yield steady(partial(share, needed, decoders=needed, lanes=1))
        yield steady(partial(share, needed, decoders=needed, lanes=2, copy_s=COPY_S))
    with patch.object(stream, "available_cores", return_value=max(DECODERS)):
        for needed in DECODERS:
            yield steady(partial(share, needed, decoders=None, lanes=2, copy_s=COPY_S))


def shards(folder: Path) -> Iterator[Bar]:
    """A run of several shards with descriptors of 4,096 values: decoded, run, written, hashed and flushed."""
    write_photos(folder / "photos", SHARDS * SHARD_SIZE)
    yield steady(partial(shards_share, folder))


def shards_share(folder: Path) -> Bar:
    """Measure the whole of a run, from the first file that is opened to the last record."""
    plan = plan_of(folder / "photos", folder / "y.npz", values=VALUES, batch=SHARD_BATCH, shard_size=SHARD_SIZE)
    runner = Device(copy_s=COPY_S, values=VALUES)
    runner.lanes = 2
    before = alone(runner, SHARD_BATCH)
    started = time.perf_counter()
    assert sum(done.descriptors for done in embed_shards(plan, range(SHARDS), runner)) == SHARDS * SHARD_SIZE
    got = SHARDS * SHARD_SIZE / (time.perf_counter() - started)
    most = (before + alone(runner, SHARD_BATCH)) / 2
    remove_plan(plan.folder)
    plan.folder.rmdir()
    name = f"{SHARDS} shards of {SHARD_SIZE}, all in all: at least {LEAST_SHARE:.0%} of the runner alone"
    return Bar(name, f"{got / most:.1%}, {got:.0f} of {most:.0f} images/s", got >= LEAST_SHARE * most)


def memory(folder: Path) -> Iterator[Bar]:
    """The most arrays that stand in memory at once, by NumPy's own account, whoever is slow."""
    side = {"decoders": (0.0, 0.02), "runner": (0.004, 0.0)}
    images = 2 * (2 + 2) * BATCH * math.prod(LARGE)  # on two lanes: waiting, running, and stacked
    for fast, (decode_s, run_s) in side.items():
        tracemalloc.start()
        results = describe(
            Device(run_s=run_s), ImageInput(), contents(MANY, decode_s, LARGE), batch=BATCH, decoders=4, lanes=2
        )
        number = sum(1 for _ in results)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert number == MANY
        limit = loading.WAITING_BYTES + images
        name = f"stream, {MANY} images of 480x640 on fast {fast}: at most {limit // MIB} MiB at once"
        yield Bar(name, f"{peak / MIB:.0f} of {MANY * math.prod(LARGE) // MIB} MiB", peak <= limit)


FIGURES = (memory,)
TIMES = (throughput, shards)
