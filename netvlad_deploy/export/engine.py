"""Build a TensorRT engine from an ONNX artifact.

Precision is what the ONNX graph says: the network is strongly typed (required on TensorRT 10, the only kind on
11 and on RTX), and TF32 is cleared, since it is on by default everywhere and costs about 1e-3.
"""

import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from netvlad_deploy.artifact import (
    Artifact,
    BuildFigures,
    EngineArtifact,
    FileReference,
    Gpu,
    OnnxArtifact,
    check_file,
    load_artifact,
    log_path,
    sidecar_path,
    stage_artifact,
)
from netvlad_deploy.build_options import BuildOptions
from netvlad_deploy.errors import ArtifactError, BuildError, DeviceUnavailableError, OutputError, UsageError
from netvlad_deploy.export.build_log import check_types, log_text, read_figures
from netvlad_deploy.export.progress import run_builder
from netvlad_deploy.export.timing_cache import load_timing_cache, save_timing_cache
from netvlad_deploy.files import check_suffix, stage_files
from netvlad_deploy.images import AnyProfile, ImageProfile
from netvlad_deploy.machine import describe_machine, peak_memory_bytes
from netvlad_deploy.runtime.cuda import describe_gpu, same_device
from netvlad_deploy.runtime.trt_api import (
    EXTRAS,
    LogLine,
    TensorRT,
    last_error,
    members,
    open_tensorrt,
    parse_onnx,
    stdout_to_stderr,
)

LOG = logging.getLogger(__name__)

RTX_TARGETS = ("SM80", "SM86", "SM89", "SM120 and later")
"""Where an RTX engine runs if no compute capability is named. Source: TensorRT-RTX documentation, CPU-only AOT."""

NO_TARGETS = frozenset(("NONE", "CURRENT"))
"""Compute capabilities of the binding that are no GPU architecture."""

HARDWARE_PRICE = (
    "hardware-compatible: runs on Ampere and later GPUs, with at most 48 KiB of shared memory and fewer kernels to "
    "choose from, so slower than an engine built for its GPU"
)
"""Source: TensorRT API reference, HardwareCompatibilityLevel."""

VERSION_PRICE = (
    "version-compatible: carries a runtime of its own as native code, which makes the file larger, may make it slower "
    "and must be allowed where it is loaded"
)
"""Source: TensorRT documentation, Version Compatibility."""

MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class _Built:
    """What the builder gave, and what it was set to."""

    content: bytes
    flags: tuple[str, ...]
    gpu: Gpu | None
    targets: tuple[str, ...]
    build_ms: float
    lines: Sequence[LogLine]


def build_engine(
    source: Artifact | Path | str,
    target: Path | str,
    options: BuildOptions | None = None,
    *,
    timing_cache: Path | str | None = None,
    force: bool = False,
) -> EngineArtifact:
    """Build `source`; write the engine, its sidecar and its build log.

    `timing_cache` is a file of kernel timings that builds share: it changes how long a build takes, not what it makes.

    Raises: MissingDependencyError or DeviceUnavailableError if the flavor cannot build here; BuildError with
        TensorRT's own words; ArtifactError if `source` is damaged; UsageError, OutputError for the target.
    """
    parent = source if isinstance(source, Artifact) else load_artifact(source)
    if not isinstance(parent, OnnxArtifact):
        raise ArtifactError(f"{parent.path} is an engine, expected an ONNX file to build from")
    check_file(parent.path.parent, parent.reference)
    options = _with_profiles(options or BuildOptions(), parent)
    if options.tf32 and parent.precision != "fp32":
        raise UsageError(f"TF32 is for FP32 graphs, {parent.path} is {parent.precision}: leave --tf32 out")
    target = check_suffix(Path(target), ".engine")
    cache_path = None if timing_cache is None else Path(timing_cache)
    tensorrt = open_tensorrt(options.flavor)
    if cache_path is not None and not tensorrt.has_timing_cache:
        raise UsageError(f"{tensorrt.name} keeps no timings, its kernels are compiled at run time: no --timing-cache")
    with stage_files(force=force) as staging:
        for path in (target, sidecar_path(target), log_path(target)):
            if cache_path is not None and cache_path.resolve() == path.resolve():
                raise UsageError(f"{path} is to be written, it cannot be the timing cache too: name another file")
            staging.check(path)
        built = _build(tensorrt, parent, options, cache_path)
        figures = read_figures(built.lines, built.build_ms, peak_memory_bytes())
        projection = parent.spec.projection
        check_types(figures.kernels, parent.precision, gated=projection is not None and projection.gating is not None)
        artifact = _artifact(parent, target, options, built, figures, tensorrt.version)
        staging.write(log_path(target), log_text(artifact, built.lines, cache_path).encode())
        return stage_artifact(staging, artifact, built.content)


def _with_profiles(options: BuildOptions, parent: OnnxArtifact) -> BuildOptions:
    """Return the options with the optimization profiles of what is built.

    Raises: UsageError for a profile of a head if it is a pipeline, or the reverse.
    """
    for profile in options.profiles:
        if isinstance(profile, ImageProfile) != (parent.images is not None):
            asked = "--image-size or --profile BxHxW" if parent.images else "--num-features or --profile BxN"
            raise UsageError(f"{parent.path} takes {parent.inputs[0]}, got a profile of {profile}: pass {asked}")
    return options if options.profiles else replace(options, profiles=(parent.usual_profile,))


def _artifact(
    parent: OnnxArtifact,
    target: Path,
    options: BuildOptions,
    built: _Built,
    figures: BuildFigures,
    version: str,
) -> EngineArtifact:
    prices = ((options.hardware_compatible, HARDWARE_PRICE), (options.version_compatible, VERSION_PRICE))
    return EngineArtifact(
        path=target,
        spec=parent.spec,
        precision="tf32" if options.tf32 else parent.precision,
        inputs=parent.inputs,
        outputs=parent.outputs,
        dtypes=parent.dtypes,
        range=parent.range,
        warnings=(*parent.warnings, *(price for paid, price in prices if paid)),
        origin=parent.origin,
        parent=FileReference(name=_relative(parent.path, target), sha256=parent.sha256),
        reference=replace(parent.reference, name=_relative(parent.reference_path, target)),
        preprocessing=parent.preprocessing,
        images=parent.images,
        versions={**parent.versions, options.flavor: version},
        options=options,
        flags=built.flags,
        gpu=built.gpu,
        machine=describe_machine(),
        targets=built.targets,
        figures=figures,
    )


def _build(tensorrt: TensorRT, parent: OnnxArtifact, options: BuildOptions, cache_path: Path | None) -> _Built:
    trt = tensorrt.module
    logger = tensorrt.logger()
    with stdout_to_stderr():
        builder = tensorrt.builder(logger)
        gpu = _gpu(tensorrt, options)
        typed = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        network = tensorrt.accepted(builder.create_network(typed), "a network", logger)
        with parent.weights_folder() as folder:  # the parser looks beside the path that it is told
            path = None if folder is None else str(folder / parent.path.name)
            parse_onnx(tensorrt, network, logger, parent.content(), path)
        config = tensorrt.accepted(builder.create_builder_config(), "a configuration", logger)
        flags = _configure(tensorrt, config, options, logger)
        for profile in options.profiles:
            index = config.add_optimization_profile(_profile(builder, parent, profile, tensorrt, logger))
            tensorrt.accepted(index, f"the profile {profile}", logger)
        cache = None if cache_path is None else load_timing_cache(tensorrt, config, cache_path, logger)
        started = time.perf_counter()
        engine = run_builder(tensorrt, builder, network, config, same_device(EXTRAS[options.flavor]) if gpu else None)
        build_ms = (time.perf_counter() - started) * 1e3
        if engine is None:
            raise BuildError(f"{tensorrt.name} built no engine: {last_error(logger) or 'no reason given'}")
        if cache_path is not None:
            _keep_timings(tensorrt, config, cache_path, cache, logger)
        return _Built(
            content=bytes(engine),
            flags=flags,
            gpu=gpu,
            targets=_targets(tensorrt, config),
            build_ms=build_ms,
            lines=logger.lines,
        )


def _keep_timings(tensorrt: TensorRT, config: Any, path: Path, cache: Any, logger: Any) -> None:
    """Save what the build measured; an engine is not thrown away because that cannot be kept."""
    try:
        save_timing_cache(tensorrt, config, path, cache, logger)
    except (BuildError, OutputError) as error:
        LOG.warning("the timings of this build are not kept: %s", error)


def _gpu(tensorrt: TensorRT, options: BuildOptions) -> Gpu | None:
    """Return the GPU an engine is built on, None where it is built for named architectures or without one."""
    if options.compute_capabilities:
        return None
    try:
        return describe_gpu(EXTRAS[options.flavor])
    except DeviceUnavailableError:
        if not tensorrt.builds_without_gpu:
            raise
        return None


def _configure(tensorrt: TensorRT, config: Any, options: BuildOptions, logger: Any) -> tuple[str, ...]:
    """Set what the options say, read all of it back, and return the names of all flags that are set.

    Raises: BuildError if TensorRT does not keep a setting; UsageError for an unknown compute capability.
    """
    trt = tensorrt.module
    detailed = trt.ProfilingVerbosity.DETAILED
    config.profiling_verbosity = detailed
    _kept(tensorrt, "profiling verbosity", config.profiling_verbosity, detailed)
    if options.tf32:
        config.set_flag(trt.BuilderFlag.TF32)
    else:
        config.clear_flag(trt.BuilderFlag.TF32)
    _kept(tensorrt, "TF32", config.get_flag(trt.BuilderFlag.TF32), options.tf32)
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
        _kept(tensorrt, "VERSION_COMPATIBLE", config.get_flag(trt.BuilderFlag.VERSION_COMPATIBLE), True)
    if options.hardware_compatible:
        ampere = trt.HardwareCompatibilityLevel.AMPERE_PLUS
        config.hardware_compatibility_level = ampere
        _kept(tensorrt, "hardware compatibility", config.hardware_compatibility_level, ampere)
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level
        _kept(tensorrt, "optimization level", config.builder_optimization_level, options.optimization_level)
    if options.workspace_mib is not None:
        workspace, limit_bytes = trt.MemoryPoolType.WORKSPACE, options.workspace_mib * MIB
        config.set_memory_pool_limit(workspace, limit_bytes)
        _kept(tensorrt, "workspace in bytes", config.get_memory_pool_limit(workspace), limit_bytes)
    if options.compute_capabilities:
        _choose_capabilities(tensorrt, config, options, logger)
    return tuple(sorted(name for name, flag in members(trt.BuilderFlag).items() if config.get_flag(flag)))


def _kept(tensorrt: TensorRT, what: str, found: Any, expected: Any) -> None:
    if found != expected:
        raise BuildError(f"{tensorrt.name} did not keep {what}: got {found}, expected {expected}")


def _choose_capabilities(tensorrt: TensorRT, config: Any, options: BuildOptions, logger: Any) -> None:
    listed = members(tensorrt.module.ComputeCapability)
    known = {name: value for name, value in listed.items() if name not in NO_TARGETS}
    for name in options.compute_capabilities:
        if name not in known:
            raise UsageError(f"{tensorrt.name} has no compute capability {name}: choose from {', '.join(known)}")
    config.num_compute_capabilities = len(options.compute_capabilities)
    for index, name in enumerate(options.compute_capabilities):
        answer = config.set_compute_capability(known[name], index)
        tensorrt.accepted(answer, f"compute capability {name}", logger)
    _kept(tensorrt, "compute capabilities", _capabilities(config), options.compute_capabilities)


def _capabilities(config: Any) -> tuple[str, ...]:
    return tuple(config.get_compute_capability(index).name for index in range(config.num_compute_capabilities))


def _profile(builder: Any, parent: OnnxArtifact, profile: AnyProfile, tensorrt: TensorRT, logger: Any) -> Any:
    """Return TensorRT's optimization profile for the dynamic axes of every input."""
    optimization_profile = tensorrt.accepted(builder.create_optimization_profile(), "an optimization profile", logger)
    for name, shapes in parent.input_shapes(profile).items():
        try:
            optimization_profile.set_shape(name, *shapes)
        except (RuntimeError, ValueError) as error:
            raise BuildError(f"{tensorrt.name} refused the shapes {shapes} of {name}: {error}") from error
        found = tuple(tuple(shape) for shape in optimization_profile.get_shape(name))
        _kept(tensorrt, f"the shapes of {name}", found, shapes)
    return optimization_profile


def _targets(tensorrt: TensorRT, config: Any) -> tuple[str, ...]:
    """Return the architectures an RTX engine is for; another engine is for the GPU it was built on."""
    return (_capabilities(config) or RTX_TARGETS) if tensorrt.builds_without_gpu else ()


def _relative(path: Path, target: Path) -> str:
    """Return the name under which the folder of `target` reaches `path`."""
    return os.path.relpath(path.resolve(), target.parent.resolve())
