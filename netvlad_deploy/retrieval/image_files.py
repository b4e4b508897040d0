"""Images as a pipeline takes them: decoded by Pillow, prepared by the artifact's rule.

One image at a time, so that its pixels are the same alone and in a batch. A file that cannot be loaded becomes a
`Skipped` with its reason, and the rest goes on.
"""

import contextlib
import logging
import struct
import warnings
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final, TypeAlias

from netvlad_deploy.retrieval.pixels import TOO_LARGE, UnfitError, pixels_of
from netvlad_deploy.sources.image_folders import ImageFile
from netvlad_deploy.spec.images import MAX_PIXELS, ImageInput
from netvlad_deploy.spec.items import UNREADABLE, Skipped, printable
from netvlad_deploy.support.arrays import Array
from netvlad_deploy.support.machine import available_cores
from netvlad_deploy.support.require import require

LOG = logging.getLogger(__name__)

FORMATS: Final = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""Formats that Pillow may read, under any suffix of a file: other formats can start programs, as EPS does."""

SMALL_PIXELS: Final = 1 << 22  # decoded of any file
MOST_PER_BYTE: Final = 8_500
"""Pixels that are decoded of any file, and of each of its bytes: PNG of 1 bit packs 8,256 into one, GIF and JPEG fewer.

So a few bytes that claim a huge image take no memory. Only large images of a single colour could be more in earnest.
"""

MOST_DECODERS: Final = 4  # threads

EMPTY, NO_IMAGE = "an empty file", "not recognised as an image"
DAMAGED, NO_MEMORY = "damaged or not supported", "too large for the memory that is left"
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

LoadedImage: TypeAlias = tuple[ImageFile, Array | Skipped]


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
