"""netvlad-deploy: from a trained NetVLAD to a proven ONNX graph and TensorRT engine.

The public API below is loaded on first use, so that importing this package costs nothing and needs nothing. A name
whose package is missing says so when it is first used: MissingDependencyError, with the line that installs it.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from netvlad_deploy.artifact import load_artifact as load_artifact
    from netvlad_deploy.descriptors.open_files import read_descriptors as read_descriptors
    from netvlad_deploy.export.onnx_model import export_onnx as export_onnx
    from netvlad_deploy.latency.timing import measure as measure
    from netvlad_deploy.models.checkpoints import load_checkpoint as load_checkpoint
    from netvlad_deploy.models.netvlad import NetVLAD as NetVLAD
    from netvlad_deploy.models.pipeline import Pipeline as Pipeline
    from netvlad_deploy.oracle.reference_file import load_reference as load_reference
    from netvlad_deploy.parity.heads import compare as compare
    from netvlad_deploy.retrieval.decoding import decode_image as decode_image
    from netvlad_deploy.runtime.open_runner import Candidate as Candidate
    from netvlad_deploy.runtime.open_runner import open_runner as open_runner
    from netvlad_deploy.spec.build_options import BuildOptions as BuildOptions
    from netvlad_deploy.spec.graph_options import GraphOptions as GraphOptions
    from netvlad_deploy.spec.images import ImageInput as ImageInput
    from netvlad_deploy.spec.profiles import Profile as Profile
    from netvlad_deploy.spec.verdict import Verdict as Verdict
    from netvlad_deploy.tensorrt.engine import build_engine as build_engine
    from netvlad_deploy.workflow.embed import EmbedOptions as EmbedOptions
    from netvlad_deploy.workflow.embed import embed as embed
    from netvlad_deploy.workflow.evaluate import evaluate as evaluate
    from netvlad_deploy.workflow.fit import FitOptions as FitOptions
    from netvlad_deploy.workflow.fit import fit as fit

_HOMES = {
    "BuildOptions": "spec.build_options",
    "Candidate": "runtime.open_runner",
    "EmbedOptions": "workflow.embed",
    "FitOptions": "workflow.fit",
    "GraphOptions": "spec.graph_options",
    "ImageInput": "spec.images",
    "NetVLAD": "models.netvlad",
    "Pipeline": "models.pipeline",
    "Profile": "spec.profiles",
    "Verdict": "spec.verdict",
    "build_engine": "tensorrt.engine",
    "compare": "parity.heads",
    "decode_image": "retrieval.decoding",
    "embed": "workflow.embed",
    "evaluate": "workflow.evaluate",
    "export_onnx": "export.onnx_model",
    "fit": "workflow.fit",
    "load_artifact": "artifact",
    "load_checkpoint": "models.checkpoints",
    "load_reference": "oracle.reference_file",
    "measure": "latency.timing",
    "open_runner": "runtime.open_runner",
    "read_descriptors": "descriptors.open_files",
}
_EXTRA = "export"
"""What brings the packages that a home imports at once: torch and onnx, for modules and their export."""

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    except ImportError as error:
        if (error.name or "").partition(".")[0] == __name__:
            raise  # a fault of this package, not a package that is missing
        from netvlad_deploy.errors import MissingDependencyError
        from netvlad_deploy.support.require import install_line

        raise MissingDependencyError(f"{name} needs {error.name or error}: {install_line(_EXTRA)}") from error


def __dir__() -> list[str]:
    return __all__
