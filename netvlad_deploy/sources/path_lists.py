"""Lists of paths: a file, or standard input, with one path on each line."""

import codecs
import contextlib
import functools
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final

from netvlad_deploy.errors import ArtifactError, InputError, OutputError
from netvlad_deploy.spec.items import Skipped, printable
from netvlad_deploy.support.files import open_regular
from netvlad_deploy.support.limits import MAX_PATH_BYTES

STANDARD_INPUT: Final = "-"
MISSING: Final = "missing"
KEPT_BYTES: Final = 1 << 20
"""Bytes of standard input that are kept in memory; more of them go to a temporary file."""


def read_list(listing: str) -> Iterator[Path | Skipped]:
    """Yield the path on each line of a list, relative to the working directory; blank lines are left out.

    One that leads nowhere is skipped with its line. One line is held at a time. Standard input is kept when it is read
    first, and so it can be listed again, which a run does to compare its inputs with those of its plan.

    Raises: InputError if the list cannot be read, or a line is no path; OutputError if there is no room to keep
        standard input.
    """
    name = "standard input" if listing == STANDARD_INPUT else listing
    with _opened(listing) as stream:
        number = 0
        while line := stream.readline(MAX_PATH_BYTES + 3):
            number += 1
            text = line.rstrip(b"\r\n")
            if number == 1:
                text = text.removeprefix(codecs.BOM_UTF8)  # editors of Windows write it
            if len(text) > MAX_PATH_BYTES or b"\0" in text:
                fault = "a NUL" if b"\0" in text else f"more than {MAX_PATH_BYTES} bytes"
                raise InputError(f"{name}, line {number} has {fault}: write one path on each line, in UTF-8")
            if not text.strip():
                continue
            path = Path(os.fsdecode(text))
            if os.path.exists(path):  # noqa: PTH110 - Path.exists raises for a name that is too long
                yield path
            else:
                yield Skipped(path=printable(path), reason=MISSING, detail=f"line {number} of {name}")


@contextlib.contextmanager
def _opened(listing: str) -> Iterator[IO[bytes]]:
    if listing == STANDARD_INPUT:
        stream = _kept(sys.stdin.buffer)
        stream.seek(0)
        yield stream
        return
    try:
        with open_regular(Path(listing)) as stream:
            yield stream
    except ArtifactError as error:
        raise InputError(str(error)) from error


@functools.lru_cache(maxsize=1)
def _kept(stream: IO[bytes]) -> IO[bytes]:
    """Return the content of a stream that can be read only once, as a file that can be read again."""
    kept = tempfile.SpooledTemporaryFile(max_size=KEPT_BYTES)  # noqa: SIM115 - open as long as the process
    try:
        shutil.copyfileobj(stream, kept)
    except OSError as error:
        raise OutputError(f"standard input cannot be kept: {error.strerror or error}: set TMPDIR") from error
    return kept
