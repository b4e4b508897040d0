"""Whatever ends a run, the same command goes on, and the result is the same in every byte."""

import _thread
import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from netvlad_deploy.artifact import OnnxArtifact
from netvlad_deploy.bulk.listing import read_listing
from netvlad_deploy.bulk.manifest import MANIFEST
from netvlad_deploy.bulk.shards import record_path
from netvlad_deploy.runtime.open_runner import Candidate
from netvlad_deploy.support.claims import claimed
from netvlad_deploy.support.sidecar import seal
from tests.bulk.conftest import PHOTOS, RUN, SHARDS, write_photos
from tests.colour_graphs import band_pipeline
from tests.command import Command, error_of
from tests.processes import until

pytestmark = [pytest.mark.export, pytest.mark.ort]


def at_shard(monkeypatch: pytest.MonkeyPatch, number: int, happens: Callable[[], object]) -> None:
    """Let something happen when the work on a shard begins, with all shards before it done."""

    def listing(folder: Path, shard: int) -> object:
        if shard == number:
            until(lambda: all(record_path(folder, each).exists() for each in range(number)))
            happens()
        return read_listing(folder, shard)

    monkeypatch.setattr("netvlad_deploy.bulk.flow.read_listing", listing)


def end(by: signal.Signals) -> None:
    """Have the main thread handle a signal, if it does; the one that begins the shard goes no further."""
    _thread.interrupt_main(by)
    raise RuntimeError("this thread was not stopped")


@pytest.fixture
def whole(command: Command, pipeline: OnnxArtifact) -> bytes:
    """Return the bytes of a target whose run nobody has disturbed."""
    outcome = command(*RUN, "-o", "whole.npz")
    assert (outcome.code, outcome.out) == (0, f"whole.npz  {PHOTOS} x 12\n")
    return Path("whole.npz").read_bytes()


@pytest.fixture
def begun(command: Command, whole: bytes, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of a run that was interrupted with two of seven shards done."""
    with monkeypatch.context() as patch:
        at_shard(patch, 2, lambda: end(signal.SIGINT))
        outcome = command(*RUN, "-o", "y.npz")
    assert outcome.code == 130
    assert outcome.err.splitlines() == [
        f"2 of {SHARDS} shards stay in y.npz.parts: the same command goes on there",
        "error: interrupted",
    ]
    assert not Path("y.npz").exists()
    return Path("y.npz.parts")


def test_an_interrupted_run_goes_on(command: Command, whole: bytes, begun: Path) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in begun.glob("shard-00000[01].npz")}
    outcome = command(*RUN, "-o", "y.npz", "--json")
    record = json.loads(outcome.out)
    assert (outcome.code, len(before)) == (0, 2)
    assert (record["shards"], record["kept"], record["complete"], record["part"]) == (SHARDS, 2, False, None)
    assert Path("y.npz").read_bytes() == whole
    assert sorted(path.name for path in Path().glob("y.npz*")) == ["y.npz", "y.npz.json"]


def test_killed_at_every_flush_it_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", 17)
    band_pipeline(tmp_path / "m.onnx")
    outcome = subprocess.run(
        [sys.executable, "-m", "tests.bulk.kill_every_flush", str(tmp_path), "y.npz"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (outcome.returncode, outcome.stderr) == (0, "")
    assert int(outcome.stdout.split()[1]) > 15


def test_a_full_disk_loses_no_shard(
    command: Command, whole: bytes, begun: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync, flushes = os.fsync, []

    def full(handle: int) -> None:
        flushes.append(handle)
        if len(flushes) == 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        outcome = command(*RUN, "-o", "y.npz")
    assert outcome.code == 73
    assert "No space left on device" in error_of(outcome.err)
    assert "shards stay in y.npz.parts" in outcome.err
    assert not [path for path in begun.iterdir() if path.name.startswith(".")]
    assert command(*RUN, "-o", "y.npz").code == 0
    assert Path("y.npz").read_bytes() == whole


def test_a_run_of_which_no_shard_is_done_leaves_nothing(
    command: Command, pipeline: OnnxArtifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_shard(monkeypatch, 0, lambda: end(signal.SIGTERM))
    outcome = command(*RUN, "-o", "y.npz")
    assert (outcome.code, outcome.err) == (143, "error: terminated\n")
    assert not list(Path().glob("y.npz*"))


def test_another_command_does_not_go_on(command: Command, begun: Path, tmp_path: Path) -> None:
    """What has changed is named, with what was and what is."""
    for options, said in (
        (("--batch", 3), "batch was 2, is 3"),
        (("--dtype", "float16"), "header.dtype was float32, is float16"),
        (("--shard-size", 4), "shard_size was 3, is 4"),
        (("--backend", "openvino"), "backend was null, is openvino"),
    ):
        outcome = command(*RUN, "-o", "y.npz", *options)
        assert outcome.code == 2
        assert f"y.npz.parts was begun with something else: {said}: repeat the first command" in error_of(outcome.err)
    was = json.loads((begun / "manifest.json").read_text())["header"]["sha256"]
    band_pipeline(tmp_path / "m.onnx", convolutions=1)
    outcome = command(*RUN, "-o", "y.npz")
    assert outcome.code == 2
    assert f"header.sha256 was {was[:60]}" in outcome.err
    assert "header.images.resize.size was [16, 12], is null" in outcome.err
    assert command(*RUN, "-o", "y.npz", "--force").code == 0


def test_other_inputs_do_not_go_on(command: Command, begun: Path) -> None:
    said = "the inputs have changed since y.npz.parts was begun: "
    size = Path("photos/0004.png").stat().st_size
    Path("photos/0004.png").write_bytes(b"x" * 9)
    outcome = command(*RUN, "-o", "y.npz")
    assert outcome.code == 2
    assert f"{said}0004.png had {size} bytes, has 9: put them back" in outcome.err
    Path("photos/0004.png").unlink()
    assert f"{said}0004.png was next, now it is 0005.png" in command(*RUN, "-o", "y.npz").err
    outcome = command(*RUN, "-o", "y.npz", "--force")
    assert (outcome.code, f"{PHOTOS - 1} x 12\n" in outcome.out) == (0, True)


def test_a_file_that_changes_during_the_run_is_skipped(
    command: Command, pipeline: OnnxArtifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change() -> None:
        longer, later = Path("photos/0010.png"), Path("photos/0013.png")
        before = longer.stat()
        longer.write_bytes(longer.read_bytes() + b"more")  # a photo still, and as old as it was
        os.utime(longer, ns=(before.st_atime_ns, before.st_mtime_ns))
        os.utime(later, ns=(0, 0))
        Path("photos/0011.png").unlink()

    at_shard(monkeypatch, 1, change)
    outcome = command(*RUN, "-o", "y.npz")
    assert (outcome.code, f"{PHOTOS - 3} x 12, 3 skipped" in outcome.out) == (1, True)
    assert "0010.png: changed since the run was begun" in outcome.err
    assert "0013.png: changed since the run was begun" in outcome.err
    assert "0011.png: gone since the run was begun" in outcome.err
    assert "of other inputs (were 20, are 19)" in command(*RUN, "-o", "y.npz").err


def test_inputs_that_are_all_gone_are_an_error(command: Command, begun: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").rename(tmp_path / "elsewhere")
    outcome = command(*RUN, "-o", "y.npz", "--shard", "0/1")
    assert outcome.code == 65
    assert "none of the 3 inputs of shard 2, such as photos/0006.png, is there: run" in error_of(outcome.err)


def test_a_damaged_shard_is_named_and_made_again(command: Command, whole: bytes, begun: Path) -> None:
    content = bytearray((begun / "shard-000001.npz").read_bytes())
    content[200] ^= 1
    (begun / "shard-000001.npz").write_bytes(content)
    outcome = command(*RUN, "-o", "y.npz")
    assert outcome.code == 0
    assert "shard 1 is made again: y.npz.parts/shard-000001.npz has SHA-256" in outcome.err
    assert "1 of 7 shards were there already" in outcome.out
    assert Path("y.npz").read_bytes() == whole


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("manifest.json", "manifest.json was changed after it was written"),
        ("shard-000004.inputs.jsonl", "shard-000004.inputs.jsonl was changed after it was written"),
    ],
)
def test_a_damaged_plan_is_refused(command: Command, begun: Path, name: str, said: str) -> None:
    content = (begun / name).read_bytes()
    (begun / name).write_bytes(content.replace(b"photos", b"fotos", 1) if b"photos" in content else content + b" ")
    outcome = command(*RUN, "-o", "y.npz")
    assert outcome.code == 65
    assert said in error_of(outcome.err)


def test_a_plan_of_another_version_is_refused(command: Command, begun: Path) -> None:
    record = json.loads((begun / "manifest.json").read_text())
    del record["manifest_sha256"]
    other = seal(record, type(MANIFEST)(**{**vars(MANIFEST), "schema": "netvlad-deploy/embedding/9"}))
    (begun / "manifest.json").write_bytes(other)
    outcome = command(*RUN, "-o", "y.npz")
    assert outcome.code == 65
    assert "has schema netvlad-deploy/embedding/9, expected netvlad-deploy/embedding/1" in error_of(outcome.err)
    (begun / "manifest.json").write_bytes(seal({**record, "version": "0.0.1"}, MANIFEST))
    assert "version was 0.0.1, is" in error_of(command(*RUN, "-o", "y.npz").err)


def test_a_second_run_on_one_target_is_refused(command: Command, begun: Path) -> None:
    with claimed(begun / "run.lock"):
        outcome = command(*RUN, "-o", "y.npz")
    assert outcome.code == 2
    assert f"y.npz.parts is in use by process {os.getpid()} on " in error_of(outcome.err)
    with claimed(begun / "shard-000003.lock"):
        outcome = command(*RUN, "-o", "y.npz")
    assert (outcome.code, "is in use by process" in outcome.err) == (2, True)
    assert command(*RUN, "-o", "y.npz").code == 0


class TestFinished:
    def test_the_same_command_again_does_nothing(
        self, command: Command, pipeline: OnnxArtifact, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Not even the runner is opened, and the exit code is that of the first run."""
        Path("photos/0003.png").write_bytes(b"")
        first = command(*RUN, "-o", "y.npz")
        monkeypatch.setattr(Candidate, "open", lambda *_, **__: 1 / 0)
        outcome = command(*RUN, "-o", "y.npz", "--json")
        record = json.loads(outcome.out)
        assert (first.code, outcome.code, outcome.err) == (1, 1, "")
        assert (record["complete"], record["kept"], record["descriptors"]) == (True, SHARDS, PHOTOS - 1)
        assert record["reasons"] == {"an empty file": 1}
        assert command(*RUN, "-o", "y.npz", "--merge").code == 1

    def test_it_is_not_taken_for_another(self, command: Command, whole: bytes) -> None:
        outcome = command(*RUN, "-o", "whole.npz", "--batch", 3)
        assert outcome.code == 2
        assert "whole.npz exists already, made with something else: batch was 2, is 3: choose" in error_of(outcome.err)
        os.utime("photos/0007.png", ns=(1, 1))
        outcome = command(*RUN, "-o", "whole.npz")
        assert (outcome.code, "of other inputs (names, sizes or times of change differ)" in outcome.err) == (2, True)
        assert command(*RUN, "-o", "whole.npz", "--force").code == 0
        Path("other.npz").write_bytes(b"x" + Path("whole.npz").read_bytes()[1:])
        os.utime("other.npz", ns=(1, 1))
        Path("other.npz").replace("whole.npz")  # of the same size, and older
        outcome = command(*RUN, "-o", "whole.npz")
        assert outcome.code == 65
        assert "whole.npz was changed after it was written: choose another name or pass --force" in outcome.err

    def test_a_new_run_that_was_stopped_stays_beside_it(
        self, command: Command, whole: bytes, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The command of the target that is there does not throw away the work of another one."""
        with monkeypatch.context() as patch:
            at_shard(patch, 2, lambda: end(signal.SIGINT))
            assert command(*RUN, "-o", "whole.npz", "--batch", 1, "--force").code == 130
        outcome = command(*RUN, "-o", "whole.npz")
        assert (outcome.code, outcome.out) == (0, f"whole.npz  {PHOTOS} x 12, complete already\n")
        assert "whole.npz.parts stays: another run was begun there" in outcome.err
        outcome = command(*RUN, "-o", "whole.npz", "--batch", 1, "--force")
        assert outcome.out == f"whole.npz  {PHOTOS} x 12, 2 of {SHARDS} shards were there already\n"
        assert sorted(path.name for path in Path().glob("whole.npz*")) == ["whole.npz", "whole.npz.json"]

    def test_an_input_is_never_written_over(self, command: Command, exported: OnnxArtifact, tmp_path: Path) -> None:
        """Whichever way it is named, and with --force too."""
        os.chdir(tmp_path)
        Path("in").mkdir()
        np.save("in/x.npy", np.ones((3, 5, exported.spec.feature_size), np.float32))
        before = Path("in/x.npy").read_bytes()
        Path("list.npz").write_text("in/x.npy\n")
        for given, target in ((("in",), "in/x.npy"), (("--list", "list.npz"), "in/x.npy"),
                              (("in/*.npy",), "in/x.npy"), (("--list", "list.npz"), "list.npz")):  # fmt: skip
            outcome = command("embed", exported.path, *given, "-o", target, "--force")
            assert (outcome.code, "cannot be the target too" in error_of(outcome.err)) == (2, True), given
        assert (Path("in/x.npy").read_bytes(), Path("list.npz").read_text()) == (before, "in/x.npy\n")
        assert not list(tmp_path.rglob("*.parts"))

    def test_a_target_among_its_inputs_is_none_of_them(self, command: Command, exported: OnnxArtifact) -> None:
        """Also where a pattern fits all that a run writes; with --force it is an input, which nothing writes over."""
        Path("in").mkdir()
        np.save("in/x.npy", np.ones((5, exported.spec.feature_size), np.float32))
        for given, target in (("in", "in/y.npy"), ("in/[xz]*", "in/z.npz")):
            assert command("embed", exported.path, given, "-o", target).out.startswith(f"{target}  1 x "), target
            again = command("embed", exported.path, given, "-o", target)
            assert (again.code, again.out.endswith(", complete already\n")) == (0, True), again.err
            assert f"{target} is left out of the inputs" in again.err
            assert "cannot be the target too" in command("embed", exported.path, given, "-o", target, "--force").err
            Path(target).unlink()

    def test_a_file_of_others_stays(self, command: Command, pipeline: OnnxArtifact) -> None:
        for name in ("y.npz", "y.npz.json"):
            Path(name).write_text("{}")
            outcome = command(*RUN, "-o", "y.npz")
            assert (outcome.code, f"{name} exists already" in outcome.err) == (2, True)
            assert Path(name).read_text() == "{}"
            Path(name).unlink()

    def test_all_that_was_skipped_is_kept_and_the_first_are_listed(
        self, command: Command, pipeline: OnnxArtifact
    ) -> None:
        for number in range(150):
            Path(f"photos/empty{number:03}.png").touch()
        outcome = command("-q", "embed", "m.onnx", "photos", "-o", "y.npz", "--json")
        record = json.loads(outcome.out)
        assert (outcome.code, record["reasons"], len(record["skipped"])) == (1, {"an empty file": 150}, 100)
        lines = Path("y.npz.skipped.jsonl").read_text().splitlines()
        assert [json.loads(line)["path"] for line in lines] == [f"photos/empty{n:03}.png" for n in range(150)]
        with np.load("y.npz") as written:
            assert len(written["names"]) == PHOTOS

    def test_nothing_but_skipped_ones_is_an_error_and_leaves_nothing(
        self, command: Command, pipeline: OnnxArtifact, tmp_path: Path
    ) -> None:
        (tmp_path / "none").mkdir()
        (tmp_path / "none" / "a.png").touch()
        outcome = command("embed", "m.onnx", "none", "-o", "y.npz")
        assert outcome.code == 65
        assert "nothing to embed: 1 an empty file, first none/a.png: an empty file" in error_of(outcome.err)
        assert not list(tmp_path.glob("y.npz*"))
