"""Pickles that want code to run: nothing is imported, nothing is called, under any opcode and protocol."""

import io
import os
import pickle
import struct
import sys
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from netvlad_deploy.errors import InputError
from netvlad_deploy.models.pickled import CALLABLE_FUNCTIONS, KNOWN_FUNCTIONS, Standin
from netvlad_deploy.models.unpickling import Unpickler
from netvlad_deploy.models.weights_file import read_tensors

pytestmark = pytest.mark.export

UNUSED = "antigravity"
"""A module of the standard library that opens a browser when it is imported."""


def loaded(content: bytes) -> Any:
    return Unpickler(io.BytesIO(content)).load()


def text(value: str) -> bytes:
    return b"\x8c" + bytes([len(value)]) + value.encode()


NAMED: dict[str, bytes] = {
    "global": f"c{UNUSED}\ngeohash\n".encode(),
    "global of protocol 4": text(UNUSED) + text("geohash") + b"\x93",
    "a path of names": text(UNUSED) + text("webbrowser.open") + b"\x93",
    "under torch": b"ctorch.utils." + f"{UNUSED}\nFloatTensor\n".encode(),
}
CALLS: dict[str, bytes] = {
    "reduce": b")R",
    "new object": b")\x81",
    "new object with arguments by name": b")}\x92",
    "build": b"}b",
    "reduce, then build with attributes": b")R" + text("x") + b"K\x01\x86b",
    "reduce twice": b")R)R",
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("name", NAMED)
def test_a_name_becomes_a_stand_in_that_does_nothing(name: str, call: str) -> None:
    assert UNUSED not in sys.modules
    made = loaded(NAMED[name] + CALLS[call] + b".")
    assert isinstance(made, Standin)
    assert UNUSED in made.name
    assert UNUSED not in sys.modules


@pytest.mark.parametrize("content", [f"(i{UNUSED}\ngeohash\n.".encode(), f"(c{UNUSED}\ngeohash\no.".encode()])
def test_objects_of_protocols_0_and_1_are_stand_ins(content: bytes) -> None:
    assert isinstance(loaded(content), Standin)
    assert UNUSED not in sys.modules


@pytest.mark.parametrize(
    "content",
    [
        b"K\x01)R.",  # a number is called
        b"})R.",  # a dictionary is called
        b"ctorch\nfloat32\n)R.",  # a dtype is called
        b"cbuiltins\nset\n)R)R.",  # the result of a known function is called
        b"Pstorage\n.",  # a storage where there is none
        b"\x82\x01.",  # the registry of extensions
        b"\x96" + b"\xff" * 8 + b".",  # a bytearray of 2^64 bytes
    ],
)
def test_nothing_else_is_called(content: bytes) -> None:
    with pytest.raises((pickle.UnpicklingError, KeyError)):
        loaded(content)


def test_attributes_are_set_on_nothing() -> None:
    before = {name: dict(vars(function)) for name, function in KNOWN_FUNCTIONS.items() if hasattr(function, "__dict__")}
    assert (
        loaded(b"ccollections\nOrderedDict\n" + b"}" + text("x") + b"K\x01sb.")
        is KNOWN_FUNCTIONS["collections.OrderedDict"]
    )
    for name, variables in before.items():
        assert vars(KNOWN_FUNCTIONS[name]) == variables
    assert all(function.__module__.startswith("netvlad_deploy") for function in CALLABLE_FUNCTIONS)


NESTED = b")" + b"2\x86" * 60
"""A tuple that holds one twice, which holds one twice: 2^60 in all."""


@pytest.mark.parametrize(
    "content",
    [
        b"}" + NESTED + b"K\x01s.",
        b"}(" + NESTED + b"K\x01u.",
        b"(" + NESTED + b"K\x01d.",
        b"\x8f(" + NESTED + b"\x90.",
        b"(" + NESTED + b"\x91.",
        b"cbuiltins\nset\n(](" + NESTED + b"etR.",
        b"ccollections\nOrderedDict\n(](](" + NESTED + b"K\x01eetR.",
        b"cnumpy\ndtype\n(" + NESTED + b"tR.",
    ],
)
def test_values_that_would_take_forever_to_hash_or_to_write_are_left_out(content: bytes) -> None:
    assert not loaded(content) or not hasattr(loaded(content), "__len__")
    with pytest.raises(pickle.UnpicklingError, match="without a key"):
        Unpickler(io.BytesIO(text("storage") + b"K\x01" + NESTED + b"\x87Q."), lambda *_: Standin("")).load()


def packed(path: Path, pickled: bytes) -> Path:
    """Write an archive of torch with this pickle and a storage of 16 bytes."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("m/data.pkl", pickled)
        archive.writestr("m/data/0", bytes(16))
    return path


TENSOR = (
    b"ctorch._utils\n_rebuild_tensor_v2\n(("
    + text("storage")
    + b"ctorch\nFloatStorage\n"
    + text("0")
    + text("cpu")
    + b"K\x04t"
    b"QK\x00K\x02K\x02\x86K\x02K\x01\x86\x89}tR"
)  # fmt: skip
LONG = b"X" + struct.pack("<I", 100_000) + b"a" * 100_000 + b"q\x000"
MODULE = b"cx\nM\n)\x81}("
PARTS = text("_buffers") + b"}" + text("_modules")
DTYPE = b"cnumpy\ndtype\n(" + text("f8") + b"tR"
SCALAR = b"cnumpy.core.multiarray\nscalar\n("
"""Pieces of pickles."""

GREEDY: dict[str, tuple[bytes, str]] = {
    "bytes by their number": (SCALAR + DTYPE + b"\x8a\x05" + (3 * 10**8).to_bytes(5, "little") + b"tR0", ""),
    "an array by its number": (
        b"cnumpy._core.numeric\n_frombuffer\n(\x8a\x05" + (3 * 10**8).to_bytes(5, "little") + DTYPE + b"K\x01tR0", ""
    ),
    "text that is encoded again and again": (
        LONG + b"c_codecs\nencode\nq\x010](" + b"h\x01h\x00\x85R" * 5000 + b"e0", "again and again"
    ),
    "text of one subclass after another": (
        LONG + b"ctorch._tensor\n_rebuild_from_type_v2\nq\x010c_codecs\nencode\nq\x020]("
        + b"h\x01(h\x02Nh\x00\x85tR" * 5000 + b"e0", "by a function that makes none"
    ),
    "a dictionary that is copied again and again": (
        b"}q\x00(" + b"".join(b"M" + struct.pack("<H", number) + b"N" for number in range(30_000)) + b"u0"
        b"ccollections\nOrderedDict\nq\x010](" + b"h\x01h\x00\x85R" * 2000 + b"e0", "again and again"
    ),
    "an array that is made again and again": (
        LONG + DTYPE + b"q\x020cnumpy\nndarray\nq\x010](" + b"h\x01)R(K\x01M\xd40\x85h\x02\x89h\x00tb" * 5000 + b"e0",
        "again and again",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", GREEDY)
def test_a_small_file_takes_little_memory(tmp_path: Path, kind: str) -> None:
    pickled, message = GREEDY[kind]
    path = packed(tmp_path / "m.pt", pickled + b"}" + text("a.weight") + TENSOR + b"s.")
    tracemalloc.start()
    try:
        if message:
            with pytest.raises(InputError, match=message):
                read_tensors(path)
        else:
            assert list(read_tensors(path)) == ["a.weight"]
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()


def test_a_name_is_bounded_before_others_begin_with_it(tmp_path: Path) -> None:
    many = b"".join(text(f"{number:05}") + b"h\x06" for number in range(20_000))
    inner = MODULE + text("_parameters") + b"}(" + many + b"u" + PARTS + b"}ub"
    outer = MODULE + text("_parameters") + b"}" + PARTS + b"}h\x00" + inner + b"sub."
    path = packed(tmp_path / "m.pt", LONG + TENSOR + b"q\x060" + outer)
    tracemalloc.start()
    with pytest.raises(InputError, match="a name of 100000 characters begins aaa"):
        read_tensors(path)
    assert tracemalloc.get_traced_memory()[1] < 64 << 20
    tracemalloc.stop()


class Evil:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("row", [False, True])
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_code_beside_good_weights_is_left_out(tmp_path: Path, row: bool, protocol: int) -> None:
    content: dict[str, Any] = {"hook": Evil(tmp_path / "ran"), "state_dict": {"a.weight": torch.ones(2, 2)}}
    torch.save(content, tmp_path / "m.pt", pickle_protocol=protocol, _use_new_zipfile_serialization=not row)
    assert list(read_tensors(tmp_path / "m.pt")) == ["a.weight"]
    content["state_dict"]["a.bias"] = Evil(tmp_path / "ran")
    torch.save(content, tmp_path / "m.pt", pickle_protocol=protocol, _use_new_zipfile_serialization=not row)
    with pytest.raises(InputError, match=r"a.bias, an object of posix.mkdir"):
        read_tensors(tmp_path / "m.pt")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps({"clusters": Evil(tmp_path / "ran")}, protocol))
    with pytest.raises(InputError, match="is a pickle that torch did not write"):
        read_tensors(tmp_path / "plain.pth")
    assert not (tmp_path / "ran").exists()
