"""Run an engine with TensorRT or TensorRT-RTX on the GPU: NumPy, cuda-bindings and TensorRT alone.

One runner serves any number of threads. Each run takes a lane from a pool, an execution context with all that a run
changes, and gives it back; so there are as many lanes as runs have been under way at once, each with its own memory.
"""

import contextlib
import logging
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from netvlad_deploy.arrays import Arrays
from netvlad_deploy.artifact import EngineArtifact
from netvlad_deploy.errors import InputError, RunError, UsageError
from netvlad_deploy.files import locked, stage_files
from netvlad_deploy.runner import EventTimes, Runner
from netvlad_deploy.runtime.device_array import device_array
from netvlad_deploy.runtime.engine_loader import LoadedEngine
from netvlad_deploy.runtime.lane import Lane
from netvlad_deploy.spec import FEATURES

LOG = logging.getLogger(__name__)


class TensorRTRunner(Runner):
    """Run an engine, from any number of threads at once.

    Feeds may lie on the GPU already: anything with `__dlpack__` or `__cuda_array_interface__`, such as tensors of torch
    and arrays of CuPy, is read without a copy, and must stay as it is until the run returns. Padded rows there are not
    looked at: they must be finite.

    Args:
        artifact: the engine.
        cuda_graphs: replay a shape that comes again from a CUDA graph.
        runtime_cache: file of the kernels that TensorRT-RTX compiles for this GPU, read now and written on closing. It
            is executable code: keep it where nobody else writes.

    Raises: DeviceUnavailableError without a GPU; ArtifactError if another TensorRT version or GPU built the engine, or
        the file has changed; UsageError for a runtime cache where TensorRT keeps none.
    """

    def __init__(
        self, artifact: EngineArtifact, *, cuda_graphs: bool = True, runtime_cache: Path | None = None
    ) -> None:
        super().__init__(
            artifact.flavor,
            artifact.spec,
            inputs=artifact.inputs,
            outputs=artifact.outputs,
            dtype=artifact.dtypes[FEATURES],
            profiles=artifact.profiles,
            precision=artifact.precision,
            feature_range=artifact.range,
        )
        self._lock = threading.Lock()
        self._idle: list[Lane] = []
        self._busy = 0
        self._cuda_graphs, self._cache_path = cuda_graphs, runtime_cache
        self._loaded: LoadedEngine | None = LoadedEngine(artifact)
        self._runtime_config: Any = None
        self._runtime_cache: Any = None
        if self._loaded.tensorrt.has_runtime_cache:
            self._configure(self._loaded)
        elif runtime_cache is not None:
            raise UsageError(f"{artifact.flavor} compiles nothing at run time: leave the runtime cache out")
        with self._lane():  # what cannot run says so now
            pass

    @property
    def conditions(self) -> str:
        """Return whether runs are replayed from CUDA graphs, and when TensorRT-RTX compiles kernels."""
        graphs = f"CUDA graphs {'on' if self._cuda_graphs else 'off'}"
        return graphs if self._runtime_config is None else f"{graphs}, kernels compiled eagerly"

    def run(self, feeds: Mapping[str, Any]) -> Arrays:
        """Return a fresh array for each output, on the host.

        Raises: InputError if the feeds are not what the engine takes; RunError if it was closed or failed.
        """
        return self._run(feeds)  # checked there, on the stream that arrays on the GPU must arrive on

    def time(self, feeds: Mapping[str, Any]) -> EventTimes:
        """Run once and return what the GPU's own clock says of the copies and the work."""
        with self._lane() as lane:
            return lane.time(self._views(feeds, lane))

    def close(self) -> None:
        """Release everything. A run under way in another thread ends first, and the last one of them releases."""
        with self._lock, contextlib.ExitStack() as undo:
            super().close()
            idle, self._idle = self._idle, []
            if not self._busy:
                undo.callback(self._release)
            for lane in idle:
                undo.callback(lane.close)

    def _run(self, feeds: Mapping[str, Any]) -> Arrays:
        with self._lane() as lane:
            return lane.run(self._views(feeds, lane))

    def _views(self, feeds: Mapping[str, Any], lane: Lane) -> dict[str, Any]:
        """Return checked feeds, those on the GPU as arrays there."""
        return self.check_feeds({name: device_array(value, lane.stream) or value for name, value in feeds.items()})

    @contextlib.contextmanager
    def _lane(self) -> Iterator[Lane]:
        """Lend a lane of the pool, or a new one where none is idle. One that failed is not lent again."""
        with self._lock:
            if not self._open or self._loaded is None:
                raise RunError(f"{self.name} is closed: open it again before running it")
            lane = self._idle.pop() if self._idle else self._new_lane(self._loaded)
            self._busy += 1
        sound = False
        try:
            yield lane
            sound = True
        except InputError:  # refused before anything was queued
            sound = True
            raise
        finally:
            self._take_back(lane, sound=sound)

    def _take_back(self, lane: Lane, *, sound: bool) -> None:
        with self._lock, contextlib.ExitStack() as undo:
            self._busy -= 1
            if self._open and sound:
                self._idle.append(lane)
                return
            if not self._open and not self._busy:
                undo.callback(self._release)
            undo.callback(_close, lane, sound=sound)

    def _new_lane(self, loaded: LoadedEngine) -> Lane:
        trt = loaded.tensorrt.module
        strategy = trt.ExecutionContextAllocationStrategy.ON_PROFILE_CHANGE  # memory of one profile, not of the largest
        context = loaded.engine.create_execution_context(self._runtime_config or strategy)
        if context is None:
            raise RunError(f"{loaded.artifact.path} gives no execution context: {loaded.last_error}")
        return Lane(loaded, context, cuda_graphs=self._cuda_graphs and self._runtime_config is None)

    def _configure(self, loaded: LoadedEngine) -> None:
        """Let TensorRT-RTX compile a shape's kernels before its first run ends, capture by itself, and keep kernels."""
        trt = loaded.tensorrt.module
        runtime_config = loaded.engine.create_runtime_config()
        runtime_config.set_execution_context_allocation_strategy(
            trt.ExecutionContextAllocationStrategy.ON_PROFILE_CHANGE
        )
        runtime_config.dynamic_shapes_kernel_specialization_strategy = (
            trt.DynamicShapesKernelSpecializationStrategy.EAGER
        )
        graphs = trt.CudaGraphStrategy
        runtime_config.cuda_graph_strategy = graphs.WHOLE_GRAPH_CAPTURE if self._cuda_graphs else graphs.DISABLED
        if self._cache_path is not None:
            self._runtime_cache = runtime_config.create_runtime_cache()
            if self._cache_path.exists() and not self._runtime_cache.deserialize(self._cache_path.read_bytes()):
                LOG.warning("%s is of another GPU, driver or version: kernels are compiled anew", self._cache_path)
            if not runtime_config.set_runtime_cache(self._runtime_cache):
                raise RunError(f"{self.name} refused the runtime cache {self._cache_path}: {loaded.last_error}")
        self._runtime_config = runtime_config

    def _release(self) -> None:
        """Let go of the engine, and write the runtime cache."""
        runtime_cache, path = self._runtime_cache, self._cache_path
        self._runtime_config = self._runtime_cache = self._loaded = None
        if runtime_cache is not None and path is not None:
            with locked(path), stage_files(force=True) as staging:
                staging.write(path, bytes(runtime_cache.serialize()))


def _close(lane: Lane, *, sound: bool) -> None:
    """Close a lane; what fails after a failure is logged, so that the first one is what the caller hears of."""
    try:
        lane.close()
    except RunError as error:
        if sound:
            raise
        LOG.warning("cleaning up: %s", error)
