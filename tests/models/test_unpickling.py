"""Pickles that want code to run: nothing is imported, nothing is called, whatever the opcode and protocol."""

import io
import os
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from netvlad_deploy.errors import InputError
from netvlad_deploy.models.pickled import KNOWN, OWN, Standin
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
        b"cbuiltins\nset\n)R)R.",  # what a known function has made is called
        b"Pstorage\n.",  # a storage where there is none
        b"\x82\x01.",  # the registry of extensions
        b"\x96" + b"\xff" * 8 + b".",  # a bytearray of 2^64 bytes
    ],
)
def test_nothing_else_is_called(content: bytes) -> None:
    with pytest.raises((pickle.UnpicklingError, KeyError)):
        loaded(content)


def test_attributes_are_set_on_nothing() -> None:
    before = {name: dict(vars(function)) for name, function in KNOWN.items() if hasattr(function, "__dict__")}
    assert loaded(b"ccollections\nOrderedDict\n" + b"}" + text("x") + b"K\x01sb.") is KNOWN["collections.OrderedDict"]
    for name, variables in before.items():
        assert vars(KNOWN[name]) == variables
    assert all(function.__module__.startswith("netvlad_deploy") for function in OWN)


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
def test_what_would_take_forever_to_hash_or_to_write_is_left_out(content: bytes) -> None:
    assert not loaded(content) or not hasattr(loaded(content), "__len__")
    with pytest.raises(pickle.UnpicklingError, match="without a key"):
        Unpickler(io.BytesIO(text("storage") + b"K\x01" + NESTED + b"\x87Q."), lambda *_: Standin("")).load()


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
    assert not (tmp_path / "ran").exists()
