"""Doubles of what runs an engine: Runtime, ICudaEngine, IExecutionContext, and RTX's configuration and cache.

The engine's bytes are JSON that says its tensors and profiles. It computes descriptor[b, i] = i + the sum of the valid
features of item b, when its stream gets there, from and to the addresses that the context was given.
"""

import ctypes
import json
import weakref
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from tests.double.core import Double, World
from tests.double.cuda import CudaDouble

TYPES = {"FLOAT": np.float32, "HALF": np.float16, "BOOL": np.bool_}


def engine_bytes(
    tensors: Mapping[str, tuple[str, str, Sequence[int]]], profiles: Sequence[Mapping[str, Sequence[Sequence[int]]]]
) -> bytes:
    """Return an engine of tensors (mode, type, shape with -1) and, for each profile, the shapes of every input."""
    return json.dumps({"tensors": tensors, "profiles": profiles}).encode()


class RuntimeDouble(Double):
    """`deserialize_cuda_engine` gives None for bytes that are no engine, after an error in the log."""

    kind = "Runtime"

    def __init__(self, world: World, cuda: CudaDouble, logger: Any) -> None:
        super().__init__(world)
        self._cuda, self._logger, self._host_code = cuda, logger, False

    @property
    def engine_host_code_allowed(self) -> bool:
        return bool(self._host_code)

    @engine_host_code_allowed.setter
    def engine_host_code_allowed(self, allowed: bool) -> None:
        object.__setattr__(self, "_host_code", allowed)

    def get_engine_validity(self, content: bytes) -> Any:
        states = self._world.module().EngineValidity
        return getattr(states, getattr(self._world, "validity", "VALID")), 7

    def deserialize_cuda_engine(self, content: bytes) -> Any:
        if self._fails("deserialize_cuda_engine"):
            self._logger.log(self._logger.Severity.ERROR, "the engine is damaged")
            return None
        record = json.loads(content)
        if record.get("host_code") and not self._host_code:
            self._logger.log(self._logger.Severity.ERROR, "host code is not allowed")
            return None
        return EngineDouble(self._world, self._cuda, record)


class EngineDouble(Double):
    """An engine, alive until its last context is gone."""

    kind = "ICudaEngine"

    def __init__(self, world: World, cuda: CudaDouble, record: Any) -> None:
        super().__init__(world)
        self._cuda, self._record = cuda, record
        weakref.finalize(self, world.journal.append, "ICudaEngine.gone")

    @property
    def num_io_tensors(self) -> int:
        return len(self._record["tensors"])

    @property
    def num_optimization_profiles(self) -> int:
        return len(self._record["profiles"])

    def get_tensor_name(self, index: int) -> str:
        return str(list(self._record["tensors"])[index])

    def get_tensor_mode(self, name: str) -> Any:
        return self._world.module().TensorIOMode[self._record["tensors"][name][0]]

    def get_tensor_dtype(self, name: str) -> Any:
        return self._world.module().DataType[self._record["tensors"][name][1]]

    def get_tensor_shape(self, name: str) -> Any:
        return self._record["tensors"][name][2]

    def get_tensor_format(self, name: str) -> Any:
        return SimpleNamespace(name="LINEAR")

    def get_tensor_profile_shape(self, name: str, profile: int) -> Any:
        if self._record["tensors"][name][0] != "INPUT":
            raise RuntimeError(f"{name} is no input")
        return self._record["profiles"][profile][name]

    def get_device_memory_size_for_profile_v2(self, profile: int) -> int:
        batch, length, width = self._record["profiles"][profile]["features"][2]
        return int(4 * batch * length * width)

    def create_runtime_config(self) -> Any:
        return RuntimeConfigDouble(self._world)

    def create_execution_context(self, how: Any) -> Any:
        if self._fails("create_execution_context"):
            return None
        strategies = self._world.module().ExecutionContextAllocationStrategy
        strategy = how._strategy if isinstance(how, RuntimeConfigDouble) else how
        if strategy is not None and strategy.name == strategies.ON_PROFILE_CHANGE.name:
            self._world.journal.append("memory of one profile")
        if isinstance(how, RuntimeConfigDouble):
            self._world.journal.append(f"RTX {how._kernels} {how._graphs} {how._cache is not None}")
        return ContextDouble(self)


class ContextDouble(Double):
    """An execution context: profile, then shapes, then addresses, then execution, or it refuses."""

    kind = "IExecutionContext"

    def __init__(self, engine: EngineDouble) -> None:
        super().__init__(engine._world)
        self._engine, self._cuda = engine, engine._cuda
        self._profile: int | None = None
        self._pending: int | None = None
        self._memory = 0
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._computed: dict[str, tuple[int, ...]] = {}
        weakref.finalize(self, self._world.journal.append, "IExecutionContext.gone")

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        if self._fails("set_optimization_profile_async"):
            return False
        self._pending, self._shapes = profile, {}

        def switch() -> None:
            self._profile, self._pending = profile, None
            self._memory += 1

        self._cuda.queue(stream, switch)
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        if self._fails("set_input_shape") or self._profile is None or self._pending is not None:
            return False
        low, _, high = self._engine._record["profiles"][self._profile][name]
        if not all(least <= length <= most for least, length, most in zip(low, shape, high, strict=True)):
            return False
        self._shapes[name] = shape
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        if self._fails("set_tensor_address") or f"address of {name}" in self._world.failing or address % 256:
            return False
        self._addresses[name] = address
        return True

    def infer_shapes(self) -> list[str]:
        if self._fails("infer_shapes"):
            raise RuntimeError("shape inference failed")
        tensors, unknown = self._engine._record["tensors"], "shapes" in self._world.failing
        return [name for name in tensors if tensors[name][0] == "INPUT" and (unknown or name not in self._shapes)]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        batch = self._shapes["features"][0]
        return tuple(batch if length == -1 else length for length in self._engine._record["tensors"][name][2])

    def execute_async_v3(self, stream: int) -> bool:
        tensors = self._engine._record["tensors"]
        if self._fails("execute_async_v3") or set(self._addresses) != set(tensors) or self.infer_shapes():
            return False
        if stream in self._cuda.capturing and self._computed != self._shapes:
            return False  # work that a new shape asks for once cannot be recorded
        self._computed = dict(self._shapes)
        shapes = {**self._shapes, "descriptor": self.get_tensor_shape("descriptor")}
        addresses, memory = dict(self._addresses), self._memory
        return bool(self._cuda.queue(stream, lambda: self._compute(shapes, addresses, memory))[0] == 0)

    def _compute(self, shapes: Mapping[str, tuple[int, ...]], addresses: Mapping[str, int], memory: int) -> None:
        assert memory == self._memory, "a graph was replayed after the profile it was captured in"
        self._world.journal.append("computed")
        arrays = {name: self._array(name, shapes[name], addresses[name]) for name in shapes}
        features = arrays["features"].astype(np.float64)
        if "mask" in arrays:
            features = features * arrays["mask"][..., None]
        target = arrays["descriptor"]
        target[...] = features.sum(axis=(1, 2))[:, None] + np.arange(target.shape[1])

    def _array(self, name: str, shape: tuple[int, ...], address: int) -> Any:
        dtype = np.dtype(TYPES[self._engine._record["tensors"][name][1]])
        memory: Any = self._cuda.view(address, int(np.prod(shape)) * dtype.itemsize)
        return np.frombuffer(memory, dtype).reshape(shape)


class RuntimeConfigDouble(Double):
    """RTX's configuration of a context."""

    kind = "IRuntimeConfig"

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self._strategy: Any = None
        self._kernels = self._graphs = "default"
        self._cache: Any = None

    @property
    def cuda_graph_strategy(self) -> Any:
        return self._graphs

    @cuda_graph_strategy.setter
    def cuda_graph_strategy(self, strategy: Any) -> None:
        object.__setattr__(self, "_graphs", strategy.name)

    @property
    def dynamic_shapes_kernel_specialization_strategy(self) -> Any:
        return self._kernels

    @dynamic_shapes_kernel_specialization_strategy.setter
    def dynamic_shapes_kernel_specialization_strategy(self, strategy: Any) -> None:
        object.__setattr__(self, "_kernels", strategy.name)

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        self._strategy = strategy

    def create_runtime_cache(self) -> Any:
        return RuntimeCacheDouble(self._world)

    def set_runtime_cache(self, cache: Any) -> bool:
        if self._fails("set_runtime_cache"):
            return False
        self._cache = cache
        return True


class RuntimeCacheDouble(Double):
    """Kernels that were compiled: what was read, and one more."""

    kind = "IRuntimeCache"

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self._kernels = b""

    def deserialize(self, content: bytes) -> bool:
        if self._fails("deserialize") or not content.startswith(b"kernels"):
            return False
        self._kernels = content
        return True

    def serialize(self) -> Any:
        return memoryview((self._kernels or b"kernels") + b"+")


def binding(world: World, cuda: CudaDouble) -> Any:
    """Return the binding module of `world.version` with all that runs an engine."""

    class Logger:
        Severity = SimpleNamespace(ERROR="Severity.ERROR", INFO="Severity.INFO")

        def __init__(self) -> None:
            if "Logger" in world.failing:
                raise AssertionError("no logger")

    class Runtime:
        """A factory with the members of the class, which is what `hasattr` asks."""

        def __new__(cls, logger: Any) -> Any:
            if world.fails("Runtime"):
                raise TypeError("pybind11::init(): factory function returned nullptr")
            return RuntimeDouble(world, cuda, logger)

    if world.rtx:
        Runtime.get_engine_validity = RuntimeDouble.get_engine_validity  # type: ignore[attr-defined]
    caches = {"IRuntimeCache": RuntimeCacheDouble} if world.rtx else {}
    return world.module(ILogger=Logger, Runtime=Runtime, **caches)


def descriptors(features: Any, size: int, mask: Any = None) -> Any:
    """Return the descriptors that the engine computes."""
    features = np.asarray(features, np.float64)
    if mask is not None:
        features = features * mask[..., None]
    return features.sum(axis=(1, 2))[:, None] + np.arange(size)


def from_address(address: int, shape: tuple[int, ...], dtype: Any) -> Any:
    """Return an array over memory at an address."""
    size_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory: Any = (ctypes.c_char * size_bytes).from_address(address)
    return np.frombuffer(memory, dtype).reshape(shape)
