"""What is embedded, one item after another, and what could not be."""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from netvlad_deploy.support.arrays import Array

UNREADABLE = "unreadable"
MOST_NAME_CHARACTERS = 4_095
"""Longest name of an item, as of a path."""

_SURROGATE = re.compile("[\ud800-\udfff]")
"""Half a character, which stands for a byte that is not UTF-8."""

Content: TypeAlias = bytes | Array
"""An encoded image; or the pixels of one, uint8 (H,W,3) RGB; or local descriptors (N,D), float32 or float16."""

Load: TypeAlias = Callable[[], Content]
"""Reads an item. It may be called in any thread, once.

It raises InputError where the item cannot be read, in one line that names its file: this item is skipped, and the
others go on.
"""


@dataclass(frozen=True, kw_only=True)
class Item:
    """One thing to embed: an image, or the local descriptors of one.

    Args:
        name: its name among the descriptors, unique in a run, printable.
        path: the file that holds it.
        part: where it stands in this file: a key, a row, a message; empty if it is the file.
        size_bytes: bytes of it, or of the file if the part's are not known.
        modified_ns: when the file was changed last, as `os.stat` says.
        time_ns: its time stamp in nanoseconds, None where its source has none.
    """

    name: str
    path: Path
    part: str = ""
    size_bytes: int
    modified_ns: int
    time_ns: int | None = None

    @property
    def place(self) -> str:
        """Return where it is, for a message: the file, and which part of it."""
        return printable(self.path) + (f" [{self.part}]" if self.part else "")


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """A file that gave no descriptor: `reason` is one of few, to count by, `detail` is about this file."""

    path: str
    reason: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}" + (f" ({self.detail})" if self.detail else "")


def count_reasons(skipped: Iterable[Skipped]) -> str:
    """Return the number of skipped files for each reason in words, empty if there is none."""
    return reason_words(Counter(one.reason for one in skipped))


def reason_words(reasons: Mapping[str, int]) -> str:
    """Return how many files were skipped for each reason in words, the most frequent first.

    >>> reason_words({"unreadable": 1, "an empty file": 2})
    '2 an empty file, 1 unreadable'
    """
    return ", ".join(f"{count} {reason}" for reason, count in Counter(reasons).most_common())


def is_name(name: str) -> bool:
    """Return True if every file of descriptors can hold a name: some characters of Unicode, not too many, no NUL.

    >>> is_name("walk/1.jpg"), is_name(""), is_name("a" * 5000)
    (True, False, False)
    """
    return 0 < len(name) <= MOST_NAME_CHARACTERS and "\0" not in name and not _SURROGATE.search(name)


def printable(path: Path | str) -> str:
    """Return a path as text that can be printed and written: bytes that are not UTF-8 become escapes."""
    return os.fsencode(os.path.normpath(path)).decode(errors="backslashreplace")
