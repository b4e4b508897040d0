"""Scratch folders: removed by the process that made them, or by the next run if that process was killed.

A process keeps its scratch folder open and locked. The kernel releases the lock when the process ends, however it ends:
so a folder that can be locked belongs to no process, and the next run removes it.
"""

import contextlib
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from netvlad_deploy.errors import OutputError
from netvlad_deploy.support.locks import hold, left_behind

FOLDER_PREFIX: Final = "netvlad-deploy-scratch-"
"""Start of the name of every scratch folder. `sweep` looks at no other: it must never remove a folder of the user's."""

FOLDER_NAME: Final = re.compile(rf"{re.escape(FOLDER_PREFIX)}[a-z0-9_]{{8}}")
"""Name of a scratch folder; Python's `tempfile` puts eight characters after the prefix."""


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """Yield a new folder for this user alone in the temporary folder; it is removed with its content at the end.

    Folders that killed processes have left are removed first.

    Raises: OutputError if there is no temporary folder, or it cannot be written.
    """
    sweep()
    folder, handle = held_folder()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(handle)


def sweep() -> None:
    """Remove this user's scratch folders whose processes have ended; a folder that cannot be removed stays."""
    with contextlib.suppress(OSError):
        temporary = Path(tempfile.gettempdir())
        for name in os.listdir(temporary):  # noqa: PTH208 - names, of a folder that others change meanwhile
            if FOLDER_NAME.fullmatch(name):
                with contextlib.suppress(OSError):  # a living process holds it, or another run removes it too
                    _remove(temporary / name)


def held_folder() -> tuple[Path, int]:
    """Return a new folder, and the handle that holds its lock; a program that inherits the handle keeps the folder.

    Raises: OutputError if it cannot be made.
    """
    try:
        while True:
            path = Path(tempfile.mkdtemp(prefix=FOLDER_PREFIX))
            with contextlib.suppress(FileNotFoundError):  # another run removed it before it was locked: make another
                handle = os.open(path, os.O_RDONLY)
                if hold(path, handle):
                    return path, handle
    except OSError as error:
        raise OutputError(f"no scratch folder can be made: {error.strerror or error}: set TMPDIR") from error


def _remove(path: Path) -> None:
    """Remove a folder whose process has ended, if it belongs to this user and is closed to all others.

    `scratch_folder` makes only such folders. They are checked by the open handle: another folder may get the name.

    Raises: OSError if a living process holds it.
    """
    with left_behind(path) as handle:
        status = os.fstat(handle)
        if status.st_uid == os.geteuid() and stat.S_ISDIR(status.st_mode) and not status.st_mode & 0o077:
            shutil.rmtree(path, ignore_errors=True)
