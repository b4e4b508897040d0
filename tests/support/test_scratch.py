"""Scratch of killed processes is removed by the next run, and that of living ones is left alone."""

import os
import signal
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from netvlad_deploy.errors import OutputError
from netvlad_deploy.support.files import stage_files
from netvlad_deploy.support.scratch import FOLDER_PREFIX, scratch_folder, sweep
from tests.command import Command

HOLDER = """
import os, sys, time
from netvlad_deploy.support.files import stage_files
from netvlad_deploy.support.scratch import scratch_folder
from pathlib import Path
from typing import Any

with scratch_folder() as folder, stage_files(force=True) as staging:
    (folder / "deep").mkdir()
    (folder / "deep" / "file").touch()
    staging.write(Path(sys.argv[1]), b"half")
    print(folder, flush=True)
    time.sleep(600)
"""


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a temporary folder of the test's own, for this process and those it starts."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return folder


def hold(target: Path) -> "subprocess.Popen[str]":
    """Start a process that holds a scratch folder and a half-written target; return when it does."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(target)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert Path(process.stdout.readline().strip()).is_dir()
    return process


def test_a_scratch_folder_is_private_and_goes_in_the_end(temporary: Path) -> None:
    with scratch_folder() as folder:
        assert folder.parent == temporary
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        (folder / "file").touch()
    assert not list(temporary.iterdir())


def test_scratch_of_the_living_stays_and_that_of_the_dead_goes(temporary: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    process = hold(target)
    sweep()
    with stage_files(force=True) as staging:
        staging.write(target, b"meanwhile")
    assert len(list(temporary.iterdir())) == 1, "the folder of a living process was removed"
    assert len(list(tmp_path.glob(".target.*.tmp"))) == 1, "the file of a living process was removed"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert len(list(temporary.iterdir())) == 1
    with scratch_folder() as own:
        assert list(temporary.iterdir()) == [own]
    with stage_files(force=True) as staging:
        staging.write(target, b"whole")
    assert {path.name for path in tmp_path.iterdir()} == {"target", "temporary"}
    assert target.read_bytes() == b"whole"


def test_any_verb_removes_scratch(temporary: Path, tmp_path: Path, command: Command) -> None:
    process = hold(tmp_path / "target")
    process.kill()
    process.communicate()
    assert command("inspect", "nothing.onnx").code == 65
    assert not list(temporary.iterdir())


def test_files_and_folders_of_others_are_left_alone(
    temporary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").touch()
    (temporary / f"{FOLDER_PREFIX}abcdefgh").symlink_to(tmp_path / "precious")
    (temporary / f"{FOLDER_PREFIX}notes").mkdir()
    for name in ("netvlad-deploy-checkout", "netvlad-deploy-worktree"):
        (temporary / name).mkdir(mode=0o700)
    (temporary / f"{FOLDER_PREFIX}building").mkdir(mode=0o755)
    (temporary / f"{FOLDER_PREFIX}abcdefgh.txt").touch()
    os.mkfifo(temporary / f"{FOLDER_PREFIX}fifofifo")
    names = {path.name for path in temporary.iterdir()}
    sweep()
    assert {path.name for path in temporary.iterdir()} == names
    assert (tmp_path / "precious" / "file").exists()
    (temporary / f"{FOLDER_PREFIX}other_us").mkdir()
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    sweep()
    assert (temporary / f"{FOLDER_PREFIX}other_us").is_dir()


def test_without_a_temporary_folder_only_a_scratch_folder_fails(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nowhere to write: neither TMPDIR, nor /tmp, nor the current folder."""
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: [str(temporary / "none")])
    sweep()
    with pytest.raises(OutputError, match="set TMPDIR"), scratch_folder():
        pass
    monkeypatch.setattr(tempfile, "tempdir", str(temporary / "none"))
    with pytest.raises(OutputError, match="set TMPDIR"), scratch_folder():
        pass


def test_a_folder_that_another_run_took_for_left_behind_is_made_again(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other run looks between the making of a folder and its lock."""
    mkdtemp = tempfile.mkdtemp
    made: list[str] = []

    def meanwhile(*, prefix: str, **rest: Any) -> str:
        made.append(mkdtemp(prefix=prefix, **rest))
        if len(made) == 1:
            sweep()
        return made[-1]

    monkeypatch.setattr(tempfile, "mkdtemp", meanwhile)
    with scratch_folder() as folder:
        assert [str(folder)] == made[1:]
        sweep()
        assert list(temporary.iterdir()) == [folder]
