"""The values that a pickle of weights may hold, and the functions that make them: the only ones that a file can call.

Source: pytorch/pytorch, torch/_utils.py and torch/serialization.py (the saved types); numpy/numpy,
numpy/_core/multiarray.py.
"""

import math
import pickle
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
import torch

from netvlad_deploy.errors import InputError

STORAGE_DTYPES: Final = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "UntypedStorage": torch.uint8,
}

MAX_CLASS_NAME_SHOWN: Final = 200
"""Longest name of a class in a message, in characters."""


class Standin:
    """The place of a class, a function or an object in the file that is not weights; it does nothing.

    It accepts every operation that a pickle can apply to an object, so that the weights beside it can be read.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.state: object = None

    def hold(self, *_: object, **__: object) -> None:
        """Drop the items that the file puts into a container of an unknown class."""

    append = extend = add = update = __setitem__ = hold


@dataclass(kw_only=True, eq=False)
class Storage:
    """The values of one or several tensors, which stay in the file until the first of them is read."""

    dtype: torch.dtype
    numel: int
    read: Callable[[], bytearray] | None = None

    @property
    def size_bytes(self) -> int:
        """Return its size in the file, in bytes."""
        return self.numel * self.dtype.itemsize

    @cached_property
    def values(self) -> bytearray:
        """Return its bytes; they are kept, since several tensors may view one storage and would each take its memory.

        Raises: EOFError if the file has no values for it.
        """
        if self.read is None:
            raise EOFError("a tensor has no values in the file")
        return self.read()


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """A tensor that is still in its file, as a view of a storage; a `lazily` one is yet to be conjugated or negated."""

    storage: Storage
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    lazily: bool

    def read(self, largest: int) -> torch.Tensor:
        """Return the tensor; made contiguous it may take up to `largest` bytes, the size of its file.

        Raises: InputError if it would take more, or reaches beyond its storage.
        """
        if self.lazily:
            raise InputError("is saved as a conjugate or negative view: save it after resolve_conj().resolve_neg()")
        size, held = self.dtype.itemsize, self.storage.size_bytes
        numel = math.prod(self.shape)
        if not numel:
            return torch.empty(self.shape, dtype=self.dtype)
        last = self.offset + sum((axis - 1) * step for axis, step in zip(self.shape, self.strides, strict=True))
        if (last + 1) * size > held:
            raise InputError(f"of shape {self.shape} reaches beyond its {held} bytes: the file is damaged")
        if numel * size > largest:
            raise InputError(
                f"repeats {held} bytes to a shape of {self.shape}, more than the whole file: save it after contiguous()"
            )
        values = torch.frombuffer(self.storage.values, dtype=self.dtype, count=held // size)
        return values.as_strided(self.shape, self.strides, self.offset)


class NumpyDtype:
    """A dtype of NumPy as a pickle makes it: from a code, and from its byte order as a state later on."""

    def __init__(self, code: object, *_: object) -> None:
        self.code, self.order = code if isinstance(code, str) else "O", ""

    def take(self, state: Any) -> None:
        """Set the byte order from a pickle's state."""
        if isinstance(state, tuple) and len(state) > 1 and state[1] in ("<", ">"):
            self.order = state[1]

    def numbers(self) -> np.dtype[Any] | None:
        """Return the dtype, None if it is not one of numbers."""
        dtype = np.dtype(self.order + self.code)
        return dtype if dtype.kind in "biufc" else None


class NumpyArray:
    """An array of NumPy as a pickle makes it: empty, and filled by a state later on; None if it holds no numbers."""

    def __init__(self, *_: object) -> None:
        self.array: np.ndarray[Any, Any] | None = None

    def take(self, state: Any) -> None:
        """Set the array from a pickle's state: version, shape, dtype, Fortran order or not, bytes."""
        _, shape, dtype, fortran, raw = state
        self.array = _from_bytes(raw, dtype, shape, "F" if fortran else "C").array


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any, dtype: Any = None) -> Any:
    """Return a tensor that is still in the file; `rest` has its `requires_grad`, its hooks and its lazy bits."""
    if isinstance(storage, Standin):
        return storage
    whole = all(type(each) is int and each >= 0 for each in (offset, *shape, *strides))
    dtype = storage.dtype if dtype is None and isinstance(storage, Storage) else dtype
    if not whole or len(shape) != len(strides) or not isinstance(dtype, torch.dtype):
        raise pickle.UnpicklingError("a tensor without a storage, a shape or strides")
    lazily = any(any(bits.values()) for bits in rest[2:] if isinstance(bits, Mapping))
    return StoredTensor(
        storage=storage, dtype=dtype, offset=offset, shape=tuple(shape), strides=tuple(strides), lazily=lazily
    )


def _typed_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> Any:
    """Return a tensor whose dtype stands after its hooks, as in torch's third version."""
    grad, hooks, dtype, *lazy = rest
    return _tensor(storage, offset, shape, strides, grad, hooks, *lazy, dtype=dtype)


def _first(value: Any, *_: Any) -> Any:
    """Return the first argument: the tensor of a parameter."""
    return value


def _of_type(function: Any, _: Any, arguments: Any, *__: Any) -> Any:
    """Return the plain tensor of one of a subclass, or of one with attributes."""
    if callable(function) and function not in (_tensor, _typed_tensor, _first):
        raise pickle.UnpicklingError("a tensor is made by a function that makes none")
    return call(function, arguments)


def _encoded(text: str, encoding: str = "latin1") -> bytes:
    """Return the bytes of a text, as which protocol 2 of pickle writes bytes."""
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"bytes as text in {encoding}")
    return text.encode("latin1")


def _from_bytes(raw: Any, dtype: Any, shape: Any, order: Any = "C") -> NumpyArray:
    """Return an array of bytes, or of the text as which Python 2 wrote them; an empty one if they are no numbers."""
    made = NumpyArray()
    raw = raw.encode("latin1") if isinstance(raw, str) else raw
    if isinstance(raw, bytes) and isinstance(dtype, NumpyDtype) and (numbers := dtype.numbers()) is not None:
        values = np.frombuffer(bytearray(raw), numbers)
        made.array = values.reshape(shape, order="F" if order == "F" else "C")
    return made


def _scalar(dtype: Any, raw: Any) -> Any:
    """Return a NumPy scalar as a number of Python, None if it is no number."""
    array = _from_bytes(raw, dtype, ()).array
    return None if array is None else array.item()


def is_key(value: Any) -> bool:
    """Return True if a value may be a dictionary's key or a set's member: a simple value, or a tuple of these.

    The hash of deeply nested tuples can take exponential time, so a small file could stop this process.
    """
    simple = (str, bytes, int, float, complex, type(None), Standin)
    return isinstance(value, simple) or (isinstance(value, tuple) and all(isinstance(each, simple) for each in value))


def _mapping(*arguments: Any) -> dict[Any, Any]:
    """Return a plain dictionary for one of any kind; the factory of a `defaultdict` is left out."""
    given = next((argument for argument in arguments if isinstance(argument, dict | list)), [])
    return {key: value for key, value in (given.items() if isinstance(given, dict) else given) if is_key(key)}


def set_of(items: Iterable[Any] = ()) -> set[Any]:
    """Return a plain set for one of any kind."""
    return {item for item in items if is_key(item)}


KNOWN_FUNCTIONS: Final[Mapping[str, Callable[..., Any]]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _typed_tensor,
    "torch._utils._rebuild_parameter": _first,
    "torch._utils._rebuild_parameter_with_state": _first,
    "torch.nn.parameter.Parameter": _first,
    "torch._tensor._rebuild_from_type_v2": _of_type,
    "torch._tensor._rebuild_from_type": _of_type,
    "torch.device": _first,
    "torch.Size": lambda items=(): tuple(items),
    "collections.OrderedDict": _mapping,
    "collections.defaultdict": _mapping,
    "collections.Counter": _mapping,
    "builtins.dict": _mapping,
    "builtins.set": set_of,
    "builtins.frozenset": set_of,
    "builtins.complex": lambda real=0.0, imaginary=0.0: complex(real, imaginary),
    **{
        f"torch.jit._pickle.{name}": _first
        for name in ("build_intlist", "build_doublelist", "build_boollist", "build_tensorlist", "restore_type_tag")
    },
    "_codecs.encode": _encoded,
    "copyreg._reconstructor": lambda cls, *_: call(cls, ()),
    "numpy.dtype": NumpyDtype,
    "numpy.ndarray": NumpyArray,
    "numpy.core.multiarray.scalar": _scalar,
    "numpy._core.multiarray.scalar": _scalar,
    "numpy.core.multiarray._reconstruct": NumpyArray,
    "numpy._core.multiarray._reconstruct": NumpyArray,
    "numpy.core.numeric._frombuffer": _from_bytes,
    "numpy._core.numeric._frombuffer": _from_bytes,
}
"""By the names that torch and NumPy write: the only functions that a file can call."""

CALLABLE_FUNCTIONS = frozenset(KNOWN_FUNCTIONS.values())


def call(function: Any, arguments: Any) -> Any:
    """Return the result of a function of the table, or a new stand-in for the call of a stand-in.

    Raises: pickle.UnpicklingError for any other function.
    """
    if isinstance(function, Standin):
        return Standin(function.name)
    if callable(function) and function in CALLABLE_FUNCTIONS:
        return function(*arguments)
    raise pickle.UnpicklingError(f"a {type(function).__name__} is called")
