"""Build a TensorRT engine from an ONNX artifact.

Precision is that of the ONNX graph: the network is strongly typed (required on TensorRT 10, the only kind on
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
from netvlad_deploy.spec.layer import AggregatorSpec, is_gated
from netvlad_deploy.spec.profiles import Profile
from netvlad_deploy.support.files import check_apart, check_suffix, stage_files
from netvlad_deploy.support.machine import describe_machine
from netvlad_deploy.tensorrt.api import EXTRAS
from netvlad_deploy.tensorrt.build_log import check_types, log_text, read_figures
from netvlad_deploy.tensorrt.build_process import build_apart
from netvlad_deploy.tensorrt.builder import BuildRequest, Built
from netvlad_deploy.tensorrt.cuda import Cuda

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

    >>> from netvlad_deploy import build_engine, export_onnx
    >>> from netvlad_deploy.models.netvlad import initialize
    >>> from netvlad_deploy.spec.layer import NetVLADSpec
    >>> exported = export_onnx(initialize(NetVLADSpec(num_clusters=2, feature_size=4), seed=0), "m.onnx")
    >>> engine = build_engine(exported, "m.engine", BuildOptions(flavor="tensorrt-rtx"))  # needs no GPU
    >>> engine.path.name, engine.precision, [str(profile) for profile in engine.profiles]
    ('m.engine', 'fp32', ['batch 1:8:64, num_features 1:300:4096'])

    Raises: MissingDependencyError or DeviceUnavailableError if the flavor cannot build here; BuildError with
        TensorRT's own words; ArtifactError if `source` is damaged; UsageError, OutputError for the target.
    """
    parent = source if isinstance(source, Artifact) else load_artifact(source)
    if not isinstance(parent, OnnxArtifact):
        raise ArtifactError(f"{parent.path} is an engine, expected an ONNX file to build from")
    check_file(parent.path.parent, parent.reference)
    gated = is_gated(parent.spec)
    options = _fitted(options or BuildOptions(), parent, gated=gated)
    target = check_suffix(Path(target), ".engine")
    cache_path = None if timing_cache is None else Path(timing_cache)
    written = (target, sidecar_path(target), log_path(target))
    if cache_path is not None:
        check_apart(cache_path, written, "timing cache")
    with stage_files(force=force) as staging:
        for path in written:
            staging.check(path)
        built = _build(parent, staging.add(target), options, cache_path)
        figures = read_figures(built.lines, built.build_ms, built.host_bytes)
        check_types(figures.kernels, parent.precision, netvlad=not isinstance(parent.spec, AggregatorSpec), gated=gated)
        artifact = _artifact(parent, target, options, built, figures)
        staging.write(log_path(target), log_text(artifact, built.lines, cache_path).encode())
        stage_sidecar(staging, artifact)
        return artifact


def _fitted(options: BuildOptions, parent: OnnxArtifact, *, gated: bool) -> BuildOptions:
    """Return the options with the profiles given, or with the usual one of a head or pipeline if none is given.

    Raises: UsageError for a profile of a head if it is a pipeline, or the reverse; for TF32 in an FP16 graph; for FP32
        matrix products on Turing.
    """
    for profile in options.profiles:
        if isinstance(profile, ImageProfile) != (parent.images is not None):
            asked = "--image-size or --profile BxHxW" if parent.images else "--num-features or --profile BxN"
            raise UsageError(f"{parent.path} takes {parent.inputs[0]}, got a profile of {profile}: pass {asked}")
        if isinstance(profile, Profile) and profile.num_features.min < (least := parent.spec.least_features):
            raise UsageError(
                f"{parent.path} needs at least {least} features for each image, got a profile of {profile}"
            )
        if parent.images is not None and isinstance(profile, ImageProfile):
            parent.images.check_taken(*((height, width) for _, height, width in profile.shapes))
    if options.tf32 and parent.precision != "fp32":
        raise UsageError(f"TF32 is for FP32 graphs, {parent.path} is {parent.precision}: leave --tf32 out")
    if TURING in options.compute_capabilities and (parent.precision != "fp16" or gated):
        has = "has gating in FP32" if gated else f"is {parent.precision}"
        cure = "" if gated else "export with --precision fp16, or "
        raise UsageError(
            f"{TURING} (Turing) computes no matrix product in FP32, {parent.path} {has}: {cure}leave {TURING} out"
        )
    return options if options.profiles else replace(options, profiles=(parent.usual_profile,))


def _build(parent: OnnxArtifact, engine: Path, options: BuildOptions, cache_path: Path | None) -> Built:
    """Build in a fresh process; its errors name absolute paths."""
    with parent.weights_folder() as weights:
        return build_apart(
            BuildRequest(
                source=replace(parent, path=parent.path.absolute()),
                target=engine,
                external=str(weights / parent.path.name) if weights else None,
                options=options,
                timing_cache=cache_path and cache_path.absolute(),
                device=_device(options),
            )
        )


def _artifact(
    parent: OnnxArtifact, target: Path, options: BuildOptions, built: Built, figures: BuildFigures
) -> EngineArtifact:
    same = ("spec", "inputs", "outputs", "dtypes", "range", "origin", "preprocessing", "images")
    return EngineArtifact(
        **{name: getattr(parent, name) for name in same},
        path=target,
        sha256=built.sha256,
        size_bytes=built.size_bytes,
        precision="tf32" if options.tf32 else parent.precision,
        warnings=(*parent.warnings, *(price for price, _ in options.chosen("price"))),
        parent=FileReference(name=_relative(parent.path, target), sha256=parent.sha256),
        reference=replace(parent.reference, name=_relative(parent.reference_path, target)),
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
        return Cuda(extra=EXTRAS[options.flavor]).device()
    except (DeviceUnavailableError, MissingDependencyError):  # the builder says so if it needs one
        return None


def _relative(path: Path, target: Path) -> str:
    """Return `path` relative to the folder of `target`."""
    return os.path.relpath(path.resolve(), target.parent.resolve())
