"""The C++ runner prepares an image as the package does: the same pixels to one step, of Pillow's filters to none."""

import importlib
import io
from pathlib import Path

import numpy as np
import pytest

from netvlad_deploy.retrieval.pixels import pixels_of
from netvlad_deploy.spec.images import FILTERS, PILLOW_FILTERS, ImageInput, Resize
from netvlad_deploy.support.arrays import Array
from tests.cpp.native import Native, View

pytestmark = pytest.mark.cpp

RULES = ("48x64", "29", "shorter:31", "cover:48x48", "shorter:90", "16x120", "cover:100x70", "400")
SIZES = ((60, 81), (37, 91), (101, 53), (1, 7))
pillow = importlib.import_module("PIL.Image")


def noise(*shape: int) -> Array:
    return np.random.default_rng(sum(shape)).integers(0, 256, shape, dtype=np.uint8)


def expected(view: View) -> Array:
    """Return what the package makes of a file with this image, in RGB."""
    pixels = view.pixels[..., ::-1] if view.colour == "bgr" else view.pixels
    file = io.BytesIO()
    pillow.fromarray(np.ascontiguousarray(pixels)).save(file, "PNG")
    return pixels_of(pillow, pillow.open(file), view.prepared, "an image")


def prepared(rule: str, kernel: str, crop: tuple[int, int] | None = None) -> ImageInput:
    return ImageInput(resize=Resize.parse(f"{rule},{kernel}"), crop=crop)


def compare(native: Native, views: list[View]) -> None:
    for view, got in zip(views, native.pixels(views), strict=True):
        wanted = expected(view)
        assert not isinstance(got, str), (view.prepared, got)
        assert got.shape == wanted.shape, view.prepared
        apart = np.abs(got.astype(int) - wanted.astype(int)).max()
        assert apart <= (0 if view.prepared.resize.kernel in PILLOW_FILTERS else 1), (view.prepared, wanted.shape)


@pytest.mark.parametrize("kernel", FILTERS)
def test_every_filter_and_rule_gives_the_packages_pixels(native: Native, kernel: str) -> None:
    compare(native, [View(noise(*size, 3), prepared(rule, kernel)) for size in SIZES for rule in RULES])


def test_colour_orders_grey_and_rows_with_a_gap_give_the_same(native: Native) -> None:
    rules = [prepared("none", "bilinear"), prepared("48x64", "bicubic"), prepared("shorter:40", "area", (40, 40))]
    compare(
        native,
        [
            View(noise(61, 83, 3) if colour != "grey" else noise(61, 83), rule, colour, gap)
            for rule in rules
            for colour in ("rgb", "bgr", "grey")
            for gap in (0, 1, 45)
        ],
    )


def test_the_middle_is_cut_where_the_package_cuts_it(native: Native) -> None:
    """Odd rests are halved to the even number: 5 - 2 leaves 2 before, 7 - 2 leaves 2, too."""
    crops = [prepared("none", "bilinear", (height, width)) for height in (1, 2, 3, 4) for width in (2, 4, 5, 6)]
    compare(native, [View(noise(5, 7, 3), rule) for rule in crops])


@pytest.mark.data
@pytest.mark.parametrize("kernel", FILTERS)
def test_photos_give_the_packages_pixels(native: Native, data: Path, kernel: str) -> None:
    photos = [sorted(data.glob(pattern))[3] for pattern in ("street/*.jpg", "corridor/**/*.jpg")]
    images = [np.asarray(pillow.open(path).convert("RGB")) for path in photos]
    compare(native, [View(image, prepared(rule, kernel)) for image in images for rule in ("240x320", "cover:224x224")])


def test_views_that_hold_no_image_are_refused(native: Native) -> None:
    short = View(noise(4, 9, 3), prepared("none", "bilinear", (4, 10)))
    no_pixels, narrow, empty = (View(noise(2, 2, 3)).case().replace(*each) for each in (
        (b" 12 rgb", b" 0 rgb"), (b"2 2 6 ", b"2 2 5 "), (b"2 2 6 ", b"0 2 6 "),
    ))  # fmt: skip
    answers = native.run("pixels", given=no_pixels[:-12] + narrow + empty + short.case()).decode().splitlines()
    assert answers == [
        "error the image has no pixels: its pointer is null",
        "error rows of 5 bytes hold no 2 pixels of 3 bytes",
        "error the image is 0x2, expected 1 to 89478485 pixels",
        "error after the resize the image is 4x9, smaller than the crop 4x10",
    ]
    huge = prepared("shorter:16384", "bilinear")
    assert native.pixels([View(noise(1, 3, 3), huge)]) == [
        "the resized image is 16384x49152, expected 1 to 89478485 pixels"
    ]
