"""Optimization profiles and build options: their text, the choice of a profile, and contradictions."""

import shlex
from typing import Any

import pytest

from netvlad_deploy.commands.flags import EngineFlags
from netvlad_deploy.errors import InputError, UsageError
from netvlad_deploy.spec.build_options import RTX, BuildOptions, fitting_profile
from netvlad_deploy.spec.images import ImageProfile, parse_profile
from netvlad_deploy.spec.profiles import AxisRange, Profile

PROFILES = tuple(Profile.parse(text) for text in ("1x1,8x300,64x4096", "1x100,1x300,4x400", "1x1200"))


def test_a_profile_reads_its_own_text() -> None:
    wide = Profile(batch=AxisRange(min=1, opt=8, max=64), num_features=AxisRange(min=1, opt=300, max=4096))
    assert PROFILES[0] == wide
    assert [profile.text for profile in PROFILES] == ["1x1,8x300,64x4096", "1x100,1x300,4x400", "1x1200,1x1200,1x1200"]
    assert wide.shapes == ((1, 1), (8, 300), (64, 4096))


@pytest.mark.parametrize("text", ["", "1", "1x", "1x1,8x300", "1x1,8x300,64x4096,9x9", "2x1,1x1,3x1", "0x1", "-1x1"])
def test_text_of_another_form_is_no_profile(text: str) -> None:
    with pytest.raises(UsageError):
        Profile.parse(text)


@pytest.mark.parametrize(
    ("shape", "index"), [((1, 1200), 2), ((1, 300), 1), ((4, 400), 1), ((5, 400), 0), ((1, 99), 0), ((64, 4096), 0)]
)
def test_the_smallest_profile_that_fits_is_chosen(shape: tuple[int, int], index: int) -> None:
    assert fitting_profile(PROFILES, *shape) == index


def test_a_shape_outside_every_profile_is_refused_with_all_of_them() -> None:
    with pytest.raises(InputError, match=r"batch is 65, num_features is 1, outside every profile \(batch 1:8:64, .*;"):
        fitting_profile(PROFILES, 65, 1)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"flavor": "openvino"}, "choose tensorrt or tensorrt-rtx"),
        ({"workspace_mib": 0}, "workspace-mib is 0, expected 1 to 1048576"),
        ({"optimization_level": 6}, "expected 0 to 5"),
        ({"flavor": RTX, "hardware_compatible": True}, "--compute-capability instead"),
        ({"flavor": RTX, "version_compatible": True}, "--compute-capability instead"),
        ({"compute_capabilities": ("SM89",)}, "builds for the GPU it runs on"),
    ],
)
def test_options_that_contradict_each_other_are_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        BuildOptions(**wrong)  # type: ignore[arg-type]


def test_the_form_of_a_profile_tells_its_kind() -> None:
    for text, kind in (("1x300", Profile), ("1x1,8x300,64x4096", Profile), ("1x480x640", ImageProfile)):
        assert isinstance(parse_profile(text), kind)
    with pytest.raises(UsageError, match="is not BxHxW,BxHxW,BxHxW or one shape"):
        parse_profile("1x480x640,2x480x640")
    with pytest.raises(UsageError, match="is not BxN,BxN,BxN or one shape"):
        parse_profile("1x2x3x4")


@pytest.mark.parametrize(
    ("given", "profiles"),
    [
        ({}, ()),
        ({"batch": "1:2:4"}, ("1x1,2x300,4x4096",)),
        ({"num_features": "5"}, ("1x5,8x5,64x5",)),
        ({"image_size": "480x640"}, ("1x480x640,1x480x640,8x480x640",)),
        ({"image_size": "224x224,480x640,960x1280", "batch": "1:2:4"}, ("1x224x224,2x480x640,4x960x1280",)),
        ({"profile": ["1x480x640", "1x1,2x3,4x5"]}, ("1x480x640,1x480x640,1x480x640", "1x1,2x3,4x5")),
    ],
)
def test_flags_say_profiles(given: dict[str, Any], profiles: tuple[str, ...]) -> None:
    assert tuple(profile.text for profile in EngineFlags(**given).profiles) == profiles


@pytest.mark.parametrize(
    "given",
    [
        {"profile": ["1x480x640"], "image_size": "480x640"},
        {"profile": ["1x5"], "batch": "1"},
        {"image_size": "480x640", "num_features": "5"},
        {"image_size": "480"},
        {"image_size": "480x640,500x600"},
    ],
)
def test_flags_that_contradict_each_other_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        _ = EngineFlags(**given).profiles


def test_the_arguments_leave_defaults_out() -> None:
    assert BuildOptions().arguments == []
    rtx = BuildOptions(flavor=RTX, profiles=PROFILES[1:], tf32=True, compute_capabilities=("SM89", "SM120"))
    assert shlex.join(rtx.arguments) == (
        "--flavor tensorrt-rtx --profile 1x100,1x300,4x400 --profile 1x1200,1x1200,1x1200 --tf32 "
        "--compute-capability SM89 --compute-capability SM120"
    )
    options = BuildOptions(workspace_mib=512, optimization_level=0, hardware_compatible=True, version_compatible=True)
    assert shlex.join(options.arguments) == (
        "--workspace-mib 512 --optimization-level 0 --hardware-compatible --version-compatible"
    )
