"""What every source of items can do: list them, and open a part of them in order."""

import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from netvlad_deploy.errors import ArtifactError, UnfitError
from netvlad_deploy.spec.items import UNREADABLE, Item, Load, Skipped
from netvlad_deploy.support.files import open_regular

MAX_ENCODED_BYTES: Final = 1 << 30
"""Most bytes of an image file: the most pixels that are decoded, of four colours of 16 bits, have 0.7 GB."""


BESIDE_SQLITE: Final = ("-wal", "-shm", "-journal")
"""Ends of the names of files that SQLite writes beside one that is only read."""


class Source(ABC):
    """Items to embed, from folders or from a file that holds many.

    Only names and places are looked at until an item is loaded, and memory does not grow with the number of items. So
    names are not compared either: whoever lists the items does that.
    """

    @abstractmethod
    def items(self) -> Iterator[Item | Skipped]:
        """Yield every item in the order of the run, and what was left out on the way with its reason.

        Raises: InputError if the source is missing or damaged.
        """

    @abstractmethod
    def open(self, items: Iterable[Item]) -> Iterator[tuple[Item, Load]]:
        """Yield these items with what loads each; they must be in the order in which `items` yields them.

        A load holds what it needs: it may run after the next item was taken, or after the last one.

        Raises: InputError if the source is missing, or another one now.
        """


def size_and_change(path: Path) -> tuple[int, int]:
    """Return the bytes of a file and when it was changed last, in nanoseconds.

    Of a folder, which is a bag, the last change of a file in it counts: a folder's own time stays as it is when a file
    in it is written over.

    Raises: OSError if it is gone.
    """
    status = path.stat()
    if not stat.S_ISDIR(status.st_mode):
        return status.st_size, status.st_mtime_ns
    with os.scandir(path) as entries:
        changes = [entry.stat().st_mtime_ns for entry in entries if not entry.name.endswith(BESIDE_SQLITE)]
    return status.st_size, max(changes, default=status.st_mtime_ns)


def read_image_file(path: Path) -> bytes:
    """Return the bytes of an image file.

    Raises: UnfitError if it cannot be read, is no regular file, or has more than MAX_ENCODED_BYTES.
    """
    try:
        with open_regular(path) as stream:
            content = stream.read(MAX_ENCODED_BYTES + 1)
    except ArtifactError as error:
        cause = error.__cause__.strerror if isinstance(error.__cause__, OSError) else None
        raise UnfitError(UNREADABLE, cause or str(error).removeprefix(f"{path} ")) from error
    if len(content) > MAX_ENCODED_BYTES:
        raise UnfitError(UNREADABLE, f"it has over {MAX_ENCODED_BYTES} bytes, which no photo has")
    return content
