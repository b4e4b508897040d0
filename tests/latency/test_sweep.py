"""The file of a sweep: points come back, half a line is dropped, and any other file stays as it is."""

import json
import os
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from netvlad_deploy.errors import ArtifactError, OutputError
from netvlad_deploy.latency import sweep
from netvlad_deploy.latency.results import Estimate
from netvlad_deploy.latency.sweep import Place, PointLatency, SweepPoint, open_sweep

ONE = Estimate(value=1.0, low=0.5, high=2.0)
POINT = SweepPoint(
    subjects=("a" * 64,),
    backends=("onnxruntime",),
    machine={"processor": "P"},
    place=Place(batch=1, image_size=(480, 640), threads=2),
    candidates=(PointLatency(name="m.onnx", percentiles_ms={"p50": ONE}, throughput=ONE),),
)
LINE = json.dumps({"schema": sweep.POINT_SCHEMA, **asdict(POINT)}).encode() + b"\n"
OTHER = replace(POINT, place=replace(POINT.place, batch=8))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    with open_sweep(tmp_path / "s.jsonl") as file:
        assert file.points == []
        file.append(POINT)
        file.append(OTHER)
    return tmp_path / "s.jsonl"


def test_points_come_back(path: Path) -> None:
    with open_sweep(path) as file:
        assert file.points == [POINT, OTHER]
        assert len({point.key for point in file.points}) == 2
        assert replace(POINT, candidates=()).key == POINT.key


@pytest.mark.parametrize("kept", [1, 12, 200])
def test_half_a_line_is_dropped_and_said(path: Path, caplog: pytest.LogCaptureFixture, kept: int) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:kept])
    with open_sweep(path) as file:
        assert file.points == [POINT, OTHER]
        assert path.read_bytes() == whole
        file.append(POINT)
    assert path.read_bytes() == whole + whole.splitlines(keepends=True)[0]
    assert "ends in half a line of a sweep that was killed: dropped" in caplog.text


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"my notes", "line 1 of"),
        (b"my notes\n", "line 1 of"),
        (b'{"schema": "netvlad-deploy/bench/2"}\n', "its schema is netvlad-deploy/bench/2"),
        (b'{"schema": "netvlad-deploy/sweep-point/1"}\n', "has or lacks"),
        (b'{"schema": "netvlad-deploy/sweep', ""),
        (LINE.replace(b"1.0", b"NaN"), "no finite"),
        (LINE.replace(b"1.0", b"-1.0"), "no finite"),
        (b"[" * 100_000 + b"\n", "line 1 of"),
        (b"\n", "line 1 of"),
    ],
)
def test_another_file_is_left_as_it_is(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "notes.jsonl"
    path.write_bytes(content)
    if not said:  # the very start of a first point
        with open_sweep(path) as file:
            assert file.points == []
        assert not path.exists()
        return
    with pytest.raises(ArtifactError, match="is no point of a sweep") as caught, open_sweep(path):
        pass
    assert said in str(caught.value)
    assert path.read_bytes() == content


def test_nothing_measured_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), open_sweep(tmp_path / "s.jsonl"):
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_two_sweeps_do_not_write_one_file(path: Path) -> None:
    with open_sweep(path):
        with pytest.raises(OutputError, match="is written by another sweep"), open_sweep(path):
            pass
    new = path.with_name("new.jsonl")
    with open_sweep(new):
        with pytest.raises(OutputError, match="is written by another sweep"), open_sweep(new):
            pass
        assert new.exists(), "the file of the first is not removed by the second"


def test_what_is_no_file_or_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jsonl")
    for name, said in (("none/s.jsonl", "No such file"), (".", "directory"), ("pipe.jsonl", "no regular file")):
        with pytest.raises(OutputError, match=said), open_sweep(tmp_path / name):
            pass
    monkeypatch.setattr(sweep, "MAX_SWEEP_BYTES", 100)
    with pytest.raises(ArtifactError, match="more than 100 bytes"), open_sweep(path):
        pass
    monkeypatch.undo()
    monkeypatch.setattr(os, "write", lambda *_: 10)
    with pytest.raises(OutputError, match="No space left"), open_sweep(path) as file:
        file.append(POINT)
