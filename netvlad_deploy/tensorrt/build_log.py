"""The log of the builder: the figures read from it, and its file NAME.engine.log beside the engine.

The file begins with the command by which NVIDIA's own tool builds the same engine, for comparisons and for reports to
NVIDIA. TensorRT does not promise the text of its log: figures can be compared within one version only, and are None
where it lacks them.
"""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from netvlad_deploy.artifact import EngineArtifact
from netvlad_deploy.errors import BuildError
from netvlad_deploy.spec.build_options import RTX, BuildFigures, Kernel
from netvlad_deploy.spec.tensors import shape_words
from netvlad_deploy.tensorrt.api import MODULES, LogLine

NOT_KERNELS = frozenset(("shape_call", "signal", "wait"))
"""Kinds in the list of layers that are no GPU work."""

PRODUCT_KINDS = frozenset(("gemm", "runtime_fusion"))
"""Kinds of kernels that compute a matrix product."""

FP32_PRODUCTS = {"fp16": 0, "fp16-wide-logits": 1}
"""Number of matrix products that read FP32, by the precision of an FP16 graph, not counting gating."""


def log_text(artifact: EngineArtifact, lines: Sequence[LogLine], timing_cache: Path | None) -> str:
    """Return the build log: the `trtexec` line, versions and GPU, then every message with its severity."""
    gpu = artifact.gpu
    device = f"{gpu.name}, compute capability {gpu.compute_capability}, CUDA {gpu.driver}" if gpu else "none"
    return "".join(
        f"{line}\n"
        for line in (
            f"# {trtexec_line(artifact, timing_cache)}",
            f"# versions: {', '.join(f'{name} {version}' for name, version in sorted(artifact.versions.items()))}",
            f"# GPU: {device}",
            *(f"[{line.severity}] {line.text.rstrip()}" for line in lines),
        )
    )


def trtexec_line(artifact: EngineArtifact, timing_cache: Path | None = None) -> str:
    """Return the line of `trtexec`, or of TensorRT-RTX's own tool, that builds an engine with the same options.

    The line of TensorRT-RTX's tool has files, shapes and compute capabilities only: no public page lists the others.

    Source: TensorRT documentation, trtexec; TensorRT-RTX documentation, CPU-only AOT and dynamic shapes.
    """
    options = artifact.options
    parent = artifact.path.parent / artifact.parent.name if artifact.parent else Path("MODEL.onnx")
    tool = MODULES[RTX] if options.flavor == RTX else "trtexec"  # RTX's tool has the name of its package
    words = [tool, f"--onnx={parent}", f"--saveEngine={artifact.path}", "--skipInference"]
    if options.flavor != RTX:
        major = int(artifact.versions[options.flavor].partition(".")[0])
        words += ["--stronglyTyped"] if major < 11 else []  # the only kind of network from 11 on
        words += [] if options.tf32 else ["--noTF32"]  # TF32 is on unless this turns it off
        words += ["--profilingVerbosity=detailed", *(word.format(value) for word, value in options.chosen("trtexec"))]
        words += [f"--timingCacheFile={timing_cache}"] if timing_cache else []
    for index, profile in enumerate(options.profiles):
        words += [f"--profile={index}"] if len(options.profiles) > 1 else []
        shapes = {_quoted(name): each for name, each in artifact.input_shapes(profile).items()}
        words += [f"--{bound}Shapes={text}" for bound, text in shape_words(shapes).items()]
    if options.compute_capabilities:
        words.append("--computeCapabilities=" + ",".join(name[2:] for name in options.compute_capabilities))
    return shlex.join(words)


def _quoted(name: str) -> str:
    """Return the name of a tensor as `trtexec` reads it: in quotes if it holds a colon. Source: its --help."""
    return f"'{name}'" if ":" in name else name


def read_figures(lines: Sequence[LogLine], build_ms: float, host_bytes: int) -> BuildFigures:
    """Return the figures in the builder's log: memory of activations and weights in bytes, and the kernels.

    >>> line = LogLine(severity="VERBOSE", text="Total Activation Memory: 2048 bytes")
    >>> read_figures([line], build_ms=12.5, host_bytes=1 << 20).activation_bytes
    2048
    """
    text = "\n".join(line.text for line in lines)
    return BuildFigures(
        build_ms=round(build_ms, 3),
        host_bytes=host_bytes,
        activation_bytes=_bytes(text, "Total Activation Memory"),
        weight_bytes=_bytes(text, "Total Weights Memory"),
        kernels=tuple(_kernels(text)),
    )


def _bytes(text: str, label: str) -> int | None:
    found = re.search(rf"{label}: (\d+) bytes", text)
    return int(found[1]) if found else None


def _kernels(text: str) -> list[Kernel]:
    """Return the kernels in the list of layers, without NOT_KERNELS."""
    pattern = r"^Name: (\S+), LayerType: (\w+), Inputs: (.*), Constants: .*, Outputs: (.*), TacticName:"
    records = re.findall(pattern, text, re.MULTILINE)
    return [
        Kernel(name=name, kind=kind, inputs=_dtypes(inputs), outputs=_dtypes(outputs))
        for name, kind, inputs, outputs in records
        if kind not in NOT_KERNELS
    ]


def _dtypes(tensors: str) -> tuple[str, ...]:
    return tuple(re.findall(r"Datatype: (\w+)", tensors))


def check_types(kernels: Sequence[Kernel], precision: str, *, netvlad: bool = True, gated: bool = False) -> None:
    """Compare the dtypes of an engine's matrix products with the precision of its graph.

    With `gated` the layer ends with gating, one more product, which is FP32 in every precision. Of a layer that is no
    `netvlad` it is not known how many products are FP32: one must be FP16. A builder that lists no kernels passes.

    Raises: BuildError naming the kernels if the engine has another precision than its graph.

    >>> check_types([Kernel(name="k", kind="gemm", inputs=("Float",), outputs=("Float",))], "fp32")
    >>> check_types([Kernel(name="k", kind="gemm", inputs=("Half",), outputs=("Float",))], "fp32")
    Traceback (most recent call last):
    netvlad_deploy.errors.BuildError: the engine of a graph in fp32 has other types in k: nothing was written
    """
    half = [kernel.name for kernel in kernels if "Half" in (*kernel.inputs, *kernel.outputs)]
    products = [kernel for kernel in kernels if kernel.kind in PRODUCT_KINDS]
    if precision not in FP32_PRODUCTS:
        wrong = half
    else:
        fp32 = [kernel.name for kernel in products if "Half" not in kernel.inputs]
        expected = FP32_PRODUCTS[precision] + gated
        fits = len(fp32) <= expected and (len(products) < 2 or len(fp32) == expected)
        if not netvlad:
            fits = not products or len(fp32) < len(products)
        wrong = [] if fits else [kernel.name for kernel in products]
    if wrong:
        raise BuildError(
            f"the engine of a graph in {precision} has other types in {', '.join(wrong)}: nothing was written"
        )
