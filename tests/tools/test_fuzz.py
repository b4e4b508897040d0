"""A slice of the fuzzing, the same each time; `python -m tools.fuzz` goes on for a minute for each parser."""

import json
import random
from pathlib import Path

import pytest

from netvlad_deploy.errors import InputError
from tests.processes import HANG_S
from tools.fuzz import harness
from tools.fuzz.harness import fuzz
from tools.fuzz.mutations import value, word
from tools.fuzz.parser import Parser
from tools.fuzz.parsers import PARSERS

pytestmark = [pytest.mark.export, pytest.mark.bulk]

SKIPPING = {"image", "list", "features npz", "features npy", "features h5", "images parquet", "bag", "bag db3",
    "bag mcap", "ros message", "words", "shards"}  # fmt: skip
"""Where a damaged item is skipped and the others are read, or one of several readings is enough."""

INDEXES = {"index sidecar", "index names"}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.faiss] * (name in INDEXES)) for name in PARSERS]
)
def test_damaged_files_end_with_errors_of_our_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(harness, "LONGEST_S", HANG_S)
    for package, users in {"scipy": ("mat",), "PIL": ("image", "request"), "faiss": INDEXES}.items():
        if name in users:
            pytest.importorskip(package)
    outcome = fuzz(PARSERS[name], tmp_path, cases=150)
    assert outcome.faults == {}
    assert outcome.read + outcome.refused == 150
    assert outcome.refused > 50 or name in SKIPPING


def test_faults_of_every_kind_are_found(tmp_path: Path) -> None:
    def read(path: Path) -> None:
        content = path.read_bytes()
        if content == b"abcdefgh":
            return
        if len(content) < 4:
            raise IndexError(content)
        if len(content) == 8:
            raise InputError("two\nlines")
        raise InputError("much") from MemoryError()

    outcome = fuzz(Parser(suffix=".x", seeds=lambda: [b"abcdefgh"], read=read), tmp_path, cases=100)
    found = " ".join(outcome.faults)
    assert all(kind in found for kind in ("IndexError at", "several lines", "asks for too much memory"))
    assert all(Path(kept).exists() for kept in outcome.faults.values())


def test_a_hang_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(path: Path) -> None:
        while path.read_bytes() != b"abc":
            pass

    monkeypatch.setattr(harness, "LONGEST_S", 0.05)
    outcome = fuzz(Parser(suffix=".x", seeds=lambda: [b"abc"], read=read), tmp_path, cases=3)
    assert list(outcome.faults) == ["takes longer than 0.05 s"]


def test_a_fault_is_told_once_for_each_place_and_a_parser_must_read_a_sound_file(tmp_path: Path) -> None:
    def read(path: Path) -> None:
        if path.read_bytes() != b"abcdefgh":
            raise ValueError(path.read_bytes())

    outcome = fuzz(Parser(suffix=".x", seeds=lambda: [b"abcdefgh"], read=read), tmp_path, cases=50)
    assert len(outcome.faults) == 1

    def refuse(_: Path) -> None:
        raise InputError("never")

    with pytest.raises(ValueError, match="no sound file is read: never"):
        fuzz(Parser(suffix=".x", seeds=lambda: [b"a", b"b"], read=refuse), tmp_path, cases=1)


def test_the_memory_of_a_file_is_not_put_on_the_next_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    peaks = iter([0, 0, 300 << 10, 300 << 10, 300 << 10])
    monkeypatch.setattr(harness, "_peak_kib", lambda: next(peaks, 300 << 10))
    outcome = fuzz(Parser(suffix=".x", seeds=lambda: [b"abcdefgh"], read=Path.read_bytes), tmp_path, cases=5)
    assert list(outcome.faults) == ["takes too much memory"]
    assert outcome.read == 5


def test_numbers_in_text_and_members_of_json_are_changed() -> None:
    rng = random.Random(0)
    texts = {word(rng, b"'shape': (3, 4)", ()) for _ in range(100)}
    assert {b"'shape': (-1, 4)", b"'shape': (3, 18446744073709551615)"} <= texts
    record = {"a": [1, 2], "b": {"c": "text"}}
    found = [json.loads(value(rng, json.dumps(record).encode(), ())) for _ in range(200)]
    assert all(change in found for change in ({"a": [1, 2], "b": {"c": None}}, {"a": [1, 2], "b": {}}, {"a": [1, 2]}))
    header = json.dumps(record).encode()
    framed = value(rng, len(header).to_bytes(8, "little") + header + b"rest", ())
    assert json.loads(framed[8 : 8 + int.from_bytes(framed[:8], "little")]) != record
    assert framed.endswith(b"rest")
