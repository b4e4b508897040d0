"""Scratch that outlives no process by more than one run: whoever makes it holds its lock, and the next run looks.

The kernel releases a lock whichever way its process ends. So a folder whose lock can be had is one of a process
that was killed, and is removed. The lock is shared where it is held, so that it also holds where a network file system
wants write access for an exclusive one.
"""

import contextlib
import fcntl
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

PREFIX: Final = "netvlad-deploy-"
"""How every scratch folder begins: `sweep` looks at no other."""


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """Make a folder for this user alone in the temporary folder, and remove it in the end with all that is in it.

    What killed processes have left is removed first.
    """
    sweep()
    folder, handle = _held()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(handle)


def sweep() -> None:
    """Remove this user's scratch folders of processes that are no more.

    Source: the eight characters after the prefix are those of Python's `tempfile`.
    """
    temporary, pattern = Path(tempfile.gettempdir()), re.compile(rf"{re.escape(PREFIX)}[a-z0-9_]{{8}}")
    with contextlib.suppress(OSError), os.scandir(temporary) as entries:
        names = [entry.name for entry in entries if pattern.fullmatch(entry.name)]
        for name in names:
            with contextlib.suppress(OSError):  # held, of another file system, or removed by another run meanwhile
                _remove_if_left(temporary / name)


def _held() -> tuple[Path, int]:
    """Return a new folder under its lock: another run may take it for left behind before the lock is held."""
    while True:
        path = Path(tempfile.mkdtemp(prefix=PREFIX))
        try:
            handle = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            continue
        with contextlib.suppress(OSError):  # a file system without locks: nobody can have this one, so none is removed
            fcntl.flock(handle, fcntl.LOCK_SH)
        if path.exists():
            return path, handle
        os.close(handle)


def _remove_if_left(path: Path) -> None:
    """Remove a folder of this user if its lock can be had.

    Raises: OSError if it is held.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        status = os.fstat(handle)
        if status.st_uid != os.geteuid():
            return
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if stat.S_ISDIR(status.st_mode):
            shutil.rmtree(path, ignore_errors=True)
    finally:
        os.close(handle)
