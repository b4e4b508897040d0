"""The builder's half of TensorRT as strict doubles: a graph is JSON, an engine is the JSON of all it was built with.

So whatever a caller leaves out is missing from the engine, and what comes in the wrong order is refused, in the way
of the binding: None, False, -1 or an exception, and a line in the log.
"""

import enum
import json
from collections.abc import Callable
from typing import Any

from netvlad_deploy.spec.build_options import RTX, TENSORRT
from tests.double.bound import Overridden, Refusing, bound
from tests.double.config import IBuilderConfig
from tests.double.core import TABLES, Double, World

RELEASED = {"10.3": "10.3.0", "rtx-1.7.1": "1.7.1.116"}


class BuilderWorld(World):
    """One binding of TensorRT.

    `tf32` is whether a configuration starts with that flag, as all do so far; `measures` are the timings that a build
    takes, `device` is the GPU in the header of its timing cache. A property in `failing` does not keep what is set.
    `on_step` is called at each step of the builder; `devices` are the GPUs that it was put on.
    """

    def __init__(self, version: str, *, device: str = "orin") -> None:
        super().__init__(version)
        self.header = [version, device]
        self.tf32 = True
        self.measures = ["gemm"]
        self.devices: list[int] = []
        self.on_step: Callable[[], None] = lambda: None
        self.messages: list[tuple[str, str]] = [("INFO", "Total Activation Memory: 2048 bytes")]
        self.parser_errors: list[dict[str, Any]] = []
        doubles = {double.kind: double for double in DOUBLES}
        kinds = [kind for kind, names in TABLES[version].items() if "__init__" in names]
        classes = {kind: bound(self, kind, doubles.get(kind, Double)) for kind in kinds}
        self.binding = self.module(**classes)
        self.binding.__version__ = RELEASED.get(version, f"{version}.1")

    @property
    def flavor(self) -> str:
        """Return the flavor this binding is of."""
        return RTX if self.rtx else TENSORRT


class ILogger(Overridden):
    kind = "ILogger"
    Severity = enum.Enum("Severity", ["INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE"])


class IProgressMonitor(Overridden):
    kind = "IProgressMonitor"


class IHostMemory(Double, bytearray):
    """Memory that is read through Python's buffer protocol, as in the binding."""

    kind = "IHostMemory"

    def __init__(self, content: bytes) -> None:
        bytearray.__init__(self, content)


class Builder(Refusing):
    kind = "Builder"

    def __init__(self, logger: Any) -> None:
        self._logger = Overridden.checked(logger, "ILogger")
        if self._fails("__init__"):
            self._log("CUDA initialization failure with error: 35")
            raise TypeError("pybind11::init(): factory function returned nullptr")

    def create_network(self, flags: int = 0) -> Any:
        typed = 1 << int(self._world.binding.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        if flags != typed:
            raise ValueError(f"creation flags are {flags}: this double builds strongly typed networks only")
        return None if self._refuses("create_network") else self._world.binding.INetworkDefinition(self._logger)

    def create_builder_config(self) -> Any:
        return None if self._refuses("create_builder_config") else self._world.binding.IBuilderConfig(self._logger)

    def create_optimization_profile(self) -> Any:
        refused = self._refuses("create_optimization_profile")
        return None if refused else self._world.binding.IOptimizationProfile(self._logger)

    def build_serialized_network(self, network: Any, config: Any) -> Any:
        if self._refuses("build_serialized_network", self._unready(network, config)):
            return None
        if config._monitor is not None and not self._report(config._monitor):
            self._log("Error Code 7: BuildCanceled (Build canceled by user)")
            return None
        for severity, text in self._world.messages:
            self._log(text, severity)
        config._timings.update(self._world.measures)
        built = {"graph": network._graph, **config._description()}
        return self._world.binding.IHostMemory(json.dumps(built).encode())

    def _unready(self, network: Any, config: Any) -> str:
        if network._graph is None:
            return "Network must have at least one output"
        if not config._profiles:
            return "Network has dynamic or shape inputs, but no optimization profile has been defined."
        missing = {name for profile in config._profiles for name in set(network._graph["inputs"]) - set(profile)}
        if missing:
            return f"optimization profile is missing values for input {', '.join(sorted(missing))}"
        return ""

    def _report(self, monitor: Any) -> bool:
        """Run through the phases of a build, one inside the other, and return whether none was cancelled."""
        phases = ("Building engine", None), ("Timing tactics", "Building engine")
        for phase, parent in phases:
            monitor.phase_start(phase, parent, 2)
        going = True
        for phase, _ in reversed(phases):
            for step in range(2):
                if going:
                    self._world.on_step()
                    going = monitor.step_complete(phase, step)
            monitor.phase_finish(phase)
        return going


class INetworkDefinition(Refusing):
    kind = "INetworkDefinition"

    def __init__(self, logger: Any) -> None:
        self._logger = logger
        self._graph: dict[str, Any] | None = None


class IOptimizationProfile(Refusing):
    kind = "IOptimizationProfile"

    def __init__(self, logger: Any) -> None:
        self._logger = logger
        self._shapes: dict[str, list[tuple[int, ...]]] = {}

    def set_shape(self, name: str, *shapes: tuple[int, ...]) -> None:
        assert len(shapes) == 3
        if self._fails("set_shape"):
            raise RuntimeError("Shape provided for min is inconsistent with other shapes.")
        if "IOptimizationProfile.get_shape" not in self._world.failing:
            self._shapes[name] = list(shapes)

    def get_shape(self, name: str) -> list[tuple[int, ...]]:
        return self._shapes.get(name, [])

    def _wrong(self) -> str:
        triples = [lengths for shapes in self._shapes.values() for lengths in zip(*shapes, strict=True)]
        fits = all(low <= opt <= high for low, opt, high in triples)
        return "" if fits else "please ensure that the optimization profiles satisfy MIN<=OPT<=MAX"


class ITimingCache(Refusing):
    kind = "ITimingCache"

    def __init__(self, logger: Any, header: list[str], timings: set[str]) -> None:
        self._logger, self._header, self._timings = logger, header, timings

    def combine(self, input_cache: Any, ignore_mismatch: bool) -> bool:
        wrong = "" if ignore_mismatch or input_cache._header == self._header else "header of another device"
        if self._refuses("combine", wrong):
            return False
        self._timings |= input_cache._timings
        return True

    def serialize(self) -> Any:
        if self._refuses("serialize"):
            return None
        content = json.dumps({"header": self._header, "timings": sorted(self._timings)})
        return self._world.binding.IHostMemory(content.encode())


class OnnxParser(Refusing):
    kind = "OnnxParser"

    def __init__(self, network: Any, logger: Any) -> None:
        self._network, self._logger = network, Overridden.checked(logger, "ILogger")

    def parse(self, content: bytes, path: str | None = None) -> bool:
        if self._refuses("parse"):
            return False
        self._network._graph = json.loads(content[2:])
        return True

    @property
    def num_errors(self) -> int:
        return len(self._world.parser_errors)

    def get_error(self, index: int) -> Any:
        return self._world.binding.ParserError(self._world.parser_errors[index])


class ParserError(Double):
    kind = "ParserError"

    def __init__(self, members: dict[str, Any]) -> None:
        self._members = members

    def desc(self) -> str:
        return str(self._members["desc"])

    def file(self) -> str:
        return "ModelImporter.cpp"

    def line(self) -> int:
        return 356

    def node(self) -> int:
        return int(self._members.get("node", -1))

    def node_name(self) -> str:
        return str(self._members.get("node_name", ""))

    def node_operator(self) -> str:
        return str(self._members.get("node_operator", ""))


DOUBLES: tuple[type[Double], ...] = (
    ILogger,
    IProgressMonitor,
    IHostMemory,
    Builder,
    INetworkDefinition,
    IBuilderConfig,
    IOptimizationProfile,
    ITimingCache,
    OnnxParser,
    ParserError,
)
