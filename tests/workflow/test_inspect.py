import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from netvlad_deploy.artifact import OnnxArtifact, sidecar_path
from netvlad_deploy.support.files import stage_files
from netvlad_deploy.workflow.inspect import inspect
from tests.command import Command, error_of
from tests.double.core import VERSIONS
from tests.double.machine import install

pytestmark = pytest.mark.export


def copy(artifact: OnnxArtifact, folder: Path) -> Path:
    """Copy an artifact with its sidecar and reference."""
    for path in (artifact.path, sidecar_path(artifact.path), artifact.reference_path):
        shutil.copy(path, folder)
    return folder / artifact.path.name


def test_an_onnx_file_is_described(command: Command, exported: OnnxArtifact, tmp_path: Path) -> None:
    copy(exported, tmp_path)
    outcome = command("inspect", "m.onnx")
    assert outcome.code == 0
    for part in (
        "K=6 D=16 G=2",
        "features float32 -> descriptor",
        exported.sha256,
        "reference m.reference.npz",
        "torch",
    ):
        assert part in outcome.out
    assert command("inspect", "m.onnx", "--load").code == 2
    record = json.loads(command("inspect", "m.onnx", "--json").out)
    assert record["schema"] == "netvlad-deploy/inspect/1"
    assert record["artifact"]["sha256"] == exported.sha256
    assert [(one["role"], one["state"]) for one in record["relatives"]] == [("reference", "unchanged")]
    assert record["rebuild_command"] is None


@pytest.mark.parametrize("option", ["--dialect", "--prefix"])
def test_how_a_checkpoint_is_read_says_nothing_of_an_artifact(
    command: Command, exported: OnnxArtifact, tmp_path: Path, option: str
) -> None:
    copy(exported, tmp_path)
    outcome = command("inspect", "m.onnx", option, "hloc")
    assert (outcome.code, outcome.out) == (2, "")
    assert "m.onnx is no checkpoint" in error_of(outcome.err)


def test_the_state_of_every_file_beside_it_is_said(exported: OnnxArtifact, tmp_path: Path) -> None:
    path = copy(exported, tmp_path)
    (tmp_path / "m.reference.npz").write_bytes(b"other")
    assert [one.state for one in inspect(path).relatives] == ["changed"]
    (tmp_path / "m.reference.npz").unlink()
    assert [one.state for one in inspect(path).relatives] == ["not here"]


def test_a_damaged_file_is_refused(command: Command, exported: OnnxArtifact, tmp_path: Path) -> None:
    copy(exported, tmp_path).write_bytes(b"other")
    outcome = command("inspect", "m.onnx")
    assert (outcome.code, "its sidecar says" in error_of(outcome.err)) == (65, True)


@pytest.mark.rtx
def test_an_engine_is_described_without_a_gpu(command: Command, exported: OnnxArtifact, tmp_path: Path) -> None:
    copy(exported, tmp_path)
    assert command("build", "m.onnx", "--flavor", "tensorrt-rtx", "--profile", "1x1,2x3,4x5").code == 0
    outcome = command("inspect", "m.engine", "--load")
    assert outcome.code == 0
    for part in ("parent m.onnx", "kernel ", "profile: batch 1:2:4, num_features 1:3:5", "netvlad-deploy build "):
        assert part in outcome.out
    assert "tensors: no usable NVIDIA GPU" in outcome.out or "an execution context takes" in outcome.out


@pytest.mark.parametrize("version", VERSIONS)
def test_an_engine_is_described_as_tensorrt_shows_it(
    monkeypatch: pytest.MonkeyPatch, command: Command, tmp_path: Path, version: str
) -> None:
    from netvlad_deploy.artifact import stage_artifact

    machine = install(monkeypatch, version)
    artifact = machine.engine(tmp_path / "m.engine", masked=True)
    with stage_files(force=True) as staging:
        stage_artifact(staging, artifact, artifact.path.read_bytes())
    assert "tensors: only read; --load asks TensorRT" in command("inspect", "m.engine").out
    assert not machine.world.journal
    outcome = command("inspect", "m.engine", "--load")
    assert "input features float32 -1x-1x3, LINEAR: 1x1x3 / 2x5x3 / 4x9x3; 1x100x3 / 1x300x3 / 2x400x3" in outcome.out
    assert "output descriptor float32 -1x6, LINEAR" in outcome.out
    assert "built on Double GPU (8.7), driver for CUDA 12.4" in outcome.out
    assert inspect(tmp_path / "m.engine", load=True).memory_bytes == (432, 9600)
    with stage_files(force=True) as staging:
        stage_artifact(staging, replace(artifact, versions={artifact.flavor: "1.2"}), artifact.path.read_bytes())
    outcome = command("inspect", "m.engine", "--load")
    assert (outcome.code, "does not fit this machine: it was built by" in error_of(outcome.err)) == (65, True)
    assert command("inspect", "m.engine").code == 0


@pytest.mark.ort
@pytest.mark.parametrize(
    "arguments",
    [
        ("inspect", "m.onnx"),
        ("validate", "m.onnx"),
        ("bench", "m.onnx", "--num-features", 3, "--duration", 0.3),
        ("embed", "m.onnx", "x.npy", "-o", "y.npy"),
    ],
)
def test_an_expected_hash_is_demanded_of_every_verb(
    command: Command, exported: OnnxArtifact, tmp_path: Path, arguments: tuple[object, ...]
) -> None:
    import numpy as np

    copy(exported, tmp_path)
    np.save(tmp_path / "x.npy", np.ones((1, 2, 16), np.float32))
    outcome = command(*arguments, "--expect-sha256", "0" * 64)
    assert (outcome.code, "another file, do not use it" in error_of(outcome.err)) == (65, True)
    assert command(*arguments, "--expect-sha256", exported.sha256).code == 0


def test_one_hash_is_not_for_two_files(command: Command, exported: OnnxArtifact, tmp_path: Path) -> None:
    copy(exported, tmp_path)
    outcome = command("bench", "m.onnx", "m.onnx", "--expect-sha256", exported.sha256)
    assert (outcome.code, "one hash is expected of 2 files" in error_of(outcome.err)) == (2, True)


@pytest.mark.ort
def test_a_checkpoint_has_no_expected_hash_and_no_runtime_cache(
    command: Command, checkpoint: Path, exported: OnnxArtifact, tmp_path: Path
) -> None:
    import numpy as np

    copy(exported, tmp_path)
    np.save(tmp_path / "x.npy", np.ones((1, 2, 16), np.float32))
    outcome = command("embed", checkpoint, "x.npy", "-o", "y.npy", "--expect-sha256", "0" * 64)
    assert (outcome.code, "is a checkpoint" in error_of(outcome.err)) == (2, True)
    outcome = command("embed", "m.onnx", "x.npy", "-o", "y.npy", "--runtime-cache", "kernels")
    assert (outcome.code, "is no engine: leave the runtime cache out" in error_of(outcome.err)) == (2, True)
