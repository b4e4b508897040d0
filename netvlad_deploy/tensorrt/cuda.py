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
    """The CUDA runtime on this thread's current GPU.

    Every function of the runtime is a method of the same name, such as `cudaMalloc`: it takes the same arguments, and
    returns the value that stands behind the status, if there is one. Addresses, streams, events and graphs are CUDA's
    own handles.

    Raises: MissingDependencyError without cuda-bindings, which `extra` installs; DeviceUnavailableError without a
        driver or a GPU. Every method raises RunError with the name of the call and CUDA's own name of the error.
    """

    def __init__(self, *, extra: str) -> None:
        try:
            self._binding = require("cuda.bindings.runtime", extra=extra)
            status, count = self._binding.cudaGetDeviceCount()
        except RuntimeError as error:  # the binding found no CUDA library to load
            raise DeviceUnavailableError(f"no CUDA runtime on this machine: {error}") from error
        if status != self._binding.cudaError_t.cudaSuccess:
            raise DeviceUnavailableError(f"no usable NVIDIA GPU on this machine: {status.name}")
        if not count:
            raise DeviceUnavailableError("no NVIDIA GPU on this machine: cudaGetDeviceCount found none")

    def __getattr__(self, name: str) -> Callable[..., Any]:
        function = getattr(self._binding, name)

        def checked(*arguments: Any) -> Any:
            status, *values = function(*arguments)
            if status != self._binding.cudaError_t.cudaSuccess:
                raise RunError(f"{name} failed: {status.name}")
            return values[0] if values else None

        return checked

    def device(self) -> int:
        """Return the number of this thread's GPU; another process, or a new thread, starts on GPU 0."""
        return int(self.cudaGetDevice())

    @contextlib.contextmanager
    def using(self, device: int) -> Iterator[None]:
        """Make this GPU the current one of this thread inside the `with`; every thread has a current GPU of its own."""
        previous = self.device()
        self.cudaSetDevice(device)
        try:
            yield
        finally:
            self.cudaSetDevice(previous)

    def gpu(self) -> Gpu:
        """Return name and compute capability of the current GPU, and the newest CUDA version of its driver."""
        properties = self.cudaGetDeviceProperties(self.device())
        driver = int(self.cudaDriverGetVersion())
        return Gpu(
            name=properties.name.decode().rstrip("\0"),
            compute_capability=f"{properties.major}.{properties.minor}",
            driver=f"{driver // 1000}.{driver % 1000 // 10}",
        )

    def free_bytes(self) -> int:
        """Return the size of the free device memory in bytes."""
        return int(self.cudaMemGetInfo())

    def create_stream(self) -> Any:
        """Return a stream that waits for no other stream, unless `cudaStreamWaitEvent` makes it."""
        return self.cudaStreamCreateWithFlags(self._binding.cudaStreamNonBlocking)

    def allocate_pinned(self, size_bytes: int) -> Array:
        """Return new pinned host memory as uint8 (size_bytes,): the GPU copies from and to it directly.

        `cudaFreeHost` releases it by its address; no view of it may be used afterwards.
        """
        address = int(self.cudaMallocHost(size_bytes))
        return np.ctypeslib.as_array((ctypes.c_uint8 * size_bytes).from_address(address))

    def copy_to_device(self, address: int, array: Array, stream: Any) -> None:
        """Copy a contiguous host array to device memory, in stream order."""
        kind = self._binding.cudaMemcpyKind.cudaMemcpyHostToDevice
        self.cudaMemcpyAsync(address, array.ctypes.data, array.nbytes, kind, stream)

    def copy_to_host(self, array: Array, address: int, stream: Any) -> None:
        """Copy device memory to a contiguous host array, in stream order."""
        kind = self._binding.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self.cudaMemcpyAsync(array.ctypes.data, address, array.nbytes, kind, stream)

    def copy_on_device(self, target: int, source: int, size_bytes: int, stream: Any) -> None:
        """Copy device memory to device memory, in stream order."""
        kind = self._binding.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        self.cudaMemcpyAsync(target, source, size_bytes, kind, stream)

    def capture(self, stream: Any, queue: Callable[[], None]) -> Any:
        """Record the work that `queue` queues on a stream, without running it; return a graph for `cudaGraphLaunch`."""
        self.cudaStreamBeginCapture(stream, self._binding.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal)
        complete = False
        try:
            queue()
            complete = True
        finally:
            if not complete:
                self._abandon_capture(stream)
        graph = self.cudaStreamEndCapture(stream)
        try:
            return self.cudaGraphInstantiate(graph, 0)
        finally:
            self.cudaGraphDestroy(graph)

    def _abandon_capture(self, stream: Any) -> None:
        """End a capture whose work failed; a second failure here is not reported, since the first one is on its way."""
        status, graph = self._binding.cudaStreamEndCapture(stream)
        if status == self._binding.cudaError_t.cudaSuccess:
            self.cudaGraphDestroy(graph)
