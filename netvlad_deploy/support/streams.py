"""Standard output of the whole process, also of libraries written in C, sent to standard error for a while."""

import ctypes
import os
import sys
import threading
from contextlib import AbstractContextManager
from typing import Final


class _Redirection:
    """The redirection of descriptor 1 to descriptor 2.

    Descriptors belong to the whole process, so threads that need the redirection at once share one and are counted:
    if each saved and restored by itself, one could save what another had redirected, and restore that for good.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = self._saved = 0

    def __enter__(self) -> None:
        with self._lock:
            if not self._users:
                _flush()
                self._saved = os.dup(1)
                os.dup2(2, 1)
            self._users += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._users -= 1
            if not self._users:
                _flush()
                os.dup2(self._saved, 1)
                os.close(self._saved)


_REDIRECTION: Final = _Redirection()


def _flush() -> None:
    """Flush the buffers of Python and of the C library, so that their text goes where descriptor 1 leads now."""
    if sys.stdout is not None:
        sys.stdout.flush()
    ctypes.CDLL(None).fflush(None)


def stdout_to_stderr() -> AbstractContextManager[None]:
    """Send file descriptor 1 to descriptor 2: TensorRT's compiler writes warnings past its logger.

    Several threads may be inside at once: the first redirects, the last restores.
    """
    return _REDIRECTION
