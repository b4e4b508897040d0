"""Descriptors in an HDF5 file as hloc has them: a group for each name, with the dataset `global_descriptor` (P,).

A name with slashes makes groups within groups. The header is the attribute `netvlad_deploy` of the file, a time stamp
the attribute `time_ns` of the group. They come back sorted by name, which is how HDF5 keeps them.

Source: cvg/Hierarchical-Localization, hloc/extract_features.py and hloc/pairs_from_retrieval.py.
"""

import contextlib
import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import numpy as np

from netvlad_deploy.descriptors.header import MAX_DESCRIPTOR_SIZE, DescriptorHeader, header_from_json
from netvlad_deploy.descriptors.reader import DescriptorReader, Rows
from netvlad_deploy.descriptors.writer import Writer
from netvlad_deploy.errors import InputError
from netvlad_deploy.support.arrays import Array
from netvlad_deploy.support.files import Staging
from netvlad_deploy.support.formats import naming, reading, shown
from netvlad_deploy.support.hdf5 import open_hdf5, read_bounded_dataset, walk
from netvlad_deploy.support.require import require

GLOBAL: Final = "global_descriptor"
HEADER, COUNT, NAME, TIME = "netvlad_deploy", "count", "name", "time_ns"
"""Attributes of the file and of its groups."""


class Hdf5Writer(Writer):
    """Writes a group for each descriptor; no times of writing are kept, so equal rows give equal bytes."""

    def __init__(self, staging: Staging, opened: ExitStack, target: Path, header: DescriptorHeader, count: int) -> None:
        super().__init__(target, header, count)
        h5py = require("h5py", extra="hdf5")
        self._path = staging.add(target)
        self._file = h5py.File(self._path, "w", locking=False)  # the staging holds a lock of its own
        opened.callback(self._file.close)
        self._file.attrs[HEADER] = np.bytes_(header.to_json().encode())
        self._file.attrs[COUNT] = count

    def _write(self, names: list[str], values: Array, times: list[int | None]) -> None:
        for name, row, time in zip(names, values, times, strict=True):
            try:
                group = self._group(name)
                group.create_dataset(GLOBAL, data=row, track_times=False)
            except (TypeError, ValueError) as error:
                raise InputError(f"{shown(name)} stands in the way of another name in HDF5: write .parquet") from error
            if group.name != f"/{name}":
                group.attrs[NAME] = np.bytes_(name.encode())  # HDF5 shortens a//b, ./a and /a
            if time is not None:
                group.attrs[TIME] = time

    def _group(self, name: str) -> Any:
        """Return the group of a name, which stands already where a name before it lies below: `a` after `a/b`."""
        try:
            return self._file.create_group(name)  # to ask first, as `require_group` does, takes a fifth of the time
        except ValueError:
            return self._file.require_group(name)

    def _finish(self) -> None:
        self._file.close()
        with self._path.open("rb+") as stream:
            os.fsync(stream.fileno())


class Hdf5Reader(DescriptorReader):
    """Reads the global descriptors of an HDF5 file, also of one that hloc wrote."""

    def __init__(self, path: Path) -> None:
        with _opened(path) as (h5py, file):
            header = header_from_json(bytes(_attribute(file, HEADER, "S") or b""))
            first = next(_found(h5py, file), None)
            size = header.descriptor_size if header else 0
            if first is not None:
                size = first[1].size
            elif header is None:
                raise InputError(f"holds no {GLOBAL}: it is no file of descriptors as hloc writes it")
            count = _attribute(file, COUNT, "i") if header else None
            count = sum(1 for _ in _found(h5py, file)) if count is None else int(count)
        super().__init__(path, header, count, size)

    def _blocks(self, rows: int) -> Iterator[Rows]:
        with _opened(self.path) as (h5py, file):
            names: list[str] = []
            values: list[Array] = []
            times: list[int | None] = []
            for name, dataset, group in _found(h5py, file):
                if dataset.shape != (self.descriptor_size,) or dataset.dtype.kind != "f":
                    raise InputError(
                        f"{shown(name)} has {dataset.dtype} {dataset.shape}, expected float ({self.descriptor_size},)"
                    )
                names.append(bytes(_attribute(group, NAME, "S") or name.encode()).decode())
                values.append(read_bounded_dataset(dataset, MAX_DESCRIPTOR_SIZE * 8))
                time = _attribute(group, TIME, "i")
                times.append(None if time is None else int(time))
                if len(names) == rows:
                    yield names, np.stack(values), times
                    names, values, times = [], [], []
            if names:
                yield names, np.stack(values), times


def _attribute(group: Any, name: str, kind: str) -> Any:
    """Return an attribute that is one number ("i") or one text of fixed length ("S"), None if there is none.

    Texts of variable length stand in a heap of the file, and the HDF5 library may search a damaged one for ever.
    """
    if name not in group.attrs:
        return None
    found = group.attrs.get_id(name)
    return group.attrs[name] if found.dtype.kind == kind and found.shape == () else None


def _found(h5py: Any, file: Any) -> Iterator[tuple[str, Any, Any]]:
    """Yield name, dataset and group of each global descriptor."""
    for path, group, dataset in walk(h5py, file):
        name, _, last = path.rpartition("/")
        if name and last == GLOBAL:
            yield name, dataset, group


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Any]]:
    h5py = require("h5py", extra="hdf5")
    with reading(path), naming(path), open_hdf5(h5py, path) as file:
        yield h5py, file
