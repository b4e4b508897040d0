"""The words for images: how large they become, and which shapes an engine takes."""

import json
from dataclasses import asdict, replace

import pytest

from netvlad_deploy.commands.flags import ImageFlags
from netvlad_deploy.errors import InputError, UsageError
from netvlad_deploy.spec.build_options import fitting_profile
from netvlad_deploy.spec.images import USUAL_IMAGES, ImageChanges, ImageInput, ImageProfile, Resize, parse_size
from netvlad_deploy.support.records import from_record


@pytest.mark.parametrize(
    ("text", "resize", "words"),
    [
        ("480x640", Resize(size=(480, 640)), "to 480x640 (bilinear)"),
        ("640", Resize(longest=640), "longer side to 640 at most (bilinear)"),
        ("none", Resize(), "no resize"),
        ("shorter:480", Resize(shortest=480), "shorter side to 480 (bilinear)"),
        ("cover:480x640", Resize(cover=(480, 640)), "to cover 480x640 (bilinear)"),
        ("640,area", Resize(longest=640, filter="area"), "longer side to 640 at most (area)"),
        ("none,nearest", Resize(filter="nearest"), "no resize"),
    ],
)
def test_a_rule_is_read_and_said(text: str, resize: Resize, words: str) -> None:
    assert Resize.parse(text) == resize
    assert str(resize) == words


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0",
        "640x",
        "x640",
        "0x640",
        "640x0",
        "-1",
        "1.5",
        "640x480x3",
        "None",
        " 640",
        "shorter:48x64",
        "cover:480",
        "longer:480",
        "480x640,",
        "480:640",
        "\uff11\uff16x\uff11\uff16",
        "none:480",
        ":480",
    ],
)
def test_a_text_that_is_no_rule_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"for example 480x640|names another filter"):
        Resize.parse(text)


def test_contradictions_are_refused() -> None:
    with pytest.raises(InputError, match="by one rule"):
        Resize(size=(1, 1), longest=1)
    with pytest.raises(InputError, match="at least 1"):
        Resize(size=(0, 5))
    with pytest.raises(InputError, match="at least 1"):
        Resize(longest=0)
    with pytest.raises(InputError, match=r"filter is 'hamming', expected bilinear, .* or nearest"):
        Resize(filter="hamming")
    for resize, crop in (("48x64", (49, 64)), ("cover:48x64", (48, 65)), ("shorter:32", (33, 33)), ("32", (8, 33))):
        with pytest.raises(InputError, match="crop less"):
            ImageInput(resize=Resize.parse(resize), crop=crop)
    with pytest.raises(InputError, match="at least 1"):
        ImageInput(crop=(0, 5))
    with pytest.raises(InputError, match="depth is 7, expected 8 to 32 bits"):
        ImageInput(depth=7)


@pytest.mark.parametrize(
    ("rule", "image", "target"),
    [
        ("none", (3, 5), (3, 5)),
        ("48x64", (3, 5), (48, 64)),
        ("640", (480, 640), (480, 640)),
        ("320", (480, 640), (240, 320)),
        ("320", (640, 480), (320, 240)),
        ("100", (3, 50), (3, 50)),
        ("100", (2, 300), (1, 100)),
        ("20", (1, 1000), (1, 20)),
        ("17", (19, 19), (17, 17)),
        ("1024", (825, 1100), (768, 1024)),
        ("shorter:480", (640, 480), (640, 480)),
        ("shorter:480", (333, 1000), (480, 1441)),
        ("shorter:480", (1000, 333), (1441, 480)),
        ("cover:480x640", (333, 1000), (480, 1441)),
        ("cover:480x640", (1000, 333), (1921, 640)),
        ("cover:480x640", (240, 320), (480, 640)),
    ],
)
def test_the_size_an_image_becomes(rule: str, image: tuple[int, int], target: tuple[int, int]) -> None:
    assert Resize.parse(rule).target(*image) == target


@pytest.mark.parametrize("text", ["15x99", "99x16385", "40000x40000", "9" * 5000, "shorter:1", "9" * 5000 + "x20"])
def test_a_length_out_of_range_is_refused_with_the_range(text: str) -> None:
    with pytest.raises(UsageError, match="every length must be from 16 to 16384 pixels") as caught:
        Resize.parse(text)
    assert len(str(caught.value)) < 120


def test_a_crop_decides_the_size_in_the_end() -> None:
    images = ImageInput(resize=Resize(shortest=256), crop=(224, 200), orient=False, depth=10)
    assert images.preparation == (
        "grey values of 10 bits, pixels as stored, shorter side to 256 (bilinear), the middle 224x200"
    )
    assert images.target(300, 400) == images.size == (224, 200)
    assert images.usual_profile.shapes[0] == (1, 224, 200)
    assert ImageInput().preparation == "upright by EXIF, no resize"
    assert parse_size("480x640") == (480, 640)


def test_a_change_replaces_one_field_and_no_other() -> None:
    own = ImageInput(mean=(1.0, 2.0, 3.0), resize=Resize(size=(480, 640), filter="area"), orient=False)
    assert not ImageChanges()
    assert ImageChanges().on(own) == own
    resized = ImageChanges(resize=Resize.parse("320")).on(own)
    assert resized == replace(own, resize=Resize(longest=320, filter="area"))
    assert ImageChanges(resize=Resize.parse("320,box")).on(own).resize.filter == "box"
    given = ImageFlags(crop="64x32", orient=True, depth=12).changes
    assert given.on(own) == replace(own, crop=(64, 32), orient=True, depth=12)
    assert ImageChanges(orient=False)
    with pytest.raises(UsageError, match="crop less"):
        ImageChanges(crop=(481, 640)).on(own)


def test_json_keeps_all() -> None:
    for images in (
        ImageInput(),
        ImageInput(resize=Resize(cover=(48, 64), filter="nearest"), crop=(48, 64), orient=False, depth=12),
    ):
        assert from_record(ImageInput, json.loads(json.dumps(asdict(images)))) == images


def test_a_profile_is_read_and_written_as_it_was() -> None:
    text = "1x224x160,2x480x640,8x1024x1280"
    profile = ImageProfile.parse(text)
    assert profile.text == text
    assert profile.shapes == ((1, 224, 160), (2, 480, 640), (8, 1024, 1280))
    assert profile.largest == 8 * 1024 * 1280
    assert str(profile) == "batch 1:2:8, height 224:480:1024, width 160:640:1280"
    assert list(profile.axes) == ["batch", "height", "width"]
    assert ImageProfile.parse("1x480x640").shapes == ((1, 480, 640),) * 3
    assert ImageProfile.parse(USUAL_IMAGES.text) == USUAL_IMAGES


@pytest.mark.parametrize("text", ["1x480", "1x480x640,8x480x640", "8x4x4,2x4x4,9x4x4", "0x4x4", "1x4x4x3", "axbxc", ""])
def test_a_text_that_is_no_profile_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        ImageProfile.parse(text)


@pytest.mark.parametrize(
    ("shape", "held"),
    [((1, 224, 160), True), ((8, 1024, 1280), True), ((9, 300, 300), False), ((1, 223, 300), False),
     ((1, 300, 1281), False), ((0, 300, 300), False), ((1, 1100, 300), False), ((1, 300, 1100), True)],
)  # fmt: skip
def test_which_shapes_a_profile_holds(shape: tuple[int, ...], held: bool) -> None:
    assert ImageProfile.parse("1x224x160,2x480x640,8x1024x1280").holds(*shape) is held


def test_the_smallest_profile_that_holds_a_shape_is_taken() -> None:
    profiles = [USUAL_IMAGES, ImageProfile.parse("1x480x640"), ImageProfile.parse("1x400x400,1x480x640,2x640x640")]
    assert fitting_profile(profiles, 1, 480, 640) == 1
    assert fitting_profile(profiles, 2, 480, 640) == 2
    assert fitting_profile(profiles, 1, 300, 300) == 0
    with pytest.raises(InputError, match="height is 200"):
        fitting_profile(profiles, 1, 200, 300)
