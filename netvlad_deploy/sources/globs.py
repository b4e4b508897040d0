"""Patterns of paths, such as `photos/*/*.jpg`, typed in quotes so that no shell expands them."""

import fnmatch
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from netvlad_deploy.errors import InputError, UsageError

WILD = "*?["


def is_pattern(text: str) -> bool:
    """Return True if a text has a wildcard, and is not itself the name of something.

    >>> is_pattern("photos/*.jpg"), is_pattern("photos")
    (True, False)
    """
    return any(sign in text for sign in WILD) and not os.path.lexists(text)


def fixed_folder(pattern: str) -> Path:
    """Return the folder before the first wildcard, from which names go.

    >>> str(fixed_folder("data/seq*/left/*.png"))
    'data'
    """
    parts = Path(pattern).parts
    first = next(place for place, part in enumerate(parts) if any(sign in part for sign in WILD))
    return Path(*parts[:first])


def expand(pattern: str) -> Iterator[Path]:
    """Yield the files and folders that a pattern fits, sorted in each folder; `**` stands for any folders.

    As in a shell, a wildcard fits no hidden name. One folder's names are held at a time, for each wildcard.

    Raises: InputError if nothing fits; UsageError if `**` stands in it twice.
    """
    root = fixed_folder(pattern)
    parts = Path(pattern).parts[len(root.parts) :]
    if parts.count("**") > 1:
        raise UsageError(f"{pattern} has ** twice: one stands for any number of folders")
    found = False
    for path in _fitting(root, parts):
        found = True
        yield path
    if not found:
        raise InputError(f"{pattern} fits no file: name folders or images")


def _fitting(folder: Path, parts: Sequence[str]) -> Iterator[Path]:
    """Yield what fits the rest of a pattern below a folder."""
    if not parts or list(parts) == ["**"]:
        yield folder
        return
    first, *rest = parts
    if first == "**":
        yield from _fitting(folder, rest)
    elif not any(sign in first for sign in WILD):
        if os.path.lexists(folder / first):
            yield from _fitting(folder / first, rest)
        return
    for name in _names(folder):
        path = folder / name
        if first == "**":
            if path.is_dir() and not path.is_symlink():
                yield from _fitting(path, parts)
        elif fnmatch.fnmatchcase(name, first) and (not rest or path.is_dir()):
            yield from _fitting(path, rest)


def _names(folder: Path) -> list[str]:
    try:
        return sorted(name for name in os.listdir(folder) if not name.startswith("."))  # noqa: PTH208 - only the names
    except OSError:
        return []  # it cannot be searched, or is no folder: nothing in it fits
