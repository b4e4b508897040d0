"""Scratch that outlives no process by more than one run: whoever makes it holds its lock, and the next run looks."""

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

PREFIX: Final = "netvlad-deploy-scratch-"
"""How every scratch folder begins: `sweep` looks at no other. A user's own folder must not be taken for one."""

SCRATCH_NAME: Final = re.compile(rf"{re.escape(PREFIX)}[a-z0-9_]{{8}}")
"""Source: the eight characters after the prefix are those of Python's `tempfile`."""


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """Make a folder for this user alone in the temporary folder, and remove it in the end with all that is in it.

    What killed processes have left is removed first.

    Raises: OutputError if there is no temporary folder, or it cannot be written.
    """
    sweep()
    folder, handle = _held()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(handle)


def sweep() -> None:
    """Remove this user's scratch folders of processes that are no more, as far as that is possible."""
    with contextlib.suppress(OSError):
        temporary = Path(tempfile.gettempdir())
        for name in os.listdir(temporary):  # noqa: PTH208 - names, of a folder that others change meanwhile
            if SCRATCH_NAME.fullmatch(name):
                with contextlib.suppress(OSError):  # a living process holds it, or another run removes it
                    _remove(temporary / name)


def _held() -> tuple[Path, int]:
    """Return a new folder under its lock.

    Raises: OutputError if it cannot be made.
    """
    try:
        while True:
            path = Path(tempfile.mkdtemp(prefix=PREFIX))
            with contextlib.suppress(FileNotFoundError):  # another run took it for left behind already
                handle = os.open(path, os.O_RDONLY)
                if hold(path, handle):
                    return path, handle
    except OSError as error:
        raise OutputError(f"no scratch folder can be made: {error.strerror or error}: set TMPDIR") from error


def _remove(path: Path) -> None:
    """Remove a folder that is left behind, if it is as `scratch_folder` makes them: this user's, and closed to others.

    Raises: OSError if a living process holds it.
    """
    with left_behind(path) as handle:
        status = os.fstat(handle)
        if status.st_uid == os.geteuid() and stat.S_ISDIR(status.st_mode) and not status.st_mode & 0o077:
            shutil.rmtree(path, ignore_errors=True)
