"""The few CUDA runtime calls that an engine needs, with every return code checked at the call."""

import contextlib
import ctypes
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from netvlad_deploy.errors import DeviceUnavailableError, RunError
from netvlad_deploy.spec.build_options import Gpu
from netvlad_deploy.support.arrays import Array
from netvlad_deploy.support.require import require


class Cuda:
    """The CUDA runtime on this thread's current GPU. Addresses, streams, events and graphs are CUDA's own handles.

    Raises: MissingDependencyError without cuda-bindings; DeviceUnavailableError without a driver or a GPU. Every method
        raises RunError with the name of the call and CUDA's own name of the error.
    """

    def __init__(self, *, extra: str) -> None:
        self._binding = _open_runtime(extra)

    def device(self) -> int:
        """Return the number of this thread's GPU."""
        return int(self._call("cudaGetDevice"))

    def use(self, device: int) -> None:
        """Make this GPU the current one of this thread from now on."""
        self._call("cudaSetDevice", device)

    @contextlib.contextmanager
    def using(self, device: int) -> Iterator[None]:
        """Make this GPU the current one of this thread inside the `with`; every thread has a current GPU of its own."""
        previous = self.device()
        self.use(device)
        try:
            yield
        finally:
            self.use(previous)

    def device_of(self, address: int) -> int:
        """Return the number of the GPU that this memory is on."""
        return int(self._call("cudaPointerGetAttributes", address).device)

    def gpu(self) -> Gpu:
        """Return name and compute capability of the current GPU, and the newest CUDA version of its driver."""
        properties = self._call("cudaGetDeviceProperties", self.device())
        driver = int(self._call("cudaDriverGetVersion"))
        return Gpu(
            name=properties.name.decode().rstrip("\0"),
            compute_capability=f"{properties.major}.{properties.minor}",
            driver=f"{driver // 1000}.{driver % 1000 // 10}",
        )

    def free_bytes(self) -> int:
        """Return the size of the free device memory in bytes."""
        status, free, _ = self._binding.cudaMemGetInfo()
        self._check("cudaMemGetInfo", status)
        return int(free)

    def create_stream(self) -> Any:
        """Return a stream that waits for no other stream, unless `wait` makes it."""
        return self._call("cudaStreamCreateWithFlags", self._binding.cudaStreamNonBlocking)

    def synchronize(self, stream: Any) -> None:
        """Wait until all work on the stream is done."""
        self._call("cudaStreamSynchronize", stream)

    def destroy_stream(self, stream: Any) -> None:
        """Release a stream."""
        self._call("cudaStreamDestroy", stream)

    def allocate(self, size_bytes: int) -> int:
        """Return the address of new device memory."""
        return int(self._call("cudaMalloc", size_bytes))

    def free(self, address: int) -> None:
        """Release device memory."""
        self._call("cudaFree", address)

    def allocate_pinned(self, size_bytes: int) -> Array:
        """Return new pinned host memory as uint8 (size_bytes,): the GPU copies from and to it directly."""
        address = int(self._call("cudaMallocHost", size_bytes))
        return np.ctypeslib.as_array((ctypes.c_uint8 * size_bytes).from_address(address))

    def free_pinned(self, memory: Array) -> None:
        """Release memory of `allocate_pinned`; no view of it may be used afterwards."""
        self._call("cudaFreeHost", memory.ctypes.data)

    def copy_to_device(self, address: int, array: Array, stream: Any) -> None:
        """Copy a contiguous host array to device memory, in stream order."""
        kind = self._binding.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", address, array.ctypes.data, array.nbytes, kind, stream)

    def copy_to_host(self, array: Array, address: int, stream: Any) -> None:
        """Copy device memory to a contiguous host array, in stream order."""
        kind = self._binding.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", array.ctypes.data, address, array.nbytes, kind, stream)

    def create_event(self) -> Any:
        """Return an event that records a time."""
        return self._call("cudaEventCreate")

    def record(self, event: Any, stream: Any) -> None:
        """Record an event at this point of a stream."""
        self._call("cudaEventRecord", event, stream)

    def wait(self, event: Any, stream: Any) -> None:
        """Let a stream wait until an event has happened."""
        self._call("cudaStreamWaitEvent", stream, event, 0)

    def elapsed_ms(self, start: Any, end: Any) -> float:
        """Return the GPU time in ms between two events that have happened."""
        return float(self._call("cudaEventElapsedTime", start, end))

    def destroy_event(self, event: Any) -> None:
        """Release an event."""
        self._call("cudaEventDestroy", event)

    def capture(self, stream: Any, queue: Callable[[], None]) -> Any:
        """Record the work that `queue` queues on a stream, without running it; return a graph that `launch` takes."""
        mode = self._binding.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", stream, mode)
        complete = False
        try:
            queue()
            complete = True
        finally:
            if not complete:
                self._abandon_capture(stream)
        graph = self._call("cudaStreamEndCapture", stream)
        try:
            return self._call("cudaGraphInstantiate", graph, 0)
        finally:
            self._call("cudaGraphDestroy", graph)

    def _abandon_capture(self, stream: Any) -> None:
        """End a capture whose work failed; a second failure here is not reported, since the first one is on its way."""
        status, graph = self._binding.cudaStreamEndCapture(stream)
        if status == self._binding.cudaError_t.cudaSuccess:
            self._call("cudaGraphDestroy", graph)

    def launch(self, graph: Any, stream: Any) -> None:
        """Run a recorded graph, in stream order."""
        self._call("cudaGraphLaunch", graph, stream)

    def destroy_graph(self, graph: Any) -> None:
        """Release a graph of `capture`."""
        self._call("cudaGraphExecDestroy", graph)

    def _call(self, name: str, *arguments: Any) -> Any:
        status, *values = getattr(self._binding, name)(*arguments)
        self._check(name, status)
        return values[0] if values else None

    def _check(self, name: str, status: Any) -> None:
        if status != self._binding.cudaError_t.cudaSuccess:
            raise RunError(f"{name} failed: {status.name}")


def describe_gpu(extra: str) -> Gpu:
    """Return name, compute capability and driver of the current GPU.

    Raises: MissingDependencyError without cuda-bindings, which `extra` installs; DeviceUnavailableError without a GPU.
    """
    return Cuda(extra=extra).gpu()


def current_device(extra: str) -> int:
    """Return the number of this thread's current GPU; another process, or a new thread, starts on GPU 0.

    Raises: MissingDependencyError without cuda-bindings; DeviceUnavailableError without a GPU.
    """
    return Cuda(extra=extra).device()


def use_device(extra: str, device: int) -> None:
    """Make a GPU the current one of this thread from now on.

    Raises: MissingDependencyError without cuda-bindings; DeviceUnavailableError without a GPU.
    """
    Cuda(extra=extra).use(device)


def _open_runtime(extra: str) -> Any:
    """Return the binding of the CUDA runtime.

    Raises: MissingDependencyError without cuda-bindings; DeviceUnavailableError without a driver or a GPU.
    """
    try:
        binding = require("cuda.bindings.runtime", extra=extra)
        status, count = binding.cudaGetDeviceCount()
    except RuntimeError as error:  # the binding found no CUDA library to load
        raise DeviceUnavailableError(f"no CUDA runtime on this machine: {error}") from error
    if status != binding.cudaError_t.cudaSuccess:
        raise DeviceUnavailableError(f"no usable NVIDIA GPU on this machine: {status.name}")
    if not count:
        raise DeviceUnavailableError("no NVIDIA GPU on this machine: cudaGetDeviceCount found none")
    return binding
