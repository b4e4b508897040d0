"""Run an ONNX artifact with ONNX Runtime on the CPU.

ONNX Runtime drops a provider it cannot use and goes on with another one; this runner asks the session which
provider it really has and refuses any but the one that was asked for.
"""

import importlib.util
from pathlib import Path
from typing import Any

from netvlad_deploy.arrays import Arrays
from netvlad_deploy.artifact import OnnxArtifact
from netvlad_deploy.errors import DeviceUnavailableError, RunError
from netvlad_deploy.require import require
from netvlad_deploy.runner import Runner
from netvlad_deploy.spec import FEATURES, STAGES

PROVIDER = "CPUExecutionProvider"
QUIET = 3
"""ONNX Runtime's severity for errors only."""


class OnnxRuntimeRunner(Runner):
    """Run an ONNX artifact.

    Args:
        threads: CPU threads inside an operator, by default all cores.
        taps: also give the stages inside the graph; needs the package onnx.
    """

    def __init__(self, artifact: OnnxArtifact, *, threads: int | None = None, taps: bool = False) -> None:
        super().__init__(
            artifact.path.name,
            artifact.spec,
            inputs=artifact.inputs,
            outputs=artifact.outputs,
            dtype=artifact.dtypes[FEATURES],
            precision=artifact.precision,
            feature_range=artifact.range,
        )
        self._artifact, self._threads, self._taps = artifact, threads, taps
        onnxruntime = require("onnxruntime", extra="cpu")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = QUIET
        options.intra_op_num_threads = threads or 0
        self._configure(options, onnxruntime)
        self._errors = _errors_of(onnxruntime)
        try:
            self._session = onnxruntime.InferenceSession(self._content(), options, providers=[PROVIDER])
        except self._errors as error:
            raise RunError(f"ONNX Runtime cannot load {artifact.path}: {error}") from error
        if self._session.get_providers()[0] != PROVIDER:
            raise DeviceUnavailableError(f"asked for {PROVIDER}, ONNX Runtime took {self._session.get_providers()[0]}")
        if taps:
            self.outputs = tuple(output.name for output in self._session.get_outputs())

    def tapped(self) -> Runner:
        """Return a runner that also gives the stages inside the graph; itself where onnx is not installed."""
        if importlib.util.find_spec("onnx") is None:
            return self
        return type(self)(self._artifact, threads=self._threads, taps=True)

    def close(self) -> None:
        """Release the session."""
        super().close()
        self._session = None

    def _content(self) -> bytes | Path:
        """Return the model to run, as bytes or as its file."""
        return self._model().SerializeToString() if self._taps else self._artifact.path

    def _model(self) -> Any:
        """Return the model with the type of every tensor, and its stages as outputs if they are tapped."""
        onnx = require("onnx", extra="export")
        model = onnx.shape_inference.infer_shapes(onnx.load(self._artifact.path), strict_mode=True)
        inside = [value for value in model.graph.value_info if value.name in STAGES]
        model.graph.output.extend(inside if self._taps else [])
        return model

    def _configure(self, options: Any, onnxruntime: Any) -> None:
        """Set what a subclass wants of the session."""

    def _run(self, feeds: Arrays) -> Arrays:
        try:
            return dict(zip(self.outputs, self._session.run(self.outputs, feeds), strict=True))
        except self._errors as error:
            raise RunError(f"ONNX Runtime failed: {error}") from error


def _errors_of(onnxruntime: Any) -> tuple[type[Exception], ...]:
    """Return the exception classes of ONNX Runtime, which have no common base of their own."""
    members = vars(onnxruntime.capi.onnxruntime_pybind11_state).values()
    return tuple(member for member in members if isinstance(member, type) and issubclass(member, Exception))
