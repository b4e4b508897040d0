"""JUnit files of errors and of results: whatever a verb ends with, a CI finds a file that says it."""

import shutil
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from netvlad_deploy.artifact import OnnxArtifact
from tests.command import Command, error_of

pytestmark = [pytest.mark.export, pytest.mark.ort]


@pytest.fixture
def here(exported: OnnxArtifact, tmp_path: Path) -> Path:
    """Return a copy of the artifact in the test's folder."""
    for name in ("m.onnx", "m.onnx.json", "m.reference.npz"):
        shutil.copy(exported.path.with_name(name), tmp_path)
    return Path("m.onnx")


def damage(artifact: Path) -> None:
    artifact.write_bytes(artifact.read_bytes()[:-1] + b"x")


def remove(artifact: Path) -> None:
    artifact.unlink()


def make_stale(artifact: Path) -> None:
    reference = artifact.with_name("m.reference.npz")
    reference.write_bytes(reference.read_bytes() + b"x")


@pytest.mark.parametrize(
    ("verb", "fault"),
    [("validate", damage), ("validate", remove), ("validate", make_stale), ("bench", damage), ("bench", remove)],
)
def test_an_error_is_written(command: Command, here: Path, verb: str, fault: Callable[[Path], None]) -> None:
    fault(here)
    Path("out.xml").write_text("of an earlier run")
    outcome = command(verb, here, "--junit", "out.xml")
    assert (outcome.code, outcome.out) == (65, "")
    suite = ET.parse("out.xml").getroot()
    assert [suite.get(name) for name in ("tests", "failures", "errors", "skipped")] == ["1", "0", "1", "0"]
    error = suite.find("testcase/error")
    assert error is not None
    assert (error.get("type"), f"error: {error.get('message')}") == ("ArtifactError", error_of(outcome.err))


def test_results_are_written(command: Command, here: Path) -> None:
    outcome = command("validate", here, "--junit", "out.xml", "--expect-cases", 3)
    assert outcome.code == 1
    assert "cases were judged, 3 are expected" in outcome.out
    assert ET.parse("out.xml").getroot().get("failures") == "1"
    bench = ("bench", here, "--num-features", 5, "--duration", 0.1, "--junit", "out.xml", "--budget-p99-ms")
    assert command(*bench, 1e-6).code == 1
    assert ET.parse("out.xml").getroot().get("failures") == "1"


def test_a_file_that_cannot_be_written_stops_before_the_work(command: Command, here: Path) -> None:
    for verb in ("validate", "bench"):
        for target, code, said in (("m.onnx", 2, "does not end in .xml"), ("none/out.xml", 73, "no folder none")):
            outcome = command(verb, here, "--junit", target)
            assert (outcome.code, said in error_of(outcome.err)) == (code, True)
