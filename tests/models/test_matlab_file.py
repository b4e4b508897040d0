"""The reader of `.mat` files against SciPy's, and the files that it refuses."""

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io

from netvlad_deploy.errors import InputError
from netvlad_deploy.models.matlab_file import read_variable
from netvlad_deploy.support.formats import READER_ERRORS


def saved(path: Path, value: Any, *, compress: bool = False) -> Path:
    scipy.io.savemat(path, {"before": np.ones(3), "net": value}, do_compression=compress)
    return path


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("dtype", ["f8", "f4", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8"])
def test_arrays_are_those_that_scipy_reads(tmp_path: Path, dtype: str, compress: bool) -> None:
    values = np.arange(24).reshape(2, 1, 3, 4).astype(dtype)
    found, names = read_variable(saved(tmp_path / "x.mat", values, compress=compress), "net")
    assert names == ["before", "net"]
    assert np.array_equal(found, scipy.io.loadmat(tmp_path / "x.mat", squeeze_me=True)["net"])
    assert found.shape == (2, 3, 4)


@pytest.mark.parametrize("compress", [False, True])
def test_structs_cells_and_text_are_dictionaries_lists_and_text(tmp_path: Path, compress: bool) -> None:
    cells = np.empty((1, 3), dtype=object)
    cells[0, :] = [np.arange(3.0), "relu", {"name": "conv1", "pad": np.float64(2)}]
    structs = np.array([(1, "a"), (2, "bc")], dtype=[("size", "O"), ("name", "O")])
    value = {"layers": cells, "meta": {"empty": np.zeros((0, 3)), "one": np.array([[5]])}, "table": structs}
    found, _ = read_variable(saved(tmp_path / "x.mat", value, compress=compress), "net")
    assert list(found) == ["layers", "meta", "table"]
    assert np.array_equal(found["layers"][0], np.arange(3.0))
    assert found["layers"][1:] == ["relu", {"name": "conv1", "pad": np.array(2.0)}]
    assert found["meta"]["empty"].size == 0
    assert found["meta"]["one"] == 5
    assert [(int(each["size"]), each["name"]) for each in found["table"]] == [(1, "a"), (2, "bc")]


def test_complex_numbers_and_other_kinds_are_told_apart(tmp_path: Path) -> None:
    found, _ = read_variable(saved(tmp_path / "x.mat", np.array([1 + 2j, 3])), "net")
    assert np.array_equal(found, [1 + 2j, 3])
    sparse = scipy.sparse.csc_matrix(np.eye(3))
    assert read_variable(saved(tmp_path / "x.mat", sparse), "net") == (None, ["before", "net"])
    assert read_variable(saved(tmp_path / "x.mat", np.ones(2)), "other") == (None, ["before", "net"])


def element(kind: int, content: bytes, order: str = "<", size: int | None = None) -> bytes:
    return struct.pack(f"{order}II", kind, len(content) if size is None else size) + content + bytes(-len(content) % 8)


def file_of(*elements: bytes, order: str = "<") -> bytes:
    mark = b"MI" if order == ">" else b"IM"
    return b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack(f"{order}H", 0x0100) + mark + b"".join(elements)


def matrix(kind: int, dimensions: list[int], *parts: bytes, order: str = "<", name: bytes = b"net") -> bytes:
    flags, shape = struct.pack(f"{order}II", kind, 0), struct.pack(f"{order}{len(dimensions)}i", *dimensions)
    return element(
        14, element(6, flags, order) + element(5, shape, order) + element(1, name, order) + b"".join(parts), order
    )


def test_the_other_byte_order_is_read(tmp_path: Path) -> None:
    values = element(9, np.arange(3, dtype=">f8").tobytes(), ">")
    (tmp_path / "x.mat").write_bytes(file_of(matrix(6, [1, 3], values, order=">"), order=">"))
    assert np.array_equal(read_variable(tmp_path / "x.mat", "net")[0], np.arange(3.0))


NUMBER = element(9, bytes(8))
NESTED = NUMBER
for _ in range(40):
    NESTED = matrix(1, [1, 1], NESTED if NESTED is not NUMBER else matrix(6, [1, 1], NUMBER), name=b"")
DAMAGED: dict[str, bytes] = {
    "a size beyond the file": file_of(element(14, bytes(16), size=1 << 31)),
    "more numbers than there are": file_of(matrix(6, [1 << 15, 1 << 15], NUMBER)),
    "a negative shape": file_of(matrix(6, [-1, -1], NUMBER)),
    "more cells than there are": file_of(matrix(1, [1 << 20, 1 << 10])),
    "names of no length": file_of(matrix(2, [1, 1], element(5, bytes(4)), element(1, b"abcd"))),
    "cells within cells": file_of(matrix(1, [1, 1], NESTED)),
    "numbers of a kind that is none": file_of(matrix(6, [1, 1], element(99, bytes(8)))),
    "a variable that is none": file_of(element(9, bytes(8))),
    "little that inflates to much": file_of(element(15, zlib.compress(struct.pack("<II", 14, 1 << 31)))),
    "cut within a tag": file_of(matrix(6, [1, 1], NUMBER))[:-12],
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_file_is_an_error_before_anything_is_allocated(tmp_path: Path, kind: str) -> None:
    (tmp_path / "x.mat").write_bytes(DAMAGED[kind])
    with pytest.raises((InputError, *READER_ERRORS)):
        read_variable(tmp_path / "x.mat", "net")


def test_structs_without_fields_take_no_memory(tmp_path: Path) -> None:
    parts = element(5, struct.pack("<i", 4)), element(1, b"")
    (tmp_path / "x.mat").write_bytes(file_of(matrix(2, [1 << 15, 1 << 15], *parts)))
    assert read_variable(tmp_path / "x.mat", "net")[0] == {}
