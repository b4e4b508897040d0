"""Child processes that do one job for this process, and end with it.

Parent and child exchange messages: a line of JSON, and as many bytes as the line says. The child's log records and how
far its work is are said in the parent, an error of this package is raised there as the same class, and the output of
libraries goes to standard error. Ctrl-C reaches the parent alone, which kills its children. If the parent itself is
killed, the kernel kills its children (on Linux), or they end at their next read.
"""

import contextlib
import ctypes
import importlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from typing import IO, Any, Final

from netvlad_deploy import errors
from netvlad_deploy.errors import NetVLADDeployError, RunError
from netvlad_deploy.support.progress import Progress, watched_by

LOG = logging.getLogger(__name__)
_PACKAGE_LOG = logging.getLogger("netvlad_deploy")

PR_SET_PDEATHSIG: Final = 1
"""Option of prctl: the kernel sends a signal when the thread that started this process ends. Source: prctl(2)."""

EXIT_TIMEOUT_S: Final = 5
"""Seconds that a child has to end after it has closed its pipe; then it is killed."""

SEND_S: Final = 0.1
"""Least seconds between two messages about work that goes on."""

# The parent's import path is passed on: the child must find the same modules, also those of the working folder.
CHILD_PROGRAM: Final = (
    "import sys; module, parent, level, sys.path[:] = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]; "
    "from netvlad_deploy.support.children import run; run(module, parent, level)"
)


class Channel:
    """The two pipes on which this process and another exchange messages."""

    def __init__(self, reading: IO[bytes], writing: IO[bytes]) -> None:
        self._reading, self._writing = reading, writing
        self._lock = threading.Lock()  # a child's threads log while it answers: a message must not be cut by another

    def send(self, message: Mapping[str, Any], content: bytes = b"") -> None:
        """Send a message, whose values JSON can hold or are paths, followed by bytes.

        Raises: OSError if the other process no longer reads.
        """
        line = json.dumps({"message": message, "size_bytes": len(content)}, default=os.fspath)
        with self._lock:
            self._writing.write(line.encode() + b"\n")
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
    """A process that works for this one, and is killed at the end of the `with` block.

    Args:
        module: the module whose `serve(channel)` the process runs.
        name: the name of the process in error messages.
        environment: variables added to those of this process.
        failure: the error that is raised if the process dies.
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
        self._works: dict[str, Progress] = {}
        self._process = subprocess.Popen(
            [
                *(sys.executable, f"-Xutf8={sys.flags.utf8_mode}", "-c", CHILD_PROGRAM),
                *(module, str(os.getpid()), str(_PACKAGE_LOG.getEffectiveLevel()), *sys.path),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **(environment or {})},
            start_new_session=True,  # Ctrl-C is for this process, which then ends its children
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._channel = Channel(self._process.stdout, self._process.stdin)
        LOG.debug("started %s of %s: %d", name, module, self._process.pid)

    def __enter__(self) -> "Child":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        with contextlib.suppress(OSError), self._process:  # its end closes the pipes, and waits
            pass  # closing flushes, which fails for a message that the dead child can no longer read

    @property
    def pid(self) -> int:
        """Return the number of the process."""
        return self._process.pid

    def send(self, message: Mapping[str, Any], content: bytes = b"") -> None:
        """Send the child a message and bytes.

        Raises: `failure` if the child has died.
        """
        try:
            self._channel.send(message, content)
        except OSError as error:
            raise self._death() from error

    def receive(self) -> tuple[dict[str, Any], bytes]:
        """Return the child's next answer and its bytes; log records that come before it go to the log of this process.

        Raises: the error of this package that the child ended with; `failure` if it has died.
        """
        while True:
            try:
                message, content = self._channel.receive()
            except (EOFError, ValueError) as error:
                raise self._death() from error
            if "log" in message:
                name, level, text = message["log"]
                logging.getLogger(name).log(level, "%s", text)
            elif "progress" in message:
                self._follow(*message["progress"])
            elif "error" in message:
                raise getattr(errors, message["error"])(message["reason"])
            else:
                return message, content

    def _follow(self, what: str, done: int, total: int, unit: str, line_s: float) -> None:
        """Say here how far a work of the child is."""
        if not done or what not in self._works:
            self._works[what] = Progress(what, total, unit, line_s=line_s)
        self._works[what].reach(done)

    def _death(self) -> NetVLADDeployError:
        try:
            code = self._process.wait(timeout=EXIT_TIMEOUT_S)
        except subprocess.TimeoutExpired:  # the child closed its pipe and runs on: it will never answer again
            self._process.kill()
            code = self._process.wait()
        return self.failure(f"{self.name} {ending(code)}")


def ending(code: int) -> str:
    """Say in words how a process ended, from its return code in `subprocess`.

    >>> ending(3), ending(-15)
    ('ended with exit code 3', 'was killed by SIGTERM')
    """
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"was killed by {name}" + (", as a system does that has no memory left" if name == "SIGKILL" else "")


class _ToParent(logging.Handler):
    """A log handler that sends every record to the parent."""

    def __init__(self, channel: Channel) -> None:
        super().__init__()
        self._channel = channel

    def emit(self, record: logging.LogRecord) -> None:
        self._channel.send({"log": [record.name, record.levelno, record.getMessage()]})


class _ProgressToParent:
    """A watcher that sends the parent how far each work is: its start, its end, and some of what is between."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._sent_s = 0.0

    def __call__(self, work: Progress) -> None:
        if 0 < work.done < work.total and time.monotonic() - self._sent_s < SEND_S:
            return
        self._sent_s = time.monotonic()
        self._channel.send({"progress": [work.what, work.done, work.total, work.unit, work.line_s]})


def run(module: str, parent: int, level: int) -> None:
    """Run `serve` of a module in this process, a child, until it returns or the parent ends.

    `level` is the least level of the records that go to the parent's log.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # the parent ended before prctl was called: no signal will come
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Libraries print to standard output: answers keep its pipe, and file descriptor 1 becomes standard error.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    channel = Channel(sys.stdin.buffer, answers)
    _PACKAGE_LOG.setLevel(level)
    _PACKAGE_LOG.addHandler(_ToParent(channel))
    try:
        with watched_by(_ProgressToParent(channel)):
            importlib.import_module(module).serve(channel)
    except NetVLADDeployError as error:
        channel.send({"error": type(error).__name__, "reason": str(error)})
    except (EOFError, BrokenPipeError):
        os._exit(0)  # the parent is gone: an ordinary exit would flush into its closed pipe and fail
