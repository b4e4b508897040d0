"""Machines with a GPU and every TensorRT, and ONNX Runtime with GPU providers, all doubles."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from netvlad_deploy.artifact import OnnxArtifact

if TYPE_CHECKING:
    from tests.double.onnxruntime import OnnxRuntime


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
