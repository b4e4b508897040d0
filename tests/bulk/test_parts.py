"""Parts of one run in several processes, joined; targets of every kind."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from netvlad_deploy.artifact import OnnxArtifact
from netvlad_deploy.bulk.plan import remove_plan
from netvlad_deploy.descriptors.open_files import files_of, read_descriptors
from netvlad_deploy.support.claims import claimed
from tests.bulk.conftest import PHOTOS, RUN, SHARDS
from tests.command import Command, error_of
from tests.sources.test_ros_bags import camera, write_bag

pytestmark = [pytest.mark.export, pytest.mark.ort]


@pytest.fixture
def whole(command: Command, pipeline: OnnxArtifact) -> bytes:
    """Return the bytes of a target that one process made."""
    assert command(*RUN, "-o", "whole.npz").code == 0
    return Path("whole.npz").read_bytes()


def test_three_processes_at_once_make_what_one_makes(command: Command, whole: bytes) -> None:
    """A damaged photo is no failure of a part: it would be tried again and again. The join says it."""
    Path("photos/0005.png").write_bytes(b"")
    words = [*map(str, RUN), "-o", "y.npz"]
    parts = [
        subprocess.Popen([sys.executable, "-m", "netvlad_deploy", *words, "--shard", f"{part}/3"], stderr=-1, stdout=-1)
        for part in range(3)
    ]
    outcomes = [part.communicate() for part in parts]
    assert [part.returncode for part in parts] == [0, 0, 0], outcomes
    assert outcomes[0][0].decode().startswith("y.npz.parts  8 x 12, part 0/3: 3 shards")
    merged = command(*RUN, "-o", "y.npz", "--merge")
    assert (merged.code, "19 x 12, 7 of 7 shards were there already, 1 skipped" in merged.out) == (1, True)
    plain = command(*RUN, "-o", "plain.npz")
    assert plain.code == 1
    assert Path("y.npz").read_bytes() == Path("plain.npz").read_bytes() != whole
    assert not Path("y.npz.parts").exists()


def test_a_join_names_what_is_missing_or_damaged(command: Command, whole: bytes) -> None:
    assert "no plan was made there" in error_of(command(*RUN, "-o", "y.npz", "--merge").err)
    assert not Path("y.npz.parts").exists()
    assert command(*RUN, "-o", "y.npz", "--shard", "1/3").code == 0
    outcome = command(*RUN, "-o", "y.npz", "--merge")
    assert outcome.code == 65
    assert f"y.npz.parts lacks 5 of {SHARDS} shards (0, 2, 3, 5, 6)" in error_of(outcome.err)
    again = command(*RUN, "-o", "y.npz", "--shard", "1/3")
    assert "part 1/3: 2 shards, 2 of 2 shards were there already" in again.out
    assert "batch was 2, is 5" in error_of(command(*RUN, "-o", "y.npz", "--shard", "0/3", "--batch", 5).err)
    for part in (0, 2):
        assert command(*RUN, "-o", "y.npz", "--shard", f"{part}/3").code == 0
    shard = Path("y.npz.parts/shard-000004.npz")
    content = shard.read_bytes()
    shard.write_bytes(content[:-1] + b"x")
    outcome = command(*RUN, "-o", "y.npz", "--merge")
    assert (outcome.code, f"{shard} has SHA-256" in error_of(outcome.err)) == (65, True)
    assert not Path("y.npz").exists()
    shard.write_bytes(content)
    assert command(*RUN, "-o", "y.npz", "--merge").code == 0
    assert Path("y.npz").read_bytes() == whole


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--shard", "3/3"), "counted from 0: the last of 3 parts is 2/3"),
        (("--shard", "1"), "is not I/N"),
        (("--shard", "0/0"), "parts is 0, expected 1 to 100000"),
        (("--shard", "0/2", "--merge"), "leave one of them out"),
        (("--shard-size", "0"), "shard-size is 0"),
    ],
)
def test_parts_that_there_are_not(
    command: Command, pipeline: OnnxArtifact, options: tuple[str, ...], said: str
) -> None:
    outcome = command("embed", "m.onnx", "photos", "-o", "y.npz", *options)
    assert (outcome.code, said in error_of(outcome.err)) == (2, True), outcome.err


def test_a_folder_of_shards_stays_as_it_is(command: Command, whole: bytes) -> None:
    assert command(*RUN, "-o", "shards").code == 0
    outcome = command(*RUN, "-o", "shards")
    assert (outcome.code, outcome.out) == (0, f"shards  {PHOTOS} x 12, complete already\n")
    one, other = read_descriptors(Path("shards")), read_descriptors(Path("whole.npz"))
    assert one.header == other.header
    rows = [[(name, row.tobytes()) for names, block in each.blocks(4) for name, row in zip(names, block, strict=True)]
            for each in (one, other)]  # fmt: skip
    assert rows[0] == rows[1]
    assert json.loads(Path("shards/complete.json").read_text())["descriptors"] == PHOTOS
    assert command(*RUN, "-o", "shards", "--force").out == f"shards  {PHOTOS} x 12\n"
    outcome = command(*RUN, "-o", "photos")
    assert (outcome.code, "photos" in error_of(outcome.err)) == (2, True)


@pytest.mark.bulk
def test_a_bag_whose_file_is_written_over_is_other_inputs(command: Command, pipeline: OnnxArtifact) -> None:
    """The folder of the bag does not change by that."""
    bag = write_bag(Path(), "folder", camera)
    os.utime(bag / "run.db3", ns=(2 * 10**18, 2 * 10**18))  # later than the folder
    assert command("embed", "m.onnx", bag, "-o", "y.npz", "--shard-size", 2).out == "y.npz  3 x 12\n"
    assert "complete already" in command("embed", "m.onnx", bag, "-o", "y.npz", "--shard-size", 2).out
    os.utime(bag / "run.db3", ns=(3 * 10**18, 3 * 10**18))
    outcome = command("embed", "m.onnx", bag, "-o", "y.npz", "--shard-size", 2)
    assert (outcome.code, "of other inputs (names, sizes or times of change differ)" in outcome.err) == (2, True)


def test_a_folder_that_has_lost_shards_is_made_whole_again(command: Command, pipeline: OnnxArtifact) -> None:
    """Whether a shard is gone, is another file of the same size, or lost its record."""
    assert command(*RUN, "-o", "shards").code == 0
    shards = sorted(Path("shards").glob("shard-*.npz"))
    before = [path.read_bytes() for path in shards]
    for lose in (
        lambda: shards[1].unlink(),
        lambda: shards[2].write_bytes(before[2][:-1] + b"x"),
        lambda: Path("shards/shard-000003.json").unlink(),
    ):
        lose()
        outcome = command(*RUN, "-o", "shards")
        assert (outcome.code, outcome.out) == (0, f"shards  {PHOTOS} x 12, 6 of {SHARDS} shards were there already\n")
        assert "shards is not complete any more: " in outcome.err
        assert [path.read_bytes() for path in shards] == before
        assert "complete already" in command(*RUN, "-o", "shards").out


@pytest.mark.parametrize("name", ["notes.txt", "manifest.json", "shard-00000-of-00010.tar", "shard-000000.npz"])
def test_a_folder_with_files_of_others_is_refused(command: Command, pipeline: OnnxArtifact, name: str) -> None:
    """Also those that are called as a run calls its own, and also with --force."""
    Path("mine").mkdir()
    Path("mine", name).write_text("mine")
    for options in ((), ("--force",)):
        outcome = command(*RUN, "-o", "mine", *options)
        assert (outcome.code, f"mine holds {name}" in error_of(outcome.err)) == (2, True)
        assert [(path.name, path.read_text()) for path in Path("mine").iterdir()] == [(name, "mine")]


def test_a_claim_that_is_held_is_not_removed(tmp_path: Path) -> None:
    """Otherwise a second process makes the plan at the same time, and removes the files of the first."""
    for name in ("plan.lock", "shard-000001.lock", "shard-000000.inputs.jsonl"):
        (tmp_path / name).touch()
    with claimed(tmp_path / "plan.lock"):
        remove_plan(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["plan.lock"]
    assert not list(tmp_path.iterdir())


def test_hidden_files_of_others_stay(command: Command, pipeline: OnnxArtifact) -> None:
    """A repository of git in an empty folder, and what a file browser leaves."""
    Path("mine/.git").mkdir(parents=True)
    for name in (".git/HEAD", ".DS_Store", ".shard"):
        Path("mine", name).write_text("mine")
    for options in ((), ("--force",)):
        assert command(*RUN, "-o", "mine", *options).out == f"mine  {PHOTOS} x 12\n"
        assert {Path("mine", name).read_text() for name in (".git/HEAD", ".DS_Store", ".shard")} == {"mine"}


def test_shards_whose_manifest_is_gone_are_not_removed(command: Command, whole: bytes) -> None:
    assert command(*RUN, "-o", "shards").code == 0
    Path("shards/manifest.json").unlink()
    Path("shards/complete.json").unlink()
    outcome = command(*RUN, "-o", "shards", "--force")
    assert (outcome.code, "shards holds shard-000000.json and no manifest.json of a run" in outcome.err) == (2, True)
    assert len(list(Path("shards").glob("*.npz"))) == SHARDS


@pytest.mark.parametrize(
    "suffix", [".npz", ".npy", *(pytest.param(suffix, marks=pytest.mark.bulk) for suffix in (".h5", ".parquet"))]
)
def test_every_format_holds_the_same(command: Command, whole: bytes, suffix: str) -> None:
    assert command(*RUN, "-o", f"y{suffix}", "--dtype", "float16").code == 0
    reader = read_descriptors(Path(f"y{suffix}"))
    assert reader.header is not None
    assert (reader.header.dtype, reader.header.artifact, reader.count) == ("float16", "m.onnx", PHOTOS)
    with np.load("whole.npz") as written:
        names, descriptors = next(iter(reader.blocks()))
        assert names == written["names"].tolist()
        assert np.array_equal(descriptors, written["descriptors"].astype(np.float16).astype(np.float32))
    assert "complete already" in command(*RUN, "-o", f"y{suffix}", "--dtype", "float16").out
    for beside in files_of(Path(f"y{suffix}"))[1:]:  # the names of an .npy
        beside.unlink()
        outcome = command(*RUN, "-o", f"y{suffix}", "--dtype", "float16")
        assert (outcome.code, f"y{suffix} exists already" in error_of(outcome.err)) == (2, True)


def test_a_list_from_standard_input(
    command: Command, whole: bytes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "list.txt").write_text("".join(f"photos/{number:04}.png\n" for number in range(PHOTOS)))
    assert command(*RUN[:2], *RUN[3:], "--list", "list.txt", "-o", "y.npz").code == 0
    with np.load("y.npz") as listed, np.load("whole.npz") as written:
        assert listed["names"].tolist() == [f"photos/{name}" for name in written["names"]]
        assert np.array_equal(listed["descriptors"], written["descriptors"])


def test_two_inputs_of_one_name(command: Command, pipeline: OnnxArtifact) -> None:
    outcome = command(*RUN, "photos", "-o", "y.npz")
    assert (outcome.code, "same name" in error_of(outcome.err)) == (2, True)
    assert not list(Path().glob("y.npz*"))
