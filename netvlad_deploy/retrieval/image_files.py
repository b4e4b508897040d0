"""Images as a pipeline takes them: found in folders, decoded by Pillow, prepared by the artifact's rule.

One image at a time, so that its pixels are the same alone and in a batch. A file that cannot be loaded becomes a
`Skipped` with its reason, and the rest goes on.
"""

import contextlib
import logging
import os
import struct
import warnings
import zlib
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

from netvlad_deploy.errors import ArtifactError, InputError, UsageError
from netvlad_deploy.retrieval.pixels import TOO_LARGE, UnfitError, pixels_of
from netvlad_deploy.spec.images import MAX_PIXELS, ImageInput
from netvlad_deploy.support.arrays import Array
from netvlad_deploy.support.files import open_regular
from netvlad_deploy.support.machine import available_cores
from netvlad_deploy.support.require import require

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
FORMATS: Final = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""Formats that Pillow may read, under any suffix of a file: other formats can start programs, as EPS does."""

SMALL_PIXELS: Final = 1 << 22  # decoded of any file
MOST_PER_BYTE: Final = 8_500
"""Pixels that are decoded of any file, and of each of its bytes: PNG of 1 bit packs 8,256 into one, GIF and JPEG fewer.

So a few bytes that claim a huge image take no memory. Only large images of a single colour could be more in earnest.
"""

MOST_DECODERS: Final = 4  # threads
MOST_NAMED: Final = 5  # files that a line of the log names

NO_SUFFIX = "without the suffix of a format that is read"
EMPTY, NO_IMAGE = "an empty file", "not recognised as an image"
DAMAGED, NO_MEMORY = "damaged or not supported", "too large for the memory that is left"
UNREADABLE, ABOVE = "unreadable", "a link to a folder above the one that is searched"
IMAGE_DAMAGE: Final = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    BufferError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)
"""Errors of a decoder that is given a damaged file: nearly all of Python's own, and those of the modules it calls."""

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


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """A file that gave no descriptor: `reason` is one of few, to count by, `detail` is about this file."""

    path: str
    reason: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}" + (f" ({self.detail})" if self.detail else "")


LoadedImage: TypeAlias = tuple[ImageFile, Array | Skipped]


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


def printable(path: Path | str) -> str:
    """Return a path as text that can be printed and written: bytes that are not UTF-8 become escapes."""
    return os.fsencode(os.path.normpath(path)).decode(errors="backslashreplace")


@contextlib.contextmanager
def load_images(files: Sequence[ImageFile], prepared: ImageInput, *, ahead: int = 1) -> Iterator[Iterator[LoadedImage]]:
    """Load images in other threads, in order: each becomes uint8 RGB (H,W,3), prepared by the rule, or is skipped.

    While one is in use, up to `ahead` more are decoded or wait. Pillow's warnings are silenced meanwhile: they
    are about damaged metadata, which counts as none, and about large images, which are skipped here.

    Raises: MissingDependencyError without Pillow.
    """
    pillow = require("PIL.Image", extra="images")
    pillow.init()
    pool = ThreadPoolExecutor(max_workers=decoders(), thread_name_prefix="decode")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"PIL\.")
            warnings.filterwarnings("ignore", category=pillow.DecompressionBombWarning)
            yield _in_order(pool, lambda file: _load(pillow, file, prepared), files, ahead)
    finally:
        pool.shutdown(cancel_futures=True)


def usable(loaded: Iterable[LoadedImage], lost: list[Skipped]) -> Iterator[tuple[ImageFile, Array]]:
    """Yield the images that could be loaded; the others are named in the log and join `lost`."""
    for file, image in loaded:
        if isinstance(image, Skipped):
            LOG.warning("skipped %s", image)
            lost.append(image)
        else:
            yield file, image


def decoders() -> int:
    """Return the number of decoding threads: half the cores, since the CPU computes too, and few, for their memory."""
    return min(max(1, available_cores() // 2), MOST_DECODERS)


def _in_order(
    pool: ThreadPoolExecutor, load: Callable[[ImageFile], Array | Skipped], files: Sequence[ImageFile], ahead: int
) -> Iterator[LoadedImage]:
    waiting: deque[tuple[ImageFile, Future[Array | Skipped]]] = deque()
    for file in files:
        waiting.append((file, pool.submit(load, file)))
        if len(waiting) > ahead:
            first, future = waiting.popleft()
            yield first, future.result()
    for rest, future in waiting:
        yield rest, future.result()


def _load(pillow: Any, file: ImageFile, prepared: ImageInput) -> Array | Skipped:
    """Return an image's pixels, or why there are none."""
    reason, detail = DAMAGED, ""
    try:
        size_bytes = file.path.stat().st_size
        if not size_bytes:
            return Skipped(path=printable(file.path), reason=EMPTY)
        with pillow.open(file.path, formats=FORMATS) as image:  # reads the header alone
            most = min(MAX_PIXELS, max(SMALL_PIXELS, MOST_PER_BYTE * size_bytes))
            if image.width * image.height <= most:
                return pixels_of(pillow, image, prepared, printable(file.path))
            of_file = "" if most == MAX_PIXELS else f" of a file of {size_bytes} bytes"
            reason = TOO_LARGE
            detail = f"height {image.height}, width {image.width}, at most {most} pixels are decoded{of_file}"
    except (pillow.DecompressionBombError, pillow.DecompressionBombWarning) as error:
        reason, detail = TOO_LARGE, str(error)
    except pillow.UnidentifiedImageError:
        reason = NO_IMAGE
    except UnfitError as error:
        reason, detail = error.reason, str(error)
    except MemoryError:
        reason = NO_MEMORY
    except PermissionError as error:
        reason, detail = UNREADABLE, str(error.strerror)
    except IMAGE_DAMAGE as error:
        detail = str(error)
    return Skipped(path=printable(file.path), reason=reason, detail=" ".join(detail.split()))


def count_reasons(skipped: Iterable[Skipped]) -> str:
    """Return the number of skipped files for each reason in words, empty if there is none."""
    counts = Counter(one.reason for one in skipped)
    return ", ".join(f"{count} {reason}" for reason, count in counts.most_common())
