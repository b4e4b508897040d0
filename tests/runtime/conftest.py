"""Machines with a GPU and every TensorRT, and ONNX Runtime with GPU providers, all doubles."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from netvlad_deploy.artifact import OnnxArtifact
from tests.double.core import VERSIONS
from tests.double.machine import Machine, install

if TYPE_CHECKING:
    from tests.double.onnxruntime import OnnxRuntime

STANDARD = tuple(version for version in VERSIONS if not version.startswith("rtx"))


@pytest.fixture(params=STANDARD)
def standard(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Return a machine with each version of the standard TensorRT in turn."""
    return install(monkeypatch, request.param)


@pytest.fixture(params=VERSIONS)
def machine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Return a machine with each version in turn."""
    return install(monkeypatch, request.param)


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> "OnnxRuntime":
    """Return ONNX Runtime with every GPU provider, on a machine where TF32 is not forbidden."""
    from tests.double.onnxruntime import CUDA, RTX, TENSORRT, OnnxRuntime

    monkeypatch.delenv("NVIDIA_TF32_OVERRIDE", raising=False)
    return OnnxRuntime(monkeypatch, CUDA, TENSORRT, RTX)


@pytest.fixture
def artifact(masked: OnnxArtifact, tmp_path: Path) -> OnnxArtifact:
    """Return the masked artifact in a folder of its own, where a cache may be made."""
    for path in (masked.path, masked.reference_path):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return replace(masked, path=tmp_path / "m.onnx")
