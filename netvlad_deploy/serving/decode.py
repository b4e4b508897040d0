"""An image of a request as the pipeline takes it."""

import io

import numpy as np

from netvlad_deploy.errors import InputError
from netvlad_deploy.retrieval.image_files import (
    DAMAGED,
    EMPTY,
    FORMATS,
    IMAGE_DAMAGE,
    MOST_PER_BYTE,
    NO_IMAGE,
    SMALL_PIXELS,
)
from netvlad_deploy.retrieval.pixels import TOO_LARGE, _cut, _resized, pixels_of
from netvlad_deploy.spec.images import MAX_PIXELS, ImageInput
from netvlad_deploy.spec.items import Content
from netvlad_deploy.support.arrays import Array
from netvlad_deploy.support.require import require


def decode_image(content: Content, images: ImageInput, *, name: str = "image") -> Array:
    """Stand in for retrieval.decoding.decode_image."""
    pillow = require("PIL.Image", extra="images")
    try:
        if isinstance(content, np.ndarray):
            if not content.size:
                raise InputError(f"no pixels of uint8 RGB ({content.dtype} {content.shape})")
            return _cut(_resized(pillow, pillow.fromarray(content), images), images.crop)
        if not content:
            raise InputError(EMPTY)
        with pillow.open(io.BytesIO(content), formats=FORMATS) as image:
            most = min(MAX_PIXELS, max(SMALL_PIXELS, MOST_PER_BYTE * len(content)))
            if image.width * image.height > most:
                raise InputError(f"{TOO_LARGE} (height {image.height}, width {image.width})")
            return pixels_of(pillow, image, images, name)
    except (pillow.DecompressionBombError, pillow.DecompressionBombWarning) as error:
        raise InputError(f"{TOO_LARGE} ({error})") from error
    except pillow.UnidentifiedImageError as error:
        raise InputError(NO_IMAGE) from error
    except InputError:
        raise
    except IMAGE_DAMAGE as error:
        raise InputError(f"{DAMAGED} ({error})") from error
