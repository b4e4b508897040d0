"""A slice of the fuzzing, the same each time; `python -m tools.fuzz` goes on for a minute for each parser."""

from pathlib import Path

import pytest

from netvlad_deploy.errors import InputError
from tests.processes import HANG_S
from tools.fuzz import harness
from tools.fuzz.harness import fuzz
from tools.fuzz.parser import Parser
from tools.fuzz.parsers import PARSERS

pytestmark = [pytest.mark.export, pytest.mark.bulk]

SKIPPING = {"image", "list", "features npz", "features npy", "features h5", "images parquet", "bag", "bag db3",
    "bag mcap", "ros message", "words"}  # fmt: skip
"""Where a damaged item is skipped and the others are read, or one of several readings is enough."""


@pytest.mark.parametrize("name", PARSERS)
def test_damaged_files_end_with_errors_of_our_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(harness, "LONGEST_S", HANG_S)
    for package, users in {"scipy": ("mat",), "PIL": ("image",)}.items():
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
