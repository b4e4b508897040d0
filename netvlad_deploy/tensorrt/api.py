"""Open TensorRT, the standard package or TensorRT-RTX, whichever the caller names.

Only this file names the packages `tensorrt` and `tensorrt_rtx`. The flavor is an argument, never an environment
variable or whichever package happens to be installed.
"""

import contextlib
import ctypes
import os
import sys
import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from netvlad_deploy.errors import BuildError, DeviceUnavailableError, MissingDependencyError, RunError
from netvlad_deploy.spec.build_options import RTX, TENSORRT
from netvlad_deploy.support.require import install_line, require
from netvlad_deploy.tensorrt.cuda import describe_gpu

MODULES: Final = {TENSORRT: "tensorrt", RTX: "tensorrt_rtx"}
EXTRAS: Final = {TENSORRT: "tensorrt", RTX: "rtx"}
"""The Python package of each flavor, and the extra of this project that installs it."""

ERROR_SEVERITIES: Final = ("ERROR", "INTERNAL_ERROR")
MOST_ERRORS_KEPT: Final = 100
"""An engine may be loaded for months: its logger drops the oldest errors beyond this number."""


@dataclass(frozen=True, kw_only=True)
class LogLine:
    """One message of TensorRT's own logger, and the thread it came from."""

    severity: str
    text: str
    thread: int = 0


@dataclass(frozen=True, kw_only=True)
class TensorRT:
    """One flavor of TensorRT: its binding module, and what it can do."""

    flavor: str
    module: Any

    @property
    def version(self) -> str:
        """Return the full version of the binding."""
        return str(self.module.__version__)

    @property
    def name(self) -> str:
        """Return flavor and version, as errors say them."""
        return f"{self.flavor} {self.version}"

    @property
    def chooses_compute_capability(self) -> bool:
        """Return True if the builder must be told which GPU architectures an engine is for."""
        return hasattr(self.module.IBuilderConfig, "set_compute_capability")

    @property
    def builds_without_gpu(self) -> bool:
        """Return True if an engine can be built without a GPU, for architectures that are named."""
        return self.chooses_compute_capability

    @property
    def has_precision_flags(self) -> bool:
        """Return True if a flag of the builder could choose FP16; this package leaves precision to the graph."""
        return hasattr(self.module.BuilderFlag, "FP16")

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
            "has precision flags": self.has_precision_flags,
            "keeps timings": self.has_timing_cache,
            "checks engines before loading them": self.checks_validity,
            "keeps kernels compiled at run time": self.has_runtime_cache,
        }
        return ", ".join(word for word, true in words.items() if true)

    def logger(self, *, errors_only: bool = False) -> Any:
        """Return a logger whose `lines` keep every message, or with `errors_only` the last MOST_ERRORS_KEPT errors."""
        base = self.module.ILogger

        class Recorder(base):  # type: ignore[misc, valid-type]
            def __init__(self) -> None:
                super().__init__()
                self.lines: deque[LogLine] = deque(maxlen=MOST_ERRORS_KEPT if errors_only else None)

            def log(self, severity: Any, text: str) -> None:
                line = LogLine(severity=str(severity).rpartition(".")[2], text=text, thread=threading.get_ident())
                if not errors_only or line.severity in ERROR_SEVERITIES:
                    self.lines.append(line)

        return Recorder()

    def builder(self, logger: Any) -> Any:
        """Return a builder.

        Raises: DeviceUnavailableError if this flavor needs a GPU to build and there is none; BuildError if there is
            one and TensorRT still gives no builder.
        """
        try:
            return self.module.Builder(logger)
        except TypeError as error:  # pybind11 reports a null pointer so
            reason = last_error(logger)
            try:
                describe_gpu(EXTRAS[self.flavor])
            except (DeviceUnavailableError, MissingDependencyError) as absent:
                raise DeviceUnavailableError(f"{self.name} cannot build here: {reason or absent}") from error
            raise BuildError(f"{self.name} gives no builder: {reason or 'no reason given'}") from error

    def runtime(self, logger: Any) -> Any:
        """Return a runtime, on a machine that has a GPU.

        Raises: RunError if TensorRT gives none.
        """
        try:
            return self.module.Runtime(logger)
        except TypeError as error:  # pybind11 reports a null pointer so
            raise RunError(f"{self.name} gives no runtime: {last_error(logger) or 'no reason given'}") from error

    def accepted(self, answer: Any, request: str, logger: Any) -> Any:
        """Return `answer`, which a call of the builder gave to `request`.

        Raises: BuildError in TensorRT's own words if it is None, False or a negative index, by which TensorRT refuses.
        """
        if answer is None or answer is False or (isinstance(answer, int) and answer < 0):
            raise BuildError(f"{self.name} refused {request}: {last_error(logger) or 'no reason given'}")
        return answer


def open_tensorrt(flavor: str) -> TensorRT:
    """Import this flavor, and no other.

    Raises: MissingDependencyError if it or its libraries are missing.
    """
    try:
        module = require(MODULES[flavor], extra=EXTRAS[flavor])
    except (OSError, RuntimeError) as error:  # the binding is there, its shared libraries are not
        raise MissingDependencyError(
            f"{flavor} is installed without its libraries ({error}): {install_line(EXTRAS[flavor])}"
        ) from error
    return TensorRT(flavor=flavor, module=module)


def members(kind: Any) -> dict[str, Any]:
    """Return the members of an enum of the binding by name: their integers differ between versions."""
    return dict(kind.__members__)


def last_error(logger: Any, thread: int | None = None) -> str:
    """Return the text of TensorRT's last error, in one thread or in any; an empty string if there was none."""
    lines = [line for line in logger.lines if line.severity in ERROR_SEVERITIES and thread in (None, line.thread)]
    return lines[-1].text if lines else ""


def parse_onnx(tensorrt: TensorRT, network: Any, logger: Any, content: bytes, path: str | None) -> None:
    """Parse the bytes of an ONNX file into a network; in the folder of `path` stands its external data, if it has any.

    Raises: BuildError with the parser's own words, node and line.
    """
    parser = tensorrt.module.OnnxParser(network, logger)
    if not parser.parse(content, path):
        errors = "; ".join(_in_words(parser.get_error(index)) for index in range(parser.num_errors))
        reason = errors or last_error(logger) or "no reason given"
        raise BuildError(f"{tensorrt.name} cannot parse the graph: {reason}")


def _in_words(error: Any) -> str:
    """Return a parser error with its node and the line of the parser that raised it."""
    node = f"node {error.node()}, {error.node_operator()} {error.node_name()!r}: " if error.node_operator() else ""
    return f"{node}{error.desc()} ({error.file()}:{error.line()})"


class _Redirection:
    """The redirection of descriptor 1 to descriptor 2.

    Descriptors belong to the whole process, so threads that need the redirection at once share one and are counted:
    if each saved and restored by itself, one could save what another had redirected, and restore that for good.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = self._saved = 0

    def enter(self) -> None:
        """Redirect, unless another thread has done so."""
        with self._lock:
            if not self._users:
                _flush()
                self._saved = os.dup(1)
                os.dup2(2, 1)
            self._users += 1

    def leave(self) -> None:
        """Restore, unless another thread still needs the redirection."""
        with self._lock:
            self._users -= 1
            if not self._users:
                _flush()
                os.dup2(self._saved, 1)
                os.close(self._saved)


_REDIRECTION: Final = _Redirection()


def _flush() -> None:
    """Flush the buffers of Python and of the C library, so that their text goes where descriptor 1 leads now."""
    if sys.stdout is not None:
        sys.stdout.flush()
    ctypes.CDLL(None).fflush(None)


@contextlib.contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """Send file descriptor 1 to descriptor 2: TensorRT's compiler writes warnings past its logger.

    Several threads may be inside at once: the first redirects, the last restores.
    """
    _REDIRECTION.enter()
    try:
        yield
    finally:
        _REDIRECTION.leave()
