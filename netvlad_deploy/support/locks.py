"""Locks of open files and folders, which the kernel releases whichever way their process ends.

A process holds the lock of each temporary file and scratch folder that it makes, while it lives. So a temporary file
that another process can lock was left behind by a process that was killed, and may be removed. On a file system without
locks no process waits for another, and no file is taken for left behind.
"""

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

NO_LOCKS_ERRNOS: Final = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""Error numbers of a file system that has no locks."""


def lock(handle: int, kind: int = fcntl.LOCK_EX) -> None:
    """Wait for the lock of an open file or folder, and hold it until the file is closed.

    Raises: OSError, but not on a file system without locks.
    """
    try:
        fcntl.flock(handle, kind)
    except OSError as error:
        if error.errno not in NO_LOCKS_ERRNOS:
            raise


def hold(path: Path, handle: int) -> bool:
    """Lock a new file or folder that this process has opened; return False, with it closed, if it was removed.

    Another process may have taken it for left behind, and removed it, between its creation and the lock.
    """
    # A shared lock is enough to make `left_behind` fail. For an exclusive one network file systems want write access,
    # which nobody has to a folder.
    lock(handle, fcntl.LOCK_SH)
    if stands(path, handle):
        return True
    os.close(handle)
    return False


@contextlib.contextmanager
def left_behind(path: Path) -> Iterator[int]:
    """Open and lock a file or folder whose process has ended, and yield its handle.

    Raises: OSError if a living process holds it, or it cannot be opened or locked.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield handle
    finally:
        os.close(handle)


def stands(path: Path, handle: int) -> bool:
    """Return True if an open file is still the file at its path: it may have been removed or replaced."""
    try:
        return os.path.samestat(path.lstat(), os.fstat(handle))
    except FileNotFoundError:
        return False
