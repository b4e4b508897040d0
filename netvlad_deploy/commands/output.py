"""End a verb: print its result, and turn its verdict into an exit code."""

import contextlib
import os
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, TextIO, cast

import typer

from netvlad_deploy.commands.terminal import has_colours, with_verdict_painted
from netvlad_deploy.errors import OutputError
from netvlad_deploy.report.escape import printable
from netvlad_deploy.spec.verdict import Verdict

READER_GONE = 141
"""Exit code if the reader of standard output has closed it: the code of a process that SIGPIPE ends, 128 + 13."""


class Shown(NamedTuple):
    """What a verb ends with: its result, the function that makes lines of it, and the exit code.

    `kind` is the verb under which its JSON stands, where that is another than the one that was typed.
    """

    result: Any
    lines: Callable[[Any], list[str]]
    exit_code: int = 0
    kind: str = ""


def render(verb: str, shown: Shown, *, as_json: bool) -> None:
    """Print a result as lines, verdicts in colours on a terminal, or as JSON."""
    from netvlad_deploy.report.serialize import to_json

    if as_json:
        typer.echo(to_json(shown.kind or verb, shown.result))
        return
    lines: Iterable[str] = map(printable, shown.lines(shown.result))
    typer.echo("\n".join(map(with_verdict_painted, lines) if has_colours(sys.stdout) else lines))


def command_line() -> str:
    """Return the command as it was typed, quoted for a shell."""
    return shlex.join(["netvlad-deploy", *sys.argv[1:]])


def code_of(verdict: Verdict, allow_not_run: bool) -> int:
    """Return the exit code of a verdict, 0 for NOT_RUN if that is allowed."""
    not_run = 0 if allow_not_run else 69
    return {Verdict.PASS: 0, Verdict.FAIL: 1, Verdict.NOT_JUDGED: 1, Verdict.NOT_RUN: not_run}[verdict]


@contextlib.contextmanager
def standard_streams() -> Iterator[None]:
    """Report output that is lost, and keep the output of libraries out of files.

    A standard stream that is closed is opened on /dev/null: otherwise the next file that is opened takes its number,
    and gets the output of libraries. Standard output is flushed before the end, when an error can still set the exit
    code; standard error may be lost.

    Raises: OutputError if standard output is closed, or did not take all; SystemExit with READER_GONE if its reader
        has closed it.
    """
    while (spare := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(spare)
    if sys.stderr is None:
        sys.stderr = _open_devnull()
    if sys.stdout is None:
        sys.stdout = _open_devnull()
        raise OutputError("standard output is closed: send it to /dev/null if it is not wanted")
    stdout = sys.stdout
    watched = _Watched(stdout)
    sys.stdout = cast(TextIO, watched)
    try:
        yield
    finally:
        sys.stdout = stdout
        flush_errors()
        with contextlib.suppress(OSError):
            watched.flush()
        if (error := watched.error) is not None:
            _discard(stdout)
            if isinstance(error, BrokenPipeError):
                raise SystemExit(READER_GONE) from error
            raise OutputError(f"standard output cannot be written: {error.strerror or error}") from error


class _Watched:
    """Standard output that remembers an error of writing: Typer takes some of them for a reason to exit."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.error: OSError | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with self._remembered():
            return self._stream.write(text)

    def flush(self) -> None:
        with self._remembered():
            self._stream.flush()

    @contextlib.contextmanager
    def _remembered(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.error = error
            raise


def flush_errors() -> None:
    """Flush standard error, which may be lost: the exit code of a verb does not depend on it."""
    try:
        sys.stderr.flush()
    except OSError:
        _discard(sys.stderr)


def _open_devnull() -> TextIO:
    return open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123 - lives as long as the process


def _discard(stream: TextIO) -> None:
    """Send the text that a stream still holds to /dev/null, since Python flushes it once more at the very end."""
    with _open_devnull() as devnull:
        os.dup2(devnull.fileno(), stream.fileno())
