"""The builder's log: figures of the engine read from it, and the file NAME.engine.log beside the engine.

The text is not an interface: figures are comparable within one version only, and None where it is silent.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from netvlad_deploy.artifact import EngineArtifact
from netvlad_deploy.errors import BuildError
from netvlad_deploy.spec.build_options import BuildFigures, Kernel
from netvlad_deploy.tensorrt.api import LogLine
from netvlad_deploy.tensorrt.trtexec import trtexec_line

NOT_KERNELS = frozenset(("shape_call", "signal", "wait"))
"""Entries of the layer list that are bookkeeping of the engine, not GPU work."""

PRODUCT_KINDS = frozenset(("gemm", "runtime_fusion"))
"""Kinds of kernels that hold a matrix product."""

FP32_PRODUCTS = {"fp16": 0, "fp16-wide-logits": 1}
"""How many matrix products of an FP16 graph read FP32, without that of gating."""


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


def read_figures(lines: Sequence[LogLine], build_ms: float, host_bytes: int) -> BuildFigures:
    """Read activation memory, weight bytes and the kernel list from the builder's log."""
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


def check_types(kernels: Sequence[Kernel], precision: str, *, gated: bool = False) -> None:
    """Compare the dtypes of an engine's matrix products with those the graph asked for, where the builder lists them.

    `gated`: the layer ends with gating, a product that is FP32 in every precision.

    Raises: BuildError if an engine came out in another precision than its graph.
    """
    half = [kernel.name for kernel in kernels if "Half" in (*kernel.inputs, *kernel.outputs)]
    products = [kernel for kernel in kernels if kernel.kind in PRODUCT_KINDS]
    if precision not in FP32_PRODUCTS:
        wrong = half
    else:
        wide = [kernel.name for kernel in products if "Half" not in kernel.inputs]
        expected = FP32_PRODUCTS[precision] + gated
        fits = len(wide) <= expected and (len(products) < 2 or len(wide) == expected)
        wrong = [] if fits else [kernel.name for kernel in products]
    if wrong:
        raise BuildError(
            f"the engine of a graph in {precision} has other types in {', '.join(wrong)}: nothing was written"
        )
