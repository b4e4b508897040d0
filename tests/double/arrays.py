"""Arrays on the double's GPU, as libraries offer them: by DLPack and by the CUDA array interface."""

import ctypes
from typing import Any

import numpy as np

from netvlad_deploy.tensorrt.device_array import _Tensor
from tests.double.cuda import CudaDouble
from tests.double.runtime import from_address

CODES = {"f": 2, "b": 6, "i": 0}


class OnGpu:
    """Values that a producer's own stream is still to write when somebody asks for them."""

    def __init__(self, cuda: CudaDouble, values: Any, *, stream: int | None = None) -> None:
        self.cuda, self.values = cuda, values
        _, self.address = cuda.cudaMalloc(values.nbytes)
        self.stream = cuda.cudaStreamCreateWithFlags(1)[1] if stream is None else stream
        cuda.queue(self.stream, self._write)

    def _write(self) -> None:
        from_address(self.address, self.values.shape, self.values.dtype)[...] = self.values

    def free(self) -> None:
        """Release the memory, and the stream if it is the producer's own."""
        self.cuda.cudaFree(self.address)
        if self.stream != 1:
            self.cuda.cudaStreamDestroy(self.stream)


class DlpackOnGpu(OnGpu):
    """Makes the reader's stream wait, as `__dlpack__(stream=...)` promises."""

    lanes = 1
    strides: tuple[int, ...] | None = None
    code: int | None = None

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0

    def __dlpack__(self, *, stream: int) -> Any:
        self.cuda.queue(stream, lambda: self.cuda.happen(self.stream))
        tensor = _Tensor()
        tensor.data, tensor.byte_offset = self.address - 8, 8
        tensor.device.kind, tensor.ndim = 2, self.values.ndim
        tensor.type.code = CODES[self.values.dtype.kind] if self.code is None else self.code
        tensor.type.bits, tensor.type.lanes = 8 * self.values.dtype.itemsize, self.lanes
        self._shape = (ctypes.c_int64 * tensor.ndim)(*self.values.shape)
        tensor.shape = self._shape
        if self.strides is not None:
            self._strides = (ctypes.c_int64 * tensor.ndim)(*self.strides)
            tensor.strides = self._strides
        self._tensor = tensor
        make = ctypes.pythonapi.PyCapsule_New
        make.restype, make.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
        return make(ctypes.addressof(tensor), b"dltensor", None)


class InterfaceOnGpu(OnGpu):
    """Names its stream, or the legacy default stream by naming none."""

    strides: tuple[int, ...] | None = None

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        interface = {
            "shape": self.values.shape,
            "typestr": np.dtype(self.values.dtype).str,
            "data": (self.address, False),
            "strides": self.strides,
            "version": 3,
        }
        return interface if self.stream == 1 else interface | {"stream": self.stream}
