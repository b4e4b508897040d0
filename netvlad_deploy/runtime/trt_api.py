"""The one door to TensorRT: the standard package or TensorRT-RTX, always named by the caller.

Only this file names the packages `tensorrt` and `tensorrt_rtx`. The flavor is an argument, never an environment
variable or whichever package happens to be installed.
"""

import contextlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from netvlad_deploy.build_options import RTX, TENSORRT
from netvlad_deploy.errors import BuildError, DeviceUnavailableError, MissingDependencyError
from netvlad_deploy.require import require

MODULES: Final = {TENSORRT: "tensorrt", RTX: "tensorrt_rtx"}
EXTRAS: Final = {TENSORRT: "tensorrt", RTX: "rtx"}


@dataclass(frozen=True, kw_only=True)
class LogLine:
    """One message of TensorRT's own logger."""

    severity: str
    text: str


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
    def builds_without_gpu(self) -> bool:
        """Return whether an engine can be built on a machine without a GPU."""
        return self.flavor == RTX

    @property
    def checks_validity(self) -> bool:
        """Return whether this TensorRT can say if an engine is valid before it is loaded."""
        return hasattr(self.module.Runtime, "get_engine_validity")

    @property
    def has_runtime_cache(self) -> bool:
        """Return whether this TensorRT compiles kernels at run time and can keep them."""
        return hasattr(self.module, "IRuntimeCache")

    def logger(self) -> Any:
        """Return a logger for the builder that keeps every message in its list `lines`."""
        base = self.module.ILogger

        class Recorder(base):  # type: ignore[misc, valid-type]
            def __init__(self) -> None:
                super().__init__()
                self.lines: list[LogLine] = []

            def log(self, severity: Any, text: str) -> None:
                self.lines.append(LogLine(severity=str(severity).rpartition(".")[2], text=text))

        return Recorder()

    def builder(self, logger: Any) -> Any:
        """Return a builder.

        Raises: DeviceUnavailableError where this flavor needs a GPU driver to build and there is none.
        """
        try:
            return self.module.Builder(logger)
        except TypeError as error:  # pybind11 reports the null pointer of a missing driver so
            raise DeviceUnavailableError(
                f"{self.flavor} {self.version} cannot build here: {last_error(logger) or 'no NVIDIA driver'}"
            ) from error

    def runtime(self, logger: Any) -> Any:
        """Return a runtime.

        Raises: DeviceUnavailableError where there is no GPU driver.
        """
        try:
            return self.module.Runtime(logger)
        except TypeError as error:  # pybind11 reports the null pointer of a missing driver so
            raise DeviceUnavailableError(
                f"{self.flavor} {self.version} cannot run here: {last_error(logger) or 'no NVIDIA driver'}"
            ) from error


def open_tensorrt(flavor: str) -> TensorRT:
    """Import the flavor that was asked for, and no other.

    Raises: MissingDependencyError if it or its libraries are missing.
    """
    try:
        module = require(MODULES[flavor], extra=EXTRAS[flavor])
    except (OSError, RuntimeError) as error:  # the binding is there, its shared libraries are not
        raise MissingDependencyError(
            f"{flavor} is installed without its libraries ({error}): pip install 'netvlad-deploy[{EXTRAS[flavor]}]'"
        ) from error
    return TensorRT(flavor=flavor, module=module)


def last_error(logger: Any) -> str:
    """Return TensorRT's last error in its own words, or an empty string."""
    errors = [line.text for line in logger.lines if line.severity in ("ERROR", "INTERNAL_ERROR")]
    return errors[-1] if errors else ""


def parse_onnx(tensorrt: TensorRT, network: Any, logger: Any, content: bytes) -> None:
    """Parse an ONNX file's bytes into a network.

    Raises: BuildError with the parser's own words, node and line.
    """
    parser = tensorrt.module.OnnxParser(network, logger)
    if not parser.parse(content):
        errors = "; ".join(str(parser.get_error(index)) for index in range(parser.num_errors))
        raise BuildError(f"{tensorrt.flavor} {tensorrt.version} cannot parse the graph: {errors}")


@contextlib.contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """Send file descriptor 1 to descriptor 2: TensorRT's compiler writes warnings past its logger."""
    sys.stdout.flush()
    saved = os.dup(1)
    try:
        os.dup2(2, 1)
        yield
    finally:
        os.dup2(saved, 1)
        os.close(saved)
