"""What cannot be right is said in its true words before the work."""

import json
import logging
import sys
from pathlib import Path

import pytest

from netvlad_deploy import workflow
from netvlad_deploy.artifact import OnnxArtifact
from tests.command import Command, error_of

pytestmark = [pytest.mark.export, pytest.mark.ort]


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the work fail, so that what is said must have been said before."""

    def work(*_: object, **__: object) -> None:
        raise AssertionError("the work has begun")

    for name in ("load_module", "open_runner", "compare", "load_reference"):
        monkeypatch.setattr(workflow, name, work)


@pytest.mark.parametrize("verb", ["validate", "build", "evaluate"])
def test_a_checkpoint_is_exported_first(command: Command, checkpoint: Path, verb: str) -> None:
    options = {"evaluate": ("--queries", "q", "--database", "d", "-o", "e", "--within", 1)}.get(verb, ())
    outcome = command(verb, checkpoint, *options)
    assert outcome.code == 2
    line = error_of(outcome.err)
    assert f"is a checkpoint, and {verb} takes what export makes of it: netvlad-deploy export " in line
    export = line.rpartition(": netvlad-deploy ")[2]
    assert command(*export.split()).code == 0, "the line works as it stands"


@pytest.mark.parametrize("verb", ["validate", "build", "inspect", "bench", "export", "precision"])
def test_a_missing_file_is_called_that(command: Command, verb: str) -> None:
    outcome = command(verb, "none.pth")
    assert outcome.code == 65
    assert error_of(outcome.err) == "error: none.pth is not a file"


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize(
    ("target", "code", "said"),
    [
        ("none/m.onnx", 73, "there is no folder none"),
        ("m.pt", 2, "name the target m.onnx"),
        ("there.onnx", 2, "there.onnx exists already"),
        ("sidecar.onnx", 2, "sidecar.onnx.json exists already"),
        ("reference.onnx", 2, "reference.reference.npz exists already"),
        (".", 2, "does not end in .onnx"),
    ],
)
def test_a_target_of_export_is_looked_at_first(
    command: Command, checkpoint: Path, tmp_path: Path, target: str, code: int, said: str
) -> None:
    for name in ("there.onnx", "sidecar.onnx.json", "reference.reference.npz"):
        (tmp_path / name).touch()
    outcome = command("export", checkpoint, "-o", target)
    assert outcome.code == code
    assert said in error_of(outcome.err)


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize("package", ["torch", "onnx", "onnxscript"])
def test_every_package_of_export_is_looked_for_first(
    command: Command, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    outcome = command("export", checkpoint)
    assert outcome.code == 69
    assert f"{sys.executable} -m pip install" in error_of(outcome.err)


@pytest.mark.usefixtures("no_work")
def test_a_target_of_validate_is_looked_at_first(command: Command, exported: OnnxArtifact) -> None:
    outcome = command("validate", exported.path, "--junit", "none/parity.xml")
    assert outcome.code == 73
    assert "there is no folder none" in error_of(outcome.err)


def test_precision_draws_without_a_drawing_library(
    command: Command, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Settings of matplotlib lie in the current folder, or where MATPLOTLIBRC says, and can run LaTeX."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert command("precision", checkpoint, "-o", "one").code == 0
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\nsavefig.dpi: 1\nfont.size: 90\n")
    monkeypatch.setenv("MATPLOTLIBRC", str(tmp_path / "matplotlibrc"))
    assert command("precision", checkpoint, "-o", "two").code == 0
    pictures = [(tmp_path / name / "precision.svg").read_text() for name in ("one", "two")]
    assert pictures[0] == pictures[1]
    assert "Precisions of best.pth.tar" in pictures[0]
    assert json.loads((tmp_path / "two" / "report.json").read_text())["cases"]


@pytest.fixture(autouse=True)
def quiet_torch() -> None:
    logging.getLogger("torch").setLevel(logging.ERROR)
