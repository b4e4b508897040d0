"""Numbers and names beyond every use: exit 2 with the limit, before any work."""

import math
from pathlib import Path

import numpy as np
import pytest

from netvlad_deploy.artifact import OnnxArtifact
from netvlad_deploy.errors import UsageError
from netvlad_deploy.spec.profiles import AxisRange, Profile
from netvlad_deploy.support.limits import LIMITS, check_limit, check_path, whole_number
from tests.command import Command, error_of
from tests.modules import features

pytestmark = [pytest.mark.export, pytest.mark.ort]

HUGE = ("9" * 25, str(2**63), "-1")
LONG = "a" * 300


@pytest.mark.parametrize("name", sorted(LIMITS))
def test_each_limit_holds_its_ends_and_has_a_reason(name: str) -> None:
    limit = LIMITS[name]
    check_limit(name, limit.least)
    check_limit(name, limit.most)
    for value in (limit.least - 1, math.nan, -math.inf, 10**400, -(10**400)):
        with pytest.raises(UsageError, match="expected"):
            check_limit(name, value)
    with pytest.raises(UsageError) as caught:
        check_limit(name, limit.most * 2)
    assert limit.reason in str(caught.value)


@pytest.mark.parametrize("number", HUGE)
@pytest.mark.parametrize(
    ("verb", "option"),
    [
        ("export", "--clusters"),
        ("export", "--feature-size"),
        ("export", "--ghost-clusters"),
        ("export", "--seed"),
        ("export", "--feature-norm"),
        ("precision", "--clusters"),
        ("deploy", "--duration"),
        ("build m.onnx", "--workspace-mib"),
        ("bench m.onnx", "--batch"),
        ("bench m.onnx", "--num-features"),
        ("bench m.onnx", "--threads"),
        ("bench m.onnx", "--duration"),
        ("bench m.onnx", "--budget-p99-ms"),
        ("validate m.onnx", "--expect-cases"),
        ("embed m.onnx x.npy -o y.npy", "--batch"),
        ("evaluate m.onnx --queries q --database d -o e", "--min-recall"),
        ("evaluate m.onnx --queries q --database d -o e", "--within"),
        ("evaluate m.onnx --queries q --database d -o e --within 1", "--batch"),
        ("fit photos", "--clusters"),
        ("fit photos", "--samples"),
        ("fit photos", "--whitening"),
        ("fit photos", "--seed"),
    ],
)
def test_every_number_has_a_limit(command: Command, tmp_path: Path, verb: str, option: str, number: str) -> None:
    outcome = command(*verb.split(), option, number)
    assert outcome.code == 2
    limit = LIMITS[option.removeprefix("--").replace("-", "_")]
    assert f"expected {limit.least:.12g} to {limit.most:.12g}" in error_of(outcome.err)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("option", ["--duration", "--budget-p99-ms"])
def test_not_a_number_is_no_number(command: Command, option: str) -> None:
    """A budget of NaN would never be exceeded."""
    outcome = command("bench", "m.onnx", option, "nan")
    assert outcome.code == 2
    assert "is nan, expected" in error_of(outcome.err)


@pytest.mark.parametrize("digits", ["1" + "0" * 30, "9" * 5000, str(2**63), "70000"])
@pytest.mark.parametrize(
    ("option", "form"),
    [
        ("--batch", "{}"),
        ("--batch", "1:1:{}"),
        ("--image-size", "{}x32"),
        ("--profile", "{}x1"),
        ("--profile", "1x32x{}"),
        ("--profile", "1x1,1x1,{}x1"),
    ],
)
def test_every_range_has_a_limit(command: Command, exported: OnnxArtifact, option: str, form: str, digits: str) -> None:
    outcome = command("build", exported.path, option, form.format(digits))
    assert outcome.code == 2
    assert len(error_of(outcome.err)) < 400


def test_a_profile_of_too_many_positions() -> None:
    with pytest.raises(UsageError, match=r"positions is .* expected 1 to 2147483647 \(TensorRT counts them in 31 bits"):
        Profile(batch=AxisRange.parse("60000"), num_features=AxisRange.parse("60000"))


def test_digits() -> None:
    assert whole_number("007") == 7
    assert whole_number("000") == 0
    assert whole_number("9" * 5000) > max(limit.most for limit in LIMITS.values())


@pytest.mark.parametrize("digits", ["9" * 5000, "70000"])
def test_5000_digits_of_a_plain_number(command: Command, exported: OnnxArtifact, digits: str) -> None:
    outcome = command("bench", exported.path, "--batch", digits)
    assert outcome.code == 2
    assert "Traceback" not in outcome.err


def test_a_layer_and_an_input_that_no_memory_holds(command: Command, exported: OnnxArtifact) -> None:
    outcome = command("export", "--clusters", 65536, "--feature-size", 65536)
    assert outcome.code == 2
    assert "values of a layer is 4294967296, expected 1 to 16777216" in error_of(outcome.err)
    outcome = command("bench", exported.path, "--batch", 65536, "--num-features", 1048576)
    assert outcome.code == 2
    assert "bytes of input is" in error_of(outcome.err)


@pytest.mark.parametrize(
    "arguments",
    [
        ("export", f"{LONG}.pth"),
        ("export", "-o", f"{LONG}.onnx"),
        ("build", f"{LONG}.onnx"),
        ("build", "m.onnx", "--timing-cache", LONG),
        ("validate", f"{LONG}.onnx"),
        ("validate", "m.onnx", "--against", f"{LONG}.onnx"),
        ("validate", "m.onnx", "--junit", f"{LONG}.xml"),
        ("validate", "m.onnx", "--bank", f"{LONG}.npy"),
        ("bench", f"{LONG}.onnx"),
        ("bench", "m.onnx", "--baseline", f"{LONG}.json"),
        ("bench", "m.onnx", "--save-baseline", f"{LONG}.json"),
        ("embed", "m.onnx", LONG, "-o", "y.npz"),
        ("embed", "m.onnx", "x", "-o", f"{LONG}.npz"),
        ("embed", "m.onnx", "x", "-o", "y.npz", "--runtime-cache", LONG),
        ("evaluate", "m.onnx", "--queries", LONG, "--database", "d", "-o", "e"),
        ("evaluate", "m.onnx", "--queries", "q", "--database", "d", "-o", "e", "--ground-truth", LONG),
        ("fit", LONG),
        ("fit", "photos", "--checkpoint", LONG),
        ("inspect", LONG),
        ("deploy", "-o", LONG),
        ("precision", "-o", LONG),
    ],
)
@pytest.mark.parametrize(
    ("name", "said"),
    [(LONG, "has a name of 30"), ("", "is empty"), ("b\0c", "holds a NUL"), ("a/" * 2100, "bytes, expected at most")],
)
def test_every_name_has_a_limit(command: Command, arguments: tuple[str, ...], name: str, said: str) -> None:
    replaced = [
        "" if LONG in each and not name else each.replace(LONG, name) if LONG in each else each for each in arguments
    ]
    outcome = command(*replaced)
    assert outcome.code == 2
    assert said in error_of(outcome.err)
    assert len(error_of(outcome.err)) < 400


@pytest.mark.parametrize("length", [240, 255])
def test_a_name_to_which_nothing_can_be_added(
    command: Command, exported: OnnxArtifact, tmp_path: Path, length: int
) -> None:
    """What stands beside the target has a longer name than the target."""
    target = "m" * (length - 5) + ".onnx"
    outcome = command("export", "--clusters", 2, "--feature-size", 4, "-o", target)
    assert outcome.code == 73
    assert "File name too long" in error_of(outcome.err)
    np.save(tmp_path / "x.npy", features(1, 2, 16))
    outcome = command("embed", exported.path, "x.npy", "-o", "y" * (length - 4) + ".npy")
    assert outcome.code in (0, 73)
    assert outcome.code == 0 or "File name too long" in error_of(outcome.err)


def test_the_help_says_the_limits(command: Command) -> None:
    assert "[1 to 256]" in command("bench", "-h").out
    assert "[8 to 32]" in command("export", "-h").out


def test_a_path_that_can_be() -> None:
    check_path("output", "a" * 255)
    check_path("output", "写" * 85)
    with pytest.raises(UsageError, match="258 bytes"):
        check_path("output", "写" * 86)


@pytest.mark.parametrize("arguments", [("inspect",), ("validate",), ("validate", "m.onnx", "--against")])
def test_a_link_that_leads_to_itself(command: Command, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    (tmp_path / "one.pth").symlink_to("two.pth")
    (tmp_path / "two.pth").symlink_to("one.pth")
    outcome = command(*arguments, "one.pth")
    assert outcome.code == 2
    assert "is a link that leads to itself: one.pth" in error_of(outcome.err)
