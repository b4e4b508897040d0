"""Lists of paths: a file, or standard input, with one path on each line."""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final

from netvlad_deploy.errors import ArtifactError, InputError
from netvlad_deploy.spec.items import Skipped, printable
from netvlad_deploy.support.files import open_regular
from netvlad_deploy.support.limits import MAX_PATH_BYTES

STANDARD_INPUT: Final = "-"
MISSING: Final = "missing"


def read_list(listing: str) -> Iterator[Path | Skipped]:
    """Yield the path on each line of a list, relative to the working directory; blank lines are left out.

    One that leads nowhere is skipped with its line. One line is held at a time.

    Raises: InputError if the list cannot be read, or a line is no path.
    """
    name = "standard input" if listing == STANDARD_INPUT else listing
    with _opened(listing) as stream:
        number = 0
        while line := stream.readline(MAX_PATH_BYTES + 3):
            number += 1
            text = line.rstrip(b"\r\n")
            if len(text) > MAX_PATH_BYTES or b"\0" in text:
                fault = "a NUL" if b"\0" in text else f"more than {MAX_PATH_BYTES} bytes"
                raise InputError(f"{name}, line {number} has {fault}: write one path on each line")
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
        yield sys.stdin.buffer
        return
    try:
        with open_regular(Path(listing)) as stream:
            yield stream
    except ArtifactError as error:
        raise InputError(str(error)) from error
