"""An execution slot: a context with a stream, buffers, events and CUDA graphs of its own, for one run at a time.

Host arrays go through pinned memory that is kept from run to run; arrays on the GPU are read where they are. When work
with the same shapes at the same addresses has run twice, it is captured as a CUDA graph, and replayed from then on.
TensorRT-RTX captures by itself, since it compiles kernels for a shape while it runs.
"""

import contextlib
import itertools
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from netvlad_deploy.errors import InputError, RunError
from netvlad_deploy.runner import EventTimes, profiled_shapes
from netvlad_deploy.spec.build_options import fitting_profile
from netvlad_deploy.support.arrays import Array, Arrays
from netvlad_deploy.tensorrt.device_array import DeviceArray
from netvlad_deploy.tensorrt.device_output import DeviceOutput
from netvlad_deploy.tensorrt.loader import LoadedEngine

LOG = logging.getLogger(__name__)

MOST_BINDINGS: Final = 32
"""Most bindings that are kept with their graphs. Beyond that the binding that was not used for longest is dropped."""

RUNS_BEFORE_CAPTURE: Final = 2
"""The first run of a new shape gives TensorRT work that no graph can hold, so a graph is captured after this many."""

Inputs = Mapping[str, Array | DeviceArray]
BindingKey = tuple[tuple[str, tuple[int, ...], int], ...]
"""Name, shape and address of every input."""


@dataclass
class _Buffer:
    """Memory of one tensor on the GPU, and pinned memory of the same size on the host."""

    address: int
    host: Array


@dataclass
class _Binding:
    """The outputs' shapes for inputs of certain shapes at certain addresses, and the graph once there is one."""

    outputs: dict[str, tuple[int, ...]]
    runs: int = 0
    graph: Any = None


class ExecutionSlot:
    """Run an engine, one run at a time.

    Args:
        loaded: the engine; it must outlive the slot.
        context: an execution context that nothing else uses.
        cuda_graphs: replay repeated work from a CUDA graph; `replays` counts the replays.

    Raises: RunError if CUDA or TensorRT refuses; a slot that raised it must be closed.
    """

    def __init__(self, loaded: LoadedEngine, context: Any, *, cuda_graphs: bool) -> None:
        self._loaded, self._context, self.cuda = loaded, context, loaded.cuda
        self._cuda_graphs = cuda_graphs
        self.replays = 0
        self._enqueue_s = 0.0
        # Profile, buffers and bindings outlive a run, since setting them up again costs more than a small run. They
        # depend on each other: a graph holds addresses of buffers and of the profile's memory, so when one of those
        # changes all bindings are dropped.
        self._profile: int | None = None
        self._buffers: dict[str, _Buffer] = {}
        self._bindings: dict[BindingKey, _Binding] = {}
        with contextlib.ExitStack() as undo:
            self._stream = self.cuda.create_stream()
            undo.callback(self.cuda.cudaStreamDestroy, self._stream)
            self._events = []
            for _ in range(5):
                self._events.append(self.cuda.cudaEventCreate())
                undo.callback(self.cuda.cudaEventDestroy, self._events[-1])
            self._undo = undo.pop_all()

    @property
    def device(self) -> int:
        """Return the number of the GPU that the engine is on."""
        return self._loaded.device

    @property
    def stream(self) -> int:
        """Return the handle of the stream, for a producer of arrays on the GPU to wait for."""
        return int(self._stream)

    def close(self) -> None:
        """Release graphs, context, buffers, events and stream, in this order, each even if another one fails."""
        with self._loaded.capture_lock, self._undo:
            self._undo.callback(_release_each, self._free, list(self._buffers))
            self._undo.callback(setattr, self, "_context", None)
            self._undo.callback(self._drop_bindings)
            # a run that failed may have left work behind
            self._undo.callback(self.cuda.cudaStreamSynchronize, self._stream)

    def run(self, inputs: Inputs) -> Arrays:
        """Return a fresh array for each output."""
        return {name: self._host(name, shape).copy() for name, shape in self._queue(inputs, self._to_host).items()}

    def run_on_device(self, inputs: Inputs) -> dict[str, DeviceOutput]:
        """Return each output in memory of its own on the GPU, its values complete."""
        outputs: dict[str, DeviceOutput] = {}

        def keep(name: str, shape: tuple[int, ...]) -> None:
            outputs[name] = self._loaded.output_memory.allocate(shape, self._dtype(name))
            source, size_bytes = self._buffers[name].address, self._size_bytes(name, shape)
            self.cuda.copy_on_device(outputs[name].address, source, size_bytes, self._stream)

        self._queue(inputs, keep)
        return outputs

    def time(self, inputs: Inputs) -> EventTimes:
        """Run once and return the GPU's own times of the copies and the work, and the host's of starting the work."""
        self._queue(inputs, self._to_host, timed=True)
        pairs = itertools.pairwise(self._events[:4])
        h2d, compute, d2h = (float(self.cuda.cudaEventElapsedTime(start, end)) for start, end in pairs)
        return EventTimes(h2d, compute, d2h, self._enqueue_s * 1e3)

    def _queue(
        self, inputs: Inputs, take: Callable[[str, tuple[int, ...]], None], *, timed: bool = False
    ) -> dict[str, tuple[int, ...]]:
        """Copy in, compute, let `take` queue the copy of each output of a name and shape, wait; return the shapes."""
        cuda, stream = self.cuda, self._stream
        artifact = self._loaded.artifact
        layout = None if artifact.tensors is None else artifact.tensors.layout
        self._select_profile(*profiled_shapes(inputs, artifact.inputs, artifact.spec, layout))
        self._wait_for_producers(inputs)
        binding = self._bind(inputs)
        self._mark(0, timed)
        for name, value in inputs.items():
            if not isinstance(value, DeviceArray):
                cuda.copy_to_device(self._buffers[name].address, self._host(name, value.shape), stream)
        self._mark(1, timed)
        started = time.perf_counter()
        self._execute(binding)
        self._enqueue_s = time.perf_counter() - started
        self._mark(2, timed)
        for name, shape in binding.outputs.items():
            take(name, shape)
        self._mark(3, timed)
        cuda.cudaStreamSynchronize(stream)
        if self._cuda_graphs and binding.graph is None and binding.runs >= RUNS_BEFORE_CAPTURE:
            self._capture(binding)
        return binding.outputs

    def _to_host(self, name: str, shape: tuple[int, ...]) -> None:
        """Copy an output to its pinned memory."""
        self.cuda.copy_to_host(self._host(name, shape), self._buffers[name].address, self._stream)

    def _select_profile(self, shape: tuple[int, ...], *others: tuple[int, ...]) -> None:
        """Switch to the profile for the shapes of the inputs, and drop graphs.

        They hold addresses of the other profile's memory.
        """
        profile = fitting_profile(self._loaded.artifact.profiles, *shape, others=others)
        if profile == self._profile:
            return
        with self._loaded.capture_lock:
            self._drop_bindings()
            if not self._context.set_optimization_profile_async(profile, self.stream):
                self._fail(f"optimization profile {profile}")
            self.cuda.cudaStreamSynchronize(self._stream)
        self._profile = profile

    def _wait_for_producers(self, inputs: Inputs) -> None:
        """Let the stream wait for the producers of arrays on the GPU.

        Raises: InputError if an array is on another GPU than the engine.
        """
        for name, value in inputs.items():
            if not isinstance(value, DeviceArray):
                continue
            where, own = self.cuda.cudaPointerGetAttributes(value.address).device, self._loaded.device
            if where != own:
                raise InputError(f"{name} is on GPU {where}, the engine on GPU {own}: move one of them")
            if value.stream is not None:
                self.cuda.cudaEventRecord(self._events[4], value.stream)
                self.cuda.cudaStreamWaitEvent(self._stream, self._events[4], 0)

    def _bind(self, inputs: Inputs) -> _Binding:
        """Copy host arrays to pinned memory, and tell the context shapes and addresses unless a graph knows them."""
        for name, value in inputs.items():
            if not isinstance(value, DeviceArray):
                self._reserve(name, self._size_bytes(name, value.shape))
                np.copyto(self._host(name, value.shape), value)
        addresses = {
            name: value.address if isinstance(value, DeviceArray) else self._buffers[name].address
            for name, value in inputs.items()
        }
        key = tuple((name, tuple(value.shape), addresses[name]) for name, value in inputs.items())
        binding = self._bindings.pop(key, None)
        if binding is not None:
            self._bindings[key] = binding  # at the end of the order now: it is dropped last
            if binding.graph is not None:
                return binding
        for name, value in inputs.items():
            if not self._context.set_input_shape(name, tuple(value.shape)):
                self._fail(f"shape {tuple(value.shape)} of {name}")
            if not self._context.set_tensor_address(name, addresses[name]):
                self._fail(f"address of {name}")
        outputs = self._bind_outputs()
        if key not in self._bindings:  # looked up again: a buffer that grew has dropped all bindings
            while len(self._bindings) >= MOST_BINDINGS:
                self._drop(next(iter(self._bindings)))
            self._bindings[key] = _Binding(outputs)
        return self._bindings[key]

    def _bind_outputs(self) -> dict[str, tuple[int, ...]]:
        """Give every output memory, and return the shapes of the outputs."""
        try:
            missing = self._context.infer_shapes()
        except RuntimeError as error:
            raise RunError(f"{self._name} cannot infer shapes: {error}") from error
        if missing:
            self._fail(f"inputs without a shape: {', '.join(missing)}")
        shapes = {name: tuple(self._context.get_tensor_shape(name)) for name in self._loaded.artifact.outputs}
        for name, shape in shapes.items():
            self._reserve(name, self._size_bytes(name, shape))
            if not self._context.set_tensor_address(name, self._buffers[name].address):
                self._fail(f"address of {name}")
        return shapes

    def _execute(self, binding: _Binding) -> None:
        """Queue the work, as a graph if there is one."""
        if binding.graph is not None:
            self.cuda.cudaGraphLaunch(binding.graph, self._stream)
            self.replays += 1
        else:
            self._enqueue()
        binding.runs += 1

    def _capture(self, binding: _Binding) -> None:
        """Capture the work that has just run as a graph; a slot whose work cannot be captured goes on without graphs.

        It holds the capture lock: a wait for the whole GPU would break the capture, and allocating or releasing memory
        or contexts may wait so.
        """
        try:
            with self._loaded.output_memory.capturing():
                binding.graph = self.cuda.capture(self._stream, self._enqueue)
        except RunError as error:
            self._cuda_graphs = False
            LOG.warning("no CUDA graphs for %s: %s", self._name, error)

    def _enqueue(self) -> None:
        if not self._context.execute_async_v3(self.stream):
            self._fail("execution")

    def _reserve(self, name: str, size_bytes: int) -> None:
        """Give a tensor at least this much memory. If it grows, graphs are dropped: they hold the old address."""
        held = self._buffers.get(name)
        if held is not None and held.host.nbytes >= size_bytes:
            return
        with self._loaded.capture_lock:
            self._drop_bindings()
            if held is not None:
                self._free(name)
            address = int(self.cuda.cudaMalloc(size_bytes))
            try:
                self._buffers[name] = _Buffer(address, self.cuda.allocate_pinned(size_bytes))
            except RunError:
                self.cuda.cudaFree(address)
                raise

    def _host(self, name: str, shape: tuple[int, ...]) -> Array:
        """Return the pinned memory of a tensor as an array of this shape."""
        view: Array = self._buffers[name].host[: self._size_bytes(name, shape)].view(self._dtype(name)).reshape(shape)
        return view

    def _size_bytes(self, name: str, shape: tuple[int, ...]) -> int:
        return int(np.prod(shape)) * self._dtype(name).itemsize

    def _dtype(self, name: str) -> np.dtype[Any]:
        return np.dtype(self._loaded.artifact.dtypes[name])

    def _mark(self, index: int, timed: bool) -> None:
        if timed:
            self.cuda.cudaEventRecord(self._events[index], self._stream)

    def _drop_bindings(self) -> None:
        _release_each(self._drop, list(self._bindings))

    def _drop(self, key: BindingKey) -> None:
        binding = self._bindings.pop(key)
        if binding.graph is not None:
            self.cuda.cudaGraphExecDestroy(binding.graph)

    def _free(self, name: str) -> None:
        buffer = self._buffers.pop(name)
        try:
            self.cuda.cudaFree(buffer.address)
        finally:
            self.cuda.cudaFreeHost(buffer.host.ctypes.data)

    @property
    def _name(self) -> str:
        return f"{self._loaded.artifact.path.name} on {self._loaded.artifact.flavor}"

    def _fail(self, request: str) -> Any:
        raise RunError(f"{self._name} refused {request}: {self._loaded.last_error}")


def _release_each(release: Callable[[Any], None], things: Iterable[Any]) -> None:
    """Release every one of them, even if releasing another fails."""
    with contextlib.ExitStack() as undo:
        for thing in things:
            undo.callback(release, thing)
