"""netvlad-deploy: from a trained NetVLAD in PyTorch to a verified TensorRT engine.

The public API below is loaded on first use, so that importing this package costs nothing and needs nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from netvlad_deploy.artifact import load_artifact as load_artifact
    from netvlad_deploy.export.onnx_model import export_onnx as export_onnx
    from netvlad_deploy.latency.timing import measure as measure
    from netvlad_deploy.models.checkpoints import load_checkpoint as load_checkpoint
    from netvlad_deploy.models.netvlad import NetVLAD as NetVLAD
    from netvlad_deploy.oracle.reference_file import load_reference as load_reference
    from netvlad_deploy.parity.heads import compare as compare
    from netvlad_deploy.runtime.open_runner import Candidate as Candidate
    from netvlad_deploy.runtime.open_runner import open_runner as open_runner
    from netvlad_deploy.spec.build_options import BuildOptions as BuildOptions
    from netvlad_deploy.spec.graph_options import GraphOptions as GraphOptions
    from netvlad_deploy.spec.profiles import Profile as Profile
    from netvlad_deploy.spec.verdict import Verdict as Verdict
    from netvlad_deploy.tensorrt.engine import build_engine as build_engine

_HOMES = {
    "BuildOptions": "spec.build_options",
    "Candidate": "runtime.open_runner",
    "GraphOptions": "spec.graph_options",
    "NetVLAD": "models.netvlad",
    "Profile": "spec.profiles",
    "Verdict": "spec.verdict",
    "build_engine": "tensorrt.engine",
    "compare": "parity.heads",
    "export_onnx": "export.onnx_model",
    "load_artifact": "artifact",
    "load_checkpoint": "models.checkpoints",
    "load_reference": "oracle.reference_file",
    "measure": "latency.timing",
    "open_runner": "runtime.open_runner",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
