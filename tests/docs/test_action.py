"""The steps of action.yml run here as GitHub runs them: inputs go through the environment, scripts through bash."""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
import yaml

from netvlad_deploy.artifact import FileReference, OnnxArtifact
from netvlad_deploy.latency.baseline import Baseline, Setup
from netvlad_deploy.support.files import sha256_file

pytestmark = [pytest.mark.export, pytest.mark.ort]

ROOT = Path(__file__).parents[2]
ACTION: dict[str, Any] = yaml.safe_load((ROOT / "action.yml").read_text())
STEPS: list[dict[str, Any]] = ACTION["runs"]["steps"]
HOSTILE = """-- $(touch hacked) `touch hacked` "; touch hacked; ' .onnx"""
BENCH = "--num-features 5 --threads 1 --duration 0.1"


@dataclass
class Job:
    """What a job has seen: the exit code of the step that failed, the outputs of the action, and its summary."""

    code: int = 0
    outputs: dict[str, str] = field(default_factory=dict)
    summary: str = ""
    log: str = ""


def filled(text: str, contexts: dict[str, str]) -> str:
    return re.sub(r"\$\{\{ ([\w.-]+) \}\}", lambda match: contexts[match[1]], text)


def run(folder: Path, given: dict[str, str], *, install: bool = False, **environment: str) -> Job:
    """Run the steps in a folder as a job does: a step that fails stops all but those that always run."""
    temporary = folder / "runner temp"
    (temporary / "netvlad-deploy").mkdir(parents=True, exist_ok=True)
    if not install and not (temporary / "netvlad-deploy" / "bin").exists():
        (temporary / "netvlad-deploy" / "bin").symlink_to(Path(sys.executable).parent)
    inputs = {name: given.get(name, table.get("default", "")) for name, table in ACTION["inputs"].items()}
    contexts = {f"inputs.{name}": value for name, value in inputs.items()}
    contexts |= {"github.action_path": str(ROOT), "runner.temp": str(temporary)}
    output, summary = temporary / "output", temporary / "summary"
    output.write_text("")
    summary.write_text("")
    job = Job()
    for step in STEPS[:1] if install else STEPS[1:]:
        condition = step.get("if", "${{ success() }}")
        wanted = {"${{ success() }}": True, "${{ always() }}": True, "${{ inputs.baseline != '' }}": inputs["baseline"]}
        if not wanted[condition] or (job.code and "always()" not in condition):
            continue
        (temporary / "step.sh").write_text(step["run"])
        values = {name: filled(value, contexts) for name, value in step["env"].items()}
        values |= {"GITHUB_OUTPUT": str(output), "GITHUB_STEP_SUMMARY": str(summary), "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", temporary / "step.sh"],
            cwd=folder, env={**os.environ, **values, **environment}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        job.code = job.code or done.returncode
        job.log += done.stdout + done.stderr
    job.outputs = dict(line.split("=", 1) for line in output.read_text().splitlines())
    job.summary = summary.read_text()
    return job


@pytest.fixture
def artifact(exported: OnnxArtifact, tmp_path: Path) -> Path:
    """Return an artifact whose name would run commands where it is not quoted."""
    for name, target in (("m.onnx", HOSTILE), ("m.onnx.json", f"{HOSTILE}.json"), ("m.reference.npz",) * 2):
        shutil.copy(exported.path.with_name(name), tmp_path / target)
    return tmp_path / HOSTILE


def test_a_right_artifact_passes_and_keeps_to_its_baseline(artifact: Path, tmp_path: Path) -> None:
    baseline = Baseline(
        artifact=FileReference(name=HOSTILE, sha256=sha256_file(artifact)),
        setup=Setup(backend="onnxruntime", batch=1, num_features=5, image_size=None, threads=1),
        machine={},
        block_medians_ms=(1.0,) * 10,
    )
    (tmp_path / "base line.json").write_bytes(baseline.text())
    given = {"artifact": HOSTILE, "baseline": "base line.json", "max-regression": "1000%", "bench-options": BENCH}
    (tmp_path / "json.py").write_text("raise RuntimeError('a module of the user')")
    job = run(tmp_path, given)
    assert job.code == 0, job.log
    assert job.outputs["verdict"] == "PASS"
    assert 0 < float(job.outputs["ratio"]) < 11
    assert job.summary.count("\n# PASS: ") + job.summary.startswith("# PASS: ") == 2
    assert "times the baseline" in job.summary
    for name in ("netvlad-deploy.xml", "netvlad-deploy-latency.xml"):
        assert ET.parse(tmp_path / name).getroot().get("errors") == "0"
    assert not (tmp_path / "hacked").exists()


def test_a_damaged_artifact_fails_with_its_error_in_junit_and_summary(artifact: Path, tmp_path: Path) -> None:
    artifact.write_bytes(artifact.read_bytes()[:-1] + b"x")
    job = run(tmp_path, {"artifact": HOSTILE, "baseline": "none.json", "junit": "parity.xml"})
    assert job.code == 65
    assert job.outputs == {"verdict": "ERROR", "ratio": ""}
    error = ET.parse(tmp_path / "parity.xml").getroot().find("testcase/error")
    assert error is not None
    assert "its sidecar says" in error.get("message", "")
    assert job.summary.startswith("# ERROR: validate\n\n    error: ")
    assert "its sidecar says" in job.summary
    assert "its sidecar says" in job.log
    assert not (tmp_path / "hacked").exists()


def test_another_number_of_cases_fails_and_nothing_is_timed(artifact: Path, tmp_path: Path) -> None:
    job = run(tmp_path, {"artifact": HOSTILE, "baseline": "none.json", "expect-cases": "3"})
    assert (job.code, job.outputs["verdict"]) == (1, "FAIL")
    assert "cases were judged, 3 are expected" in job.summary
    assert not (tmp_path / "netvlad-deploy-latency.xml").exists()


def test_the_installation_is_of_the_actions_own_checkout(tmp_path: Path) -> None:
    python = tmp_path / "python"
    make = 'if [ "$2" = venv ]; then mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; fi'
    python.write_text(f'#!/bin/bash\necho "$0 $@" >> "$CALLS"\n{make}\n')
    python.chmod(0o755)
    job = run(tmp_path, {"python": str(python), "extras": "cpu"}, install=True, CALLS=str(tmp_path / "calls"))
    assert job.code == 0, job.log
    folder = tmp_path / "runner temp" / "netvlad-deploy"
    assert (tmp_path / "calls").read_text().splitlines() == [
        f"{python} -m venv {folder}",
        f"{folder}/bin/python -m pip install --quiet -c {ROOT}/constraints.txt {ROOT}[cpu]",
    ]


def test_inputs_reach_scripts_through_the_environment_alone() -> None:
    assert [step["name"] for step in STEPS] == ["Install", "Validate", "Measure", "Report"]
    used: set[str] = set()
    for step in STEPS:
        assert "${{" not in step["run"]
        assert step["shell"] == "bash"
        used |= {name for value in step["env"].values() for name in re.findall(r"inputs\.([\w-]+)", value)}
        known = set(step["env"]) | {"GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY"}
        assert set(re.findall(r"\$\{?([A-Z_]+)", step["run"])) <= known
    assert used == set(ACTION["inputs"])
    assert all(table.get("description") for part in ("inputs", "outputs") for table in ACTION[part].values())
