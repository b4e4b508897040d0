"""A verb says at once that its target cannot be written: before it reads, exports, builds or runs anything."""

from pathlib import Path

import numpy as np
import pytest

from netvlad_deploy.artifact import OnnxArtifact
from netvlad_deploy.runtime.open_runner import Candidate
from netvlad_deploy.tensorrt import engine
from netvlad_deploy.workflow import validate
from tests.command import Command

pytestmark = [pytest.mark.export, pytest.mark.ort]


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every step that takes time fail."""

    def worked(*_: object, **__: object) -> None:
        raise AssertionError("it worked before it looked at its target")

    monkeypatch.setattr("netvlad_deploy.export.onnx_model._head", worked)
    monkeypatch.setattr(engine, "build_apart", worked)
    monkeypatch.setattr(Candidate, "open", worked)
    monkeypatch.setattr(validate, "compare", worked)


def read_only(path: Path) -> Path:
    path.write_bytes(b"old")
    path.chmod(0o444)
    return path


@pytest.mark.parametrize("name", ["m.onnx", "m.onnx.json", "m.reference.npz"])
def test_export(command: Command, no_work: None, tmp_path: Path, name: str) -> None:
    read_only(tmp_path / name)
    outcome = command("export", "-o", "m.onnx", "--force")
    assert (outcome.code, outcome.out) == (73, "")
    assert f"{name} cannot be written: it is read-only" in outcome.err
    (tmp_path / name).chmod(0o644)
    assert command("export", "-o", "m.onnx").code == 2
    assert (tmp_path / name).read_bytes() == b"old"


@pytest.mark.parametrize("name", ["m.engine", "m.engine.json", "m.engine.log"])
@pytest.mark.rtx
def test_build(command: Command, no_work: None, masked: OnnxArtifact, tmp_path: Path, name: str) -> None:
    read_only(tmp_path / name)
    outcome = command("build", masked.path, "-o", "m.engine", "--flavor", "tensorrt-rtx", "--force")
    assert outcome.code == 73
    assert f"{name} cannot be written: it is read-only" in outcome.err


def test_embed(command: Command, no_work: None, masked: OnnxArtifact, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((1, 2, 16), dtype=np.float32))
    before = (tmp_path / "x.npy").read_bytes()
    read_only(tmp_path / "y.npy")
    assert command("embed", masked.path, "x.npy", "-o", "y.npy", "--force").code == 73
    (tmp_path / "link.npy").symlink_to("x.npy")
    (tmp_path / "hard.npy").hardlink_to(tmp_path / "x.npy")
    for target in (
        ("x.npy",),
        ("x.npy", "--force"),
        (f"../{tmp_path.name}/x.npy", "--force"),
        ("link.npy", "--force"),
        ("hard.npy", "--force"),
    ):
        outcome = command("embed", masked.path, "x.npy", "-o", *target)
        assert outcome.code == 2
        assert "holds what is embedded, it cannot be the target too" in outcome.err
    assert (tmp_path / "x.npy").read_bytes() == before
    outcome = command("embed", masked.path, "x.npy", "-o", "z.npy", "--runtime-cache", "x.npy")
    assert outcome.code == 2
    assert "it cannot be the runtime cache too" in outcome.err


def test_validate(command: Command, no_work: None, masked: OnnxArtifact, tmp_path: Path) -> None:
    read_only(tmp_path / "parity.xml")
    outcome = command("validate", masked.path, "--junit", "parity.xml")
    assert outcome.code == 73
    assert "parity.xml cannot be written: it is read-only" in outcome.err
    assert command("validate", masked.path, "--junit", "none/parity.xml").code == 73
