"""The rows of `.npy` arrays, in a file of their own or in an `.npz` file, written and read one block after another."""

import io
from collections.abc import Iterator
from typing import IO, Any, Final

import numpy as np

from netvlad_deploy.errors import InputError
from netvlad_deploy.support.arrays import Array, Shape, read_npy_header

MAX_ROW_TEXT_BYTES: Final = 1 << 16
"""Most bytes of one name in an array of texts."""

FLOATS: Final = "float16, float32 or float64"


def npy_header(shape: Shape, dtype: str) -> bytes:
    """Return the first bytes of a `.npy` file, up to its values.

    Source: NumPy, numpy.lib.format, version 1.0.
    """
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": dtype, "fortran_order": False, "shape": shape})
    return stream.getvalue()


def descriptor_rows(stream: IO[bytes], size: int) -> tuple[int, int, np.dtype[Any]]:
    """Return N, P and dtype of an array of descriptors (N,P), and leave the stream at its first row.

    Raises: InputError if it is no such array.
    """
    shape, fortran, dtype = read_npy_header(stream, size)
    if len(shape) != 2 or dtype.kind != "f" or dtype.itemsize > 8:
        raise InputError(f"descriptors are {dtype} {shape}, expected (N, P) of {FLOATS}")
    if fortran and min(shape) > 1:
        raise InputError("descriptors are in Fortran order: save numpy.ascontiguousarray of them")
    return shape[0], shape[1], dtype


def text_rows(stream: IO[bytes], size: int) -> tuple[int, np.dtype[Any]]:
    """Return N and dtype of an array of names or numbers (N,), and leave the stream at its first row.

    Raises: InputError if it is no such array.
    """
    shape, _, dtype = read_npy_header(stream, size)
    if len(shape) != 1 or dtype.kind not in "USiu" or dtype.itemsize > MAX_ROW_TEXT_BYTES:
        raise InputError(f"names are {dtype} {shape}, expected (N,) of texts: numpy.array(names, dtype=str)")
    return shape[0], dtype


def read_rows(stream: IO[bytes], dtype: np.dtype[Any], shape: Shape, rows: int) -> Iterator[Array]:
    """Yield an array of this shape from its first value on, up to `rows` of its first axis at a time.

    Raises: EOFError if the stream ends before.
    """
    width = int(np.prod(shape[1:], dtype=np.int64)) * dtype.itemsize
    for start in range(0, shape[0], rows):
        count = min(rows, shape[0] - start)
        content = stream.read(count * width)
        if len(content) != count * width:
            raise EOFError(f"row {start + len(content) // max(1, width)} of {shape[0]} is cut short")
        values = np.frombuffer(content, dtype).reshape(count, *shape[1:])
        yield values.astype(dtype.newbyteorder("="), copy=False)


def texts(values: Array) -> list[str]:
    """Return names as text: numbers in digits, bytes as UTF-8."""
    if values.dtype.kind == "S":
        return [name.decode(errors="backslashreplace") for name in values.tolist()]
    return [str(name) for name in values.tolist()]
