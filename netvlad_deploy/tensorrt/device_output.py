"""Outputs that stay on the GPU: each in memory of its own, which others take by DLPack without a copy.

What is handed out is the DLPack capsule of a NumPy array over that memory, with the device written into it: NumPy
releases a capsule in C, whatever thread drops it, while an error is on its way, and when Python ends. A release in
Python could do none of that. The array itself is never read, since its memory is not the host's.

Source: the Python array API's `__dlpack__`; DLPack 0.8.
"""

import contextlib
import logging
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np

from netvlad_deploy.errors import RunError
from netvlad_deploy.tensorrt.cuda import Cuda
from netvlad_deploy.tensorrt.device_array import CUDA_DEVICE, dlpack_tensor

LOG = logging.getLogger(__name__)


class _Block:
    """Memory on the GPU as NumPy's array interface describes it; it is freed when nothing refers to this any more."""

    def __init__(self, address: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.__array_interface__ = {"data": (address, False), "shape": shape, "typestr": dtype.str, "version": 3}


class DeviceOutput:
    """An output on the GPU: `torch.from_dlpack(output)`, CuPy and JAX take it without a copy, a runner as a feed.

    `address` is where its `shape` of `dtype` lies in the memory of GPU number `device`, in C order. Its values are
    complete, so that no stream has to wait for them. The memory is its own: no later run changes it, and it is freed
    when this object and all that was taken from it are gone, also after the runner was closed.
    """

    def __init__(self, block: _Block, device: int) -> None:
        self._array = np.asarray(block)
        self.address = int(self._array.ctypes.data)
        self.shape, self.dtype, self.device = self._array.shape, self._array.dtype, device

    def __repr__(self) -> str:
        return f"DeviceOutput(shape={self.shape}, dtype={self.dtype}, device={self.device})"

    def __array__(self, *_: Any, **__: Any) -> Any:
        """Refuse NumPy, which would otherwise make an array of this one object."""
        raise TypeError(self._stays)

    @property
    def _stays(self) -> str:
        return f"the output stays on GPU {self.device}: run without on_device for arrays on the host"

    def __dlpack_device__(self) -> tuple[int, int]:
        """Return DLPack's kDLCUDA and the number of the GPU."""
        return CUDA_DEVICE, self.device

    def __dlpack__(
        self,
        *,
        stream: int | None = None,  # complete already: no stream has to wait
        max_version: tuple[int, int] | None = None,  # a capsule without a version suits all
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        """Return a capsule named `dltensor` that shares the memory and keeps it.

        Raises: BufferError if a copy is asked for, or another device than the GPU that it is on.
        """
        if copy or dl_device not in (None, self.__dlpack_device__()):
            raise BufferError(self._stays)
        capsule = self._array.__dlpack__()
        place = dlpack_tensor(capsule).device
        place.kind, place.number = self.__dlpack_device__()
        return capsule


class OutputMemory:
    """Memory for outputs on one GPU, freed as they are dropped.

    Python may drop an output at any moment in any thread, also in its garbage collection while this thread captures a
    CUDA graph, which freeing would break: it is then freed after the capture.

    Args:
        lock: held by whoever captures a CUDA graph, or may wait for the whole GPU.
    """

    def __init__(self, cuda: Cuda, device: int, lock: "threading.RLock") -> None:
        self._cuda, self._device, self._lock = cuda, device, lock
        self._capturing = False
        self._dropped: list[int] = []

    def allocate(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> DeviceOutput:
        """Return an output whose values are still to be written.

        Raises: RunError if there is not enough memory.
        """
        with self._lock:
            address = int(self._cuda.cudaMalloc(int(np.prod(shape)) * dtype.itemsize))
        block = _Block(address, shape, dtype)
        weakref.finalize(block, self._free, address).atexit = False  # the driver frees what is left when Python ends
        return DeviceOutput(block, self._device)

    @contextlib.contextmanager
    def capturing(self) -> Iterator[None]:
        """Hold the lock and free nothing inside the `with`."""
        with self._lock:
            self._capturing = True
            try:
                yield
            finally:
                self._capturing = False
                dropped, self._dropped = self._dropped, []
                for address in dropped:
                    self._free(address)

    def _free(self, address: int) -> None:
        """Free memory of an output that is gone; nobody is there to be told of a failure, so it is logged."""
        with self._lock:
            if self._capturing:
                self._dropped.append(address)
                return
            try:
                with self._cuda.using(self._device):
                    self._cuda.cudaFree(address)
            except RunError as error:
                LOG.warning("memory of an output on GPU %d is not freed: %s", self._device, error)
