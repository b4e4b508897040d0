"""Wrong options and targets are refused, with the true reason, before the work."""

import logging
import subprocess
import sys
from pathlib import Path

import pytest

from netvlad_deploy.artifact import OnnxArtifact
from netvlad_deploy.workflow import export, precision, validate
from tests.command import Command, error_of

pytestmark = [pytest.mark.export, pytest.mark.ort]


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the work fail the test, so that a refusal must have come before it."""

    def work(*_: object, **__: object) -> None:
        raise AssertionError("the work has begun")

    for module, name in (
        (export, "load_module"),
        (precision, "load_head"),
        (precision, "open_runner"),
        (validate, "compare"),
        (validate, "load_reference"),
    ):
        monkeypatch.setattr(module, name, work)


@pytest.mark.parametrize("verb", ["validate", "build", "evaluate"])
def test_a_checkpoint_is_exported_first(command: Command, checkpoint: Path, verb: str) -> None:
    options = {"evaluate": ("--queries", "q", "--database", "d", "-o", "e", "--within", 1)}.get(verb, ())
    outcome = command(verb, checkpoint, *options)
    assert outcome.code == 65
    line = error_of(outcome.err)
    assert "is a checkpoint, which must be exported first: netvlad-deploy export " in line
    export = line.rpartition(": netvlad-deploy ")[2]
    assert command(*export.split()).code == 0, "the line works as it stands"


@pytest.mark.parametrize("verb", ["validate", "build", "inspect", "bench", "export", "precision"])
def test_a_missing_file_is_called_that(command: Command, verb: str) -> None:
    outcome = command(verb, "none.pth")
    assert outcome.code == 65
    assert error_of(outcome.err) == "error: none.pth is missing"


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


def test_precision_misses_its_drawing_library_before_the_work(
    command: Command, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr(precision, "load_head", lambda source: pytest.fail("the checkpoint was read"))
    outcome = command("precision", checkpoint, "-o", "one")
    assert outcome.code == 69
    assert "matplotlib" in error_of(outcome.err)
    assert not (tmp_path / "one").exists()


def test_pictures_use_our_own_settings_alone(tmp_path: Path) -> None:
    """Matplotlib reads settings that lie in the working folder, and one of them runs LaTeX."""
    draw = (
        "import sys; from netvlad_deploy.report.precision import CasePrecision, PrecisionReport, draw_precisions; "
        "figure = CasePrecision(case='one', precision='fp32', feature_norm=1.0, distance=1e-9, non_finite=0); "
        "report = dict(origin='$title', precisions=('fp32',), operators=(), cases=(figure,), warnings=()); "
        "sys.stdout.buffer.write(draw_precisions(PrecisionReport(**report)))"
    )
    pictures = []
    for settings in ("", "text.usetex: True\nfont.size: 90\naxes.facecolor: red\n"):
        (tmp_path / "matplotlibrc").write_text(settings)
        drawn = subprocess.run([sys.executable, "-c", draw], cwd=tmp_path, check=True, capture_output=True)
        pictures.append(drawn.stdout)
    assert pictures[0] == pictures[1]
    assert b"of $title" in pictures[0]


@pytest.fixture(autouse=True)
def quiet_torch() -> None:
    logging.getLogger("torch").setLevel(logging.ERROR)
