"""Run an ONNX artifact with ONNX Runtime, on the CPU or on the execution provider that was asked for, and no other.

One runner may be used by several threads at once: a session may, and the runner keeps nothing between runs.
"""

import importlib.util
from typing import Any, ClassVar

from netvlad_deploy.artifact import OnnxArtifact
from netvlad_deploy.errors import RunError
from netvlad_deploy.runner import Runner
from netvlad_deploy.runtime.execution_providers import (
    CPU,
    PROFILED,
    errors_of,
    import_onnxruntime,
    make_cache,
    open_session,
    precision_on,
    provider_options,
)
from netvlad_deploy.runtime.onnx_runner import OnnxRunner
from netvlad_deploy.spec.images import AnyProfile, ImageProfile
from netvlad_deploy.support.arrays import Arrays
from netvlad_deploy.support.require import install_line, require

EXTERNAL_FOLDER = "session.model_external_initializers_file_folder_path"
"""ONNX Runtime's entry for where a model that is given as bytes has its external data."""

SPINNING = "session.intra_op.allow_spinning"
"""ONNX Runtime's entry for whether the threads of an operator wait busily. Source: its header
`onnxruntime_session_options_config_keys.h`.
"""

LARGE_CONSTANT = 2**20
"""Bytes from which the shapes of a model are inferred without the values of a constant: no shape depends on so many."""

QUIET = 3
"""ONNX Runtime's severity for errors only."""


def _take_large(model: Any) -> dict[str, bytes]:
    """Return the bytes of the model's large constants by name, and remove them from it."""
    apart = {}
    for tensor in model.graph.initializer:
        if tensor.HasField("raw_data") and tensor.ByteSize() >= LARGE_CONSTANT:
            apart[tensor.name] = tensor.raw_data
            tensor.ClearField("raw_data")
    return apart


class OnnxRuntimeRunner(OnnxRunner):
    """Run an ONNX artifact.

    Args:
        backend: whose execution provider computes; see `execution_providers`.
        profile: the shapes that `onnxruntime-tensorrt` and `onnxruntime-rtx` build for, when the runner is opened.
            Others are refused: they would build again, online. The other backends take any shape.
        threads: CPU threads inside an operator, by default all cores.
        taps: also give the stages inside the graph; needs the package onnx.
        spin: threads that wait for the others in an operator stay busy, which is fastest where nothing else runs. Else
            they leave their cores to others, such as decoders of images.
    """

    concurrent = True
    OPTIMIZED: ClassVar = True

    def __init__(
        self,
        artifact: OnnxArtifact,
        *,
        backend: str = CPU,
        profile: AnyProfile | None = None,
        threads: int | None = None,
        taps: bool = False,
        spin: bool = True,
    ) -> None:
        profile = profile or artifact.usual_profile
        if artifact.images is not None and isinstance(profile, ImageProfile):
            artifact.images.check_taken(*((height, width) for _, height, width in profile.shapes))
        super().__init__(
            artifact,
            profiles=(profile,) if backend in PROFILED else None,
            precision=precision_on(backend, artifact),
            widened=backend == CPU and self.OPTIMIZED,
        )
        self.lanes = 1 if backend == CPU else 2  # one run takes all cores by itself
        self._taps = taps
        self._settings: dict[str, Any] = {"backend": backend, "profile": profile, "threads": threads, "spin": spin}
        onnxruntime = import_onnxruntime(backend)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = QUIET
        options.intra_op_num_threads = threads or 0
        if not spin:
            options.add_session_config_entry(SPINNING, "0")
        if not self.OPTIMIZED:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        self._errors = errors_of(onnxruntime)
        # a tapped graph has other outputs than the one that is cached, and is run once
        cache = make_cache(artifact, self.precision, profile) if backend in PROFILED and not taps else None
        settings = provider_options(backend, artifact, profile, cache=cache)
        with artifact.weights_folder() as folder:
            if folder is not None:
                options.add_session_config_entry(EXTERNAL_FOLDER, str(folder))
            content = self._content(artifact.content())
            self._session = open_session(onnxruntime, backend, content, options, settings, name=str(artifact.path))
        self._session._model_bytes = None  # it keeps them to open itself again without the provider, which is shut
        if taps:
            self._fetch(output.name for output in self._session.get_outputs())

    @property
    def hidden(self) -> str:
        """Return in words why `tapped` does not show the stages inside, where it does not."""
        if importlib.util.find_spec("onnx") is None:
            return f"the package onnx is missing, which shows what is inside a graph: {install_line('strict')}"
        return super().hidden

    def tapped(self, *, instead: bool = False) -> Runner:
        """Return a runner that also gives the stages inside the graph; itself where onnx is not installed."""
        if importlib.util.find_spec("onnx") is None:
            return self
        if instead:
            self.close()
        return type(self)(self._artifact, **self._settings, taps=True)

    def close(self) -> None:
        """Release the session."""
        super().close()
        self._session = None

    def _content(self, content: bytes) -> bytes:
        """Return the bytes of the model to run, made of the artifact's."""
        return self._model(content).SerializeToString() if self._taps else content

    def _model(self, content: bytes) -> Any:
        """Return the model with the type of every tensor, and its stages as outputs if they are tapped."""
        onnx = require("onnx", extra="strict")
        model = onnx.load_from_string(content)
        apart = _take_large(model)  # shape inference copies a model three times
        model = onnx.shape_inference.infer_shapes(model, strict_mode=True)
        for tensor in model.graph.initializer:
            if tensor.name in apart:
                tensor.raw_data = apart.pop(tensor.name)
        inside = [value for value in model.graph.value_info if value.name in self.tappable]
        model.graph.output.extend(inside if self._taps else [])
        return model

    def _run(self, feeds: Arrays) -> Arrays:
        try:
            return dict(zip(self._fetched, self._session.run(self._fetched, feeds), strict=True))
        except self._errors as error:
            raise RunError(f"ONNX Runtime failed: {error}") from error
