"""`deploy` of an exported ONNX file: taken as it is, without torch, and without options that an export takes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from netvlad_deploy.artifact import OnnxArtifact
from netvlad_deploy.workflow import deploy
from tests.command import Command, error_of

pytestmark = [pytest.mark.export, pytest.mark.ort]

ROOT = Path(__file__).parents[2]


@pytest.mark.rtx
def test_the_whole_way_without_torch_and_onnx(exported: OnnxArtifact, tmp_path: Path) -> None:
    """Both are blocked for the processes of build and bench, too."""
    blocked = tmp_path / "blocked"
    blocked.mkdir()
    for name in ("torch", "onnx", "onnxscript", "safetensors"):
        (blocked / f"{name}.py").write_text(f"raise ImportError('no {name} here')")
    line = ["deploy", str(exported.path), "--flavor", "tensorrt-rtx", "--duration", "0.1", "--allow-not-run"]
    done = subprocess.run(
        [sys.executable, "-m", "netvlad_deploy", *line, "--expect-sha256", exported.sha256, "-o", "out", "--json"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{blocked}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    verdicts = {step["name"]: step["verdict"] for step in result["steps"]}
    assert result["steps"][0]["reason"] == f"{exported.path} is taken as it is, its hash is the sidecar's"
    for name in ("export", "parity of the ONNX file", "build with tensorrt-rtx", "latency of m.onnx"):
        assert verdicts[name] == "PASS"
    assert not any("torch" in name for name in verdicts)
    files = {path.name for path in (tmp_path / "out").iterdir()} - {"report.html"}
    assert files == {"m.engine", "m.engine.json", "m.engine.log", "report.json", "report.md"}
    assert result["engine"]["parent"]["sha256"] == exported.sha256


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--precision", "fp32"), "--precision"),
        (("--resize", "10x20", "--clusters", 64, "--no-batch-norm"), "--clusters, --batch-norm, --resize"),
        (("--input", "features"), "--input"),
    ],
)
def test_options_of_an_export_are_refused_by_name(
    command: Command, exported: OnnxArtifact, tmp_path: Path, options: tuple[object, ...], named: str
) -> None:
    """Also where they say what is so anyway: `--precision fp32` would be a lie about another file."""
    outcome = command("deploy", exported.path, *options)
    assert outcome.code == 2
    assert error_of(outcome.err).endswith(f"is exported already, leave out what is for an export: {named}")
    assert not list(tmp_path.iterdir())


def test_a_file_of_another_hash_or_without_a_sidecar_is_refused(
    command: Command, exported: OnnxArtifact, tmp_path: Path
) -> None:
    outcome = command("deploy", exported.path, "--expect-sha256", "0" * 64)
    assert (outcome.code, "SHA-256" in error_of(outcome.err)) == (65, True)
    (tmp_path / "alone.onnx").write_bytes(exported.path.read_bytes())
    outcome = command("deploy", "alone.onnx")
    assert outcome.code == 65
    outcome = command("deploy", "model.pth", "--expect-sha256", "0" * 64)
    assert outcome.code == 2
    assert error_of(outcome.err).endswith("--expect-sha256 is for an ONNX file: leave it out, or name MODEL.onnx")


def test_what_is_there_is_not_overwritten(
    command: Command, exported: OnnxArtifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deploy, "validate", lambda *_, **__: pytest.fail("worked before asking"))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "m.engine").touch()
    outcome = command("deploy", exported.path, "-o", "out")
    assert outcome.code == 2
    assert "m.engine exists already" in error_of(outcome.err)
