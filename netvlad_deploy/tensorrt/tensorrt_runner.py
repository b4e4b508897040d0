"""Run an engine with TensorRT or TensorRT-RTX on the GPU: NumPy, cuda-bindings and TensorRT alone.

One runner serves any number of threads. Each run borrows an execution slot from a pool: a context with all that a run
changes. So there are as many slots as there have been runs at the same time, each with memory of its own.
"""

import contextlib
import logging
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np

from netvlad_deploy.artifact import EngineArtifact, log_path, sidecar_path
from netvlad_deploy.errors import InputError, RunError, UsageError
from netvlad_deploy.runner import EventTimes, Runner
from netvlad_deploy.spec.build_options import RTX
from netvlad_deploy.spec.tensors import LaidOut
from netvlad_deploy.support.arrays import Arrays
from netvlad_deploy.support.files import Staging, check_apart, locked, read_private, stage_files
from netvlad_deploy.tensorrt.device_array import device_array
from netvlad_deploy.tensorrt.device_output import DeviceOutput
from netvlad_deploy.tensorrt.execution_slot import ExecutionSlot
from netvlad_deploy.tensorrt.loader import LoadedEngine

LOG = logging.getLogger(__name__)


class TensorRTRunner(Runner):
    """Run an engine, from any number of threads at once.

    Feeds may lie on the GPU already: anything with `__dlpack__` or `__cuda_array_interface__`, such as tensors of torch
    and arrays of CuPy, is read without a copy, and must stay as it is until the run returns. Padded rows there are not
    looked at: they must be finite. With `run(..., on_device=True)` the outputs stay on the GPU, see `DeviceOutput`.

    Args:
        artifact: the engine.
        cuda_graphs: replay work that is repeated from a CUDA graph.
        runtime_cache: file of the kernels that TensorRT-RTX compiles for this GPU, read now and written on closing. It
            is executable code: keep it where nobody else writes.

    Raises: DeviceUnavailableError without a GPU; ArtifactError if another TensorRT version or GPU built the engine, or
        the file has changed; UsageError for a runtime cache where TensorRT keeps none; OutputError for one that
        cannot be written.
    """

    concurrent = True
    lanes = 2

    def __init__(
        self, artifact: EngineArtifact, *, cuda_graphs: bool = True, runtime_cache: Path | None = None
    ) -> None:
        super().__init__(
            artifact.flavor,
            artifact.spec,
            inputs=artifact.inputs,
            outputs=artifact.outputs,
            dtype=np.dtype(artifact.dtypes[artifact.inputs[0]]),
            profiles=artifact.profiles,
            precision=artifact.precision,
            range=artifact.range,
            tensors=artifact.tensors,
        )
        if runtime_cache is not None and artifact.flavor != RTX:
            raise UsageError(f"{artifact.flavor} compiles nothing at run time: leave the runtime cache out")
        if runtime_cache is not None:
            own = artifact.path, sidecar_path(artifact.path), log_path(artifact.path), artifact.reference_path
            check_apart(runtime_cache, own, "runtime cache")
            Staging(force=True).check(runtime_cache)
        self._lock = threading.Lock()
        # Runs in other threads may be under way when `close` is called. The lock guards these two and whether the
        # runner is open; the last run to end finds nobody busy, and releases the engine.
        self._idle: list[ExecutionSlot] = []
        self._busy = 0
        self._cuda_graphs, self._cache_path = cuda_graphs, runtime_cache
        self._loaded: LoadedEngine | None = LoadedEngine(artifact)
        self._runtime_config: Any = None
        self._runtime_cache: Any = None
        if self._loaded.tensorrt.has_runtime_cache:
            self._configure(self._loaded)
        with self._slot():  # makes the first slot, so that an engine that cannot run fails here
            pass

    @property
    def conditions(self) -> str:
        """Return the conditions of the runs in words: CUDA graphs on or off, replays, when RTX compiles kernels."""
        graphs = f"CUDA graphs {'on' if self._cuda_graphs else 'off'}"
        if self._runtime_config is None and self._cuda_graphs:
            graphs += f", {self.replays} replays"
        return graphs if self._runtime_config is None else f"{graphs}, kernels compiled eagerly"

    @property
    def replays(self) -> int:
        """Return the number of runs that came from a CUDA graph, in all slots that are idle now."""
        with self._lock:
            return sum(slot.replays for slot in self._idle)

    @overload
    def run(self, feeds: Mapping[str, Any], *, on_device: Literal[False] = False) -> Arrays: ...
    @overload
    def run(self, feeds: Mapping[str, Any], *, on_device: Literal[True]) -> dict[str, DeviceOutput]: ...
    def run(self, feeds: Mapping[str, Any], *, on_device: bool = False) -> Arrays | dict[str, DeviceOutput]:
        """Return a fresh array for each output, on the host, or with `on_device` on the GPU.

        Raises: InputError if the engine does not take these feeds; RunError if it was closed or failed.
        """
        if on_device:
            with self._slot() as slot:
                return self.named(slot.run_on_device(self._views(feeds, slot)))
        found = self._run(feeds)  # it checks the feeds, once it has the stream that must wait for arrays on the GPU
        return self.named(found)

    def time(self, feeds: Mapping[str, Any]) -> EventTimes:
        """Run once and return the times of the copies and the work by the GPU's own clock."""
        with self._slot() as slot:
            return slot.time(self._views(feeds, slot))

    def close(self) -> None:
        """Release everything, or leave that to the last run that is under way in another thread."""
        with self._lock:
            super().close()
            idle, self._idle = self._idle, []
            last = not self._busy
        self._end(idle, sound=True, last=last)

    def _run(self, feeds: Mapping[str, Any]) -> Arrays:
        with self._slot() as slot:
            return slot.run(self._views(feeds, slot))

    def _views(self, feeds: Mapping[str, Any], slot: ExecutionSlot) -> dict[str, Any]:
        """Return the checked feeds, with arrays on the GPU as `DeviceArray`."""
        if isinstance(feeds, LaidOut):
            return feeds
        return self.check_feeds(
            {name: device_array(value, slot.stream, slot.device) or value for name, value in feeds.items()}
        )

    @contextlib.contextmanager
    def _slot(self) -> Iterator[ExecutionSlot]:
        """Lend an idle slot, or a new one if there is none. A slot that failed is closed and not lent again."""
        with self._lock:
            loaded = self._loaded
            if not self._open or loaded is None:
                raise RunError(f"{self.name} is closed: open it again before running it")
            slot = self._idle.pop() if self._idle else None
            self._busy += 1
        sound = False
        try:
            with loaded.cuda.using(loaded.device):
                slot = slot or self._new_slot(loaded)
                yield slot
            sound = True
        except InputError:  # refused before anything was queued
            sound = True
            raise
        finally:
            self._take_back(slot, sound=sound)

    def _take_back(self, slot: ExecutionSlot | None, *, sound: bool) -> None:
        with self._lock:
            self._busy -= 1
            last = not self._open and not self._busy
            ended = [] if slot is None else [slot]
            if self._open and sound:
                self._idle += ended
                ended = []
        self._end(ended, sound=sound, last=last)

    def _end(self, slots: list[ExecutionSlot], *, sound: bool, last: bool) -> None:
        """Close slots, each even if another one fails, and release the engine after the last run."""
        with contextlib.ExitStack() as undo:
            if last:
                undo.callback(self._release)
            for slot in slots:
                undo.callback(_close, slot, sound=sound)

    def _new_slot(self, loaded: LoadedEngine) -> ExecutionSlot:
        trt = loaded.tensorrt.module
        # takes the memory of one profile, not of the largest
        strategy = trt.ExecutionContextAllocationStrategy.ON_PROFILE_CHANGE
        with loaded.capture_lock:
            context = loaded.engine.create_execution_context(self._runtime_config or strategy)
        if context is None:
            raise RunError(f"{loaded.artifact.path} gives no execution context: {loaded.last_error}")
        return ExecutionSlot(loaded, context, cuda_graphs=self._cuda_graphs and self._runtime_config is None)

    def _configure(self, loaded: LoadedEngine) -> None:
        """Have TensorRT-RTX compile the kernels of a shape in its first run, capture by itself, and keep kernels."""
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
            content = read_private(self._cache_path)
            if content and not self._runtime_cache.deserialize(content):
                LOG.warning("%s is of another GPU, driver or version: kernels are compiled anew", self._cache_path)
            if not runtime_config.set_runtime_cache(self._runtime_cache):
                raise RunError(f"{self.name} refused the runtime cache {self._cache_path}: {loaded.last_error}")
        self._runtime_config = runtime_config

    def _release(self) -> None:
        """Release the engine, then write the runtime cache, which was read from it before."""
        kernels = self._runtime_cache and self._runtime_cache.serialize()
        content = bytes(kernels) if kernels is not None else b""
        self._runtime_cache = self._runtime_config = self._loaded = None
        if content and self._cache_path is not None:
            with locked(self._cache_path), stage_files(force=True) as staging:
                staging.write(self._cache_path, content, private=True)


def _close(slot: ExecutionSlot, *, sound: bool) -> None:
    """Close a slot. A failure is only logged if the slot had failed before, since the caller gets that first one."""
    try:
        with slot.cuda.using(slot.device):
            slot.close()
    except RunError as error:
        if sound:
            raise
        LOG.warning("cleaning up: %s", error)
