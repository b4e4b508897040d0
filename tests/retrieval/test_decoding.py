"""Images are found, decoded and resized by the rule, and a faulty one is skipped with its reason."""

import importlib
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from netvlad_deploy.errors import InputError, MissingDependencyError, UsageError
from netvlad_deploy.retrieval import decoding as images
from netvlad_deploy.retrieval import loading
from netvlad_deploy.retrieval.loading import load_images
from netvlad_deploy.retrieval.pixels import TOO_LARGE
from netvlad_deploy.sources import image_folders
from netvlad_deploy.sources.image_folders import find_images
from netvlad_deploy.spec import items
from netvlad_deploy.spec.images import ImageInput, Resize
from netvlad_deploy.spec.items import Skipped, count_reasons
from netvlad_deploy.support.arrays import Array
from tests.retrieval.photos import PIXELS, refused, taken

pillow: Any = importlib.import_module("PIL.Image")
RANDOM = np.random.default_rng(0)


def save(path: Path, image: Any = None, **options: Any) -> Path:
    """Write an image, by default the random one."""
    picture = pillow.fromarray(PIXELS) if image is None else image
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, **options)
    return path


# finding


def test_a_folder_is_searched_to_the_bottom_in_order(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    for name in ("b.JPG", "a/z.png", "a/b/c.ppm", "a.webp", ".hidden.jpg", ".git/x.jpg"):
        save(tmp_path / name)
    (tmp_path / "a" / "notes.txt").write_text("notes")
    (tmp_path / ".notes").write_text("notes")
    files, others = find_images([tmp_path])
    assert [file.name for file in files] == ["a.webp", "a/b/c.ppm", "a/z.png", "b.JPG"]
    assert others == []
    assert caplog.messages == [f"left out as no image (1): {tmp_path / 'a' / 'notes.txt'}"]


@pytest.mark.parametrize(
    ("content", "lost"),
    [
        (b"\xff\xd8\xff\xe0\0\x10JFIF\0", True),
        (b"\0\0\0\x18ftypheic\0\0\0\0", True),
        (b"\0\0\0\x1cftypavif\0\0\0\0", True),
        (b"RIFF\x24\0\0\0WEBPVP8 ", True),
        (b"II*\0\x08\0\0\0", True),
        (b"\0\0\0\x18ftypisom\0\0\0\0", False),
        (b"RIFF\x24\0\0\0WAVEfmt ", False),
        (b"name,lat,lon\n", False),
        (b"", False),
    ],
)
def test_a_photo_without_its_suffix_is_lost_and_anything_else_is_left_out(
    tmp_path: Path, content: bytes, lost: bool
) -> None:
    (tmp_path / "IMG_0001").write_bytes(content)
    os.mkfifo(tmp_path / "pipe")
    files, others = find_images([tmp_path])
    assert files == []
    assert [(one.path, one.reason) for one in others] == [(str(tmp_path / "IMG_0001"), image_folders.NO_SUFFIX)] * lost
    (named,) = find_images([tmp_path / "IMG_0001"])[1]
    assert named.reason == image_folders.NO_SUFFIX
    assert named.detail.startswith("rename it or convert it: .jpg, ")


def test_files_come_in_the_order_given_by_their_own_names(tmp_path: Path) -> None:
    given = [save(tmp_path / name) for name in ("b/2.jpg", "a/1.jpg")]
    assert [file.name for file in find_images(given)[0]] == ["2.jpg", "1.jpg"]
    assert [file.name for file in find_images([given[0], tmp_path / "a"])[0]] == ["2.jpg", "1.jpg"]
    save(tmp_path / "a" / "2.jpg")
    with pytest.raises(UsageError, match="the same name"):
        find_images([tmp_path / "a", tmp_path / "b"])


def test_a_source_that_is_missing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        find_images([tmp_path / "nothing"])


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    save(tmp_path / "far" / "x.png")
    (tmp_path / "near").mkdir()
    (tmp_path / "near" / "far").symlink_to(tmp_path / "far")
    (tmp_path / "far" / "back").symlink_to(tmp_path / "far")
    (tmp_path / "near" / "gone.png").symlink_to(tmp_path / "nothing")
    files, others = find_images([tmp_path / "near"])
    assert [file.name for file in files] == ["far/x.png"]
    assert [one.reason for one in others] == [items.UNREADABLE], "by a link that leads back nothing is lost"


def test_links_between_siblings_end_and_no_image_comes_twice(tmp_path: Path) -> None:
    """Two links to each other's siblings, and folders that all link to all: each is searched once, by its own name."""
    for name in "abcdefgh":
        save(tmp_path / name / f"{name}.png")
    for name in "abcdefgh":
        for other in "abcdefgh":
            (tmp_path / name / f"to-{other}").symlink_to(tmp_path / other)
    (tmp_path / "a" / "out").symlink_to(tmp_path.parent)
    (tmp_path / "a" / "0").symlink_to("0")
    files, others = find_images([tmp_path])
    assert [file.name for file in files] == [f"{name}/{name}.png" for name in "abcdefgh"]
    assert [(one.path, one.reason) for one in others] == [(str(tmp_path / "a" / "out"), image_folders.ABOVE)]


def test_a_name_that_is_not_unicode_can_be_printed(tmp_path: Path) -> None:
    save(tmp_path / "x.png").rename(tmp_path / os.fsdecode(b"\xff.png"))
    assert [file.name.encode() for file in find_images([tmp_path])[0]] == [b"\\xff.png"]


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Played, since root reads everything."""
    save(tmp_path / "shut" / "x.png")
    scan = os.scandir

    def shut(folder: str) -> Any:
        if Path(folder).name == "shut":
            raise PermissionError(13, "Permission denied", folder)
        return scan(folder)

    monkeypatch.setattr(os, "scandir", shut)
    assert find_images([tmp_path]) == (
        [],
        [Skipped(path=str(tmp_path / "shut"), reason=items.UNREADABLE, detail="Permission denied")],
    )


# decoding


@pytest.mark.parametrize("suffix", ["png", "bmp", "ppm", "tif", "webp"])
def test_pixels_are_those_of_the_file(tmp_path: Path, suffix: str) -> None:
    path = save(tmp_path / f"x.{suffix}", **({"lossless": True} if suffix == "webp" else {}))
    assert np.array_equal(taken(path), PIXELS)


def test_damaged_exif_counts_as_none(tmp_path: Path) -> None:
    path = save(tmp_path / "x.jpg", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x09\x01\x12")
    assert taken(path).shape == PIXELS.shape


def test_grey_one_bit_palette_and_alpha_become_rgb(tmp_path: Path) -> None:
    grey = PIXELS[..., 0]
    assert np.array_equal(taken(save(tmp_path / "l.png", pillow.fromarray(grey))), np.stack([grey] * 3, axis=2))
    bits = pillow.fromarray(grey > 99)
    assert np.array_equal(taken(save(tmp_path / "1.png", bits)), np.stack([(grey > 99) * np.uint8(255)] * 3, axis=2))
    alpha = np.concatenate([PIXELS, RANDOM.integers(0, 256, (6, 9, 1), dtype=np.uint8)], axis=2)
    assert np.array_equal(taken(save(tmp_path / "a.png", pillow.fromarray(alpha))), PIXELS)
    palette = pillow.fromarray(RANDOM.integers(0, 4, (6, 9), dtype=np.uint8), mode=None).convert("P")
    palette.putpalette(list(range(12)))
    for name, transparency in (("none", None), ("one", 2), ("bytes", b"\0\x40\xff\x01")):
        path = save(
            tmp_path / f"{name}.png", palette, **({} if transparency is None else {"transparency": transparency})
        )
        assert np.array_equal(taken(path), np.arange(12).reshape(4, 3)[np.asarray(palette)])


def test_the_first_frame_of_an_animation_is_taken(tmp_path: Path) -> None:
    others = [pillow.new("RGB", (9, 6), "red")]
    for suffix, options in (("webp", {"lossless": True}), ("png", {}), ("tif", {})):
        path = save(tmp_path / f"x.{suffix}", save_all=True, append_images=others, **options)
        assert np.array_equal(taken(path), PIXELS)


def test_a_jpeg_is_decoded_whole_before_it_is_resized(tmp_path: Path) -> None:
    """Pillow's draft mode would decode it at a quarter of its size, with other pixels."""
    large = pillow.fromarray(RANDOM.integers(0, 256, (64, 96, 3), dtype=np.uint8)).resize((640, 480))
    path = save(tmp_path / "x.jpg", large)
    with pillow.open(path) as image:
        whole = np.asarray(image.convert("RGB").resize((80, 60), pillow.Resampling.BILINEAR))
        image.seek(0)
    with pillow.open(path) as image:
        image.draft("RGB", (80, 60))
        drafted = np.asarray(image.convert("RGB").resize((80, 60), pillow.Resampling.BILINEAR))
    assert np.array_equal(taken(path, ImageInput(resize=Resize(size=(60, 80)))), whole)
    assert not np.array_equal(drafted, whole)


def test_a_box_averages(tmp_path: Path) -> None:
    path = save(tmp_path / "x.png")
    exact = PIXELS.reshape(2, 3, 3, 3, 3).mean(axis=(1, 3))
    assert (
        np.abs(taken(path, ImageInput(resize=Resize(size=(2, 3), filter="box"))) - exact).max() <= 1
    )  # rounded twice, by rows and by columns
    assert np.abs(taken(path, ImageInput(resize=Resize(size=(2, 3), filter="bilinear"))) - exact).max() > 5


@pytest.mark.parametrize("name", ["bicubic", "lanczos", "nearest-centre"])
def test_filters_of_pillow_are_pillow_s_bytes(tmp_path: Path, name: str) -> None:
    noise = np.random.default_rng(3).integers(0, 256, (31, 47, 3), dtype=np.uint8)
    pillow.fromarray(noise).save(tmp_path / "x.png")
    kernel = pillow.Resampling[name.removesuffix("-centre").upper()]
    expected = np.asarray(pillow.fromarray(noise).resize((20, 13), kernel))

    def by(name: str) -> Array:
        return taken(tmp_path / "x.png", ImageInput(resize=Resize(size=(13, 20), filter=name)))

    assert np.array_equal(by(name), expected)
    for other in {"bicubic", "lanczos", "nearest-centre", "nearest"} - {name}:
        assert not np.array_equal(by(other), expected)


# files that cannot be loaded


def png(path: Path) -> bytes:
    return save(path).read_bytes()


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("empty.jpg", b"", images.EMPTY),
        ("text.jpg", b"this is no photo", images.NO_IMAGE),
        ("eps.jpg", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n%%EOF\n", images.NO_IMAGE),
    ],
)
def test_a_file_that_is_no_image_is_skipped(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    (tmp_path / name).write_bytes(content)
    assert refused(tmp_path / name) == Skipped(path=str(tmp_path / name), reason=reason)


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "ppm", "tif", "webp"])
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_a_truncated_image_is_skipped(tmp_path: Path, suffix: str, share: float) -> None:
    path = save(tmp_path / f"x.{suffix}", pillow.fromarray(RANDOM.integers(0, 256, (60, 90, 3), dtype=np.uint8)))
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    assert refused(path).reason in (images.DAMAGED, images.NO_IMAGE)


def test_a_flipped_byte_of_a_png_is_damage(tmp_path: Path) -> None:
    content = bytearray(png(tmp_path / "x.png"))
    content[content.index(b"IDAT") + 20] ^= 0xFF
    (tmp_path / "x.png").write_bytes(content)
    assert refused(tmp_path / "x.png").reason == images.DAMAGED


def test_a_huge_image_is_refused_by_its_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Just above the limit, where Pillow only warns, and far above, where it raises: no pixel is decoded."""
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("decoded"))
    for side in (9460, 20000):
        header = b"P5\n%d %d\n255\n" % (side, side)
        (tmp_path / "x.pgm").write_bytes(header + b"few")
        assert refused(tmp_path / "x.pgm").reason == TOO_LARGE


def test_a_small_file_that_claims_a_huge_image_takes_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "x.gif")
    content = bytearray(path.read_bytes())
    content[6:10] = (8000).to_bytes(2, "little") * 2
    path.write_bytes(content)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("decoded"))
    lost = refused(path)
    assert (lost.reason, lost.detail.startswith("height 8000, width 8000, at most")) == (TOO_LARGE, True)
    blank = np.zeros((2048, 2048), np.uint8)
    monkeypatch.undo()
    assert taken(save(tmp_path / "blank.png", pillow.fromarray(blank))).max() == 0


def test_pillows_warnings_do_not_leak_and_come_back(tmp_path: Path) -> None:
    (tmp_path / "x.pgm").write_bytes(b"P5\n9460 9460\n255\n")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        refused(tmp_path / "x.pgm")
        assert not caught
        with pillow.open(tmp_path / "x.pgm"):
            assert len(caught) == 1


def test_a_file_that_vanished_is_skipped(tmp_path: Path) -> None:
    assert refused(tmp_path / "x.png") == Skipped(
        path=str(tmp_path / "x.png"), reason=items.UNREADABLE, detail="No such file or directory"
    )


def test_reasons_are_counted_most_first() -> None:
    lost = [Skipped(path=str(index), reason=reason) for index, reason in enumerate("abb")]
    assert count_reasons(lost) == "2 b, 1 a"
    assert str(Skipped(path="x", reason="why", detail="what")) == "x: why (what)"


# many at once


def test_many_images_come_in_order_and_alone_they_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "available_cores", lambda: 8)
    for index in range(20):
        large = 40 if index % 3 == 0 else 4  # slow ones first
        save(tmp_path / f"{index:02}.jpg", pillow.effect_noise((large * 9, large * 6), 50).convert("RGB"))
    (tmp_path / "07.jpg").write_bytes(b"")
    files, _ = find_images([tmp_path])
    resize = Resize(size=(13, 17))
    with load_images(files, ImageInput(resize=resize)) as loaded:
        together = list(loaded)
    assert [file.name for file, _ in together] == [f"{index:02}.jpg" for index in range(20)]
    for file, image in together:
        if isinstance(image, Skipped):
            assert file.name == "07.jpg"
        else:
            assert image.tobytes() == taken(file.path, ImageInput(resize=resize)).tobytes()


def test_pillow_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(MissingDependencyError, match=r"pip install .*pillow"), load_images([], ImageInput()):
        pass
