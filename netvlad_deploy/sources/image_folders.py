"""Files of items, found in folders and among the files that were named: images, or local descriptors."""

import logging
import os
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from netvlad_deploy.errors import ArtifactError, InputError, UsageError
from netvlad_deploy.sources.source import size_and_change
from netvlad_deploy.spec.items import UNREADABLE, Item, Skipped, printable
from netvlad_deploy.support.files import open_regular
from netvlad_deploy.support.progress import Progress

LOG = logging.getLogger(__name__)

IMAGE_SUFFIXES: Final = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pnm",
)  # fmt: skip
MOST_NAMED: Final = 5  # files that a line of the log names
NO_SUFFIX = "without the suffix of a format that is read"
ABOVE = "a link to a folder above the one that is searched"

SIGNATURES: Final = (
    b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8", b"II*\0", b"MM\0*", b"\0\0\0\x0cjP  ", b"8BPS", b"\xff\x0a",
    b"\0\0\0\x0cJXL ",
)  # fmt: skip
"""First bytes of images that may have any suffix or none: JPEG, PNG, GIF, TIFF and raw photos, JPEG 2000, JPEG XL,
Photoshop."""

CONTAINERS: Final = {b"WEBP", b"ftypheic", b"ftypheix", b"ftypmif1", b"ftypmsf1", b"ftypavif", b"ftypavis", b"ftypcrx "}
"""Bytes from 8 or 4 on of a container with an image in it: WebP, HEIC, AVIF, Canon's raw photos."""


@dataclass(kw_only=True)
class Finder:
    """Looks at files and folders; `suffixes` are those of the files that are taken.

    A file of a folder that plainly is none of them is left out, since nothing is lost by it: `others` counts those, and
    `log_others` says in the log how many they were.
    """

    suffixes: Sequence[str] = IMAGE_SUFFIXES
    others: int = 0
    shown: list[str] = field(default_factory=list)

    def find(self, path: Path, root: Path | None = None) -> Iterator[Item | Skipped]:
        """Yield the items below a folder, sorted by name, or the one item of a file.

        Names are paths from `root`, by default from the folder itself, or a file's own name; from `Path()` they are
        the paths as they are written. Of a folder, hidden files and folders are left out without a word. Folders behind
        links come last. No more is held than the names in the folders that are open, and a number for every folder.

        Raises: InputError if there is nothing at the path.
        """
        if not path.exists():
            raise InputError(f"{path} does not exist: name folders or images")
        if not path.is_dir():
            yield from self._look(path, path.parent if root is None else root, named=True)
            return
        for found in _walk(path):
            if isinstance(found, Skipped):
                yield found
            else:
                yield from self._look(found, path if root is None else root, named=False)

    def log_others(self) -> None:
        """Say in the log how many files were left out, and which the first ones were."""
        if self.others:
            more = ", ..." if self.others > len(self.shown) else ""
            what = "image" if self.suffixes == IMAGE_SUFFIXES else "file of local descriptors"
            LOG.info("left out as no %s (%d): %s", what, self.others, ", ".join(self.shown) + more)
        self.others, self.shown = 0, []

    def _look(self, path: Path, root: Path, *, named: bool) -> Iterator[Item | Skipped]:
        """Yield the item of a file, or why there is none; nothing if it plainly is none and was not `named`."""
        if path.suffix.lower() not in self.suffixes:
            if named or (self.suffixes == IMAGE_SUFFIXES and _starts_as_image(path)):
                cure = f"rename it or convert it: {', '.join(self.suffixes)} are read"
                yield Skipped(path=printable(path), reason=NO_SUFFIX, detail=cure)
                return
            self.others += 1
            self.shown += [printable(path)] * (len(self.shown) < MOST_NAMED)
        elif path.is_file():
            yield item_of_file(path, printable(path if root == Path() else path.relative_to(root)))
        else:
            yield Skipped(path=printable(path), reason=UNREADABLE, detail="not a file")


def item_of_file(path: Path, name: str) -> Item:
    """Return the item that is a whole file.

    Raises: InputError if the file vanished.
    """
    try:
        size_bytes, modified_ns = size_and_change(path)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    return Item(name=name, path=path, size_bytes=size_bytes, modified_ns=modified_ns)


def find_images(sources: Sequence[Path]) -> tuple[list[Item], list[Skipped]]:
    """Return the images of folders, searched to the bottom, and of files; and the files that could not be taken.

    Each folder's images are sorted by name. What `Finder` leaves out is counted in the log: nothing is lost by it.

    Raises: InputError if a source does not exist; UsageError if two images have the same name.
    """
    found: dict[str, Item] = {}
    skipped: list[Skipped] = []
    finder, counted = Finder(), Progress("listing", 0, "images")
    for source in sources:
        for one in finder.find(source):
            if isinstance(one, Skipped):
                LOG.warning("skipped %s", one)
                skipped.append(one)
                continue
            if one.name in found:
                raise UsageError(f"{found[one.name].path} and {one.path} have the same name: embed them apart")
            found[one.name] = one
            counted.total = len(found) + 1  # how many there are is not known
            counted.reach(len(found))
    counted.finish()
    finder.log_others()
    return list(found.values()), skipped


def _starts_as_image(path: Path) -> bool:
    """Return True if the first bytes of a file are those of an image; False if it cannot be read."""
    try:
        with open_regular(path) as stream:  # which does not wait at a pipe
            start = stream.read(12)
    except ArtifactError:
        return False
    return start.startswith(SIGNATURES) or bool(CONTAINERS & {start[8:12], start[4:12]})


def _walk(folder: Path) -> Iterator[Path | Skipped]:
    """Yield all files below a folder in the order of their names, links followed; and folders that cannot be searched.

    Each folder is searched once, however many links lead to it. Links wait until the folders proper are done, so that a
    folder goes by its own name where it has one.
    """
    seen: set[tuple[int, int]] = set()
    links = deque([f"{folder}/"])
    while links:
        start = links.popleft()
        waiting = [start]  # files and folders that are still to come, the next one last
        while waiting:
            here = waiting.pop()
            if not here.endswith("/"):
                yield Path(here)
                continue
            try:
                status = Path(here).stat()
                if (status.st_dev, status.st_ino) in seen:
                    continue
                if seen and here == start and folder.resolve().is_relative_to(Path(here).resolve()):
                    yield Skipped(path=printable(here), reason=ABOVE)
                    continue
                seen.add((status.st_dev, status.st_ino))
                waiting += [here + name for name in reversed(_listed(here, links))]
            except OSError as error:
                yield Skipped(path=printable(here), reason=UNREADABLE, detail=error.strerror or "")


def _listed(folder: str, links: deque[str]) -> list[str]:
    """Return the names in a folder, those of folders with a slash behind them; links to folders join `links`.

    Sorted with the slash, they come in the order of the paths of the whole tree.
    """
    names: list[str] = []
    linked: list[str] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_symlink() and _leads_to_folder(entry):
                linked.append(entry.name)
            else:
                names.append(entry.name + "/" * entry.is_dir(follow_symlinks=False))
    links += [f"{folder}{name}/" for name in sorted(linked)]
    return sorted(names, key=lambda name: os.fsencode(name).decode(errors="backslashreplace"))


def _leads_to_folder(link: os.DirEntry[str]) -> bool:
    try:
        return link.is_dir()
    except OSError:  # it leads to itself
        return False
