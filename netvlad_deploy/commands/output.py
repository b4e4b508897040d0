"""How a verb ends: its result on standard output, its verdict as the exit code."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, TextIO, TypeVar, cast

import typer

from netvlad_deploy.errors import NetVLADDeployError, OutputError
from netvlad_deploy.report.escape import printable
from netvlad_deploy.spec.verdict import Verdict

_Result = TypeVar("_Result")

READER_GONE = 141
"""Exit code where whoever reads standard output has closed it: what a shell says of a process ended by SIGPIPE."""


def render(verb: str, result: Any, lines: Callable[[Any], list[str]], as_json: bool) -> None:
    """Print a result as lines or as JSON."""
    from netvlad_deploy.report.serialize import to_json

    typer.echo(to_json(verb, result) if as_json else "\n".join(map(printable, lines(result))))


def leave(verdict: Verdict, allow_not_run: bool) -> NoReturn:
    """End with the exit code of a verdict."""
    not_run = 0 if allow_not_run else 69
    codes = {Verdict.PASS: 0, Verdict.FAIL: 1, Verdict.NOT_JUDGED: 1, Verdict.NOT_RUN: not_run}
    raise typer.Exit(codes[verdict])


@contextlib.contextmanager
def standard_streams() -> Iterator[None]:
    """Keep what is printed from getting lost without a word, and from getting into files.

    A standard stream that is closed is opened on nothing, since the next file that is opened would take its number,
    and get what libraries print. Standard output is flushed before the end, where an error still has an exit code;
    standard error may be lost.

    Raises: OutputError if standard output is closed, or did not take all; SystemExit with READER_GONE if its reader
        has closed it.
    """
    while (spare := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(spare)
    if sys.stderr is None:
        sys.stderr = _nothing()
    if sys.stdout is None:
        sys.stdout = _nothing()
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
        if watched.error is not None:
            _discard(stdout)
            raise _lost(watched.error) from watched.error


class _Watched:
    """Standard output that remembers what it could not write: Typer takes some of it for an end of its own."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.error: OSError | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        return self._watch(lambda: self._stream.write(text))

    def flush(self) -> None:
        self._watch(self._stream.flush)

    def _watch(self, act: Callable[[], _Result]) -> _Result:
        try:
            return act()
        except OSError as error:
            self.error = error
            raise


def flush_errors() -> None:
    """Flush standard error, which may be lost: the exit code of a verb does not depend on it."""
    try:
        sys.stderr.flush()
    except OSError:
        _discard(sys.stderr)


def _lost(error: OSError) -> NetVLADDeployError | SystemExit:
    if isinstance(error, BrokenPipeError):
        return SystemExit(READER_GONE)
    return OutputError(f"standard output cannot be written: {error.strerror or error}")


def _nothing() -> TextIO:
    return open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123 - lives as long as the process


def _discard(stream: TextIO) -> None:
    """Let what a stream still holds go to nothing: Python flushes it once more at the very end."""
    with _nothing() as nothing:
        os.dup2(nothing.fileno(), stream.fileno())
