"""Read pickles of weights: nothing that a file names is ever imported or called.

The names in a pickle are looked up in a table of functions of this module, which make tensors that are still in the
file, numbers and plain containers. Whatever else a file names becomes a `Standin`: it takes whatever the file does to
it, and does nothing. Weights are the same whether their neighbours are numbers or objects of a trainer.

Source: pytorch/pytorch, torch/serialization.py and torch/_utils.py (what is saved, and as what); CPython,
Lib/pickle.py (opcodes).
"""

import math
import pickle
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import IO, Any, ClassVar, Final

import numpy as np
import torch

from netvlad_deploy.errors import InputError

STORAGES: Final = {
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

LONGEST_NAME: Final = 200
"""Letters of a class that a message shows."""


class Standin:
    """What stands for a class, a function or an object of the file that is not weights; it does nothing."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.state: object = None

    def hold(self, *_: object, **__: object) -> None:
        """Take what the file puts into a container that is not known, and forget it."""

    append = extend = add = update = __setitem__ = hold


@dataclass(kw_only=True, eq=False)
class Storage:
    """The values of one or several tensors, which stay in the file until they are asked for."""

    dtype: torch.dtype
    numel: int
    read: Callable[[], bytearray] | None = None
    _values: bytearray | None = None

    @property
    def size_bytes(self) -> int:
        """Return how many bytes of the file it is."""
        return self.numel * self.dtype.itemsize

    def values(self) -> bytearray:
        """Return its bytes, which are read once.

        Raises: EOFError if the file has none.
        """
        if self._values is None:
            if self.read is None:
                raise EOFError("a tensor has no values in the file")
            self._values = self.read()
        return self._values


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """A tensor that is still in its file: a view of a storage; `lazily` if it is to be conjugated or negated."""

    storage: Storage
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    lazily: bool

    @property
    def ndim(self) -> int:
        """Return the number of axes."""
        return len(self.shape)

    def read(self, largest: int) -> torch.Tensor:
        """Return the tensor, which may take up to `largest` bytes when it is contiguous: the size of its file.

        Raises: InputError if it asks for more, or reaches beyond its storage.
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
        values = torch.frombuffer(self.storage.values(), dtype=self.dtype, count=held // size)
        return values.as_strided(self.shape, self.strides, self.offset)


class _NumpyDtype:
    """A dtype of NumPy that is being made: its code first, its byte order as a state."""

    def __init__(self, code: object) -> None:
        self.code, self.order = code if isinstance(code, str) else "O", ""

    def take(self, state: Any) -> None:
        """Take the byte order."""
        if isinstance(state, tuple) and len(state) > 1 and state[1] in ("<", ">"):
            self.order = state[1]

    def numbers(self) -> np.dtype[Any] | None:
        """Return the dtype, None if it is not of numbers."""
        dtype = np.dtype(self.order + self.code)
        return dtype if dtype.kind in "biufc" else None


class NumpyArray:
    """An array of NumPy that is being made: its content comes as a state; None where it holds no numbers."""

    def __init__(self) -> None:
        self.array: np.ndarray[Any, Any] | None = None

    def take(self, state: Any) -> None:
        """Take the content: version, shape, dtype, whether it is in Fortran's order, bytes."""
        _, shape, dtype, fortran, raw = state
        if isinstance(raw, bytes | bytearray | str):
            self.array = _from_bytes(raw, dtype, shape, "F" if fortran else "C").array


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any, dtype: Any = None) -> Any:
    """Return a tensor that is still in the file; `rest` is whether it wants a gradient, hooks, and lazy bits."""
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
    """Return a tensor whose dtype comes after its hooks."""
    grad, hooks, dtype, *lazy = rest
    return _tensor(storage, offset, shape, strides, grad, hooks, *lazy, dtype=dtype)


def _first(value: Any, *_: Any) -> Any:
    """Return the tensor that a parameter is made of."""
    return value


def _of_type(function: Any, _: Any, arguments: Any, *__: Any) -> Any:
    """Return the tensor that one of a subclass is made of."""
    return call(function, arguments)


def _reconstructed(cls: Any, *_: Any) -> Any:
    return call(cls, ())


def _encoded(text: str, encoding: str = "latin1") -> bytes:
    """Return the bytes that protocol 2 of pickle writes as text."""
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"bytes as text in {encoding}")
    return text.encode("latin1")


def _new_array(*_: Any) -> NumpyArray:
    return NumpyArray()


def _numpy_dtype(code: Any, *_: Any) -> _NumpyDtype:
    return _NumpyDtype(code)


def _from_bytes(raw: Any, dtype: Any, shape: Any, order: Any = "C") -> NumpyArray:
    made = NumpyArray()
    if isinstance(dtype, _NumpyDtype) and (numbers := dtype.numbers()) is not None:
        values = np.frombuffer(bytearray(raw.encode("latin1") if isinstance(raw, str) else raw), numbers)
        made.array = values.reshape(shape, order="F" if order == "F" else "C")
    return made


def _scalar(dtype: Any, raw: Any) -> Any:
    """Return a number of NumPy as Python's."""
    array = _from_bytes(raw, dtype, ()).array
    return None if array is None else array.item()


def _is_key(value: Any) -> bool:
    """Return whether something may be a key or a member: tuples of tuples of tuples can take forever to hash."""
    simple = (str, bytes, int, float, complex, type(None), Standin)
    return isinstance(value, simple) or (isinstance(value, tuple) and all(isinstance(each, simple) for each in value))


def _mapping(*arguments: Any) -> dict[Any, Any]:
    """Return a dictionary of any kind as a plain one; what makes the missing values of a `defaultdict` is left out."""
    given = next((argument for argument in arguments if isinstance(argument, dict | list)), [])
    return {key: value for key, value in (given.items() if isinstance(given, dict) else given) if _is_key(key)}


def _set(items: Iterable[Any] = ()) -> set[Any]:
    return {item for item in items if _is_key(item)}


KNOWN: Final[Mapping[str, Callable[..., Any]]] = {
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
    "builtins.set": _set,
    "builtins.frozenset": _set,
    "builtins.complex": lambda real=0.0, imaginary=0.0: complex(real, imaginary),
    **{
        f"torch.jit._pickle.{name}": _first
        for name in ("build_intlist", "build_doublelist", "build_boollist", "build_tensorlist", "restore_type_tag")
    },
    "_codecs.encode": _encoded,
    "copyreg._reconstructor": _reconstructed,
    "numpy.dtype": _numpy_dtype,
    "numpy.ndarray": _new_array,
    **{
        f"numpy.{core}.{name}": function
        for core in ("core", "_core")
        for name, function in {
            "multiarray.scalar": _scalar,
            "multiarray._reconstruct": _new_array,
            "numeric._frombuffer": _from_bytes,
        }.items()
    },
}
"""Functions for what torch and NumPy write: the only code that a file can have called."""

OWN = frozenset(KNOWN.values())


def call(function: Any, arguments: Any) -> Any:
    """Call a function of the table, or make a stand-in of what is not known.

    Raises: pickle.UnpicklingError for anything else.
    """
    if isinstance(function, Standin):
        return Standin(function.name)
    if callable(function) and function in OWN:
        return function(*arguments)
    raise pickle.UnpicklingError(f"a {type(function).__name__} is called")


class Unpickler(pickle._Unpickler):
    """Reads one pickle; `skipped` are the names of what it made stand-ins for."""

    dispatch: ClassVar[Any] = dict(pickle._Unpickler.dispatch)

    stack: list[Any]
    append: Callable[[Any], None]
    pop_mark: Callable[[], list[Any]]

    def __init__(self, stream: IO[bytes] | Any, storage: Callable[..., Storage | Standin] | None = None) -> None:
        super().__init__(stream, encoding="latin1")
        self.skipped: set[str] = set()
        self._storage = storage

    def find_class(self, module: str, name: str) -> Any:
        """Return the function of a name, a dtype, or a stand-in."""
        module = {"__builtin__": "builtins", "copy_reg": "copyreg"}.get(module, module)
        known = KNOWN.get(f"{module}.{name}")
        if known is not None:
            return known
        if module.split(".")[0] == "torch":
            if name in STORAGES:
                return STORAGES[name]
            dtype = vars(torch).get(name) if module == "torch" else None
            if isinstance(dtype, torch.dtype):
                return dtype
        foreign = f"{module}.{name}"[:LONGEST_NAME]
        self.skipped.add(foreign)
        return Standin(foreign)

    def persistent_load(self, pid: Any) -> Any:
        """Return a storage, or the class of an old pickle of a whole module."""
        kind, *rest = pid if isinstance(pid, tuple) and pid else (pid,)
        if kind == "module":
            return rest[0]
        if kind != "storage" or self._storage is None:
            raise pickle.UnpicklingError("a reference that is no storage of a tensor")
        if len(rest) < 2 or not isinstance(rest[1], str | int):
            raise pickle.UnpicklingError("a storage without a key")
        return self._storage(*rest)

    def load_reduce(self) -> None:
        """Call a function of the table."""
        arguments = self.stack.pop()
        self.stack[-1] = call(self.stack[-1], arguments)

    def load_newobj(self) -> None:
        """Make an object as `cls.__new__` would."""
        self.load_reduce()

    def load_newobj_ex(self) -> None:
        """Make an object as `cls.__new__` would with arguments by name, which no known one has."""
        self.stack.pop()
        self.load_reduce()

    def _instantiate(self, function: Any, arguments: Any) -> None:
        """Make an object as protocols 0 and 1 do."""
        self.append(call(function, arguments))

    def load_build(self) -> None:
        """Give an object its state: arrays are made of it, a stand-in keeps it, and a dictionary needs none."""
        state = self.stack.pop()
        target = self.stack[-1]
        if isinstance(target, NumpyArray | _NumpyDtype):
            target.take(state)
        elif isinstance(target, Standin):
            target.state = state

    def load_setitems(self) -> None:
        """Put items into a dictionary."""
        items = self.pop_mark()
        self._put(self.stack[-1], items)

    def load_setitem(self) -> None:
        """Put one item into a dictionary."""
        *_, key, value = self.stack
        del self.stack[-2:]
        self._put(self.stack[-1], [key, value])

    def load_dict(self) -> None:
        """Make a dictionary as protocol 0 does."""
        items = self.pop_mark()
        self.append({})
        self._put(self.stack[-1], items)

    def _put(self, target: Any, items: list[Any]) -> None:
        if isinstance(target, dict):
            pairs = zip(items[::2], items[1::2], strict=True)
            target.update((key, value) for key, value in pairs if _is_key(key))
        elif not isinstance(target, Standin):
            raise pickle.UnpicklingError(f"an item is put into a {type(target).__name__}")

    def load_additems(self) -> None:
        """Put members into a set."""
        items = self.pop_mark()
        if isinstance(self.stack[-1], set):
            self.stack[-1].update(_set(items))

    def load_frozenset(self) -> None:
        """Make a set that does not change, which one that does may stand for."""
        items = self.pop_mark()
        self.append(_set(items))

    dispatch[pickle.SETITEMS[0]] = load_setitems
    dispatch[pickle.SETITEM[0]] = load_setitem
    dispatch[pickle.DICT[0]] = load_dict
    dispatch[pickle.ADDITEMS[0]] = load_additems
    dispatch[pickle.FROZENSET[0]] = load_frozenset
    dispatch[pickle.REDUCE[0]] = load_reduce
    dispatch[pickle.NEWOBJ[0]] = load_newobj
    dispatch[pickle.NEWOBJ_EX[0]] = load_newobj_ex
    dispatch[pickle.BUILD[0]] = load_build
    for _code in (pickle.EXT1, pickle.EXT2, pickle.EXT4, pickle.BYTEARRAY8, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER):
        del dispatch[_code[0]]
