"""The scripts of the page on fleets: their syntax, and the command in each of them, run as a scheduler does."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from netvlad_deploy.artifact import OnnxArtifact

pytestmark = [pytest.mark.ort, pytest.mark.export]
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", (Path(__file__).parents[2] / "docs" / "fleet.md").read_text(), re.DOTALL)
SCRIPTS = [text for language, text in BLOCKS if language == "sh" and text.startswith("#!/bin/sh")]
(MANIFEST,) = [yaml.safe_load(text) for language, text in BLOCKS if language == "yaml"]


@pytest.fixture
def folder(tmp_path: Path, tiny: OnnxArtifact) -> Path:
    """Return a folder with the page's artifact, an ONNX file here, and a few photos."""
    from PIL import Image

    for path in (tiny.path, tiny.reference_path, tiny.path.with_name(f"{tiny.path.name}.json")):
        shutil.copy(path, tmp_path)
    (tmp_path / "photos").mkdir()
    for number in range(3):
        Image.fromarray(np.full((32, 40, 3), 60 * number, np.uint8)).save(tmp_path / "photos" / f"{number}.png")
    return tmp_path


def run(script: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a script with small shards, on an artifact that runs here."""
    here = script.replace("place.engine photos", "tiny.onnx photos --shard-size 1")
    assert here != script
    environment = {**os.environ, **variables, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    return subprocess.run(["sh", "-c", here], cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_the_scripts_of_slurm_compute_parts_and_join_them(folder: Path) -> None:
    part, join = SCRIPTS
    for script in SCRIPTS:
        subprocess.run(["sh", "-n", "-c", script], check=True)
        assert all(re.fullmatch(r"#SBATCH --[a-z-]+(=\S+)?", line) for line in script.splitlines()[1:-1])
    assert re.findall(r"--array=(\d+)-", part) == ["0"], "parts are counted from 0"
    for number in range(2):
        done = run(part, folder, SLURM_ARRAY_TASK_ID=str(number), SLURM_ARRAY_TASK_COUNT="2")
        assert done.returncode == 0, done.stderr
        assert f"part {number}/2" in done.stdout
    joined = run(join, folder)
    assert joined.returncode == 0, joined.stderr
    assert joined.stdout.startswith("descriptors  3 x 32")


def test_the_manifest_of_kubernetes_is_an_indexed_job_whose_command_runs(folder: Path) -> None:
    spec: dict[str, Any] = MANIFEST["spec"]
    assert (MANIFEST["apiVersion"], MANIFEST["kind"], spec["completionMode"]) == ("batch/v1", "Job", "Indexed")
    (container,) = spec["template"]["spec"]["containers"]
    assert spec["template"]["spec"]["restartPolicy"] == "Never", "backoffLimitPerIndex needs it"
    mounted = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounted[spec["template"]["spec"]["volumes"][0]["name"]] == container["workingDir"]
    assert container["command"] == ["/bin/sh", "-c"]
    (script,) = container["args"]
    assert script.endswith(f'"$JOB_COMPLETION_INDEX/{spec["completions"]}"')
    done = run(script, folder, JOB_COMPLETION_INDEX="2")
    assert done.returncode == 0, done.stderr
    assert f"part 2/{spec['completions']}: 1 shards" in done.stdout
