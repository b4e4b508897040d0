"""Local descriptors in `.npy` and `.npz` files, read item by item."""

import math
import os
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from netvlad_deploy.errors import InputError
from netvlad_deploy.sources.image_folders import item_of_file
from netvlad_deploy.sources.source import Source
from netvlad_deploy.spec.items import Item, Load
from netvlad_deploy.support.arrays import Array, Shape, npz_members, read_member, read_npy_header
from netvlad_deploy.support.formats import naming, reading, shown

NPY, NPZ = ".npy", ".npz"
FEATURE_FILES: Final = (NPY, NPZ)
FEATURE_DTYPES: Final = (np.dtype(np.float32), np.dtype(np.float16))


class FeatureFile(Source):
    """A file of local descriptors.

    Args:
        path: the file.
        feature_size: D, None where any is taken.
    """

    def __init__(self, path: Path, feature_size: int | None) -> None:
        self.path = path
        self.feature_size = feature_size


@dataclass(frozen=True)
class _Layout:
    """Where the items of a `.npy` file stand: B items of one shape (N,D) from a place on, or one alone."""

    count: int
    shape: Shape
    dtype: np.dtype[Any]
    offset: int
    alone: bool

    @property
    def item_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class NpyFile(FeatureFile):
    """The items of one array: (B,N,D), called `FILE/0` to `FILE/B-1`, or (N,D), one item that is called as the file."""

    def items(self) -> Iterator[Item]:
        """Yield an item for each of the first axis; of the file its header alone is read.

        Raises: InputError if the file is missing, damaged, or no such array.
        """
        layout = self._layout()
        whole = item_of_file(self.path, self.path.name)
        for number in range(layout.count):
            name = whole.name if layout.alone else f"{whole.name}/{number}"
            yield replace(whole, name=name, part=str(number), size_bytes=layout.item_bytes)

    def open(self, items: Iterable[Item]) -> Iterator[tuple[Item, Load]]:
        """Yield the items with what reads each from its place in the file.

        Raises: InputError as `items`.
        """
        layout = self._layout()
        for item in items:
            yield item, partial(self._read, layout, int(item.part))

    def alone(self) -> Array:
        """Return the local descriptors (N,D) of a file that is one item, also if they are saved as (1,N,D).

        Raises: InputError as `items`, or if there are more.
        """
        layout = self._layout()
        if layout.count != 1:
            shape = (layout.count, *layout.shape)
            raise InputError(f"{self.path} has shape {shape}, expected one item (N,D): name the file, not its folder")
        return self._read(layout, 0)

    def _layout(self) -> _Layout:
        with reading(self.path), self.path.open("rb") as stream, naming(self.path):
            shape, fortran, dtype = read_npy_header(stream, os.fstat(stream.fileno()).st_size)
            alone = len(shape) == 2
            count, *rest = (1, *shape) if alone else shape
            check_shape(tuple(rest), dtype, self.feature_size)
            if fortran and math.prod(shape) > max(shape):
                raise InputError("is in Fortran order: save numpy.ascontiguousarray of it")
            return _Layout(count, tuple(rest), dtype, stream.tell(), alone)

    def _read(self, layout: _Layout, number: int) -> Array:
        with reading(self.path), self.path.open("rb") as stream:
            stream.seek(layout.offset + number * layout.item_bytes)
            values = np.frombuffer(stream.read(layout.item_bytes), layout.dtype)
            return native(values.reshape(layout.shape))


class NpzFile(FeatureFile):
    """The arrays of an `.npz` file, each the local descriptors (N,D) of one item, by their names."""

    def items(self) -> Iterator[Item]:
        """Yield an item for each array in the order of the file; of the file its table of contents alone is read.

        Raises: InputError if the file is missing or damaged, or holds anything but arrays.
        """
        whole = item_of_file(self.path, self.path.name)
        _, members = self._members()
        for name, info in members.items():
            yield replace(whole, name=name, part=name, size_bytes=info.file_size)

    def open(self, items: Iterable[Item]) -> Iterator[tuple[Item, Load]]:
        """Yield the items with what reads each; the file is closed with the last of them.

        Raises: InputError as `items`, or if an array is gone.
        """
        archive, members = self._members()
        for item in items:
            if item.part not in members:
                raise InputError(f"{self.path} has no array {shown(item.part)}: it is another file now")
            yield item, partial(self._read, archive, members[item.part])

    def _members(self) -> tuple[zipfile.ZipFile, dict[str, zipfile.ZipInfo]]:
        with reading(self.path):
            archive = zipfile.ZipFile(self.path)
            return archive, npz_members(self.path, archive)

    def _read(self, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Array:
        with reading(self.path), naming(f"{self.path}: {shown(info.filename)}"):
            return features_of(read_member(archive, info), self.feature_size)


def features_of(array: Array, feature_size: int | None) -> Array:
    """Return the array (N,D) in this machine's byte order.

    Raises: InputError if it is no local descriptors of this size.
    """
    check_shape(array.shape, array.dtype, feature_size)
    return native(array)


def check_shape(shape: Shape, dtype: np.dtype[Any], feature_size: int | None) -> None:
    """Raise InputError unless an array of this shape and dtype is local descriptors (N,D)."""
    if len(shape) != 2 or feature_size not in (None, shape[1]):
        expected = "D" if feature_size is None else feature_size
        raise InputError(f"features have shape {shape}, expected (num_features, {expected})")
    if 0 in shape:
        raise InputError(f"features have shape {shape}: there is none")
    if dtype.newbyteorder("=") not in FEATURE_DTYPES:
        raise InputError(f"features are {dtype}, expected float32 or float16: convert with features.astype")


def native(array: Array) -> Array:
    """Return an array in this machine's byte order."""
    return array.astype(array.dtype.newbyteorder("="), copy=False)
