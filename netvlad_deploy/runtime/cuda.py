"""The few CUDA runtime calls that an engine needs, with every return code checked at the call."""

from typing import Any

from netvlad_deploy.arrays import Array
from netvlad_deploy.artifact import Gpu
from netvlad_deploy.errors import DeviceUnavailableError, RunError
from netvlad_deploy.require import require


class Cuda:
    """A stream on the current GPU and the copies on it.

    Raises: MissingDependencyError without cuda-bindings; DeviceUnavailableError without a driver or a GPU.
    """

    def __init__(self, *, extra: str) -> None:
        self._runtime = _open_runtime(extra)
        self.stream = self._call("cudaStreamCreate")

    def allocate(self, size_bytes: int) -> int:
        """Return the address of new device memory."""
        return int(self._call("cudaMalloc", size_bytes))

    def free(self, address: int) -> None:
        """Release device memory."""
        self._call("cudaFree", address)

    def copy_to_device(self, address: int, array: Array) -> None:
        """Copy a contiguous host array to device memory, in stream order."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", address, array.ctypes.data, array.nbytes, kind, self.stream)

    def copy_to_host(self, array: Array, address: int) -> None:
        """Copy device memory to a contiguous host array, in stream order."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", array.ctypes.data, address, array.nbytes, kind, self.stream)

    def synchronize(self) -> None:
        """Wait until all work on the stream is done."""
        self._call("cudaStreamSynchronize", self.stream)

    def close(self) -> None:
        """Destroy the stream."""
        self._call("cudaStreamDestroy", self.stream)

    def _call(self, name: str, *arguments: Any) -> Any:
        status, *values = getattr(self._runtime, name)(*arguments)
        if status != self._runtime.cudaError_t.cudaSuccess:
            raise RunError(f"{name} failed: {status.name}")
        return values[0] if values else None


def _open_runtime(extra: str) -> Any:
    """Return the CUDA runtime binding after making sure that there is a GPU."""
    try:
        runtime = require("cuda.bindings.runtime", extra=extra)
        status, count = runtime.cudaGetDeviceCount()
    except RuntimeError as error:  # the binding found no CUDA library to load
        raise DeviceUnavailableError(f"no CUDA runtime on this machine: {error}") from error
    if status != runtime.cudaError_t.cudaSuccess:
        raise DeviceUnavailableError(f"no usable NVIDIA GPU on this machine: {status.name}")
    if not count:
        raise DeviceUnavailableError("no NVIDIA GPU on this machine: cudaGetDeviceCount found none")
    return runtime


def describe_gpu(extra: str) -> Gpu:
    """Return the current GPU: its name, compute capability and the CUDA version of its driver.

    Raises: MissingDependencyError without cuda-bindings; DeviceUnavailableError without a driver or a GPU.
    """
    runtime = _open_runtime(extra)

    def call(name: str, *arguments: Any) -> Any:
        status, value = getattr(runtime, name)(*arguments)
        if status != runtime.cudaError_t.cudaSuccess:
            raise DeviceUnavailableError(f"{name} failed: {status.name}")
        return value

    properties = call("cudaGetDeviceProperties", call("cudaGetDevice"))
    version = call("cudaDriverGetVersion")  # 12040 is 12.4
    return Gpu(
        name=properties.name.rstrip(b"\0").decode(),
        compute_capability=f"{properties.major}.{properties.minor}",
        driver=f"{version // 1000}.{version % 1000 // 10}",
    )
