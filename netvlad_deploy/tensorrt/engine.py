"""Build a TensorRT engine from an ONNX artifact.

Precision is what the ONNX graph says: the network is strongly typed (required on TensorRT 10, the only kind on
11 and on RTX), and TF32 is cleared, since it is on by default everywhere and costs about 1e-3.
"""

import os
from dataclasses import replace
from pathlib import Path

from netvlad_deploy.artifact import (
    Artifact,
    EngineArtifact,
    FileReference,
    OnnxArtifact,
    check_file,
    load_artifact,
    log_path,
    sidecar_path,
    stage_sidecar,
)
from netvlad_deploy.errors import ArtifactError, DeviceUnavailableError, MissingDependencyError, UsageError
from netvlad_deploy.spec.build_options import BuildFigures, BuildOptions
from netvlad_deploy.spec.images import ImageProfile
from netvlad_deploy.support.files import check_apart, check_suffix, stage_files
from netvlad_deploy.support.machine import describe_machine
from netvlad_deploy.tensorrt.api import EXTRAS
from netvlad_deploy.tensorrt.build_log import check_types, log_text, read_figures
from netvlad_deploy.tensorrt.build_process import build_apart
from netvlad_deploy.tensorrt.builder import BuildRequest, Built
from netvlad_deploy.tensorrt.cuda import current_device

TURING = "SM75"
"""The one architecture for which TensorRT-RTX compiles matrix products in FP16 only."""


def build_engine(
    source: Artifact | Path | str,
    target: Path | str,
    options: BuildOptions | None = None,
    *,
    timing_cache: Path | str | None = None,
    force: bool = False,
) -> EngineArtifact:
    """Build `source`; write the engine, its sidecar and its build log; return the engine.

    `timing_cache` is a file of kernel timings that builds share: it makes a build faster, and changes no engine.

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
    gated = parent.spec.projection is not None and parent.spec.projection.gating is not None
    _check_turing(parent, options, gated=gated)
    target = check_suffix(Path(target), ".engine")
    cache_path = None if timing_cache is None else Path(timing_cache)
    written = (target, sidecar_path(target), log_path(target))
    if cache_path is not None:
        check_apart(cache_path, written, "timing cache")
    with stage_files(force=force) as staging:
        for path in written:
            staging.check(path)
        with parent.weights_folder() as weights:
            built = build_apart(_request(parent, staging.add(target), options, cache_path, weights))
        figures = read_figures(built.lines, built.build_ms, built.host_bytes)
        check_types(figures.kernels, parent.precision, gated=gated)
        artifact = _artifact(parent, target, options, built, figures)
        staging.write(log_path(target), log_text(artifact, built.lines, cache_path).encode())
        return stage_sidecar(staging, artifact, built.sha256, built.size_bytes)


def _request(
    parent: OnnxArtifact, engine: Path, options: BuildOptions, cache_path: Path | None, weights: Path | None
) -> BuildRequest:
    """Return the request to the process of the builder, with the hashes of the files as they were verified here."""
    return BuildRequest(
        source=parent,
        target=engine,
        external=str(weights / parent.path.name) if weights else None,
        options=options,
        profiles=tuple((str(profile), parent.input_shapes(profile)) for profile in options.profiles),
        timing_cache=cache_path,
        device=_device(options),
    )


def _check_turing(parent: OnnxArtifact, options: BuildOptions, *, gated: bool) -> None:
    """Refuse a graph that TensorRT-RTX cannot compile for Turing, before the builder starts.

    Raises: UsageError for a graph with FP32 matrix products.
    """
    if TURING not in options.compute_capabilities or (parent.precision == "fp16" and not gated):
        return
    has, cure = ("has gating in FP32", "") if gated else (f"is {parent.precision}", "export with --precision fp16, or ")
    raise UsageError(
        f"{TURING} (Turing) computes no matrix product in FP32, {parent.path} {has}: {cure}leave {TURING} out"
    )


def _with_profiles(options: BuildOptions, parent: OnnxArtifact) -> BuildOptions:
    """Return the options with the profiles given, or with the usual one of a head or pipeline if none is given.

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
    built: Built,
    figures: BuildFigures,
) -> EngineArtifact:
    return EngineArtifact(
        path=target,
        spec=parent.spec,
        precision="tf32" if options.tf32 else parent.precision,
        inputs=parent.inputs,
        outputs=parent.outputs,
        dtypes=parent.dtypes,
        range=parent.range,
        warnings=(*parent.warnings, *(price for price, _ in options.chosen("price"))),
        origin=parent.origin,
        parent=FileReference(name=_relative(parent.path, target), sha256=parent.sha256),
        reference=replace(parent.reference, name=_relative(parent.reference_path, target)),
        preprocessing=parent.preprocessing,
        images=parent.images,
        versions={**parent.versions, options.flavor: built.version},
        options=options,
        flags=built.flags,
        gpu=built.gpu,
        machine=describe_machine(),
        targets=built.targets,
        figures=figures,
    )


def _device(options: BuildOptions) -> int | None:
    """Return the number of this thread's current GPU; None if architectures are named or there is no GPU."""
    if options.compute_capabilities:
        return None
    try:
        return current_device(EXTRAS[options.flavor])
    except (DeviceUnavailableError, MissingDependencyError):  # the builder says so if it needs one
        return None


def _relative(path: Path, target: Path) -> str:
    """Return `path` relative to the folder of `target`."""
    return os.path.relpath(path.resolve(), target.parent.resolve())
