"""What a parser is to the fuzzer."""

import contextlib
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from netvlad_deploy.support.sidecar import Form, seal


@dataclass(frozen=True, kw_only=True)
class Parser:
    """Something that reads files of one kind, and how much more memory than sound files a damaged one may take.

    `may_ask` is True where the library asks for as many bytes as a record claims, before it reads what is there: that
    is address space which is never touched, and an error of one line where even that is too much.
    """

    suffix: str
    seeds: Callable[[], list[bytes]]
    read: Callable[[Path], object]
    largest_mib: int = 256
    may_ask: bool = False


def written(suffix: str, write: Callable[[Path], object]) -> bytes:
    """Return the bytes of the file that a function writes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"seed{suffix}"
        write(path)
        return path.read_bytes()


def sealed(content: bytes, form: Form) -> bytes:
    """Return JSON with its own hash made anew, so that what reads its fields is reached, where it is JSON still."""
    with contextlib.suppress(ValueError, RecursionError):
        record = json.loads(content)
        if isinstance(record, dict):
            return seal({name: record[name] for name in record if name != form.hash_name}, form)
    return content
