"""One process at a time at a piece of work, known by a file that says who it is.

The kernel releases the lock of the file when its process ends, however it ends: so a file that can be locked is of
nobody, whatever stands in it.
"""

import contextlib
import fcntl
import json
import os
import platform
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path

from netvlad_deploy.errors import InUseError, OutputError
from netvlad_deploy.support.formats import shown
from netvlad_deploy.support.locks import lock, stands

MOST_CLAIM_BYTES = 4096
"""Bytes that are read of a claim: a process, a host and a time take far less."""


@contextlib.contextmanager
def claimed(path: Path, *, shared: bool = False, wait: bool = False) -> Iterator[None]:
    """Hold a piece of work, which has the file `path` meanwhile; several processes may share it.

    The folder of the file must be there. Where a file system has no locks, nobody is refused.

    Args:
        path: the file that stands for the work; it goes when nobody holds it any more.
        shared: hold it together with others that share it.
        wait: wait for whoever holds it, in place of being refused.

    Raises: InUseError naming the process, its host and since when it holds the work; OutputError if the file cannot be
        written.
    """
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    handle = _open(path, kind if wait else kind | fcntl.LOCK_NB)
    try:
        _write(handle)
        yield
    finally:
        with contextlib.suppress(OSError):  # others share it, or the folder is gone
            lock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if stands(path, handle):
                path.unlink()
        os.close(handle)


def _open(path: Path, kind: int) -> int:
    """Return the handle of the file, locked, while it still stands at its path."""
    while True:
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, 0o666)
        except OSError as error:
            raise OutputError(f"{path} cannot be written: {error.strerror or error}") from error
        with contextlib.ExitStack() as undo:
            undo.callback(os.close, handle)
            try:
                lock(handle, kind)
            except BlockingIOError:
                raise InUseError(f"{path.parent} is in use by {_holder(handle)}: wait until it ends") from None
            except OSError as error:
                raise OutputError(f"{path} cannot be locked: {error.strerror or error}") from error
            if stands(path, handle):  # whoever held it before may have removed it
                undo.pop_all()
                return handle


def _write(handle: int) -> None:
    """Write who holds the file, for whoever is refused; a full disk refuses nobody who reads."""
    since = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")
    text = json.dumps({"pid": os.getpid(), "host": platform.node(), "since": since})
    with contextlib.suppress(OSError):
        os.ftruncate(handle, 0)
        os.pwrite(handle, text.encode(), 0)


def _holder(handle: int) -> str:
    """Return in words who wrote the file."""
    try:
        record = json.loads(os.pread(handle, MOST_CLAIM_BYTES, 0))
        return f"process {int(record['pid'])} on {shown(str(record['host']))} since {shown(str(record['since']))}"
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return "another process"
