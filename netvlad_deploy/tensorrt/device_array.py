"""Arrays of torch, CuPy, JAX or Numba that lie on the GPU already, taken without a copy.

DLPack comes first where both protocols are offered, since its producer makes our stream wait for its own.

Source: DLPack 0.8 (the structures of dlpack.h) and the Python array API's `__dlpack__`; Numba's CUDA array interface,
version 3.
"""

import ctypes
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from netvlad_deploy.errors import InputError

CUDA_DEVICE: Final = 2
CUDA_KINDS: Final = (CUDA_DEVICE, 13)
"""DLPack's kDLCUDA and kDLCUDAManaged."""

ALIGNMENT: Final = 256
"""TensorRT takes multiples of this as addresses. Source: NvInferRuntime.h, IExecutionContext::setTensorAddress."""

LEGACY_STREAM: Final = 1
"""Handle of CUDA's legacy default stream, on which a producer that names no stream is assumed to write."""

DLPACK_KINDS: Final = {0: "i", 1: "u", 2: "f", 6: "b"}
"""NumPy's kind of each DLPack type code that an input can have: int, uint, float, bool."""


@dataclass(frozen=True, kw_only=True)
class DeviceArray:
    """A contiguous array in device memory. `owner` keeps it alive; `stream` is where its producer may still write."""

    address: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    owner: Any
    stream: int | None = None

    @property
    def ndim(self) -> int:
        """Return the number of axes."""
        return len(self.shape)


class _Device(ctypes.Structure):
    _fields_ = (("kind", ctypes.c_int32), ("number", ctypes.c_int32))


class _Type(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16))


class _Tensor(ctypes.Structure):
    """The head of DLPack's DLManagedTensor."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", _Device),
        ("ndim", ctypes.c_int32),
        ("type", _Type),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


def device_array(value: Any, stream: int, device: int) -> DeviceArray | None:
    """Return a view of an array on a GPU, None of anything else.

    Args:
        value: anything; a NumPy array or CPU tensor is not on a GPU.
        stream: the stream that will read it: a DLPack producer makes it wait.
        device: number of the GPU that will read it.

    Raises: InputError if it is on another GPU, not contiguous, not aligned, masked, of a type that no input has, or its
        producer does not hand it out.
    """
    if hasattr(value, "__dlpack_device__"):
        kind, number = (int(part) for part in value.__dlpack_device__())
        if kind not in CUDA_KINDS:
            return None
        if kind == CUDA_DEVICE and number != device:
            raise InputError(f"input is on GPU {number}, the engine on GPU {device}: move one of them")
        try:
            view = from_dlpack(value.__dlpack__(stream=stream))
        except (BufferError, TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"input on the GPU is not handed out ({error}): detach and clone it") from error
    elif (interface := getattr(value, "__cuda_array_interface__", None)) is not None:
        view = _from_interface(value, interface)
    else:
        return None
    if view.address % ALIGNMENT:
        raise InputError(f"input on the GPU starts at {view.address:#x}, no multiple of {ALIGNMENT}: clone it")
    return view


def _from_interface(value: Any, interface: dict[str, Any]) -> DeviceArray:
    dtype, shape = np.dtype(interface["typestr"]), tuple(interface["shape"])
    if interface.get("mask") is not None:
        raise InputError("input on the GPU has a mask of its own: fill it, and pass `mask` (batch, num_features)")
    _check_strides(interface.get("strides"), shape, dtype.itemsize)
    return DeviceArray(
        address=int(interface["data"][0]),
        shape=shape,
        dtype=dtype,
        owner=value,
        stream=int(interface.get("stream") or LEGACY_STREAM),
    )


def dlpack_tensor(capsule: Any) -> Any:
    """Return the tensor that a DLPack capsule holds, where it stands: what is written to it, the capsule has."""
    pointer_of = ctypes.pythonapi.PyCapsule_GetPointer
    pointer_of.restype, pointer_of.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    return _Tensor.from_address(pointer_of(capsule, b"dltensor"))


def from_dlpack(capsule: Any) -> DeviceArray:
    """Return a view of the tensor in a DLPack capsule.

    The capsule is read and not consumed, so its own destructor still releases the tensor.

    Raises: InputError if it is not contiguous or of a type that no input has.
    """
    tensor = dlpack_tensor(capsule)
    if tensor.type.code not in DLPACK_KINDS or tensor.type.lanes != 1:
        kind = f"type code {tensor.type.code} with {tensor.type.lanes} lanes"
        raise InputError(f"DLPack {kind} fits no input: convert to float32, float16 or bool")
    dtype = np.dtype(f"{DLPACK_KINDS[tensor.type.code]}{tensor.type.bits // 8}")
    shape = tuple(tensor.shape[axis] for axis in range(tensor.ndim))
    if tensor.strides:
        strides = tuple(tensor.strides[axis] * dtype.itemsize for axis in range(tensor.ndim))
        _check_strides(strides, shape, dtype.itemsize)
    address = (tensor.data or 0) + tensor.byte_offset
    return DeviceArray(address=address, shape=shape, dtype=dtype, owner=capsule)


def _check_strides(strides: tuple[int, ...] | None, shape: tuple[int, ...], itemsize: int) -> None:
    """Raise InputError unless strides, in bytes, are those of a C-contiguous array; None stands for C order."""
    if strides is None:
        return
    expected = itemsize
    for stride, length in zip(reversed(strides), reversed(shape), strict=True):
        if length != 1 and stride != expected:
            raise InputError(f"input of shape {shape} has strides {tuple(strides)}: make it contiguous")
        expected *= length
