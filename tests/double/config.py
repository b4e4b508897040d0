"""The double of IBuilderConfig: every setting can be read back, and one that is to fail is not kept."""

import json
from typing import Any

from tests.double.bound import Overridden, Refusing


class IBuilderConfig(Refusing):
    kind = "IBuilderConfig"

    def __init__(self, logger: Any) -> None:
        trt = self._world.binding
        self._logger, self._trt = logger, trt
        self._flags = {trt.BuilderFlag.TF32} if self._world.tf32 else set()
        self._pools = {trt.MemoryPoolType.WORKSPACE: 64 << 30}
        self._verbosity = trt.ProfilingVerbosity.LAYER_NAMES_ONLY
        self._hardware = trt.HardwareCompatibilityLevel.NONE
        self._level = 3
        self._capabilities: list[Any] = []
        self._profiles: list[dict[str, Any]] = []
        self._timings: set[str] = set()
        self._monitor: Any = None

    def _description(self) -> dict[str, Any]:
        """Return all that an engine is built with, by name."""
        return {
            "flags": sorted(flag.name for flag in self._flags),
            "pools": {pool.name: limit for pool, limit in self._pools.items()},
            "verbosity": self._verbosity.name,
            "hardware": self._hardware.name,
            "level": self._level,
            "capabilities": [capability.name for capability in self._capabilities],
            "profiles": self._profiles,
        }

    def set_flag(self, flag: Any) -> None:
        assert flag in self._trt.BuilderFlag
        if not self._fails("set_flag"):
            self._flags.add(flag)

    def clear_flag(self, flag: Any) -> None:
        assert flag in self._trt.BuilderFlag
        if not self._fails("clear_flag"):
            self._flags.discard(flag)

    def get_flag(self, flag: Any) -> bool:
        return flag in self._flags

    def set_memory_pool_limit(self, pool: Any, pool_size: int) -> None:
        if not self._fails("set_memory_pool_limit"):
            self._pools[pool] = pool_size

    def get_memory_pool_limit(self, pool: Any) -> int:
        return self._pools[pool]

    @property
    def profiling_verbosity(self) -> Any:
        return self._verbosity

    @profiling_verbosity.setter
    def profiling_verbosity(self, verbosity: Any) -> None:
        if self._keeps("profiling_verbosity"):
            self._verbosity = verbosity

    @property
    def hardware_compatibility_level(self) -> Any:
        return self._hardware

    @hardware_compatibility_level.setter
    def hardware_compatibility_level(self, level: Any) -> None:
        if self._keeps("hardware_compatibility_level"):
            self._hardware = level

    @property
    def builder_optimization_level(self) -> int:
        return self._level

    @builder_optimization_level.setter
    def builder_optimization_level(self, level: int) -> None:
        if self._keeps("builder_optimization_level"):
            self._level = level

    @property
    def progress_monitor(self) -> Any:
        return self._monitor

    @progress_monitor.setter
    def progress_monitor(self, monitor: Any) -> None:
        self._monitor = Overridden.checked(monitor, "IProgressMonitor")

    @property
    def num_compute_capabilities(self) -> int:
        return len(self._capabilities)

    @num_compute_capabilities.setter
    def num_compute_capabilities(self, count: int) -> None:
        if self._keeps("num_compute_capabilities"):
            self._capabilities = [self._trt.ComputeCapability.NONE] * count

    def set_compute_capability(self, compute_capability: Any, index: int) -> bool:
        wrong = "" if index < len(self._capabilities) else "Index of compute capability is not in a valid range."
        if self._refuses("set_compute_capability", wrong):
            return False
        if self._keeps("get_compute_capability"):
            self._capabilities[index] = compute_capability
        return True

    def get_compute_capability(self, index: int) -> Any:
        return self._capabilities[index]

    def add_optimization_profile(self, profile: Any) -> int:
        if self._refuses("add_optimization_profile", profile._wrong()):
            return -1
        self._profiles.append(dict(profile._shapes))
        return len(self._profiles) - 1

    def create_timing_cache(self, serialized_timing_cache: bytes) -> Any:
        assert not self._world.rtx, "TensorRT-RTX deprecates it, and warns"
        assert isinstance(serialized_timing_cache, bytes)
        record, wrong = {"header": self._world.header, "timings": []}, ""
        if serialized_timing_cache:
            try:
                record = json.loads(serialized_timing_cache)
            except ValueError:
                wrong = "not a timing cache"
        if self._refuses("create_timing_cache", wrong):
            return None
        return self._trt.ITimingCache(self._logger, record["header"], set(record["timings"]))

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        wrong = "" if ignore_mismatch or cache._header == self._world.header else "header of another device"
        if self._refuses("set_timing_cache", wrong):
            return False
        self._timings = cache._timings
        return True
