"""The words for images: how large they become, and which shapes an engine takes."""

import pytest

from netvlad_deploy.build_options import fitting_profile
from netvlad_deploy.errors import InputError, UsageError
from netvlad_deploy.images import USUAL_IMAGES, ImageProfile, Resize


@pytest.mark.parametrize(
    ("text", "resize", "words"),
    [
        ("480x640", Resize(size=(480, 640)), "to 480x640 (bilinear)"),
        ("640", Resize(longest=640), "longer side to 640 at most (bilinear)"),
        ("none", Resize(), "no resize"),
    ],
)
def test_a_rule_is_read_and_said(text: str, resize: Resize, words: str) -> None:
    assert Resize.parse(text) == resize
    assert str(resize) == words


@pytest.mark.parametrize("text", ["", "0", "640x", "x640", "0x640", "640x0", "-1", "1.5", "640x480x3", "None", " 640"])
def test_what_is_no_rule_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="for example 480x640"):
        Resize.parse(text)


def test_contradictions_are_refused() -> None:
    with pytest.raises(InputError, match="not both"):
        Resize(size=(1, 1), longest=1)
    with pytest.raises(InputError, match="at least 1"):
        Resize(size=(0, 5))
    with pytest.raises(InputError, match="at least 1"):
        Resize(longest=0)
    with pytest.raises(InputError, match="bilinear or box"):
        Resize(filter="nearest")


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
        ("10", (1, 1000), (1, 10)),
        ("7", (9, 9), (7, 7)),
    ],
)
def test_the_size_an_image_becomes(rule: str, image: tuple[int, int], target: tuple[int, int]) -> None:
    assert Resize.parse(rule).target(*image) == target


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
def test_what_is_no_profile_is_refused(text: str) -> None:
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
