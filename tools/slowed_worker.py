"""The worker of a latency measurement, with one planted fault: files named as SLOWED take 5 % longer in each run."""

import time

from netvlad_deploy.latency import worker
from netvlad_deploy.runner import Feeds
from netvlad_deploy.runtime.onnxruntime_runner import OnnxRuntimeRunner
from netvlad_deploy.support.arrays import Arrays
from netvlad_deploy.support.children import Channel

SLOWED, SHARE = "slowed.onnx", 0.05


def serve(channel: Channel) -> None:
    """Serve as the worker does; after each run of a slowed file, spin for 5 % of the time that the run took."""
    run = OnnxRuntimeRunner.run

    def slowed(self: OnnxRuntimeRunner, feeds: Feeds) -> Arrays:
        started = time.perf_counter()
        outputs = run(self, feeds)
        ended = time.perf_counter()
        while self.name == SLOWED and time.perf_counter() < ended + SHARE * (ended - started):
            pass
        return outputs

    setattr(OnnxRuntimeRunner, "run", slowed)  # noqa: B010 - mypy takes no method in an assignment
    worker.serve(channel)
