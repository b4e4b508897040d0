"""Read the variables of a TensorFlow checkpoint: `NAME.index`, and the shards `NAME.data-00000-of-0000N` beside it.

The index says of every variable its type, its shape and where its bytes are in which shard, with their checksum: so the
SHA-256 of the index stands for the whole checkpoint. `NAME.meta`, a graph, is not needed and never read.

Source: tensorflow/tensorflow, tensorflow/core/protobuf/tensor_bundle.proto and
tensorflow/core/util/tensor_bundle/tensor_bundle.h.
"""

import contextlib
import logging
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

import torch
from torch import Tensor

from netvlad_deploy.errors import InputError
from netvlad_deploy.models.crc32c import masked_crc32c
from netvlad_deploy.models.tensor_names import names
from netvlad_deploy.models.tensorflow_table import read_table
from netvlad_deploy.support.protobuf import fields

LOG = logging.getLogger(__name__)

MAX_INDEX_BYTES: Final = 64 << 20
MAX_SHARDS: Final = 4096
MAX_AXES: Final = 16
ENTRY_NUMBERS: Final = {1: "dtype", 3: "shard", 4: "offset", 5: "size", 6: "checksum"}
"""Fields of an index's entry that are numbers; 2 is the shape, 7 a part. Source: tensor_bundle.proto."""

BIG_ENDIAN: Final = 1
DTYPES: Final = {
    1: torch.float32, 2: torch.float64, 3: torch.int32, 4: torch.uint8, 5: torch.int16, 6: torch.int8, 9: torch.int64,
    10: torch.bool, 14: torch.bfloat16, 17: torch.uint16, 19: torch.float16, 22: torch.uint32, 23: torch.uint64,
}  # fmt: skip
"""By TensorFlow's number of it, the type of a variable of real numbers. Source: types.proto."""

OBJECT_SUFFIX: Final = "/.ATTRIBUTES/VARIABLE_VALUE"
"""End of a key that TensorFlow 2 wrote, where the name is the way to the variable through the model's attributes."""

SLOT: Final = re.compile(
    r"(?P<of>.+)/(Adam|Adam_1|Momentum|RMSProp|RMSProp_1|Adagrad|Adadelta|Adadelta_1|Ftrl|Ftrl_1|LARS|LAMB)$"
    r"|(?P<object>.+)/\.OPTIMIZER_SLOT/.+"
)
"""Name of a variable that an optimizer keeps beside another."""

AVERAGE: Final = "/ExponentialMovingAverage"
SLICE_START: Final = b"\0"
"""Start of the key of one part of a variable, which the variable's own entry lists."""


@dataclass(frozen=True, kw_only=True)
class _Entry:
    """What the index says of one variable; `sliced` if its parts stand elsewhere."""

    dtype: int = 0
    shape: tuple[int, ...] = ()
    shard: int = 0
    offset: int = 0
    size: int = 0
    checksum: int = 0
    sliced: bool = False


def read_bundle(path: Path) -> dict[str, Tensor]:
    """Return the variables of a checkpoint by their names, in which `.` stands for TensorFlow's `/`.

    What an optimizer keeps beside a variable, moving averages and text are left out, and a line says so.

    Raises: InputError if a shard is missing or too short, or a variable is damaged or saved in parts; errors of
        `formats.READER_ERRORS` if the index is damaged.
    """
    if path.stat().st_size > MAX_INDEX_BYTES:
        raise InputError(f"{path} has {path.stat().st_size} bytes, expected {MAX_INDEX_BYTES} at most of an index")
    table = read_table(path.read_bytes())
    count = _shards(table.pop(b""))
    named = {key.decode(): _entry(value) for key, value in table.items() if not key.startswith(SLICE_START)}
    entries = _weights(named, path)
    with contextlib.ExitStack() as opened:
        shards: dict[int, IO[bytes]] = {}
        for number in sorted({entry.shard for entry in entries.values()}):
            shards[number] = opened.enter_context(_open_shard(path, number, count))
        left = sum(stream.seek(0, 2) for stream in shards.values())
        if (claimed := sum(entry.size for entry in entries.values())) > left:
            raise InputError(f"{path} claims {claimed} bytes of variables, {left} are in the files beside it")
        tensors: dict[str, Tensor] = {}
        for name, entry in entries.items():
            plain = name.removesuffix(OBJECT_SUFFIX).replace("/", ".")
            if plain in tensors:
                raise InputError(f"{path} holds two variables that are called {plain}: save one model alone")
            tensors[plain] = _read(shards[entry.shard], name, entry, path)
    return tensors


def _weights(entries: Mapping[str, _Entry], path: Path) -> dict[str, _Entry]:
    """Return the entries of real numbers that are neither an optimizer's nor averages.

    Raises: InputError if one of them is saved in parts.
    """
    slots = {name for name in entries if (found := SLOT.match(name)) and (found["object"] or found["of"] in entries)}
    averages = {name for name in entries if name.removesuffix(AVERAGE) in entries.keys() - {name}}
    others = {name for name, entry in entries.items() if entry.dtype not in DTYPES}
    if averages:
        LOG.warning("assumed: the variables as trained, not their moving averages %s", names(averages))
    for left_out, words in ((slots, "kept by an optimizer"), (others - slots, "no real number")):
        if left_out:
            LOG.info("%s: left out: what is %s, such as %s", path.name, words, min(left_out))
    kept = {name: entry for name, entry in entries.items() if name not in slots | averages | others}
    if sliced := [name for name, entry in kept.items() if entry.sliced]:
        raise InputError(f"{path} holds variables saved in parts: {names(sliced)}: save them without a partitioner")
    return kept


def _open_shard(path: Path, number: int, count: int) -> IO[bytes]:
    name = f"{path.name.removesuffix(path.suffix)}.data-{number:05d}-of-{count:05d}"
    shard = path.with_name(name)
    if number >= count or not shard.is_file():
        raise InputError(f"{path} needs {name} beside it, which is not there: copy all files of the checkpoint")
    return shard.open("rb")


def _read(stream: IO[bytes], name: str, entry: _Entry, path: Path) -> Tensor:
    """Return a variable, whose bytes have the checksum in the index."""
    dtype = DTYPES[entry.dtype]
    if math.prod(entry.shape) * dtype.itemsize != entry.size:
        raise InputError(f"{path} says that {name} is {dtype} {entry.shape} in {entry.size} bytes: it is damaged")
    if not entry.size:
        return torch.zeros(entry.shape, dtype=dtype)
    end = stream.seek(0, 2)
    if entry.offset + entry.size > end:
        raise InputError(f"{path} says that {name} ends at {entry.offset + entry.size} of {end} bytes: copy it again")
    content = bytearray(entry.size)
    stream.seek(entry.offset)
    stream.readinto(content)  # type: ignore[attr-defined]  # a buffered file has it
    if masked_crc32c(content) != entry.checksum:
        raise InputError(f"{path} has another checksum for {name} than its bytes: copy the checkpoint again")
    return torch.frombuffer(content, dtype=dtype).reshape(entry.shape)


def _shards(header: bytes) -> int:
    """Return the number of shards that the header says.

    Raises: InputError if numbers are big-endian; ValueError if there are too many shards.
    """
    found = dict(fields(header))
    if found.get(2, 0) == BIG_ENDIAN:
        raise InputError("the checkpoint was written on a big-endian machine: save it again on another")
    count = found.get(1, 0)
    if not isinstance(count, int) or not 1 <= count <= MAX_SHARDS:
        raise ValueError(f"the checkpoint has {count!r} shards, expected from 1 to {MAX_SHARDS}")
    return count


def _entry(message: bytes) -> _Entry:
    numbers: dict[int, int] = {}
    parts: dict[int, memoryview] = {}
    for number, value in fields(message):
        if isinstance(value, int) == (number in (2, 7)):
            raise ValueError(f"field {number} of a variable is written in another way")
        if isinstance(value, int):
            numbers[number] = value
        else:
            parts[number] = value
    known = {name: numbers[number] for number, name in ENTRY_NUMBERS.items() if number in numbers}
    return _Entry(shape=_shape(parts.get(2, memoryview(b""))), sliced=7 in parts, **known)


def _shape(message: memoryview) -> tuple[int, ...]:
    axes: list[int] = []
    for number, value in fields(message):
        if number != 2 or isinstance(value, int):
            raise ValueError("a variable has no shape")
        length = dict(fields(value)).get(1, 0)
        # A negative length has its upper bits set.
        if not isinstance(length, int) or length >> 48 or len(axes) == MAX_AXES:
            raise ValueError(f"an axis of a variable has the length {length!r}")
        axes.append(length)
    return tuple(axes)
