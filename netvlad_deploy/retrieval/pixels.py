"""Turn an opened image into the pixels that enter a graph: upright or as stored, 8 bits, RGB, resized, cut out.

Alpha is dropped, not blended: the colours are those stored in the file.
"""

import logging
from typing import Any, Final

import numpy as np

from netvlad_deploy.errors import UnfitError
from netvlad_deploy.retrieval.resample import resample, to_bytes
from netvlad_deploy.spec.images import MAX_PIXELS, PILLOW_FILTERS, ImageInput, Size
from netvlad_deploy.support.arrays import Array

LOG = logging.getLogger(__name__)

UPRIGHT: Final = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}
"""Transposition that sets an image upright, by its EXIF orientation. Source: EXIF 2.32, tag 274, in Pillow's names.

`ImageOps.exif_transpose` would also write the rest of the EXIF again, and fails where that is damaged.
"""

BACK: Final = UPRIGHT | {6: UPRIGHT[8], 8: UPRIGHT[6]}
"""Transposition that undoes UPRIGHT: all but the quarter turns undo themselves."""

ORIENTATION: Final = 0x0112  # the EXIF tag
ALL_BITS: Final = 16
FEWEST_BITS: Final = 13
"""Values of 16 bits that need fewer than this many leave at most 16 shades of 256: nearly black, and refused."""

USUAL_BITS: Final = 15
"""An image whose values need fewer bits is dark, which the log says."""

UNKNOWN_DEPTH, TOO_LARGE, TOO_SMALL = "of an unknown depth", "too large", "smaller than the crop"


def pixels_of(pillow: Any, image: Any, prepared: ImageInput, name: str) -> Array:
    """Return an opened image as uint8 RGB (H,W,3); the log calls it `name`.

    Raises: UnfitError if the rule does not take its values or its size; any error of Pillow's for damage.
    """
    cut_to_8_bits = _has_16_bit_colours(image)
    image = _turned(pillow, image, upright=prepared.orient)
    if image.mode[0] in "IF":  # Pillow would clip 16 bits to 8
        image = pillow.fromarray(_grey(np.asarray(image), prepared.depth, name))
    image = image if image.mode == "RGB" else image.convert("RGB")
    if cut_to_8_bits:
        _check_colours(image, prepared.depth, name)
    return fitted(pillow, image, prepared)


def fitted(pillow: Any, image: Any, prepared: ImageInput) -> Array:
    """Return an RGB image of Pillow as uint8 (H,W,3), resized and cut out by the rule.

    Raises: UnfitError if the rule does not take its size.
    """
    return _cut(_resized(pillow, image, prepared), prepared.crop)


def _turned(pillow: Any, image: Any, *, upright: bool) -> Any:
    """Return a decoded image upright by its EXIF, or as it is stored: Pillow itself sets TIFF upright."""
    stated: Any = image.getexif().get(ORIENTATION) if image.format == "TIFF" else None
    image.load()
    left: Any = image.getexif().get(ORIENTATION)
    undo = BACK.get(stated) if left is None else None
    turn = UPRIGHT.get(left) if upright else undo
    return image if turn is None else image.transpose(pillow.Transpose[turn])


def _grey(values: Array, depth: int | None, name: str) -> Array:
    """Return grey values of 16 or 32 bits (H,W) as uint8.

    Raises: UnfitError if they are floats, do not fit the depth, or nearly nothing of them would be left.
    """
    if values.dtype.kind == "f":
        raise UnfitError(UNKNOWN_DEPTH, "float values have no known range: store 8 or 16 bits")
    least, most = int(values.min()), int(values.max())
    found, bits = f"values from {least} to {most}", max(8, most.bit_length())
    if least < 0 or bits > (depth or ALL_BITS):
        asked = f"do not fit {depth or ALL_BITS} bits: export or fit with another --depth"
        raise UnfitError(UNKNOWN_DEPTH, f"{found} {asked}")
    if depth is None and most and bits < FEWEST_BITS:
        cure = f"export or fit with --depth {bits}, or --depth {ALL_BITS} if it is so dark"
        raise UnfitError(UNKNOWN_DEPTH, f"{found} of {ALL_BITS} bits would be nearly black: {cure}")
    if depth is None and most and bits < USUAL_BITS:
        LOG.warning("%s: %s, read as %d bits, are dark: --depth %d would use them all", name, found, ALL_BITS, bits)
    return (values >> ((depth or ALL_BITS) - 8)).astype(np.uint8)


def _has_16_bit_colours(image: Any) -> bool:
    """Return True if an opened file has 16 bits a colour, which Pillow cuts to 8."""
    for codec, _, _, given in image.tile:
        arguments = given if isinstance(given, tuple) else (given,)
        if ";16" in str(arguments[0]) or (codec.startswith("ppm") and arguments[-1] > 255):
            return image.mode[0] not in "IF"
    return False


def _check_colours(image: Any, depth: int | None, name: str) -> None:
    """Say that colours of 16 bits, which Pillow has cut to 8, are dark; refuse them where nearly nothing is left.

    They are refused as well where they would have to be read as fewer bits.

    Raises: UnfitError.
    """
    if depth not in (None, ALL_BITS):
        raise UnfitError(UNKNOWN_DEPTH, f"colours of 16 bits are read as 16, not {depth}: store 8 bits")
    most = max(high for _, high in image.getextrema())
    if depth is None and most < 2 ** (FEWEST_BITS - 1) // 256:
        cure = f"store 8 bits, or export or fit with --depth {ALL_BITS} if it is so dark"
        raise UnfitError(UNKNOWN_DEPTH, f"16 bits, of which the upper 8 go up to {most} of 255 only: {cure}")
    if depth is None and most < 2 ** (USUAL_BITS - 1) // 256:
        LOG.warning("%s: colours of 16 bits, of which the upper 8 go up to %d of 255 only, are dark", name, most)


def _resized(pillow: Any, image: Any, prepared: ImageInput) -> Array:
    """Return an RGB image as pixels at the rule's height and width."""
    rule, kernel = prepared.resize, prepared.resize.kernel
    height, width = rule.target(image.height, image.width)
    if height * width > MAX_PIXELS:
        raise UnfitError(TOO_LARGE, f"it would become {height} x {width}, at most {MAX_PIXELS} pixels are made")
    if (width, height) == image.size:
        return np.asarray(image)
    if kernel in PILLOW_FILTERS:
        return np.asarray(image.resize((width, height), pillow.Resampling[PILLOW_FILTERS[kernel]]))
    return to_bytes(resample(np.asarray(image), (height, width), kernel, rule.factor(image.height, image.width)))


def _cut(pixels: Array, crop: Size | None) -> Array:
    """Return the middle of an image (H,W,3). Source: torchvision's `center_crop` for where the middle is.

    Raises: UnfitError if the image is smaller.
    """
    if crop is None:
        return pixels
    if pixels.shape[0] < crop[0] or pixels.shape[1] < crop[1]:
        raise UnfitError(TOO_SMALL, f"height {pixels.shape[0]}, width {pixels.shape[1]}, crop {crop[0]}x{crop[1]}")
    top, left = (round((length - part) / 2) for length, part in zip(pixels.shape, crop, strict=False))
    return np.ascontiguousarray(pixels[top : top + crop[0], left : left + crop[1]])
