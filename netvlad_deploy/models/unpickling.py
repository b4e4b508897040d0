"""Read pickles of weights: nothing that a file names is ever imported or called.

The names in a pickle are looked up in the table of `pickled`, whose functions make tensors that are still in the file,
numbers and plain containers. Every other name becomes a `Standin`, which accepts all operations and does nothing.

Source: CPython, Lib/pickle.py (opcodes).
"""

import io
import pickle
from collections.abc import Callable, Sized
from typing import IO, Any, ClassVar, Final

import torch

from netvlad_deploy.models import pickled
from netvlad_deploy.models.pickled import Standin, Storage

MAX_COPIES: Final = 4
"""Most characters and members that the functions of the table may copy, as a multiple of the pickle's size.

They copy once each value that torch and NumPy write. But a pickle can pass one value to them a thousand times, so that
a small file would fill any memory.
"""


class Unpickler(pickle._Unpickler):
    """A reader of one pickle; `skipped` has the names for which it made stand-ins.

    It overrides every opcode of Python's own reader that would import, call or change an object.
    """

    dispatch: ClassVar[Any] = dict(pickle._Unpickler.dispatch)

    stack: list[Any]
    append: Callable[[Any], None]
    pop_mark: Callable[[], list[Any]]

    def __init__(self, stream: IO[bytes] | Any, storage: Callable[..., Storage | Standin] | None = None) -> None:
        super().__init__(stream, encoding="latin1")
        self.skipped: set[str] = set()
        self._storage = storage
        start = stream.tell()  # a file of torch before 1.6 has several pickles in a row
        self._copies_left = MAX_COPIES * (stream.seek(0, io.SEEK_END) - start)
        stream.seek(start)

    def find_class(self, module: str, name: str) -> Any:
        """Return the function of the table, the dtype, or a stand-in for a name."""
        module = {"__builtin__": "builtins", "copy_reg": "copyreg"}.get(module, module)
        known = pickled.KNOWN_FUNCTIONS.get(f"{module}.{name}")
        if known is not None:
            return known
        if module.split(".")[0] == "torch":
            if name in pickled.STORAGE_DTYPES:
                return pickled.STORAGE_DTYPES[name]
            dtype = vars(torch).get(name) if module == "torch" else None
            if isinstance(dtype, torch.dtype):
                return dtype
        foreign = f"{module}.{name}"[: pickled.MAX_CLASS_NAME_SHOWN]
        self.skipped.add(foreign)
        return Standin(foreign)

    def persistent_load(self, pid: Any) -> Any:
        """Return the storage, or in an old pickle of a whole module the class, that a persistent id names."""
        kind, *rest = pid if isinstance(pid, tuple) and pid else (pid,)
        if kind == "module":
            return rest[0]
        if kind != "storage" or self._storage is None:
            raise pickle.UnpicklingError("a reference that is no storage of a tensor")
        if len(rest) < 2 or not isinstance(rest[1], str | int):
            raise pickle.UnpicklingError("a storage without a key")
        return self._storage(*rest)

    def load_reduce(self) -> None:
        """Replace a function and its arguments by the result of the call."""
        arguments = self.stack.pop()
        self.stack[-1] = self._call(self.stack[-1], arguments)

    def load_newobj_ex(self) -> None:
        """Call as `load_reduce` does, without the arguments by name, which no function of the table has."""
        self.stack.pop()
        self.load_reduce()

    def _instantiate(self, function: Any, arguments: Any) -> None:
        """Call a class with arguments, for the opcodes INST and OBJ of protocols 0 and 1."""
        self.append(self._call(function, arguments))

    def _call(self, function: Any, arguments: Any) -> Any:
        if not isinstance(function, Standin):
            self._count_copies(arguments)
        return pickled.call(function, arguments)

    def _count_copies(self, values: Any) -> None:
        """Raise UnpicklingError if the pickle has more copied than MAX_COPIES allows."""
        self._copies_left -= sum(len(value) for value in values if isinstance(value, Sized))
        if self._copies_left < 0:
            raise pickle.UnpicklingError("it uses the same values again and again")

    def load_build(self) -> None:
        """Give an object its state: it fills an array or dtype, a stand-in keeps it, and a dictionary needs none."""
        state = self.stack.pop()
        target = self.stack[-1]
        if isinstance(target, pickled.NumpyArray | pickled.NumpyDtype):
            self._count_copies(state)
            target.take(state)
        elif isinstance(target, Standin):
            target.state = state

    def load_setitems(self) -> None:
        """Put the items on the stack into a dictionary, without those whose key could not be hashed in time."""
        items = self.pop_mark()
        self._put(self.stack[-1], items)

    def load_setitem(self) -> None:
        """Put one item into a dictionary, as `load_setitems` does."""
        *_, key, value = self.stack
        del self.stack[-2:]
        self._put(self.stack[-1], [key, value])

    def load_dict(self) -> None:
        """Make a dictionary of the items on the stack, for protocol 0."""
        items = self.pop_mark()
        self.append({})
        self._put(self.stack[-1], items)

    def _put(self, target: Any, items: list[Any]) -> None:
        if isinstance(target, dict):
            pairs = zip(items[::2], items[1::2], strict=True)
            target.update((key, value) for key, value in pairs if pickled.is_key(key))
        elif not isinstance(target, Standin):
            raise pickle.UnpicklingError(f"an item is put into a {type(target).__name__}")

    def load_additems(self) -> None:
        """Put the members on the stack into a set, without those that could not be hashed in time."""
        items = self.pop_mark()
        if isinstance(self.stack[-1], set):
            self.stack[-1].update(pickled.set_of(items))

    def load_frozenset(self) -> None:
        """Make a plain set for a frozen one."""
        items = self.pop_mark()
        self.append(pickled.set_of(items))

    dispatch[pickle.SETITEMS[0]] = load_setitems
    dispatch[pickle.SETITEM[0]] = load_setitem
    dispatch[pickle.DICT[0]] = load_dict
    dispatch[pickle.ADDITEMS[0]] = load_additems
    dispatch[pickle.FROZENSET[0]] = load_frozenset
    dispatch[pickle.REDUCE[0]] = load_reduce
    dispatch[pickle.NEWOBJ[0]] = load_reduce  # a class of the table is made by calling it
    dispatch[pickle.NEWOBJ_EX[0]] = load_newobj_ex
    dispatch[pickle.BUILD[0]] = load_build
    dispatch[pickle.BYTEARRAY8[0]] = dispatch[pickle.BINBYTES8[0]]  # allocates no more than there is
    for _code in (pickle.EXT1, pickle.EXT2, pickle.EXT4, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER):
        del dispatch[_code[0]]
