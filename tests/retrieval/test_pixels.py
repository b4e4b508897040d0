"""Images as phones and cameras save them are turned upright, brought to 8 bits, resized and cut out."""

import importlib
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from netvlad_deploy.retrieval import pixels
from netvlad_deploy.spec.images import FILTERS, ImageInput, Resize
from netvlad_deploy.spec.items import Skipped
from netvlad_deploy.support.arrays import Array
from tests.retrieval.photos import PIXELS, load, refused, taken

pillow: Any = importlib.import_module("PIL.Image")
RANDOM = np.random.default_rng(0)


def save(path: Path, values: Array, **options: Any) -> Path:
    pillow.fromarray(values).save(path, **options)
    return path


def wide_png(path: Path, values: Array, kind: int) -> Path:
    """Write a PNG of 16 bits, which Pillow writes only in grey: kind 2 is RGB, 4 grey and alpha, 6 RGBA."""
    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    content = b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in parts
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    return path


# turned


@pytest.mark.parametrize("orient", [True, False])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
def test_exif_sets_an_image_upright_or_is_ignored(tmp_path: Path, orientation: int, suffix: str, orient: bool) -> None:
    """By the words of EXIF: where the file's first row and first column are shown. Pillow turns a TIFF by itself."""
    exif = pillow.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / f"x.{suffix}", PIXELS, exif=exif, **({"lossless": True} if suffix == "webp" else {}))
    shown = {
        1: PIXELS,
        2: PIXELS[:, ::-1],
        3: PIXELS[::-1, ::-1],
        4: PIXELS[::-1],
        5: PIXELS.transpose(1, 0, 2),
        6: PIXELS[::-1].transpose(1, 0, 2),
        7: PIXELS[::-1, ::-1].transpose(1, 0, 2),
        8: PIXELS[:, ::-1].transpose(1, 0, 2),
    }[orientation]
    assert np.array_equal(taken(path, ImageInput(orient=orient)), shown if orient else PIXELS)


def test_a_photo_of_a_phone_is_resized_and_cut_after_it_is_turned(tmp_path: Path) -> None:
    exif = pillow.Exif()
    exif[0x0112] = 6
    path = save(tmp_path / "x.jpg", PIXELS, exif=exif)
    assert taken(path, ImageInput(resize=Resize(longest=3))).shape == (3, 2, 3)
    assert taken(path, ImageInput(resize=Resize(longest=3), orient=False)).shape == (2, 3, 3)
    assert np.array_equal(taken(path, ImageInput(crop=(5, 4))), taken(path)[2:7, 1:5])


def test_a_photo_of_several_frames_is_its_first(tmp_path: Path) -> None:
    """MPO: a JPEG with a preview or a depth map behind it, which phones call .jpg."""
    first, second = (pillow.fromarray(np.full((8, 8, 3), value, np.uint8)) for value in (200, 10))
    first.save(tmp_path / "x.jpg", "MPO", save_all=True, append_images=[second])
    assert np.array_equal(taken(tmp_path / "x.jpg"), np.full((8, 8, 3), 200))


# brought to 8 bits


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    inks = pillow.new("CMYK", (16, 8), (255, 0, 0, 0))
    inks.save(tmp_path / "x.jpg", quality=100)
    assert np.abs(taken(tmp_path / "x.jpg").astype(int) - [0, 255, 255]).max() <= 4


def test_grey_and_alpha_become_grey(tmp_path: Path) -> None:
    both = RANDOM.integers(0, 256, (5, 7, 2), dtype=np.uint8)
    assert np.array_equal(taken(save(tmp_path / "x.png", both)), np.repeat(both[..., :1], 3, axis=2))


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_sixteen_bits_of_grey_are_scaled_not_clipped(tmp_path: Path, suffix: str) -> None:
    grey = RANDOM.integers(0, 2**16, (5, 7), dtype=np.uint16)
    got = taken(save(tmp_path / f"x.{suffix}", grey))
    assert np.array_equal(got, np.repeat((grey // 256)[..., None], 3, axis=2))


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
@pytest.mark.parametrize(("bits", "depth"), [(8, 8), (5, 8), (10, 10), (12, 12)])
def test_few_bits_in_sixteen_are_refused_until_the_depth_is_said(
    tmp_path: Path, suffix: str, bits: int, depth: int
) -> None:
    """They became black without a word."""
    grey = RANDOM.integers(0, 2**bits, (5, 7), dtype=np.uint16)
    grey[0, :2] = 0, 2**bits - 1
    path = save(tmp_path / f"x.{suffix}", grey)
    lost = refused(path)
    assert lost.reason == pixels.UNKNOWN_DEPTH
    assert f"values from 0 to {2**bits - 1} of 16 bits would be nearly black" in lost.detail
    assert f"export or fit with --depth {depth}, or --depth 16 if it is so dark" in lost.detail
    assert np.array_equal(taken(path, ImageInput(depth=depth))[..., 0], grey >> (depth - 8))
    assert np.array_equal(taken(path, ImageInput(depth=16))[..., 0], grey >> 8)
    if bits > 8:
        assert f"values from 0 to {2**bits - 1} do not fit 8 bits" in refused(path, ImageInput(depth=8)).detail


def test_a_dark_image_of_sixteen_bits_is_taken_and_its_range_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = save(tmp_path / "x.png", np.array([[7, 2**14 - 1]], np.uint16))
    assert taken(path)[..., 0].tolist() == [[0, 63]]
    assert caplog.messages == [
        f"{path}: values from 7 to 16383, read as 16 bits, are dark: --depth 14 would use them all"
    ]
    caplog.clear()
    assert taken(path, ImageInput(depth=14))[..., 0].tolist() == [[0, 255]]
    assert taken(save(tmp_path / "y.png", np.zeros((2, 3), np.uint16))).max() == 0, "black in any depth"
    assert taken(save(tmp_path / "z.png", np.array([[2**14]], np.uint16))).max() == 64
    assert not caplog.messages


def test_grey_of_thirty_two_bits_and_floats(tmp_path: Path) -> None:
    wide = save(tmp_path / "wide.tif", np.array([[0, 2**20]], np.int32))
    assert "values from 0 to 1048576 do not fit 16 bits" in refused(wide).detail
    assert taken(wide, ImageInput(depth=21))[..., 0].tolist() == [[0, 128]]
    few = save(tmp_path / "few.tif", np.array([[0, 200]], np.int32))
    assert "--depth 8" in refused(few).detail
    assert taken(few, ImageInput(depth=8))[..., 0].tolist() == [[0, 200]]
    negative = save(tmp_path / "negative.tif", np.array([[-1, 2**15]], np.int32))
    assert "values from -1 to 32768 do not fit 32 bits" in refused(negative, ImageInput(depth=32)).detail
    floats = save(tmp_path / "float.tif", np.ones((3, 4), np.float32))
    for depth in (None, 8, 16):
        lost = refused(floats, ImageInput(depth=depth))
        assert (lost.reason, "float values have no known range" in lost.detail) == (pixels.UNKNOWN_DEPTH, True)


@pytest.mark.parametrize(("kind", "channels"), [(2, 3), (6, 4), (4, 2)])
def test_colours_of_sixteen_bits_that_hold_eight_are_refused(tmp_path: Path, kind: int, channels: int) -> None:
    """Pillow keeps their upper half, which is black."""
    values = RANDOM.integers(0, 2**16, (5, 7, channels), dtype=np.uint16)
    full = wide_png(tmp_path / "full.png", values, kind)
    assert np.array_equal(taken(full)[..., 0], values[..., 0] >> 8)
    values[..., : channels - (kind != 2)] >>= 8
    few = wide_png(tmp_path / "few.png", values, kind)
    lost = refused(few)
    assert (lost.reason, "the upper 8 go up to 0 of 255 only: store 8 bits" in lost.detail) == (
        pixels.UNKNOWN_DEPTH, True,
    )  # fmt: skip
    assert taken(few, ImageInput(depth=16)).max() == 0
    assert "read as 16, not 8: store 8 bits" in refused(full, ImageInput(depth=8)).detail


def test_dark_colours_of_sixteen_bits_are_taken_and_it_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for bits, said in ((13, "up to 31 of 255 only, are dark"), (14, "up to 63 of 255 only"), (15, ""), (16, "")):
        caplog.clear()
        values = np.full((5, 7, 3), (1 << bits) - 1, np.uint16)
        path = wide_png(tmp_path / f"{bits}.png", values, 2)
        assert taken(path).max() == values.max() >> 8
        assert [str(path) in line and said in line for line in caplog.messages] == [True] * bool(said)
        caplog.clear()
        taken(path, ImageInput(depth=16))
        assert caplog.messages == []


def test_colours_of_a_portable_pixmap(tmp_path: Path) -> None:
    values = RANDOM.integers(0, 256, (5, 7, 3)).astype(">u2")
    for most, message in ((65535, "the upper 8 go up to"), (255, "")):
        stored = values if most == 65535 else values.astype(np.uint8)
        (tmp_path / "x.ppm").write_bytes(b"P6\n7 5\n%d\n" % most + stored.tobytes())
        image = load(tmp_path / "x.ppm")
        assert message in image.detail if isinstance(image, Skipped) else np.array_equal(image, values)


# resized and cut out


@pytest.mark.parametrize("kernel", FILTERS)
def test_every_filter_shrinks_and_enlarges_a_plain_image_to_itself(tmp_path: Path, kernel: str) -> None:
    path = save(tmp_path / "x.png", np.full((20, 30, 3), (10, 128, 255), np.uint8))
    for size in ((7, 31), (40, 45), (20, 30), (1, 1)):
        image = taken(path, ImageInput(resize=Resize(size=size, filter=kernel)))
        assert image.shape == (*size, 3)
        assert np.array_equal(image, np.broadcast_to(np.array([10, 128, 255]), image.shape))


def test_an_image_that_becomes_too_large_or_does_not_hold_the_crop_is_skipped(tmp_path: Path) -> None:
    """A strip whose shorter side is enlarged."""
    path = save(tmp_path / "x.png", np.zeros((1, 20_000, 3), np.uint8))
    assert refused(path, ImageInput(resize=Resize(shortest=480))).reason == pixels.TOO_LARGE
    lost = refused(path, ImageInput(crop=(2, 2)))
    assert (lost.reason, lost.detail) == (pixels.TOO_SMALL, "height 1, width 20000, crop 2x2")


def test_an_image_that_is_covered_is_resized_by_the_factor(tmp_path: Path) -> None:
    path = save(tmp_path / "x.png", RANDOM.integers(0, 256, (60, 81, 3), dtype=np.uint8))
    got = taken(path, ImageInput(resize=Resize(cover=(48, 64), filter="nearest")))
    rows, columns = (np.arange(length) * 5 // 4 for length in (48, 64))
    assert np.array_equal(got, taken(path)[np.ix_(rows, columns)])


def test_the_middle_is_where_torchvision_has_it(tmp_path: Path) -> None:
    """Halves go to the even side."""
    path = save(tmp_path / "x.png", PIXELS)
    for crop, top, left in (((6, 9), 0, 0), ((4, 4), 1, 2), ((3, 6), 2, 2), ((1, 2), 2, 4), ((5, 8), 0, 0)):
        got = taken(path, ImageInput(crop=crop))
        assert np.array_equal(got, PIXELS[top : top + crop[0], left : left + crop[1]])


@pytest.mark.parametrize("error", [MemoryError, ZeroDivisionError, AttributeError, AssertionError, RecursionError])
def test_any_error_of_a_decoder_skips_one_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def broken(image: Any) -> None:
        raise error("no more")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", broken)
    lost = refused(save(tmp_path / "x.png", PIXELS))
    assert ("memory" in lost.reason) == (error is MemoryError)
    assert lost.path == str(tmp_path / "x.png")
