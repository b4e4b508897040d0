"""Encoded images and raw pixels as a pipeline takes them: decoded by Pillow, prepared by the artifact's rule.

One image at a time, so that its pixels are the same alone and in a batch, in any thread: Pillow lets other threads run
while it decodes and resizes.
"""

import contextlib
import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from typing import Any, Final

import numpy as np

from netvlad_deploy.errors import InputError, UnfitError
from netvlad_deploy.retrieval.pixels import TOO_LARGE, fitted, pixels_of
from netvlad_deploy.spec.images import CHANNELS, MAX_PIXELS, ImageInput
from netvlad_deploy.spec.items import Content
from netvlad_deploy.support.arrays import Array
from netvlad_deploy.support.require import require

FORMATS: Final = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""Formats that Pillow may read, under any suffix of a file: other formats can start programs, as EPS does."""

SMALL_PIXELS: Final = 1 << 22  # decoded of any file
MOST_PER_BYTE: Final = 8_500
"""Pixels that are decoded of any file, and of each of its bytes: PNG of 1 bit packs 8,256 into one, GIF and JPEG fewer.

So a few bytes that claim a huge image take no memory. Only large images of a single colour could be more in earnest.
"""

EMPTY, NO_IMAGE = "an empty file", "not recognised as an image"
DAMAGED, NO_MEMORY = "damaged or not supported", "too large for the memory that is left"
NO_PIXELS = "no pixels of uint8 RGB"
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


def decode_image(content: Content, images: ImageInput, *, name: str = "image") -> Array:
    """Return an image as the pipeline takes it: uint8 RGB (H,W,3), upright, resized and cut as `images` says.

    Args:
        content: the bytes of a file in one of FORMATS, or uint8 RGB pixels (H,W,3).
        images: the rule, which stands in the artifact (`artifact.images`).
        name: what the log calls it.

    It may be called by several threads at once.

    >>> from netvlad_deploy.spec.images import Resize
    >>> decode_image(np.zeros((600, 800, 3), np.uint8), ImageInput(resize=Resize.parse("240x320"))).shape
    (240, 320, 3)

    Raises: UnfitError, which is an InputError, if it is no image, is damaged, or does not fit the rule; its `reason` is
        one of few. MissingDependencyError without Pillow.
    """
    pillow = require("PIL.Image", extra="images")
    if isinstance(content, np.ndarray):
        if content.dtype != np.uint8 or content.ndim != CHANNELS or content.shape[-1] != CHANNELS or not content.size:
            raise UnfitError(NO_PIXELS, f"{content.dtype} {content.shape}, expected uint8 (height, width, {CHANNELS})")
        return fitted(pillow, pillow.fromarray(np.ascontiguousarray(content)), images)
    if not content:
        raise UnfitError(EMPTY)
    try:
        with pillow.open(io.BytesIO(content), formats=FORMATS) as image:  # reads the header alone
            _check_size(image, len(content))
            return pixels_of(pillow, image, images, name)
    except InputError:
        raise
    except (pillow.DecompressionBombError, pillow.DecompressionBombWarning) as error:
        raise UnfitError(TOO_LARGE, _line(error)) from error
    except pillow.UnidentifiedImageError as error:
        raise UnfitError(NO_IMAGE) from error
    except MemoryError as error:
        raise UnfitError(NO_MEMORY) from error
    except IMAGE_DAMAGE as error:
        raise UnfitError(DAMAGED, _line(error)) from error


def check_decoder() -> None:
    """Load Pillow and its formats, which may be long before the first image.

    Raises: MissingDependencyError without Pillow.
    """
    require("PIL.Image", extra="images").init()


@contextlib.contextmanager
def without_warnings() -> Iterator[None]:
    """Silence Pillow's warnings, in all threads.

    They are about damaged metadata, which counts as none, and about large images, which are refused here.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        warnings.filterwarnings("ignore", category=require("PIL.Image", extra="images").DecompressionBombWarning)
        yield


def _check_size(image: Any, size_bytes: int) -> None:
    """Raise UnfitError for an opened image of more pixels than are decoded of so many bytes."""
    most = min(MAX_PIXELS, max(SMALL_PIXELS, MOST_PER_BYTE * size_bytes))
    if image.width * image.height > most:
        of_file = "" if most == MAX_PIXELS else f" of a file of {size_bytes} bytes"
        detail = f"height {image.height}, width {image.width}, at most {most} pixels are decoded{of_file}"
        raise UnfitError(TOO_LARGE, detail)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
