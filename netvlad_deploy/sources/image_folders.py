"""Image files, found in folders and among the files that were named."""

import logging
import os
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from netvlad_deploy.errors import ArtifactError, InputError, UsageError
from netvlad_deploy.spec.items import UNREADABLE, Skipped, printable
from netvlad_deploy.support.files import open_regular

LOG = logging.getLogger(__name__)

IMAGE_SUFFIXES: Final = (
    ".jpg",
    ".jpeg",
    ".jpe",
    ".jfif",
    ".mpo",
    ".png",
    ".bmp",
    ".gif",
    ".webp",
    ".tif",
    ".tiff",
    ".ppm",
    ".pgm",
    ".pnm",
)
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


@dataclass(frozen=True, kw_only=True)
class ImageFile:
    """An image to load; `name` is its path from the folder that was given, POSIX style, or a given file's own name."""

    path: Path
    name: str


def find_images(sources: Sequence[Path]) -> tuple[list[ImageFile], list[Skipped]]:
    """Return the images of folders, searched to the bottom, and of files; and the files that could not be taken.

    Each folder's images are sorted by name. Hidden files and folders are left out without a word. A file in a folder
    that is no image, by its suffix and by how it starts, is left out and counted in the log: nothing is lost by it.

    Raises: InputError if a source does not exist; UsageError if two images have the same name.
    """
    found: dict[str, ImageFile] = {}
    skipped: list[Skipped] = []
    others: list[str] = []
    for source in sources:
        if not source.exists():
            raise InputError(f"{source} does not exist: name folders or images")
        named = not source.is_dir()
        root, paths = (source.parent, iter([source])) if named else (source, _walk(source, skipped))
        looked = [_look(path, root, named=named) for path in paths]
        others += [one for one in looked if isinstance(one, str)]
        skipped += [one for one in looked if isinstance(one, Skipped)]
        images = [one for one in looked if isinstance(one, ImageFile)]
        for image in sorted(images, key=lambda image: image.name):
            if image.name in found:
                raise UsageError(f"{found[image.name].path} and {image.path} have the same name: embed them apart")
            found[image.name] = image
    for lost in skipped:
        LOG.warning("skipped %s", lost)
    if others:
        shown = ", ".join(others[:MOST_NAMED]) + (", ..." if len(others) > MOST_NAMED else "")
        LOG.info("left out as no image (%d): %s", len(others), shown)
    return list(found.values()), skipped


def _look(path: Path, root: Path, *, named: bool) -> ImageFile | Skipped | str:
    """Return an image, a file that is skipped, or the path of one that plainly is no image and was not `named`."""
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        lost = named or _starts_as_image(path)
        cure = f"rename it or convert it: {', '.join(IMAGE_SUFFIXES)} are read"
        return Skipped(path=printable(path), reason=NO_SUFFIX, detail=cure) if lost else printable(path)
    if not path.is_file():
        return Skipped(path=printable(path), reason=UNREADABLE, detail="not a file")
    return ImageFile(path=path, name=printable(path.relative_to(root)))


def _starts_as_image(path: Path) -> bool:
    """Return True if the first bytes of a file are those of an image; False if it cannot be read."""
    try:
        with open_regular(path) as stream:  # which does not wait at a pipe
            start = stream.read(12)
    except ArtifactError:
        return False
    return start.startswith(SIGNATURES) or bool(CONTAINERS & {start[8:12], start[4:12]})


def _walk(folder: Path, skipped: list[Skipped]) -> Iterator[Path]:
    """Yield all files below a folder, links followed; a folder that cannot be searched joins `skipped`.

    Each folder is searched once, however many links lead to it. Links wait until the folders proper are done, so that a
    folder goes by its own name where it has one.
    """

    def refuse(error: OSError) -> None:
        skipped.append(Skipped(path=printable(error.filename), reason=UNREADABLE, detail=error.strerror or ""))

    seen: set[Path] = set()
    waiting = deque([folder])
    while waiting:
        start = waiting.popleft()
        for root, folders, files in os.walk(start, onerror=refuse):
            here = Path(root)
            real = here.resolve()
            above = real not in seen and start != folder and folder.resolve().is_relative_to(real)
            if above:
                skipped.append(Skipped(path=printable(here), reason=ABOVE))
            if above or real in seen:
                folders.clear()
                continue
            seen.add(real)
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            waiting += [here / name for name in folders if (here / name).is_symlink()]
            yield from (here / name for name in sorted(files) if not name.startswith("."))
