"""Locks of open files and folders, which the kernel releases whichever way their process ends.

A process holds the lock of what it makes for itself alone (a temporary file, a scratch folder) while it lives. So what
another process can lock was left behind by one that was killed, and may be removed. On a file system without locks
nobody waits for anybody, and nothing is taken for left behind.
"""

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

WITHOUT_LOCKS: Final = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""How a file system says that it has no locks."""


def lock(handle: int, kind: int = fcntl.LOCK_EX) -> None:
    """Wait for the lock of an open file or folder, and hold it until the file is closed.

    Raises: OSError, but not on a file system without locks.
    """
    try:
        fcntl.flock(handle, kind)
    except OSError as error:
        if error.errno not in WITHOUT_LOCKS:
            raise


def hold(path: Path, handle: int) -> bool:
    """Hold the lock of something new that this process has opened; close it and return False if it is gone.

    It is gone if another process took it for left behind before the lock was held. The lock is a shared one: a network
    file system wants write access for an exclusive one, which nobody has to a folder.
    """
    lock(handle, fcntl.LOCK_SH)
    if stands(path, handle):
        return True
    os.close(handle)
    return False


@contextlib.contextmanager
def left_behind(path: Path) -> Iterator[int]:
    """Open and lock a file or folder whose process is no more.

    Raises: OSError if a living process holds it, or it cannot be opened or locked.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield handle
    finally:
        os.close(handle)


def stands(path: Path, handle: int) -> bool:
    """Return whether an open file is still the one of that name."""
    try:
        return os.path.samestat(path.lstat(), os.fstat(handle))
    except FileNotFoundError:
        return False
