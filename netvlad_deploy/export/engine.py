"""Build a TensorRT engine from an ONNX artifact.

Precision is what the ONNX graph says: the network is strongly typed (required on TensorRT 10, the only kind on
11 and on RTX), and TF32 is cleared, since it is on by default everywhere and costs about 1e-3.
"""

import os
import re
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from netvlad_deploy.artifact import (
    BuildFigures,
    EngineArtifact,
    FileReference,
    Kernel,
    OnnxArtifact,
    check_file,
    load_artifact,
    stage_artifact,
)
from netvlad_deploy.build_options import BuildOptions
from netvlad_deploy.errors import ArtifactError, BuildError, UsageError
from netvlad_deploy.files import check_suffix, stage_files
from netvlad_deploy.runtime.trt_api import LogLine, TensorRT, last_error, open_tensorrt, parse_onnx, stdout_to_stderr
from netvlad_deploy.spec import FEATURES, MASK, Profile

NOT_KERNELS = frozenset(("shape_call", "signal", "wait"))
"""Entries of the layer list that are bookkeeping of the engine, not GPU work."""

PRODUCT_KINDS = frozenset(("gemm", "runtime_fusion"))
"""Kinds of kernels that hold a matrix product."""

FP32_PRODUCTS = {"fp16": 0, "fp16-wide-logits": 1}
"""How many matrix products of an FP16 graph may read FP32."""

RTX_TARGETS = ("SM80", "SM86", "SM89", "SM120 and later")
"""Where an RTX engine runs if no compute capability is named. Source: TensorRT-RTX documentation, CPU-only AOT."""


def build_engine(
    source: OnnxArtifact | Path | str,
    target: Path | str,
    options: BuildOptions | None = None,
    *,
    force: bool = False,
) -> EngineArtifact:
    """Build `source`; write the engine and its sidecar.

    Raises: MissingDependencyError or DeviceUnavailableError if the flavor cannot build here; BuildError with
        TensorRT's own words; ArtifactError if `source` is damaged; UsageError, OutputError for the target.
    """
    parent = source if isinstance(source, OnnxArtifact) else load_artifact(Path(source))
    if not isinstance(parent, OnnxArtifact):
        raise ArtifactError(f"{parent.path} is an engine, expected an ONNX file to build from")
    check_file(parent.path.parent, parent.reference)
    options = options or BuildOptions()
    if options.tf32 and parent.precision != "fp32":
        raise UsageError(f"TF32 is for FP32 graphs, {parent.path} is {parent.precision}: leave --tf32 out")
    target = check_suffix(Path(target), ".engine")
    tensorrt = open_tensorrt(options.flavor)
    with stage_files(force=force) as staging:
        staging.check(target)
        content, targets, figures = _build(tensorrt, parent, options)
        check_types(figures.kernels, parent.precision)
        reference = replace(parent.reference, name=_relative(parent.reference_path, target))
        artifact = EngineArtifact(
            path=target,
            spec=parent.spec,
            precision="tf32" if options.tf32 else parent.precision,
            inputs=parent.inputs,
            outputs=parent.outputs,
            dtypes=parent.dtypes,
            range=parent.range,
            warnings=parent.warnings,
            origin=parent.origin,
            parent=FileReference(name=_relative(parent.path, target), sha256=parent.sha256),
            reference=reference,
            preprocessing=parent.preprocessing,
            versions={**parent.versions, options.flavor: tensorrt.version},
            options=options,
            flags=(),
            gpu=None,
            targets=targets,
            figures=figures,
        )
        return stage_artifact(staging, artifact, content)


def _build(
    tensorrt: TensorRT, parent: OnnxArtifact, options: BuildOptions
) -> tuple[bytes, tuple[str, ...], BuildFigures]:
    """Return the engine's bytes, the GPU architectures it is for, and the builder's figures."""
    trt = tensorrt.module
    logger = tensorrt.logger()
    with stdout_to_stderr():
        builder = tensorrt.builder(logger)
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parse_onnx(tensorrt, network, logger, parent.path.read_bytes())
        config = builder.create_builder_config()
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        if options.tf32:
            config.set_flag(trt.BuilderFlag.TF32)
        else:
            config.clear_flag(trt.BuilderFlag.TF32)
        if config.get_flag(trt.BuilderFlag.TF32) != options.tf32:
            raise BuildError(
                f"{tensorrt.flavor} {tensorrt.version} did not turn TF32 {'on' if options.tf32 else 'off'}"
            )
        for profile in options.profiles:
            config.add_optimization_profile(_profile(builder, parent, profile))
        started = time.perf_counter()
        engine = builder.build_serialized_network(network, config)
        build_ms = (time.perf_counter() - started) * 1e3
    if engine is None:
        raise BuildError(
            f"{tensorrt.flavor} {tensorrt.version} built no engine: {last_error(logger) or 'no reason given'}"
        )
    return bytes(engine), _targets(tensorrt, config), read_figures(logger.lines, build_ms)


def _profile(builder: Any, parent: OnnxArtifact, profile: Profile) -> Any:
    """Return TensorRT's optimization profile for the dynamic axes of every input."""
    optimization_profile = builder.create_optimization_profile()
    tails = {FEATURES: (parent.spec.feature_size,), MASK: ()}
    for name in parent.inputs:
        optimization_profile.set_shape(name, *((*shape, *tails[name]) for shape in profile.shapes))
    return optimization_profile


def _targets(tensorrt: TensorRT, config: Any) -> tuple[str, ...]:
    """Return the compute capabilities the engine is for: this GPU's own on TensorRT, a portable set on RTX."""
    if not tensorrt.builds_without_gpu:
        return ("the GPU it was built on",)
    chosen = [config.get_compute_capability(index).name for index in range(config.num_compute_capabilities)]
    return tuple(chosen) or RTX_TARGETS


def read_figures(lines: Sequence[LogLine], build_ms: float) -> BuildFigures:
    """Read activation memory, weight bytes and the kernel list from the builder's log.

    The text is not an interface: figures are comparable within one version only, and None where it is silent.
    """
    text = "\n".join(line.text for line in lines)
    return BuildFigures(
        build_ms=round(build_ms, 3),
        activation_bytes=_bytes(text, "Total Activation Memory"),
        weight_bytes=_bytes(text, "Total Weights Memory"),
        kernels=tuple(_kernels(text)),
    )


def _bytes(text: str, label: str) -> int | None:
    found = re.search(rf"{label}: (\d+) bytes", text)
    return int(found[1]) if found else None


def _kernels(text: str) -> list[Kernel]:
    """Return the kernels of the log's layer list, without bookkeeping entries."""
    pattern = r"^Name: (\S+), LayerType: (\w+), Inputs: (.*), Constants: .*, Outputs: (.*), TacticName:"
    records = re.findall(pattern, text, re.MULTILINE)
    return [
        Kernel(name=name, kind=kind, inputs=_dtypes(inputs), outputs=_dtypes(outputs))
        for name, kind, inputs, outputs in records
        if kind not in NOT_KERNELS
    ]


def _dtypes(tensors: str) -> tuple[str, ...]:
    return tuple(re.findall(r"Datatype: (\w+)", tensors))


def check_types(kernels: Sequence[Kernel], precision: str) -> None:
    """Compare the dtypes of an engine's matrix products with those the graph asked for, where the builder lists them.

    Raises: BuildError if an engine came out in another precision than its graph.
    """
    half = [kernel.name for kernel in kernels if "Half" in (*kernel.inputs, *kernel.outputs)]
    products = [kernel for kernel in kernels if kernel.kind in PRODUCT_KINDS]
    if precision not in FP32_PRODUCTS:
        wrong = half
    else:
        wide = [kernel.name for kernel in products if "Half" not in kernel.inputs]
        expected = FP32_PRODUCTS[precision]
        fits = len(wide) <= expected and (len(products) < 2 or len(wide) == expected)
        wrong = [] if fits else [kernel.name for kernel in products]
    if wrong:
        raise BuildError(
            f"the engine of a graph in {precision} has other types in {', '.join(wrong)}: nothing was written"
        )


def _relative(path: Path, target: Path) -> str:
    """Return the name under which the folder of `target` reaches `path`."""
    return os.path.relpath(path.resolve(), target.parent.resolve())
