"""Build an engine, in the process that `build_process` starts for each build.

TensorRT refers to the logger, the timing cache and the progress monitor in C++ without owning them, so `_build` keeps
each until the engine is written: the logger in `tensorrt`, the others in local variables.
"""

import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from netvlad_deploy.artifact import OnnxArtifact
from netvlad_deploy.errors import BuildError, DeviceUnavailableError, OutputError, UsageError
from netvlad_deploy.spec.build_options import BuildOptions, Gpu
from netvlad_deploy.support.files import write_hashed
from netvlad_deploy.support.machine import peak_memory_bytes
from netvlad_deploy.support.progress import Progress
from netvlad_deploy.support.streams import stdout_to_stderr
from netvlad_deploy.tensorrt.api import EXTRAS, LogLine, TensorRT, members, open_tensorrt, parse_onnx
from netvlad_deploy.tensorrt.cuda import Cuda
from netvlad_deploy.tensorrt.timing_cache import load_timing_cache, save_timing_cache

LOG = logging.getLogger(__name__)

RTX_TARGETS = ("SM80", "SM86", "SM89", "SM120 and later")
"""Architectures of an RTX engine if none is named. Source: TensorRT-RTX documentation, CPU-only AOT."""

NO_TARGETS = frozenset(("NONE", "CURRENT"))
"""Members of the binding's enum of compute capabilities that are no GPU architecture."""

MIB = 2**20

PROGRESS_INTERVAL_S = 1.0
"""Least seconds between two lines about a phase: the builder reports hundreds of steps a second."""


@dataclass(frozen=True, kw_only=True)
class BuildRequest:
    """The request for one build, with everything that the process of the builder needs to know.

    Args:
        source: the ONNX file, whose bytes are compared with their hash when they are read.
        external: a path in the folder of the graph's external data, None if it has none.
        target: the file to write the engine into, which the caller has created.
        options: the options of the builder, with the optimization profiles.
        timing_cache: the file of kernel timings, None for none.
        device: the number of the GPU to build on, None for whichever there is.
    """

    source: OnnxArtifact
    external: str | None
    target: Path
    options: BuildOptions
    timing_cache: Path | None = None
    device: int | None = None


@dataclass(frozen=True, kw_only=True)
class Built:
    """The engine that was written, the settings it was built with, and the log.

    `host_bytes` is the most host memory that the process has taken, `flags` are the builder flags that were set.
    """

    sha256: str
    size_bytes: int
    version: str
    flags: tuple[str, ...]
    gpu: Gpu | None
    targets: tuple[str, ...]
    build_ms: float
    host_bytes: int
    lines: tuple[LogLine, ...]


def build_here(request: BuildRequest) -> Built:
    """Build in this process, in which no other build may follow if this one fails.

    Raises: MissingDependencyError or DeviceUnavailableError if the flavor cannot build here; BuildError with
        TensorRT's own words; UsageError for an option that this flavor does not have; ArtifactError if the source is
        another file now; OutputError if the engine cannot be written.
    """
    options = request.options
    tensorrt = open_tensorrt(options.flavor)
    if request.timing_cache is not None and not tensorrt.has_timing_cache:
        raise UsageError(f"{tensorrt.name} keeps no timings, its kernels are compiled at run time: no --timing-cache")
    if request.device is not None:
        Cuda(extra=EXTRAS[options.flavor]).cudaSetDevice(request.device)
    content = request.source.content()
    with stdout_to_stderr():
        return _build(tensorrt, request, content)


def _build(tensorrt: TensorRT, request: BuildRequest, content: bytes) -> Built:
    trt, options, cache_path = tensorrt.module, request.options, request.timing_cache
    builder = tensorrt.builder()
    gpu = _gpu(tensorrt, options)
    typed = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = tensorrt.accepted(builder.create_network(typed), "a network")
    parse_onnx(tensorrt, network, content, request.external)
    config = tensorrt.accepted(builder.create_builder_config(), "a configuration")
    flags = _configure(tensorrt, config, options)
    for profile in options.profiles:
        shapes = request.source.input_shapes(profile)
        index = config.add_optimization_profile(_profile(tensorrt, builder, shapes))
        tensorrt.accepted(index, f"the profile {profile}")
    monitor = _make_monitor(trt)
    config.progress_monitor = monitor
    cache = None if cache_path is None else load_timing_cache(tensorrt, config, cache_path)
    started = time.perf_counter()
    engine = builder.build_serialized_network(network, config)
    build_ms = (time.perf_counter() - started) * 1e3
    if engine is None:
        reason = tensorrt.last_error() or "no reason given"
        cure = ": build for smaller shapes (--profile), or with more memory" if "OutOfMemory" in reason else ""
        raise BuildError(f"{tensorrt.name} built no engine: {reason}{cure}")
    if cache_path is not None:
        save_timing_cache(tensorrt, config, cache_path, cache)
    try:
        sha256, size_bytes = write_hashed(request.target, (memoryview(engine),))  # without copying it
    except OSError as error:
        raise OutputError(f"the engine cannot be written: {error.strerror or error}") from error
    return Built(
        sha256=sha256,
        size_bytes=size_bytes,
        version=tensorrt.version,
        flags=flags,
        gpu=gpu,
        targets=_targets(tensorrt, config, options),
        build_ms=build_ms,
        host_bytes=peak_memory_bytes(),
        lines=tuple(tensorrt.logger.lines),
    )


def _make_monitor(binding: Any) -> Any:
    """Return a monitor of the binding's own class, which logs the phases of a build and its steps."""

    class Monitor(binding.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self._lock = threading.Lock()  # the builder reports from several threads of its own
            self._phases: dict[str, Progress] = {}  # every phase that the build is in

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            with self._lock:
                if parent_phase is None:  # the phase is no part of another
                    LOG.info("build: %s", phase_name)
                self._phases[phase_name] = Progress(phase_name, num_steps, "steps", line_s=PROGRESS_INTERVAL_S)

        def step_complete(self, phase_name: str, step: int) -> bool:
            with self._lock:
                if phase_name in self._phases:
                    self._phases[phase_name].reach(step + 1)
            return True  # False would end the build, but Ctrl-C ends it sooner by killing its process

        def phase_finish(self, phase_name: str) -> None:
            with self._lock:
                if phase := self._phases.pop(phase_name, None):
                    phase.finish()

    return Monitor()


def _gpu(tensorrt: TensorRT, options: BuildOptions) -> Gpu | None:
    """Return the GPU an engine is built on; None if architectures are named, or on a machine without a GPU."""
    if options.compute_capabilities:
        return None
    try:
        return Cuda(extra=EXTRAS[options.flavor]).gpu()
    except DeviceUnavailableError:
        if not tensorrt.builds_without_gpu:
            raise
        return None


def _configure(tensorrt: TensorRT, config: Any, options: BuildOptions) -> tuple[str, ...]:
    """Set the options, read each back, and return the names of all builder flags that are set.

    They are set call by call, not from a table: so `tools/mutation.py` deletes each call in turn, and a test must fail.

    Raises: BuildError if TensorRT does not keep a setting; UsageError for an unknown compute capability.
    """
    trt = tensorrt.module
    detailed = trt.ProfilingVerbosity.DETAILED
    config.profiling_verbosity = detailed
    _check_kept(tensorrt, "profiling verbosity", config.profiling_verbosity, detailed)
    if options.tf32:
        config.set_flag(trt.BuilderFlag.TF32)
    else:
        config.clear_flag(trt.BuilderFlag.TF32)
    _check_kept(tensorrt, "TF32", config.get_flag(trt.BuilderFlag.TF32), options.tf32)
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
        _check_kept(tensorrt, "VERSION_COMPATIBLE", config.get_flag(trt.BuilderFlag.VERSION_COMPATIBLE), True)
    if options.hardware_compatible:
        ampere = trt.HardwareCompatibilityLevel.AMPERE_PLUS
        config.hardware_compatibility_level = ampere
        _check_kept(tensorrt, "hardware compatibility", config.hardware_compatibility_level, ampere)
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level
        _check_kept(tensorrt, "optimization level", config.builder_optimization_level, options.optimization_level)
    if options.workspace_mib is not None:
        workspace, limit_bytes = trt.MemoryPoolType.WORKSPACE, options.workspace_mib * MIB
        config.set_memory_pool_limit(workspace, limit_bytes)
        _check_kept(tensorrt, "workspace in bytes", config.get_memory_pool_limit(workspace), limit_bytes)
    if options.compute_capabilities:
        _choose_capabilities(tensorrt, config, options)
    return tuple(sorted(name for name, flag in members(trt.BuilderFlag).items() if config.get_flag(flag)))


def _check_kept(tensorrt: TensorRT, setting: str, found: Any, expected: Any) -> None:
    """Raise BuildError if TensorRT reads back another value of a setting: it ignores some without a word."""
    if found != expected:
        raise BuildError(f"{tensorrt.name} did not keep {setting}: got {found}, expected {expected}")


def _choose_capabilities(tensorrt: TensorRT, config: Any, options: BuildOptions) -> None:
    """Set the GPU architectures of an RTX engine.

    Raises: UsageError if the binding does not know one; BuildError if TensorRT refuses one.
    """
    listed = members(tensorrt.module.ComputeCapability)
    known = {name: value for name, value in listed.items() if name not in NO_TARGETS}
    for name in options.compute_capabilities:
        if name not in known:
            raise UsageError(f"{tensorrt.name} has no compute capability {name}: choose from {', '.join(known)}")
    config.num_compute_capabilities = len(options.compute_capabilities)
    for index, name in enumerate(options.compute_capabilities):
        answer = config.set_compute_capability(known[name], index)
        tensorrt.accepted(answer, f"compute capability {name}")
    _check_kept(tensorrt, "compute capabilities", _capabilities(config), options.compute_capabilities)


def _capabilities(config: Any) -> tuple[str, ...]:
    return tuple(config.get_compute_capability(index).name for index in range(config.num_compute_capabilities))


def _profile(tensorrt: TensorRT, builder: Any, shapes: Mapping[str, tuple[tuple[int, ...], ...]]) -> Any:
    """Return TensorRT's own optimization profile with the least, usual and largest shape of every input."""
    optimization_profile = tensorrt.accepted(builder.create_optimization_profile(), "an optimization profile")
    for name, asked in shapes.items():
        try:
            optimization_profile.set_shape(name, *asked)
        except (RuntimeError, ValueError) as error:
            raise BuildError(f"{tensorrt.name} refused the shapes {asked} of {name}: {error}") from error
        found = tuple(tuple(shape) for shape in optimization_profile.get_shape(name))
        _check_kept(tensorrt, f"the shapes of {name}", found, asked)
    return optimization_profile


def _targets(tensorrt: TensorRT, config: Any, options: BuildOptions) -> tuple[str, ...]:
    """Return the architectures of an RTX engine; none of an engine for the GPU it was built on.

    Raises: BuildError if it was built for others than those asked for.
    """
    if not tensorrt.builds_without_gpu:
        return ()
    found = _capabilities(config)
    _check_kept(tensorrt, "compute capabilities", found, options.compute_capabilities)
    return found or RTX_TARGETS
