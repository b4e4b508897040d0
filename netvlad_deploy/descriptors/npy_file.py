"""Descriptors in a `.npy` file (N,P), which every library maps into memory, with the names in a file beside it.

Beside `X.npy` stands `X.names.jsonl`: its first line is the header, then there is a line for each row, in order, such
as `{"name":"a.jpg"}` or `{"name":"1700000000000000000","time_ns":1700000000000000000}`.
"""

import contextlib
import json
import os
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import IO, Final

import numpy as np

from netvlad_deploy.descriptors.header import MAX_HEADER_BYTES, DescriptorHeader, header_from_json
from netvlad_deploy.descriptors.npy_rows import descriptor_rows, npy_header, read_rows
from netvlad_deploy.descriptors.reader import DescriptorReader, Rows
from netvlad_deploy.descriptors.writer import Writer
from netvlad_deploy.errors import InputError
from netvlad_deploy.support.arrays import Array
from netvlad_deploy.support.files import Staging
from netvlad_deploy.support.formats import naming, reading

MAX_LINE_BYTES: Final = 1 << 16


def names_path(path: Path) -> Path:
    """Return the path of the file with the names of a `.npy` file.

    >>> names_path(Path("photos.npy")).name
    'photos.names.jsonl'
    """
    return path.with_name(f"{path.name.removesuffix('.npy')}.names.jsonl")


class NpyWriter(Writer):
    """Writes the descriptors and their names side by side; both files become visible together."""

    def __init__(self, staging: Staging, opened: ExitStack, target: Path, header: DescriptorHeader, count: int) -> None:
        super().__init__(target, header, count)
        self._rows = opened.enter_context(staging.open(target))
        self._names = opened.enter_context(staging.open(names_path(target)))
        dtype = np.dtype(header.dtype).newbyteorder("<").str
        self._rows.write(npy_header((count, header.descriptor_size), dtype))
        self._names.write(header.to_json().encode() + b"\n")

    def _write(self, names: list[str], values: Array, times: list[int | None]) -> None:
        self._rows.write(values.tobytes())
        for name, time in zip(names, times, strict=True):
            row = {"name": name} if time is None else {"name": name, "time_ns": time}
            self._names.write(json.dumps(row, ensure_ascii=False, separators=(",", ":")).encode() + b"\n")


class NpyReader(DescriptorReader):
    """Reads a `.npy` file and its names; without a file of names, the rows are called by their numbers."""

    def __init__(self, path: Path) -> None:
        self._named = names_path(path).exists()
        header = None
        if self._named:
            with _lines(names_path(path)) as stream:
                first = stream.readline(MAX_HEADER_BYTES)
                header = header_from_json(first)
                if header is None:
                    raise InputError("its first line is no header of descriptors: embed again")
        with reading(path), path.open("rb") as stream, naming(path):
            count, size, _ = descriptor_rows(stream, os.fstat(stream.fileno()).st_size)
        super().__init__(path, header, count, size)

    def _blocks(self, rows: int) -> Iterator[Rows]:
        with reading(self.path), self.path.open("rb") as stream, naming(self.path):
            count, width, dtype = descriptor_rows(stream, os.fstat(stream.fileno()).st_size)
            start, names = 0, self._names(count)
            for values in read_rows(stream, dtype, (count, width), rows):
                named = list(islice(names, len(values)))
                if len(named) != len(values):
                    raise InputError(f"{names_path(self.path)} has {start + len(named)} names for {count} descriptors")
                start += len(values)
                yield [name for name, _ in named], values, [time for _, time in named]
            if next(names, None) is not None:
                raise InputError(f"{names_path(self.path)} has more than {count} names")

    def _names(self, count: int) -> Iterator[tuple[str, int | None]]:
        if not self._named:
            yield from ((str(number), None) for number in range(count))
            return
        with _lines(names_path(self.path)) as stream:
            stream.readline(MAX_HEADER_BYTES)
            while line := stream.readline(MAX_LINE_BYTES):
                row = json.loads(line)
                if not isinstance(row, dict) or type(row.get("name")) is not str:
                    raise InputError(f"has the line {line[:40].decode(errors='replace')!r}, expected a name")
                time = row.get("time_ns")
                yield row["name"], time if type(time) is int else None


@contextlib.contextmanager
def _lines(path: Path) -> Iterator[IO[bytes]]:
    with reading(path), path.open("rb") as stream, naming(path):
        yield stream
