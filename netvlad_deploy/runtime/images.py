"""Images as a pipeline takes them: found in folders, decoded by Pillow, resized by the artifact's rule.

One image at a time, so that its pixels are the same alone and in a batch. Whatever cannot be loaded becomes a `Skipped`
with its reason, and the rest goes on. Alpha is dropped, not blended: the colours are those stored in the file.
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

import numpy as np

from netvlad_deploy.arrays import Array
from netvlad_deploy.errors import InputError, UsageError
from netvlad_deploy.images import Resize
from netvlad_deploy.machine import available_cores
from netvlad_deploy.require import require

LOG = logging.getLogger(__name__)

SUFFIXES: Final = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
FORMATS: Final = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""What Pillow may take a file for, whatever its suffix says: others can start programs, as EPS does."""

MAX_PIXELS: Final = 89_478_485
"""Larger images are not decoded. Source: Pillow's own limit, above which it warns: a quarter GiB of RGB."""

UPRIGHT: Final = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}
"""What sets an image upright, by its EXIF orientation. Source: EXIF 2.32, tag 274, in Pillow's names.

`ImageOps.exif_transpose` would also write the rest of the EXIF again, and fails where that is damaged.
"""

ORIENTATION: Final = 0x0112
MOST_DECODERS: Final = 4
SIXTEEN_BITS: Final = 2**16

NO_SUFFIX, EMPTY, NO_IMAGE = "no image by its suffix", "an empty file", "not recognised as an image"
DAMAGED, TOO_LARGE = "damaged or not supported", "too large"
UNREADABLE, LOOP = "unreadable", "a link to a folder above it"
DAMAGE: Final = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    struct.error,
    zlib.error,
)
"""What Pillow raises for damaged files of these formats, as its issues and 60,000 mutated files say."""


@dataclass(frozen=True, kw_only=True)
class ImageFile:
    """An image to load; `name` is its path from the folder that was given, POSIX style, or a given file's own name."""

    path: Path
    name: str


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """A file that gave no descriptor: `reason` is one of few, to count by, `detail` is what it was here."""

    path: str
    reason: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}" + (f" ({self.detail})" if self.detail else "")


LoadedImage: TypeAlias = tuple[ImageFile, Array | Skipped]


def find_images(sources: Sequence[Path]) -> tuple[list[ImageFile], list[Skipped]]:
    """Return the images of folders, searched to the bottom, and of files; and every other file with its reason.

    Each folder's images are sorted by name. Hidden files and folders are left out without a word, all others with a
    line in the log.

    Raises: InputError if a source does not exist; UsageError if two images have the same name.
    """
    found: dict[str, ImageFile] = {}
    skipped: list[Skipped] = []
    for source in sources:
        if not source.exists():
            raise InputError(f"{source} does not exist: name folders or images")
        root, paths = (source, _walk(source, skipped)) if source.is_dir() else (source.parent, [source])
        images = []
        for path in paths:
            if path.suffix.lower() not in SUFFIXES:
                skipped.append(Skipped(path=printable(path), reason=NO_SUFFIX))
            elif not path.is_file():
                skipped.append(Skipped(path=printable(path), reason=UNREADABLE, detail="not a file"))
            else:
                images.append(ImageFile(path=path, name=printable(path.relative_to(root))))
        for image in sorted(images, key=lambda image: image.name):
            if image.name in found:
                raise UsageError(f"{found[image.name].path} and {image.path} have the same name: embed them apart")
            found[image.name] = image
    for one in skipped:
        LOG.warning("skipped %s", one)
    return list(found.values()), skipped


def _walk(folder: Path, skipped: list[Skipped]) -> Iterator[Path]:
    """Yield all files below a folder, links followed; a folder that cannot be read joins `skipped`."""

    def refuse(error: OSError) -> None:
        skipped.append(Skipped(path=printable(error.filename), reason=UNREADABLE, detail=error.strerror or ""))

    for root, folders, files in os.walk(folder, followlinks=True, onerror=refuse):
        here = Path(root)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in [name for name in folders if here.resolve().is_relative_to((here / name).resolve())]:
            folders.remove(name)
            skipped.append(Skipped(path=printable(here / name), reason=LOOP))
        yield from (here / name for name in sorted(files) if not name.startswith("."))


def printable(path: Path | str) -> str:
    """Return a path as text that can be printed and written: bytes that are not UTF-8 become escapes."""
    return os.fsencode(os.path.normpath(path)).decode(errors="backslashreplace")


@contextlib.contextmanager
def load_images(files: Sequence[ImageFile], resize: Resize, *, ahead: int = 1) -> Iterator[Iterator[LoadedImage]]:
    """Load images in other threads, in order: each becomes uint8 RGB (H,W,3), upright and resized, or is skipped.

    While one is in use, up to `ahead` more are decoded or wait. Pillow's warnings are silenced meanwhile: what it only
    warns of is damaged metadata, which counts as none, and large images, which are skipped here.

    Raises: MissingDependencyError without Pillow.
    """
    pillow = require("PIL.Image", extra="images")
    pillow.init()
    pool = ThreadPoolExecutor(max_workers=decoders(), thread_name_prefix="decode")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"PIL\.")
            warnings.filterwarnings("ignore", category=pillow.DecompressionBombWarning)
            yield _in_order(pool, lambda file: _load(pillow, file, resize), files, ahead)
    finally:
        pool.shutdown(cancel_futures=True)


def decoders() -> int:
    """Return how many threads decode: half the cores, since the CPU may compute too, and few, to keep memory small."""
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


def _load(pillow: Any, file: ImageFile, resize: Resize) -> Array | Skipped:
    """Return an image's pixels, or why there are none."""
    reason, detail = DAMAGED, ""
    try:
        if not file.path.stat().st_size:
            return Skipped(path=printable(file.path), reason=EMPTY)
        with pillow.open(file.path, formats=FORMATS) as image:  # reads the header alone
            if image.width * image.height <= MAX_PIXELS:
                return _pixels(pillow, image, resize)
            reason, detail = TOO_LARGE, f"{image.width} x {image.height}, at most {MAX_PIXELS} pixels are decoded"
    except (pillow.DecompressionBombError, pillow.DecompressionBombWarning) as error:
        reason, detail = TOO_LARGE, str(error)
    except pillow.UnidentifiedImageError:
        reason = NO_IMAGE
    except PermissionError as error:
        reason, detail = UNREADABLE, str(error.strerror)
    except DAMAGE as error:
        detail = str(error)
    return Skipped(path=printable(file.path), reason=reason, detail=" ".join(detail.split()))


def _pixels(pillow: Any, image: Any, resize: Resize) -> Array:
    """Return an opened image as uint8 RGB (H,W,3)."""
    image.load()
    orientation = image.getexif().get(ORIENTATION)
    if orientation in UPRIGHT:
        image = image.transpose(pillow.Transpose[UPRIGHT[orientation]])
    if image.mode[0] in "IF":  # Pillow would clip 16 bits to 8
        values = np.asarray(image)
        if values.dtype.kind == "f" or values.min() < 0 or values.max() >= SIXTEEN_BITS:
            raise ValueError(f"pixels of mode {image.mode} have no known range")
        image = pillow.fromarray((values >> 8).astype(np.uint8))
    image = image.convert("RGB")
    height, width = resize.target(image.height, image.width)
    if (width, height) != image.size:
        image = image.resize((width, height), pillow.Resampling[resize.filter.upper()])
    return np.asarray(image)


def count_reasons(skipped: Iterable[Skipped]) -> str:
    """Return how many files were skipped for which reason, in words; nothing where none was."""
    counts = Counter(one.reason for one in skipped)
    return ", ".join(f"{count} {reason}" for reason, count in counts.most_common())
