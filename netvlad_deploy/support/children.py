"""Processes that do one job for this one, and end with it.

A child runs `serve(channel)` of a module of this package with the import path of its parent. Both talk in messages: a
line of JSON and the bytes it announces. The child's log goes to the log of its parent, an error of this package is
raised there as what it is, and whatever libraries print goes to standard error.

Ctrl-C is for the parent, which kills its children. Should it be killed itself, the kernel kills them (Linux), or they
end when they next read.
"""

import contextlib
import ctypes
import fcntl
import importlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from typing import IO, Any, Final

from netvlad_deploy import errors
from netvlad_deploy.errors import NetVLADDeployError, RunError

PR_SET_PDEATHSIG: Final = 1
"""Source: Linux, prctl(2). The signal comes when the thread ends that started the child: it is the one that waits."""

PIPE_BYTES: Final = 1 << 20
"""Source: Linux, pipe(7): /proc/sys/fs/pipe-max-size, as it is by default."""

LAST_BREATH_S: Final = 5
"""How long a child may take to end after it has closed its pipe."""

BOOT: Final = (
    "import sys; module, parent, sys.path[:] = sys.argv[1], int(sys.argv[2]), sys.argv[3:]; "
    "from netvlad_deploy.support.children import run; run(module, parent)"
)


class Channel:
    """Messages to and from another process."""

    def __init__(self, reading: IO[bytes], writing: IO[bytes]) -> None:
        self._reading, self._writing = reading, writing
        self._lock = threading.Lock()

    def send(self, message: Mapping[str, Any], content: bytes = b"") -> None:
        """Send a message, which JSON must be able to hold, and bytes.

        Raises: OSError if nobody reads.
        """
        with self._lock:
            self._writing.write(json.dumps({"message": message, "size_bytes": len(content)}).encode() + b"\n")
            self._writing.write(content)
            self._writing.flush()

    def receive(self) -> tuple[dict[str, Any], bytes]:
        """Return the next message and its bytes.

        Raises: EOFError if the other process has ended.
        """
        line = self._reading.readline()
        if not line.endswith(b"\n"):
            raise EOFError
        header = json.loads(line)
        content = self._reading.read(header["size_bytes"])
        if len(content) != header["size_bytes"]:
            raise EOFError
        return header["message"], content


class Child:
    """A process that works for this one; leaving it kills it.

    Args:
        module: the module whose `serve` it runs.
        name: what errors call it.
        environment: variables beside those of this process.
        failure: what is raised if it dies.
    """

    def __init__(
        self,
        module: str,
        name: str,
        *,
        environment: Mapping[str, str] | None = None,
        failure: type[NetVLADDeployError] = RunError,
    ) -> None:
        self.name, self.failure = name, failure
        self._process = subprocess.Popen(
            [sys.executable, f"-Xutf8={sys.flags.utf8_mode}", "-c", BOOT, module, str(os.getpid()), *sys.path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **(environment or {})},
            start_new_session=True,  # Ctrl-C is for this process, which then ends its children
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        for stream in (self._process.stdin, self._process.stdout):
            _widen(stream)
        self._channel = Channel(self._process.stdout, self._process.stdin)

    def __enter__(self) -> "Child":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            with contextlib.suppress(OSError):  # what it was to read is lost with it
                stream.close()

    def send(self, message: Mapping[str, Any], content: bytes = b"") -> None:
        """Send a message.

        Raises: `failure` if the child has died.
        """
        try:
            self._channel.send(message, content)
        except OSError as error:
            raise self._death() from error

    def receive(self) -> tuple[dict[str, Any], bytes]:
        """Return the child's next answer, and log what it has logged until then.

        Raises: the error of this package that it ended with; `failure` if it has died.
        """
        while True:
            try:
                message, content = self._channel.receive()
            except (EOFError, ValueError) as error:
                raise self._death() from error
            if "log" in message:
                name, level, text = message["log"]
                logging.getLogger(name).log(level, "%s", text)
            elif "error" in message:
                raise getattr(errors, message["error"])(message["reason"])
            else:
                return message, content

    def _death(self) -> NetVLADDeployError:
        try:
            code = self._process.wait(timeout=LAST_BREATH_S)
        except subprocess.TimeoutExpired:  # it goes on, and says nothing any more
            self._process.kill()
            code = self._process.wait()
        return self.failure(f"{self.name} {ending(code)}")


def _widen(pipe: IO[bytes]) -> None:
    """Let a pipe hold as much as Linux allows every user, which halves the time that an engine takes through it."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):  # a user with many pipes may be refused; it works as it is
            fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)


def ending(code: int) -> str:
    """Say how a process ended, by the code that `subprocess` gives."""
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"was killed by {name}" + (", as a system does that has no memory left" if name == "SIGKILL" else "")


class _ToParent(logging.Handler):
    """Send what is logged to the parent."""

    def __init__(self, channel: Channel) -> None:
        super().__init__()
        self._channel = channel

    def emit(self, record: logging.LogRecord) -> None:
        """Send one record."""
        self._channel.send({"log": [record.name, record.levelno, record.getMessage()]})


def run(module: str, parent: int) -> None:
    """Be a child: run `serve` of a module until it returns or the parent ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it has ended before that was said
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    channel = Channel(sys.stdin.buffer, answers)
    logger = logging.getLogger("netvlad_deploy")
    logger.setLevel(logging.INFO)
    logger.addHandler(_ToParent(channel))
    try:
        importlib.import_module(module).serve(channel)
    except NetVLADDeployError as error:
        channel.send({"error": type(error).__name__, "reason": str(error)})
    except (EOFError, BrokenPipeError):
        os._exit(0)  # nobody is left to tell
