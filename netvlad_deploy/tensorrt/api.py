"""Open TensorRT, the standard package or TensorRT-RTX, whichever the caller names.

Only this file names the packages `tensorrt` and `tensorrt_rtx`. The flavor is an argument, never an environment
variable or whichever package happens to be installed.
"""

import functools
import threading
from collections import deque
from dataclasses import dataclass
from typing import Any, Final

from netvlad_deploy.errors import BuildError, DeviceUnavailableError, MissingDependencyError, RunError
from netvlad_deploy.spec.build_options import RTX, TENSORRT
from netvlad_deploy.support.require import install_line, require
from netvlad_deploy.tensorrt.cuda import Cuda

MODULES: Final = {TENSORRT: "tensorrt", RTX: "tensorrt_rtx"}
EXTRAS: Final = {TENSORRT: "tensorrt", RTX: "rtx"}
"""The Python package of each flavor, and the extra of this project that installs it."""

ERROR_SEVERITIES: Final = ("ERROR", "INTERNAL_ERROR")
MOST_ERRORS_KEPT: Final = 100


@dataclass(frozen=True, kw_only=True)
class LogLine:
    """One message of TensorRT's own logger, and the thread it came from."""

    severity: str
    text: str
    thread: int = 0


@dataclass(frozen=True, kw_only=True)
class TensorRT:
    """One flavor of TensorRT: its binding module, its abilities and its log.

    `errors_only` keeps the last MOST_ERRORS_KEPT errors of the log, for an engine that may be loaded for months.
    """

    flavor: str
    module: Any
    errors_only: bool = False

    @property
    def version(self) -> str:
        """Return the full version of the binding."""
        return str(self.module.__version__)

    @property
    def name(self) -> str:
        """Return flavor and version, as errors say them."""
        return f"{self.flavor} {self.version}"

    @property
    def builds_without_gpu(self) -> bool:
        """Return True if an engine can be built without a GPU, for architectures that are named."""
        return hasattr(self.module.IBuilderConfig, "set_compute_capability")

    @property
    def checks_validity(self) -> bool:
        """Return True if the runtime can check the bytes of an engine before it loads them."""
        return hasattr(self.module.Runtime, "get_engine_validity")

    @property
    def has_runtime_cache(self) -> bool:
        """Return True if kernels that are compiled at run time can be kept in a file."""
        return hasattr(self.module, "IRuntimeCache")

    @property
    def has_timing_cache(self) -> bool:
        """Return True if the builder times kernels; a flavor that compiles them at run time has no timings to keep."""
        return not self.has_runtime_cache

    @property
    def capabilities(self) -> str:
        """Return the abilities that not every TensorRT has, in words, separated by commas."""
        words = {
            "builds without a GPU": self.builds_without_gpu,
            "has precision flags": hasattr(self.module.BuilderFlag, "FP16"),  # unused: the graph says its precision
            "keeps timings": self.has_timing_cache,
            "checks engines before loading them": self.checks_validity,
            "keeps kernels compiled at run time": self.has_runtime_cache,
        }
        return ", ".join(word for word, true in words.items() if true)

    @functools.cached_property
    def logger(self) -> Any:
        """Return the logger that the binding is given; its `lines` keep the messages."""
        base, errors_only = self.module.ILogger, self.errors_only

        class Recorder(base):  # type: ignore[misc, valid-type]
            def __init__(self) -> None:
                super().__init__()
                self.lines: deque[LogLine] = deque(maxlen=MOST_ERRORS_KEPT if errors_only else None)

            def log(self, severity: Any, text: str) -> None:
                line = LogLine(severity=str(severity).rpartition(".")[2], text=text, thread=threading.get_ident())
                if not errors_only or line.severity in ERROR_SEVERITIES:
                    self.lines.append(line)

        return Recorder()

    def builder(self) -> Any:
        """Return a builder.

        Raises: DeviceUnavailableError if this flavor needs a GPU to build and there is none; BuildError if there is
            one and TensorRT still gives no builder.
        """
        try:
            return self.module.Builder(self.logger)
        except TypeError as error:  # pybind11 reports a null pointer so
            reason = self.last_error()
            try:
                Cuda(extra=EXTRAS[self.flavor])
            except (DeviceUnavailableError, MissingDependencyError) as absent:
                raise DeviceUnavailableError(f"{self.name} cannot build here: {reason or absent}") from error
            raise BuildError(f"{self.name} gives no builder: {reason or 'no reason given'}") from error

    def runtime(self) -> Any:
        """Return a runtime, on a machine that has a GPU.

        Raises: RunError if TensorRT gives none.
        """
        try:
            return self.module.Runtime(self.logger)
        except TypeError as error:  # pybind11 reports a null pointer so
            raise RunError(f"{self.name} gives no runtime: {self.last_error() or 'no reason given'}") from error

    def accepted(self, answer: Any, request: str) -> Any:
        """Return `answer`, which a call of the builder gave to `request`.

        Raises: BuildError in TensorRT's own words if it is None, False or a negative index, by which TensorRT refuses.
        """
        if answer is None or answer is False or (isinstance(answer, int) and answer < 0):
            raise BuildError(f"{self.name} refused {request}: {self.last_error() or 'no reason given'}")
        return answer

    def last_error(self, thread: int | None = None) -> str:
        """Return the text of TensorRT's last error, in one thread or in any; an empty string if there was none."""
        errors = [line for line in self.logger.lines if line.severity in ERROR_SEVERITIES]
        return next((line.text for line in reversed(errors) if thread in (None, line.thread)), "")


def open_tensorrt(flavor: str, *, errors_only: bool = False) -> TensorRT:
    """Import this flavor, and no other.

    Raises: MissingDependencyError if it or its libraries are missing.
    """
    try:
        module = require(MODULES[flavor], extra=EXTRAS[flavor])
    except (OSError, RuntimeError) as error:  # the binding is there, its shared libraries are not
        raise MissingDependencyError(
            f"{flavor} is installed without its libraries ({error}): {install_line(EXTRAS[flavor])}"
        ) from error
    return TensorRT(flavor=flavor, module=module, errors_only=errors_only)


def members(kind: Any) -> dict[str, Any]:
    """Return the members of an enum of the binding by name: their integers differ between versions."""
    return dict(kind.__members__)


def parse_onnx(tensorrt: TensorRT, network: Any, content: bytes, path: str | None) -> None:
    """Parse the bytes of an ONNX file into a network; in the folder of `path` stands its external data, if it has any.

    Raises: BuildError with the parser's own words, node and line.
    """
    parser = tensorrt.module.OnnxParser(network, tensorrt.logger)
    if not parser.parse(content, path):
        errors = "; ".join(_in_words(parser.get_error(index)) for index in range(parser.num_errors))
        reason = errors or tensorrt.last_error() or "no reason given"
        raise BuildError(f"{tensorrt.name} cannot parse the graph: {reason}")


def _in_words(error: Any) -> str:
    """Return a parser error with its node and the line of the parser that raised it."""
    node = f"node {error.node()}, {error.node_operator()} {error.node_name()!r}: " if error.node_operator() else ""
    return f"{node}{error.desc()} ({error.file()}:{error.line()})"
