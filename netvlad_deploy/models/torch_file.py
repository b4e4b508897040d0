"""The content of the files that torch.save and torch.jit.save write, with the tensors still in the file.

There are three layouts: a zip archive (since torch 1.6), a row of pickles followed by the values (before), and the zip
archive of TorchScript. The first two may hold whole modules. No code of a file is run: see `unpickling`.

Source: pytorch/pytorch, torch/serialization.py, `_load` and `_legacy_load`.
"""

import io
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from netvlad_deploy.errors import InputError
from netvlad_deploy.models.pickled import Standin, Storage
from netvlad_deploy.models.tensor_names import names
from netvlad_deploy.models.unpickling import Unpickler
from netvlad_deploy.support.formats import shown

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001
READ_BLOCK_BYTES = 1 << 24

Pickled = tuple[Any, frozenset[str]]
"""The content of a file of torch, and the names of the classes for whose objects stand-ins were made."""


class Bounded(io.BufferedReader):
    """A file that reads no more bytes than are left: else memory would be taken for any size that a pickle claims."""

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path))
        self._end = self.seek(0, io.SEEK_END)
        self.seek(0)

    def read(self, size: int | None = -1) -> bytes:
        """Return the next `size` bytes, fewer at the end of the file; all that are left without a size."""
        left = self._end - self.tell()
        return super().read(left if size is None or size < 0 else min(size, left))

    def skip(self, size: int) -> int:
        """Return the position of the next `size` bytes, and move past them.

        Raises: EOFError if there are fewer.
        """
        start = self.tell()
        if not 0 <= size <= self._end - start:
            raise EOFError(f"{size} bytes of values are expected, {self._end - start} are left")
        self.seek(size, io.SEEK_CUR)
        return start


@contextmanager
def open_pickled(path: Path) -> Iterator[Pickled]:
    """Open a file that torch wrote; its tensors can be read until it is closed.

    Raises: InputError if torch did not write it; errors of `formats.READER_ERRORS` if it is damaged.
    """
    with Bounded(path) as stream:
        if stream.read(2) == b"PK":
            with zipfile.ZipFile(stream) as archive:
                yield _read_zip(archive, path)
        else:
            stream.seek(0)
            yield _read_row(stream, path)


def _read_zip(archive: zipfile.ZipFile, path: Path) -> Pickled:
    members = {info.filename: info for info in archive.infolist()}
    if not any(info.CRC for info in members.values()):  # torch was told to compute none: set_crc32_options
        for info in members.values():
            del info.CRC  # so that zipfile checks none
    pickles = [name for name in members if name.rpartition("/")[2] == "data.pkl" and name.count("/") <= 1]
    if len(pickles) != 1:
        found = names(name[:80] for name in members)
        raise InputError(f"{path} is a zip archive, but not of torch: expected one data.pkl, found {found}")
    root = pickles[0].removesuffix("data.pkl")
    if f"{root}byteorder" in members and archive.read(f"{root}byteorder") == b"big":
        raise InputError(f"{path} was saved on a machine of the other byte order: save it as safetensors there")
    storages: dict[str, Storage] = {}

    def storage(dtype: torch.dtype | Standin, key: str, _: Any, numel: int) -> Storage | Standin:
        if isinstance(dtype, Standin):
            return dtype
        if key not in storages:
            info = members[f"{root}data/{key}"]
            if type(numel) is not int or info.file_size != numel * dtype.itemsize:
                raise ValueError(f"{shown(info.filename)} has {info.file_size} bytes, expected {numel} of {dtype}")
            storages[key] = Storage(dtype=dtype, numel=numel, read=partial(_read_member, archive, info))
        return storages[key]

    unpickler = Unpickler(io.BytesIO(_read_member(archive, members[pickles[0]])), storage)
    return unpickler.load(), frozenset(unpickler.skipped)


def _read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytearray:
    """Return the bytes of a member, which torch never compresses.

    Raises: ValueError if it is compressed; EOFError if it has another size than the archive says.
    """
    if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
        raise ValueError(f"{shown(info.filename)} is compressed, which torch.save does not do")
    values = bytearray()
    with archive.open(info) as stream:
        while block := stream.read(READ_BLOCK_BYTES):
            values += block
    if len(values) != info.file_size:
        raise EOFError(f"{shown(info.filename)} has {len(values)} bytes, its archive says {info.file_size}")
    return values


def _read_row(stream: Bounded, path: Path) -> Pickled:
    """Return the content of a file of torch before 1.6: four pickles, the keys of the storages, and their values."""
    stored: dict[str, Storage] = {}

    def storage(dtype: torch.dtype | Standin, key: str, _: Any, numel: int, view: Any = None) -> Storage | Standin:
        if isinstance(dtype, Standin):
            raise InputError(f"{path} holds {dtype.name}, values of a kind that is not known: save it as float32")
        if view is not None:
            raise InputError(f"{path} was saved by torch 0.3 or older: load it there, and save its state_dict anew")
        if not isinstance(dtype, torch.dtype) or type(numel) is not int:
            raise ValueError("a storage without a type or size")
        return stored.setdefault(key, Storage(dtype=dtype, numel=numel))

    if Unpickler(stream).load() != LEGACY_MAGIC:
        raise InputError(f"{path} is a pickle that torch did not write: save its state_dict alone with torch.save")
    if Unpickler(stream).load() != LEGACY_PROTOCOL:
        raise InputError(f"{path} has a layout that is not known: save its state_dict alone with torch.save")
    Unpickler(stream).load()
    unpickler = Unpickler(stream, storage)
    content = unpickler.load()
    for key in Unpickler(stream).load():
        (numel,) = struct.unpack("<q", stream.read(8))
        each = stored[key]
        if numel != each.numel:
            raise ValueError(f"storage {key} has {numel} values, expected {each.numel}")
        each.read = partial(_read_at, stream, stream.skip(each.size_bytes), each.size_bytes)
    return content, frozenset(unpickler.skipped)


def _read_at(stream: io.BufferedReader, start: int, size: int) -> bytearray:
    values = bytearray(size)
    stream.seek(start)
    if stream.readinto(values) != size:
        raise EOFError(f"{size} bytes of values are expected at {start}")
    return values
