"""Run an ONNX artifact with OpenVINO on the CPU, in FP32.

Left to itself OpenVINO computes in bfloat16 or FP16 wherever the processor has instructions for it. Here every value is
FP32, also in an FP16 graph: its weights are rounded, its results between two operators are not. Nothing is written
beside the model, and nothing is reported to anyone: OpenVINO's telemetry belongs to its converter, which is not called.

Source of the properties: https://docs.openvino.ai, "Precision control", "CPU device" and "Performance hints".
"""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any, Final

from netvlad_deploy.artifact import OnnxArtifact
from netvlad_deploy.errors import RunError
from netvlad_deploy.runner import Runner
from netvlad_deploy.runtime.onnx_runner import OnnxRunner
from netvlad_deploy.support.arrays import Arrays
from netvlad_deploy.support.require import require

OPENVINO: Final = "openvino"
"""The backend: an ONNX file on the CPU with OpenVINO."""

DEVICE: Final = "CPU"
PROPERTIES: Final = {
    "INFERENCE_PRECISION_HINT": "f32",
    "PERFORMANCE_HINT": "LATENCY",
    "CPU_DENORMALS_OPTIMIZATION": False,
    "ENABLE_CPU_PINNING": False,
}
"""FP32 throughout, one run on all threads, and numbers below FP32's normal ones kept. No thread is bound to a core:
on a machine that also does something else, a run would wait for the core on which that runs.
"""


def probe() -> str:
    """Return OpenVINO's version and the processor that it computes on.

    Raises: MissingDependencyError if it is missing; RunError if it has no CPU device.
    """
    openvino = require("openvino", extra=OPENVINO)
    try:
        processor = _core().get_property(DEVICE, "FULL_DEVICE_NAME")
    except RuntimeError as error:
        raise RunError(f"OpenVINO has no CPU device: {_words(error)}") from error
    return f"{openvino.get_version().partition('-')[0]}: {processor}"


class OpenVinoRunner(OnnxRunner):
    """Run an ONNX artifact. One runner may be used by several threads at once: each run has a request of its own.

    Args:
        threads: CPU threads, by default all cores.
        taps: also give the stages inside the graph.
    """

    concurrent = True

    def __init__(self, artifact: OnnxArtifact, *, threads: int | None = None, taps: bool = False) -> None:
        super().__init__(artifact, widened=True)
        self._threads = threads
        openvino = require("openvino", extra=OPENVINO)
        failures = (
            "GeneralFailure",
            "InitializationFailure",
            "NotImplementedFailure",
            "OpConversionFailure",
            "OpValidationFailure",
        )
        errors = (RuntimeError, *(getattr(openvino.frontend, failure) for failure in failures))
        core = _core()
        try:
            with _readable(artifact) as content:
                model = core.read_model(content)
                if taps:
                    model.add_outputs(self._inside(model))
                self._compiled: Any = core.compile_model(
                    model, DEVICE, {**PROPERTIES, "INFERENCE_NUM_THREADS": threads or 0}
                )
        except errors as error:
            raise RunError(f"OpenVINO cannot load {artifact.path}: {_words(error)}") from error
        if taps:
            self._fetch(output.any_name for output in self._compiled.outputs)
        self._idle: list[Any] = []  # requests that no thread is using; a list takes and gives one at a time

    def tapped(self, *, instead: bool = False) -> Runner:
        """Return a runner that also gives the stages inside the graph; `instead` closes this one first."""
        if instead:
            self.close()
        return type(self)(self._artifact, threads=self._threads, taps=True)

    def close(self) -> None:
        """Release the model and its requests."""
        super().close()
        self._compiled = None
        self._idle.clear()

    def _inside(self, model: Any) -> list[str]:
        """Return the names of the stages that stand inside the graph and are no outputs."""
        named = {name for node in model.get_ops() for output in node.outputs() for name in output.names}
        return [name for name in self.tappable if name in named and name not in self._fetched]

    def _run(self, feeds: Arrays) -> Arrays:
        compiled = self._compiled
        try:
            request = self._idle.pop()
        except IndexError:
            request = compiled.create_infer_request()
        try:
            results = request.infer(feeds, share_inputs=True)
        except RuntimeError as error:
            raise RunError(f"OpenVINO failed: {_words(error)}") from error
        if self._open:
            self._idle.append(request)
        return {name: results[name] for name in self._fetched}


@functools.cache
def _core() -> Any:
    """Return the one core of this process, which lives as long as the process does.

    A core gives the thread that first uses it a stack for signals, and releases that memory in the end although the
    thread may still point to it: if cores end in the order of their beginning, or in another thread. The next signal
    that Python handles, such as Ctrl-C, then kills the process without a word.

    Source: https://github.com/openvinotoolkit/openvino/pull/11894, the class SigAltStackSetup of the CPU plugin.
    """
    return require("openvino", extra=OPENVINO).Core()


@contextlib.contextmanager
def _readable(artifact: OnnxArtifact) -> Iterator[bytes | str]:
    """Yield the bytes of the graph, or, where it has external data, a private copy of the file beside that data.

    OpenVINO looks for external data in the folder of the file, and for that of bytes in the working folder.
    """
    with artifact.weights_folder() as folder:
        content = artifact.content()
        if folder is None:
            yield content
            return
        path = folder / artifact.path.name
        path.write_bytes(content)
        yield str(path)


def _words(error: Exception) -> str:
    """Return OpenVINO's message as one line, without the places in its source where it was raised."""
    lines = [line.strip() for line in str(error).splitlines()]
    said = [line for line in lines if line and not line.startswith(("Exception from ", "Check '"))]
    return " ".join(said or lines)[:500]
