"""Types of NumPy arrays, and reading and writing `.npy` and `.npz` files without pickles."""

import io
import math
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from netvlad_deploy.errors import InputError
from netvlad_deploy.support.formats import reading, shown

Array = npt.NDArray[Any]
Arrays = dict[str, Array]
Shape = tuple[int, ...]
Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
MAX_DEFLATE_RATIO = 1032
"""Bytes that deflate can make of one byte at most. Source: zlib, Maximum Compression Factor."""
COSINE_ROWS = 256
"""Rows whose cosine is computed at once: all descriptors of a database in float64 would fill the memory."""

MAX_ARRAYS = 50_000
MAX_INFLATED_BYTES, MAX_INFLATED_RATIO = 1 << 28, 32
"""The arrays of an `.npz` file may take 256 MiB, or 32 times the size of the file if that is more."""


def read_arrays(path: Path, prefix: str | tuple[str, ...] = "") -> Array | Arrays:
    """Return the array of a `.npy` file, or the arrays of an `.npz` file whose names start with the prefix.

    The size that a header claims is compared with the size of the file before memory is taken for the array.

    Raises: InputError if the file is missing, damaged, or holds anything but plain arrays.
    """
    with reading(path), path.open("rb") as stream:
        size = stream.seek(0, io.SEEK_END)
        stream.seek(0)
        start = stream.read(2)
        stream.seek(0)
        if start != b"PK":
            return _read_array(stream, size)
        with zipfile.ZipFile(stream) as archive:
            wanted = npz_members(path, archive, prefix)
            claimed = sum(info.file_size for info in wanted.values())
            if claimed > max(MAX_INFLATED_BYTES, MAX_INFLATED_RATIO * size):
                raise InputError(f"{path} has {size} bytes and would inflate to {claimed}: write it with numpy.savez")
            return {name: read_member(archive, info) for name, info in wanted.items()}


def npz_members(path: Path, archive: zipfile.ZipFile, prefix: str | tuple[str, ...] = "") -> dict[str, zipfile.ZipInfo]:
    """Return the arrays of an open `.npz` file whose names start with the prefix, by name; none of them is read.

    Raises: InputError if one is no array, two have the same name, or they are too many.
    """
    members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
    wanted = {name: info for name, info in members.items() if name.startswith(prefix)}
    if other := next((info.filename for info in wanted.values() if not info.filename.endswith(".npy")), None):
        raise InputError(f"{path} holds {shown(other)}, which is no array: keep arrays alone in it")
    if len(wanted) > MAX_ARRAYS:
        raise InputError(f"{path} holds {len(wanted)} arrays, expected {MAX_ARRAYS} at most")
    return wanted


def read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Array:
    """Return an array of an open `.npz` file; for damage it raises `formats.READER_ERRORS`."""
    with open_member(archive, info) as stream:
        return _read_array(stream, info.file_size)


def open_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> IO[bytes]:
    """Open an array of an open `.npz` file after comparing the size that it claims with that of the file.

    Raises: ValueError if deflate cannot make so much of so little.
    """
    ratio = {zipfile.ZIP_STORED: 1, zipfile.ZIP_DEFLATED: MAX_DEFLATE_RATIO}.get(info.compress_type, 0)
    if info.file_size > ratio * info.compress_size:
        raise ValueError(
            f"{shown(info.filename)} claims {info.file_size} bytes of {info.compress_size} compressed ones"
        )
    return archive.open(info)


def _read_array(stream: IO[bytes], size: int) -> Array:
    """Return the array of a `.npy` stream that has `size` bytes."""
    read_npy_header(stream, size)
    stream.seek(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        array: Array = np.lib.format.read_array(stream, allow_pickle=False)
        return array


def read_npy_header(stream: IO[bytes], size: int) -> tuple[Shape, bool, np.dtype[Any]]:
    """Return shape, Fortran order and dtype of a `.npy` stream of `size` bytes, and leave the stream at its values.

    Raises: errors of `formats.READER_ERRORS` if it is none, holds objects, or claims more than there is.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPy warns of headers that Python 2 wrote, or that are damaged
        version = np.lib.format.read_magic(stream)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"version {version} of the format is for records, which are no plain array")
        first = version == (1, 0)
        read_header = np.lib.format.read_array_header_1_0 if first else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read_header(stream)
        if dtype.hasobject or not dtype.itemsize:
            raise ValueError(f"an array of {dtype} holds no numbers")
        claimed, left = math.prod(shape) * dtype.itemsize, size - stream.tell()
        if min(shape, default=0) < 0 or claimed > left:
            raise EOFError(f"an array of {dtype} {shape} has {claimed} bytes, {left} are left")
        return shape, fortran, dtype


def write_npz(stream: IO[bytes], arrays: Mapping[str, Array]) -> None:
    """Write an `.npz` file array by array: equal arrays in the same order give the same bytes, unlike `numpy.savez`."""
    with zipfile.ZipFile(stream, "w") as archive:
        for name, array in arrays.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asarray(array), allow_pickle=False)


def npz_content(arrays: Mapping[str, Array]) -> bytes:
    """Return the bytes of the `.npz` file that `write_npz` writes."""
    stream = io.BytesIO()
    write_npz(stream, arrays)
    return stream.getvalue()


def unit_rows(features: Array) -> Array:
    """Return vectors (...,D) divided by their L2 norms, in their own dtype.

    >>> unit_rows(np.array([[3.0, 4.0]]))
    array([[0.6, 0.8]])
    """
    normalised: Array = features / np.linalg.norm(features, axis=-1, keepdims=True)
    return normalised


def cosines(got: Array, expected: Array) -> Float64:
    """Return the cosine (N,) of each row (N,P) with the same row of the other array, or with its one row, in float64.

    A row of zeros has the cosine 0.

    >>> cosines(np.array([[1.0, 0.0], [2.0, 0.0]]), np.array([[1.0, 1.0], [5.0, 0.0]])).round(4)
    array([0.7071, 1.    ])
    """
    expected = np.broadcast_to(expected, got.shape)
    values = np.empty(len(got))
    for start in range(0, len(got), COSINE_ROWS):
        rows = slice(start, start + COSINE_ROWS)
        left, right = got[rows].astype(np.float64), expected[rows].astype(np.float64)
        lengths = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
        values[rows] = (left * right).sum(axis=1) / np.maximum(lengths, np.finfo(np.float64).tiny)
    return values
