"""Run an ONNX artifact with ONNX Runtime on the CPU.

ONNX Runtime drops a provider it cannot use and goes on with another one; this runner asks the session which
provider it really has and refuses any but the one that was asked for.
"""

from typing import Any

from netvlad_deploy.arrays import Arrays
from netvlad_deploy.artifact import OnnxArtifact
from netvlad_deploy.errors import DeviceUnavailableError, RunError
from netvlad_deploy.require import require
from netvlad_deploy.runner import Runner

PROVIDER = "CPUExecutionProvider"
QUIET = 3
"""ONNX Runtime's severity for errors only."""


class OnnxRuntimeRunner(Runner):
    """Run an ONNX artifact; `threads` is the number of CPU threads inside an operator (default: all cores)."""

    def __init__(self, artifact: OnnxArtifact, *, threads: int | None = None) -> None:
        super().__init__(artifact.path.name, artifact.spec, inputs=artifact.inputs, outputs=artifact.outputs)
        onnxruntime = require("onnxruntime", extra="cpu")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = QUIET
        options.intra_op_num_threads = threads or 0
        self._errors = _errors_of(onnxruntime)
        try:
            self._session = onnxruntime.InferenceSession(artifact.path, options, providers=[PROVIDER])
        except self._errors as error:
            raise RunError(f"ONNX Runtime cannot load {artifact.path}: {error}") from error
        if self._session.get_providers()[0] != PROVIDER:
            raise DeviceUnavailableError(f"asked for {PROVIDER}, ONNX Runtime took {self._session.get_providers()[0]}")

    def close(self) -> None:
        """Release the session."""
        super().close()
        self._session = None

    def _run(self, feeds: Arrays) -> Arrays:
        try:
            return dict(zip(self.outputs, self._session.run(self.outputs, feeds), strict=True))
        except self._errors as error:
            raise RunError(f"ONNX Runtime failed: {error}") from error


def _errors_of(onnxruntime: Any) -> tuple[type[Exception], ...]:
    """Return the exception classes of ONNX Runtime, which have no common base of their own."""
    members = vars(onnxruntime.capi.onnxruntime_pybind11_state).values()
    return tuple(member for member in members if isinstance(member, type) and issubclass(member, Exception))
