"""Descriptors in an `.npz` file: arrays `names` (N,) and `descriptors` (N,P), with `header` and `times_ns`."""

import contextlib
import json
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import islice, repeat
from pathlib import Path
from typing import IO, Any, Final

import numpy as np

from netvlad_deploy.descriptors.header import MAX_HEADER_BYTES, DescriptorHeader, header_from_json
from netvlad_deploy.descriptors.npy_rows import descriptor_rows, npy_header, read_rows, text_rows, texts
from netvlad_deploy.descriptors.reader import READ_ROWS, DescriptorReader, Rows
from netvlad_deploy.descriptors.writer import Writer
from netvlad_deploy.errors import InputError
from netvlad_deploy.support.arrays import Array, npz_members, open_member, read_member, read_npy_header
from netvlad_deploy.support.files import Staging
from netvlad_deploy.support.formats import naming, reading, shown

NO_TIME: Final = -1
"""In `times_ns`, an item without a time stamp."""


class NpzWriter(Writer):
    """Writes the descriptors as they come; names wait in a temporary file, since the longest decides their dtype."""

    def __init__(self, staging: Staging, opened: ExitStack, target: Path, header: DescriptorHeader, count: int) -> None:
        super().__init__(target, header, count)
        stream = opened.enter_context(staging.open(target))
        self._names = opened.enter_context(tempfile.TemporaryFile("w+"))  # noqa: SIM115 - the stack closes it
        self._archive = opened.enter_context(zipfile.ZipFile(stream, "w"))
        self._longest, self._timed = 1, False
        self._rows = opened.enter_context(self._member("descriptors"))
        dtype = np.dtype(header.dtype).newbyteorder("<").str
        self._rows.write(npy_header((count, header.descriptor_size), dtype))

    def _member(self, name: str) -> IO[bytes]:
        """Open a new array of the file; all have the same date, so that equal arrays give equal bytes."""
        return self._archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True)

    def _write(self, names: list[str], values: Array, times: list[int | None]) -> None:
        self._rows.write(values.tobytes())
        self._names.writelines(json.dumps(row) + "\n" for row in zip(names, times, strict=True))
        self._longest = max(self._longest, *map(len, names)) if names else self._longest
        self._timed = self._timed or any(time is not None for time in times)

    def _finish(self) -> None:
        self._rows.close()
        with self._member("names") as member:
            member.write(npy_header((self.count,), f"<U{self._longest}"))
            for rows in self._kept():
                member.write(np.array([name for name, _ in rows], dtype=f"<U{self._longest}").tobytes())
        if self._timed:
            with self._member("times_ns") as member:
                member.write(npy_header((self.count,), "<i8"))
                for rows in self._kept():
                    times = [NO_TIME if time is None else time for _, time in rows]
                    member.write(np.array(times, dtype="<i8").tobytes())
        with self._member("header") as member:
            np.lib.format.write_array(member, np.array(self.header.to_json()), allow_pickle=False)

    def _kept(self) -> Iterator[list[tuple[str, int | None]]]:
        """Yield the names and times that were put aside, in blocks."""
        self._names.seek(0)
        while block := [tuple(json.loads(line)) for line in islice(self._names, READ_ROWS)]:
            yield block


class NpzReader(DescriptorReader):
    """Reads `names` and `descriptors` of an `.npz` file, also of one that `numpy.savez` wrote."""

    def __init__(self, path: Path) -> None:
        with _opened(path) as (archive, members):
            with open_member(archive, members["descriptors"]) as stream:
                count, size, _ = descriptor_rows(stream, members["descriptors"].file_size)
            with open_member(archive, members["names"]) as stream:
                names, _ = text_rows(stream, members["names"].file_size)
            if names != count:
                raise InputError(f"there are {names} names and {count} descriptors")
            header = None
            if (info := members.get("header")) and info.file_size <= 4 * MAX_HEADER_BYTES:
                header = header_from_json(str(read_member(archive, info)))
        super().__init__(path, header, count, size)

    def _blocks(self, rows: int) -> Iterator[Rows]:
        with _opened(self.path) as (archive, members), ExitStack() as stack:

            def start(name: str) -> tuple[IO[bytes], int]:
                info = members[name]
                return stack.enter_context(open_member(archive, info)), info.file_size

            stream, size = start("descriptors")
            count, width, dtype = descriptor_rows(stream, size)
            values = read_rows(stream, dtype, (count, width), rows)
            stream, size = start("names")
            names = read_rows(stream, text_rows(stream, size)[1], (count,), rows)
            times: Iterator[Array | None] = repeat(None)
            if "times_ns" in members:
                stream, size = start("times_ns")
                times = read_rows(stream, _times(stream, size, count), (count,), rows)
            for block, called, stamps in zip(values, names, times, strict=False):
                yield texts(called), block, _stamps(stamps, len(block))


def _stamps(values: Array | None, count: int) -> list[int | None]:
    return [None if values is None or values[row] < 0 else int(values[row]) for row in range(count)]


def _times(stream: IO[bytes], size: int, count: int) -> np.dtype[Any]:
    shape, _, dtype = read_npy_header(stream, size)
    if shape != (count,) or dtype.kind != "i":
        raise InputError(f"times_ns are {dtype} {shape}, expected int64 ({count},)")
    return dtype


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[zipfile.ZipFile, dict[str, zipfile.ZipInfo]]]:
    with reading(path), naming(path), zipfile.ZipFile(path) as archive:
        members = npz_members(path, archive)
        if lacking := {"names", "descriptors"} - set(members):
            held = shown(", ".join(list(members)[:5]), 200)
            raise InputError(f"has no array {' and none '.join(sorted(lacking))}, but {held or 'nothing'}")
        yield archive, members
