"""One timing cache for several processes, some of which are killed; each builds on the double of the binding."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from netvlad_deploy.artifact import load_artifact
from netvlad_deploy.errors import ArtifactError, OutputError
from tests.double.graph import write_graph
from tests.tensorrt.conftest import Build, Open

ROOT = Path(__file__).parents[2]


def start(folder: Path, *arguments: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-m", "tests.double.build", str(folder), *arguments], cwd=ROOT)


def timings(folder: Path) -> list[str]:
    return list(json.loads((folder / "timings").read_bytes())["timings"])


def test_two_builds_at_once_lose_nothing(tmp_path: Path) -> None:
    write_graph(tmp_path)
    processes = [start(tmp_path, name, "--meet") for name in ("first", "second")]
    assert [process.wait(60) for process in processes] == [0, 0]
    assert timings(tmp_path) == ["first", "second"]
    for name in ("first", "second"):
        load_artifact(tmp_path / f"{name}.engine")


@pytest.mark.parametrize(
    "point",
    [
        "Builder.__init__",
        "IBuilderConfig.set_timing_cache",
        "Builder.build_serialized_network",
        "ITimingCache.combine",
        "ITimingCache.serialize",
        "write",
        "rename 0",
        "rename 1",
        "rename 2",
        "rename 3",
    ],
)
def test_a_killed_build_leaves_nothing_half_written(tmp_path: Path, point: str) -> None:
    write_graph(tmp_path)
    assert start(tmp_path, "old").wait(60) == 0
    before = {path: path.read_bytes() for path in tmp_path.glob("old.*")}
    assert start(tmp_path, "new", "--die", point).wait(60) == -9
    kept = point in ("rename 1", "rename 2", "rename 3")  # the cache was replaced first
    assert timings(tmp_path) == (["new", "old"] if kept else ["old"])
    assert {path: path.read_bytes() for path in before} == before
    if kept:  # all three files were complete, so whoever looks finds them
        load_artifact(tmp_path / "new.engine")
        assert (tmp_path / "new.engine.log").is_file()
    else:
        with pytest.raises(ArtifactError, match=r"new\.engine is missing"):
            load_artifact(tmp_path / "new.engine")
        assert not list(tmp_path.glob("new.*"))
    assert start(tmp_path, "new").wait(60) == 0, "the lock of a killed process is free"
    assert timings(tmp_path) == ["new", "old"]
    load_artifact(tmp_path / "new.engine")
    assert not list(tmp_path.glob(".*.tmp"))


def test_a_folder_is_no_timing_cache(open_world: Open, build: Build, tmp_path: Path) -> None:
    (tmp_path / "timings").mkdir()
    with pytest.raises(OutputError, match="timings cannot be read: Is a directory"):
        build(open_world("10.3"), cache=True)


def test_an_empty_file_holds_nothing_yet(open_world: Open, build: Build, tmp_path: Path) -> None:
    (tmp_path / "timings").touch()
    build(open_world("11.4"), cache=True)
    assert timings(tmp_path) == ["gemm"]
