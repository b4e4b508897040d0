"""Read numbers, text, cells and structs from `.mat` files of MATLAB 5 to 7.2.

Every size is compared with the bytes left in its element first: so a damaged file cannot exhaust memory.

Source: MathWorks, MAT-File Format, level 5.
"""

import math
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from netvlad_deploy.errors import InputError
from netvlad_deploy.support.arrays import MAX_DEFLATE_RATIO, Array

HEADER_BYTES: Final = 128
LEVEL_5_VERSION: Final = 0x0100
BYTE_ORDERS: Final = {b"IM": "<", b"MI": ">"}
NUMBER_DTYPES: Final = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
MATRIX_ELEMENT, COMPRESSED_ELEMENT = 14, 15
CELL_CLASS, STRUCT_CLASS, CHAR_CLASS = 1, 2, 4
NUMERIC_CLASSES: Final = range(6, 16)
"""Classes of numeric arrays, from double to uint64."""
COMPLEX_FLAG: Final = 0x0800
MAX_CELL_DEPTH: Final = 32


@dataclass(frozen=True, kw_only=True)
class _Element:
    """One element of a file: its data type and its bytes."""

    kind: int
    content: memoryview


def read_variable(path: Path, name: str) -> tuple[Any, list[str]]:
    """Return the variable of this name, None if there is none, and the names of all variables of a file.

    A cell becomes a list, a struct a dictionary, an array of structs a list of dictionaries, an object of MATLAB None,
    and an array of numbers loses its axes of size one.

    Raises: InputError if the file is not of MATLAB 5 to 7.2; errors of `formats.READER_ERRORS` if it is damaged.
    """
    content = memoryview(path.read_bytes())
    order = BYTE_ORDERS.get(bytes(content[HEADER_BYTES - 2 : HEADER_BYTES]), "")
    if not order or struct.unpack(f"{order}H", content[HEADER_BYTES - 4 : HEADER_BYTES - 2]) != (LEVEL_5_VERSION,):
        raise InputError(f"{path} is no MATLAB file of version 5 to 7.2: save it with -v7")
    found, names = None, []
    for element in _elements(content[HEADER_BYTES:], order):
        matrix = _inflated(element.content, order) if element.kind == COMPRESSED_ELEMENT else element
        if matrix.kind != MATRIX_ELEMENT:
            raise ValueError(f"element {matrix.kind} stands where a variable should")
        parts = _elements(matrix.content, order)
        _next(parts), _next(parts)
        names.append(_text(_next(parts)))
        if names[-1] == name:
            found = _value(matrix, order, 0)
    return found, names


def _elements(content: memoryview, order: str) -> Iterator[_Element]:
    """Yield the elements of a file, or of the content of an element, one after another.

    Raises: EOFError if an element is longer than the content that is left.
    """
    at = 0
    while at < len(content):
        kind, size = struct.unpack_from(f"{order}II", content, at) if len(content) - at >= 8 else (0, len(content))
        start = at + 8
        if kind >> 16:
            kind, size, start = kind & 0xFFFF, kind >> 16, at + 4
        if size > len(content) - start or (start == at + 4 and size > 4):
            raise EOFError(f"an element of {size} bytes is expected, {len(content) - start} are left")
        yield _Element(kind=kind, content=content[start : start + size])
        at = at + 8 if start == at + 4 else start + size + (0 if kind == COMPRESSED_ELEMENT else -size % 8)


def _next(parts: Iterator[_Element]) -> _Element:
    element = next(parts, None)
    if element is None:
        raise EOFError("an element is missing")
    return element


def _inflated(content: memoryview, order: str) -> _Element:
    """Return the element within a compressed one; its size is checked against the most that deflate can inflate."""
    inflator = zlib.decompressobj()
    tag = inflator.decompress(content, 8)
    kind, size = struct.unpack(f"{order}II", tag)
    if size > MAX_DEFLATE_RATIO * len(content):
        raise EOFError(f"a variable claims {size} bytes of {len(content)} compressed ones")
    inflated = inflator.decompress(inflator.unconsumed_tail, max(size, 1))
    if len(inflated) < size:
        raise EOFError(f"a variable of {size} bytes is expected, {len(inflated)} are there")
    return _Element(kind=kind, content=memoryview(inflated))


def _value(element: _Element, order: str, depth: int) -> Any:
    """Return the array, text, list or dictionary in a MATRIX_ELEMENT; None for other classes, such as objects."""
    if element.kind != MATRIX_ELEMENT or depth > MAX_CELL_DEPTH:
        raise ValueError(f"element {element.kind} stands where an array should, {depth} deep")
    if not element.content:
        return np.zeros(0)
    parts = _elements(element.content, order)
    flags = int(_numbers(_next(parts), order)[0])
    kind = flags & 0xFF
    if kind not in (CELL_CLASS, STRUCT_CLASS, CHAR_CLASS, *NUMERIC_CLASSES):
        return None
    dimensions = [int(each) for each in _numbers(_next(parts), order)]
    _next(parts)
    if min(dimensions, default=0) < 0:
        raise ValueError(f"an array has the shape {dimensions}")
    if kind == CHAR_CLASS:
        return _text(_next(parts))
    if kind == CELL_CLASS:
        return [_value(_next(parts), order, depth + 1) for _ in range(math.prod(dimensions))]
    if kind == STRUCT_CLASS:
        return _structs(parts, math.prod(dimensions), order, depth)
    values = _numbers(_next(parts), order)
    if flags & COMPLEX_FLAG:
        values = values + 1j * _numbers(_next(parts), order)
    return values.reshape(dimensions, order="F").squeeze()


def _structs(parts: Iterator[_Element], count: int, order: str, depth: int) -> Any:
    """Return a struct as a dictionary, several structs as a list of dictionaries."""
    (length,) = _numbers(_next(parts), order)
    names = bytes(_next(parts).content)
    if length < 1 or len(names) % length:
        raise ValueError(f"the fields of a struct have names of {length} bytes")
    fields = [names[at : at + length].split(b"\0")[0].decode("latin1") for at in range(0, len(names), length)]
    if not fields:
        return {}
    structs = [{name: _value(_next(parts), order, depth + 1) for name in fields} for _ in range(count)]
    return structs[0] if count == 1 else structs


def _numbers(element: _Element, order: str) -> Array:
    if element.kind not in NUMBER_DTYPES:
        raise ValueError(f"element {element.kind} stands where numbers should")
    return np.frombuffer(element.content, np.dtype(f"{order}{NUMBER_DTYPES[element.kind]}"))


def _text(element: _Element) -> str:
    """Return ASCII text from any encoding: the others only add NUL bytes to it."""
    return bytes(element.content).replace(b"\0", b"").decode("latin1")
