"""The promises about networks from libraries, measured for `make bars`."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch

from examples import demo
from netvlad_deploy.artifact import OnnxArtifact
from netvlad_deploy.export.onnx_model import export_onnx
from netvlad_deploy.oracle.goldens import golden_image
from netvlad_deploy.runtime.open_runner import open_runner
from netvlad_deploy.spec.build_options import BuildOptions
from netvlad_deploy.spec.graph_options import GraphOptions
from netvlad_deploy.spec.images import IMAGES
from netvlad_deploy.spec.layer import DESCRIPTOR
from netvlad_deploy.support.arrays import Array, cosines
from netvlad_deploy.tensorrt.engine import build_engine
from tools.bar import MIB, Bar, allowed, printed, steady
from tools.image_bars import photos, untrained

SMALL = "dinov2-s"
SIZES = ("224x224", "224x308", "322x322")
EQUAL, HALF_EQUAL = 1e-5, 1e-4
EXPORT_S, GROWTH = 30.0, 3.0
LARGEST_S = 60.0
"""Most seconds of the largest: the same code took 29 s in one hour and 49 s in another of the same machine."""
BATCH = 5
LARGEST = "dinov2-l"
OTHERS = (SMALL, "dinov2-b-registers", "vit-b16", "mobilenetv2", "efficientnet-b0")


def exported(folder: Path, precision: str, size: str) -> OnnxArtifact:
    """Return the small transformer as an ONNX file of a precision."""
    target = folder / f"{SMALL}-{size}-{precision}.onnx"
    return export_onnx(untrained(SMALL, size), target, GraphOptions(precision=precision), force=True)


def distance(got: Array, expected: Array) -> float:
    """Return the largest 1 - cosine of descriptors (B,P), in float64."""
    return float((1 - cosines(got, expected)).max())


def accuracy(folder: Path) -> Iterator[Bar]:
    """ONNX Runtime against torch at three sizes."""
    worst = 0.0
    for size in SIZES:
        pipeline = untrained(SMALL, size)
        assert pipeline.images.size is not None
        images = np.stack([golden_image(*pipeline.images.size, seed) for seed in (11, 12)])
        with torch.inference_mode():
            expected = pipeline(torch.from_numpy(images)).numpy()
        with open_runner(exported(folder, "fp32", size)) as runner:
            worst = max(worst, distance(runner.run({IMAGES: images})[DESCRIPTOR], expected))
    yield Bar(f"{SMALL}, ONNX Runtime against torch, three sizes: 1-cos < {EQUAL:g}", f"{worst:.1e}", worst < EQUAL)


def corridor(folder: Path) -> Iterator[Bar]:
    """FP16 by strict emulation against FP32 on real photos: distance, and the best match of each."""
    walk, found = demo.corridor(), dict[str, list[Array]]()
    for precision, backend in (("fp32", None), ("fp16", "strict")):
        artifact = exported(folder, precision, SIZES[1])
        assert artifact.images is not None
        found[precision] = []
        with open_runner(artifact, backend=backend) as runner:
            for side in (walk.queries, walk.database):
                images = photos(side, artifact.images)[1]
                parts = np.array_split(np.stack(images), len(images) // BATCH)
                found[precision].append(np.concatenate([runner.run({IMAGES: part})[DESCRIPTOR] for part in parts]))
    worst = max(distance(*sides) for sides in zip(found["fp16"], found["fp32"], strict=True))
    name = f"{SMALL}, corridor: 1-cos of FP16 (strict emulation) and FP32 at most {HALF_EQUAL:g}"
    yield Bar(name, f"{worst:.1e}", worst <= HALF_EQUAL)
    full, half = ((queries @ database.T).argmax(axis=1) for queries, database in (found["fp32"], found["fp16"]))
    agreement = float(np.mean(full == half))
    yield Bar(f"{SMALL}, corridor: FP16 and FP32 have the same best match", f"{agreement:.0%}", agreement == 1)


def engines(folder: Path) -> Iterator[Bar]:
    """TensorRT-RTX builds the typed graphs; FP16 takes less memory."""
    figures = {}
    for precision in ("fp32", "fp16"):
        artifact = exported(folder, precision, SIZES[1])
        options = BuildOptions(flavor="tensorrt-rtx")
        figures[precision] = build_engine(artifact, folder / f"{precision}.engine", options, force=True).figures
    full, half = figures["fp32"], figures["fp16"]
    assert full.activation_bytes is not None
    assert half.activation_bytes is not None
    text = " and ".join(
        f"{(each.activation_bytes or 0) / MIB:.0f} MiB in {len(each.kernels)} kernels" for each in (half, full)
    )
    name = f"{SMALL} at {SIZES[1]}, batch up to 8, TensorRT-RTX: FP16 takes less activation memory than FP32"
    yield Bar(name, text, half.activation_bytes < full.activation_bytes)


SCRIPT = """
import sys, time
from tools.bar import most_resident, resident_bytes
from tools.image_bars import untrained
from netvlad_deploy.export.onnx_model import export_onnx
from netvlad_deploy.spec.graph_options import GraphOptions
export_onnx(untrained("mobilenetv2", "64x64"), "small.onnx", force=True)
before, pipeline = resident_bytes(), untrained(sys.argv[1], "224x224")
size, started = sum(tensor.nbytes for tensor in pipeline.backbone.state_dict().values()), time.perf_counter()
options = GraphOptions(precision="fp16")
peak = most_resident(lambda: export_onnx(pipeline, f"{sys.argv[1]}.onnx", options, force=True))
print(time.perf_counter() - started, (peak - before) / size, size)
"""
"""Exports a small network first, so that the libraries' own memory and time are not counted; nor is the time to draw
random weights, in whose place a user reads a file.
"""


def largest(folder: Path) -> Iterator[Bar]:
    """Seconds of the export of the largest network in FP16, and its memory."""
    yield steady(partial(export_bar, folder, LARGEST))


def others(folder: Path) -> Iterator[Bar]:
    """Seconds of the exports of the others; `make bars` leaves them out, since each is faster than the largest."""
    for name in OTHERS:
        yield steady(partial(export_bar, folder, name))


def export_bar(folder: Path, name: str) -> Bar:
    """Return the bar of one export in FP16; of the largest also what memory grows by, with its weights.

    Its seconds may be more by how slow the machine is.
    """
    seconds, growth, size = printed(SCRIPT, name, folder=folder)
    most = LARGEST_S if name == LARGEST else EXPORT_S
    limit_s = allowed(most, seconds)
    text = f"{seconds:.0f} s of {limit_s:.0f} s on this machine"
    words = f"export of {name} ({size / MIB:.0f} MiB) under 64 clusters, 224x224, FP16: {most:g} s"
    holds = seconds <= limit_s
    if name == LARGEST:  # beside a small network an export's own memory is more
        words += f", memory at most {GROWTH:g} times the weights"
        text += f", {growth:.2f} times"
        holds = holds and growth <= GROWTH
    return Bar(words, text, holds)


FIGURES = (accuracy, corridor, engines)
TIMES = (largest,)
