"""Targets that cannot be written are found before the work; permissions and locks; files with code are private."""

import os
import resource
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from netvlad_deploy.errors import ArtifactError, NetVLADDeployError, OutputError
from netvlad_deploy.support.files import (
    Staging,
    check_private,
    locked,
    make_folder,
    open_regular,
    private_copy,
    read_private,
    sha256_file,
    stage_files,
    write_text,
)

ROOT = Path(__file__).parents[2]
NOBODY = 65534

AS_NOBODY = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from netvlad_deploy.errors import NetVLADDeployError
from netvlad_deploy.support.files import Staging
if os.geteuid() == 0:
    os.setresuid(65534, 65534, 65534)
try:
    Staging(force=True).check(Path(sys.argv[2]))
except NetVLADDeployError as error:
    print(error)
    sys.exit(error.exit_code)
"""


def check_as_nobody(target: Path) -> "subprocess.CompletedProcess[str]":
    arguments = [sys.executable, "-c", AS_NOBODY, str(ROOT), str(target)]
    return subprocess.run(arguments, check=False, capture_output=True, text=True)


@contextmanager
def largest_file(size_bytes: int) -> Iterator[None]:
    """Let the disk be full from this size of a file on."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_read_only_target_is_found_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"old")
    (tmp_path / "m.onnx").chmod(0o444)
    with pytest.raises(OutputError, match=r"m\.onnx cannot be written: it is read-only") as caught:
        Staging(force=True).check(tmp_path / "m.onnx")
    assert caught.value.exit_code == 73
    with pytest.raises(OutputError, match="read-only"):
        make_folder(tmp_path, [tmp_path / "m.onnx"], force=True)


def test_a_folder_that_may_not_be_written_is_found_before_the_work() -> None:
    found = check_as_nobody(Path("/root-of-nobody.npy"))
    assert (found.returncode, found.stdout) == (73, "/root-of-nobody.npy cannot be written: Permission denied\n")


def test_a_name_that_is_too_long_is_found_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="File name too long"):
        Staging(force=False).check(tmp_path / ("m" * 250 + ".onnx"))


def test_pipes_and_devices_are_no_targets(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.xml")
    (tmp_path / "full.xml").symlink_to("/dev/full")
    for name in ("pipe.xml", "full.xml"):
        with pytest.raises(OutputError, match="it is no regular file"):
            Staging(force=True).check(tmp_path / name)


def test_a_check_leaves_nothing(tmp_path: Path) -> None:
    Staging(force=False).check(tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_full_in_the_middle_leaves_the_old_file(tmp_path: Path) -> None:
    write_text(tmp_path / "x.npy", "old")
    with (
        largest_file(2**20),
        pytest.raises(OutputError, match=r"x\.npy cannot be written: 262144 requested and .* written"),
    ):
        _write_array(tmp_path / "x.npy", np.zeros(2**18))
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("x.npy", "old")]


def _write_array(target: Path, array: np.ndarray) -> None:
    with stage_files(force=True) as staging, staging.open(target) as stream:
        np.save(stream, array, allow_pickle=False)


@pytest.mark.parametrize(("size_bytes", "room_bytes"), [(3 * 2**20, 2**20), (3000, 1000)])
def test_a_copy_that_does_not_fit_says_where_it_should_go(tmp_path: Path, size_bytes: int, room_bytes: int) -> None:
    (tmp_path / "file").write_bytes(bytes(size_bytes))
    with largest_file(room_bytes), pytest.raises(OutputError, match="set TMPDIR"), private_copy(tmp_path / "file"):
        pass


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002, 0o000])
def test_files_get_the_permissions_that_the_user_chose(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        with stage_files(force=False) as staging:
            staging.write(tmp_path / "a", b"x")
            staging.write(tmp_path / "b", b"x", private=True)
    finally:
        os.umask(before)
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("a", "b")]
    assert modes == [0o666 & ~umask, 0o600 & ~umask]


def test_the_umask_is_never_another_for_other_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(mask: int) -> int:
        raise AssertionError(f"umask {mask} for every thread")

    monkeypatch.setattr(os, "umask", never)
    write_text(tmp_path / "a", "x")


def test_a_lock_follows_no_link(tmp_path: Path) -> None:
    (tmp_path / ".timings.lock").symlink_to(tmp_path / "made-by-somebody-else")
    with (
        pytest.raises(OutputError, match=r"timings cannot be locked with .*\.timings\.lock: "),
        locked(tmp_path / "timings"),
    ):
        pass
    assert not (tmp_path / "made-by-somebody-else").exists()


def test_a_lock_is_held_by_one_thread_at_a_time(tmp_path: Path) -> None:
    inside, most = [0], [0]

    def hold() -> None:
        for _ in range(20):
            with locked(tmp_path / "timings"):
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                inside[0] -= 1

    threads = [threading.Thread(target=hold) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]


@pytest.mark.parametrize("read", [sha256_file, read_private, lambda path: open_regular(path).__enter__()])
def test_a_pipe_is_not_waited_for(tmp_path: Path, read: Callable[[Path], object]) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ArtifactError, match="is no regular file"):
        read(tmp_path / "pipe")


def test_code_that_others_may_have_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "kernels").write_bytes(b"code")
    for mode in (0o777, 0o720, 0o602):
        (tmp_path / "kernels").chmod(mode)
        with pytest.raises(ArtifactError, match="holds code, and others may have written it"):
            read_private(tmp_path / "kernels")
    (tmp_path / "kernels").chmod(0o600)
    assert read_private(tmp_path / "kernels") == b"code"
    assert read_private(tmp_path / "none") == b""
    with pytest.raises(ArtifactError, match="holds code"):
        check_private(tmp_path, os.stat_result((0o40700, 0, 0, 1, os.geteuid() + 1, 0, 0, 0, 0, 0)))


def test_every_error_of_a_target_has_its_exit_code(tmp_path: Path) -> None:
    (tmp_path / "there").touch()
    (tmp_path / "folder").mkdir()
    for name, code in (("there", 2), ("folder", 73), ("none/x", 73)):
        with pytest.raises(NetVLADDeployError) as caught:
            Staging(force=False).check(tmp_path / name)
        assert caught.value.exit_code == code
