"""The promises about the stream from files to descriptors, measured for `make bars`: a runner that never waits.

Runners and decoders that only sleep show what the stream itself costs, on any machine; a real session on this
machine's cores shows what decoding on the same cores takes.
"""

import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from netvlad_deploy.retrieval import stream
from netvlad_deploy.retrieval.stream import describe
from netvlad_deploy.runner import Runner
from netvlad_deploy.spec.images import IMAGES, ImageInput
from netvlad_deploy.spec.items import Item, Load
from netvlad_deploy.spec.layer import DESCRIPTOR, NetVLADSpec
from netvlad_deploy.support.arrays import Array, Arrays

BATCH, COUNT = 8, 480
RUN_S, COPY_S = 0.040, 0.010
LEAST_SHARE = 0.95
DECODERS = (1, 4, 16)
SPARE = 0.75
"""Share of the time of all decoders that their work takes: where it is 1 nobody could keep up."""


class Device(Runner):
    """A runner that computes one batch after the other, as a GPU does, and copies beside that: all of it is sleep."""

    concurrent = True

    def __init__(self, *, run_s: float = RUN_S, copy_s: float = 0.0) -> None:
        spec = NetVLADSpec(num_clusters=1, feature_size=3)
        super().__init__("device", spec, inputs=(IMAGES,), outputs=(DESCRIPTOR,), dtype=np.dtype(np.uint8))
        self.run_s, self.copy_s, self._computes = run_s, copy_s, threading.Lock()

    def _run(self, feeds: Arrays) -> Arrays:
        time.sleep(self.copy_s)
        with self._computes:
            time.sleep(self.run_s)
        time.sleep(self.copy_s)
        return {DESCRIPTOR: feeds[IMAGES][:, 0, 0].astype(np.float32)}


def contents(count: int, decode_s: float) -> Iterator[tuple[Item, Load]]:
    """Yield items that take so long to decode, and are their own numbers."""

    def load(number: int) -> Array:
        time.sleep(decode_s)
        return np.full((24, 32, 3), number % 256, np.uint8)

    for number in range(count):
        yield Item(name=f"{number}", path=Path(f"{number}"), size_bytes=1, modified_ns=0), partial(load, number)


def rate(runner: Runner, decode_s: float, *, decoders: int | None, lanes: int, count: int = COUNT) -> float:
    """Return the items a second of the stream, without its first and last batches."""
    times = []
    for number, (item, _) in enumerate(
        describe(runner, ImageInput(), contents(count, decode_s), batch=BATCH, decoders=decoders, lanes=lanes)
    ):
        assert item.name == f"{number}"
        times.append(time.perf_counter())
    start = count // 4
    return (count - start) / (times[-1] - times[start - 1])


def alone(runner: Device, count: int = COUNT // 2) -> float:
    """Return the items a second of the runner's work alone: its copies are done beside it."""
    started = time.perf_counter()
    for _ in range(count // BATCH):
        time.sleep(runner.run_s)
    return count / (time.perf_counter() - started)


if __name__ == "__main__":
    for lanes, copy_s in ((1, 0.0), (2, COPY_S)):
        for decoders in DECODERS:
            device = Device(copy_s=copy_s)
            a = alone(device)
            decode_s = SPARE * decoders * RUN_S / BATCH
            r = rate(device, decode_s, decoders=decoders, lanes=lanes)
            print(lanes, decoders, f"{r:.1f} of {a:.1f}: {r / a:.1%}")
    setattr(stream, "available_cores", lambda: 16)
    for decoders in DECODERS:
        device = Device()
        a = alone(device)
        r = rate(device, SPARE * decoders * RUN_S / BATCH, decoders=None, lanes=1)
        print("adaptive", decoders, f"{r:.1f} of {a:.1f}: {r / a:.1%}")
