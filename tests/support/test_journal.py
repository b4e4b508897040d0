"""A set of files is replaced as one: by a process killed at any step, by two at once, beside leftovers of others."""

import fcntl
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from netvlad_deploy.artifact import load_artifact
from netvlad_deploy.errors import ArtifactError, OutputError, UsageError
from netvlad_deploy.support import journal
from netvlad_deploy.support.files import Staging, finish_writing, locked, stage_files, write_text
from netvlad_deploy.support.locks import NO_LOCKS_ERRNOS
from tests.test_artifact import engine_artifact, onnx_artifact, write

ROOT = Path(__file__).parents[2]
NAMES = ("m.engine", "m.engine.json", "m.engine.log")

CHILD = """
import os, signal, sys
from pathlib import Path
from netvlad_deploy.support import journal
from netvlad_deploy.support.files import stage_files

folder, content, point = Path(sys.argv[1]), sys.argv[2].encode(), sys.argv[3]
steps = 0

def mortal(name, call):
    def stepped(*arguments, **keywords):
        global steps
        if f"{name} {steps}" == point:
            os.kill(os.getpid(), signal.SIGKILL)
        steps += name == "rename"
        return call(*arguments, **keywords)
    return stepped

Path.replace = mortal("rename", Path.replace)
journal._begin = mortal("begin", journal._begin)
os.write = mortal("write", os.write)
journal._remove = mortal("remove", journal._remove)
with stage_files(force=True) as staging:
    for name in sys.argv[4:]:
        staging.write(folder / name, content)
"""


def replace(folder: Path, content: bytes, point: str = "never") -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-c", CHILD, str(folder), content.decode(), point, *NAMES], cwd=ROOT)


def staged(folder: Path, meanwhile: Callable[[], object], *, force: bool) -> None:
    """Write two files, between which and their names something happens."""
    with stage_files(force=force) as staging:
        for name in ("a", "b"):
            staging.write(folder / name, b"new")
        meanwhile()


def contents(folder: Path) -> set[bytes]:
    return {(folder / name).read_bytes() for name in NAMES}


@pytest.mark.parametrize(
    ("point", "found"),
    [
        ("begin 0", b"old"),
        ("write 0", b"old"),
        ("rename 0", b"new"),
        ("rename 1", b"new"),
        ("rename 2", b"new"),
        ("remove 3", b"new"),
    ],
)
def test_a_set_is_wholly_old_or_wholly_new_after_a_kill(tmp_path: Path, point: str, found: bytes) -> None:
    assert replace(tmp_path, b"old").wait(60) == 0
    assert replace(tmp_path, b"new", point).wait(60) == -signal.SIGKILL
    journal.finish(tmp_path)
    assert contents(tmp_path) == {found}
    assert replace(tmp_path, b"again").wait(60) == 0
    assert contents(tmp_path) == {b"again"}
    assert {path.name for path in tmp_path.iterdir()} == set(NAMES), "the next run removes leftovers of a killed one"


def test_an_artifact_is_whole_after_a_kill_at_each_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The death of the process is simulated: its locks are released, and its files stay."""
    write(onnx_artifact(tmp_path / "m.onnx"), b"old")
    replaced = Path.replace
    for survived in range(2):
        renames = 0

        def rename(path: Path, target: Path, last: int = survived) -> Path:
            nonlocal renames
            renames += 1
            if renames > last:
                raise SystemExit
            return replaced(path, target)

        with monkeypatch.context() as dying:
            dying.setattr(Path, "replace", rename)
            with pytest.raises(SystemExit):
                write(onnx_artifact(tmp_path / "m.onnx"), b"new %d" % survived, force=True)
        assert (tmp_path / journal.JOURNAL_NAME).exists()
        assert load_artifact(tmp_path / "m.onnx").path.read_bytes() == b"new %d" % survived
        assert sorted(path.name for path in tmp_path.iterdir()) == ["m.onnx", "m.onnx.json"]


def test_two_at_once_never_mix(tmp_path: Path) -> None:
    processes = [replace(tmp_path, content) for content in (b"first", b"second", b"third")]
    mixed = []

    def look() -> None:
        while any(process.poll() is None for process in processes):
            journal.finish(tmp_path)
            mixed.append(len(list(tmp_path.glob("m.*"))))

    reader = threading.Thread(target=look)
    reader.start()
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    reader.join()
    assert len(contents(tmp_path)) == 1
    assert {path.name for path in tmp_path.iterdir()} == set(NAMES)


def test_a_reader_never_sees_an_artifact_half_replaced(tmp_path: Path) -> None:
    write(engine_artifact(tmp_path / "m.engine"), b"0")
    ending = threading.Event()

    def again_and_again() -> None:
        number = 0
        while not ending.is_set():
            number += 1
            write(engine_artifact(tmp_path / "m.engine"), str(number).encode(), force=True)

    writer = threading.Thread(target=again_and_again)
    writer.start()
    try:
        seen = {load_artifact(tmp_path / "m.engine").sha256 for _ in range(60)}
    finally:
        ending.set()
        writer.join()
    assert len(seen) > 1


def test_ctrl_c_between_two_names_gives_the_others_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(onnx_artifact(tmp_path / "m.onnx"), b"old")
    replaced, calls = Path.replace, []

    def rename(path: Path, target: Path) -> Path:
        calls.append(target)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return replaced(path, target)

    monkeypatch.setattr(Path, "replace", rename)
    with pytest.raises(KeyboardInterrupt):
        write(onnx_artifact(tmp_path / "m.onnx"), b"new", force=True)
    assert load_artifact(tmp_path / "m.onnx").path.read_bytes() == b"new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.onnx", "m.onnx.json"]


def test_a_target_that_came_to_be_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"b exists already: .* --force"):
        staged(tmp_path, lambda: (tmp_path / "b").write_bytes(b"another's"), force=False)
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("b", b"another's")]


def test_temporary_files_of_a_living_process_stay(tmp_path: Path) -> None:
    with stage_files(force=True) as living:
        living.write(tmp_path / "a", b"living")
        write_text(tmp_path / "a", "meanwhile")
        assert len(list(tmp_path.glob(".a.*.tmp"))) == 1
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a", b"living")]


def test_a_temporary_file_that_is_gone_keeps_the_old_set(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written"):
        staged(tmp_path, lambda: next(tmp_path.glob(".b.*.tmp")).unlink(), force=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "moves",
    ['{".m.onnx.0123456789abcdef.tmp": "/etc/passwd"}', '{"m.onnx": "n.onnx"}', '["m.onnx"]', '{"a": 1}', "[" * 9999],
)
def test_a_journal_moves_nothing_but_temporary_files_of_its_folder(tmp_path: Path, moves: str) -> None:
    (tmp_path / "m.onnx").write_bytes(b"mine")
    (tmp_path / ".m.onnx.0123456789abcdef.tmp").write_bytes(b"planted")
    (tmp_path / journal.JOURNAL_NAME).write_text(moves)
    journal.finish(tmp_path)
    assert (tmp_path / "m.onnx").read_bytes() == b"mine"
    assert not (tmp_path / "n.onnx").exists()


def test_a_folder_that_cannot_be_searched_has_nothing_to_finish(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a missing right would be taken for a journal of another user, which is then to be removed; played."""

    def closed(*_: object) -> int:
        raise PermissionError

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", closed)
        with pytest.raises(PermissionError):
            journal.finish(tmp_path)
        patch.setattr(os, "access", lambda *_: False)
        journal.finish(tmp_path)


def test_a_journal_of_another_user_or_a_link_is_not_obeyed(tmp_path: Path) -> None:
    write(onnx_artifact(tmp_path / "m.onnx"))
    (tmp_path / ".m.onnx.0123456789abcdef.tmp").write_bytes(b"planted")
    planted = tmp_path / journal.JOURNAL_NAME
    planted.write_text('{".m.onnx.0123456789abcdef.tmp": "m.onnx", ".m.onnx.json.0123456789abcdef.tmp": "m.onnx.json"}')
    planted.chmod(0o666)
    with pytest.raises(ArtifactError, match=r"cannot be put right: .*of another user"):
        load_artifact(tmp_path / "m.onnx")
    with pytest.raises(OutputError, match="of another user"):
        write(onnx_artifact(tmp_path / "m.onnx"), b"new", force=True)
    planted.rename(tmp_path / "elsewhere")
    planted.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ArtifactError, match="cannot be put right: "):
        load_artifact(tmp_path / "m.onnx")
    planted.unlink()
    assert load_artifact(tmp_path / "m.onnx").path.read_bytes() == b"content"


def test_a_result_stands_in_one_folder(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    with stage_files(force=True) as staging:
        staging.write(tmp_path / "a", b"")
        with pytest.raises(OutputError, match="another folder"):
            staging.write(tmp_path / "other" / "b", b"")


def test_a_file_system_without_locks_still_commits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(NO_LOCKS_ERRNOS[0], os.strerror(NO_LOCKS_ERRNOS[0]))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    write(onnx_artifact(tmp_path / "m.onnx"))
    assert load_artifact(tmp_path / "m.onnx").path.read_bytes() == b"content"
    with locked(tmp_path / "timings"):
        pass


def test_a_lock_that_another_user_keeps_is_not_waited_for(tmp_path: Path) -> None:
    planted = tmp_path / journal.JOURNAL_NAME
    planted.touch()
    planted.chmod(0o666)
    with planted.open() as kept:
        fcntl.flock(kept, fcntl.LOCK_EX)
        with pytest.raises(ArtifactError, match="of another user"):
            finish_writing(tmp_path)


def test_nothing_staged_is_nothing_done(tmp_path: Path) -> None:
    Staging(force=True).commit()
    assert list(tmp_path.iterdir()) == []
