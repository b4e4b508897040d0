"""Every figure that this project promises, measured and printed: `make bars`. Exit 1 if one does not hold.

`python -m tools.bars NAME...` measures only the groups with these names, or those of files with these names.
Figures that no other work can change are measured on all cores at once, then those of time, one after the other. Among
the first are seconds whose limit is far, or grows with how slow the machine is. A timing bar fails if the whole 99 %
interval of its ratio lies on the wrong side three times: machines are noisy.
"""

import functools
import itertools
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import torch

from netvlad_deploy.artifact import FileReference, OnnxArtifact, stage_artifact
from netvlad_deploy.export.onnx_model import export_onnx
from netvlad_deploy.latency.timing import measure
from netvlad_deploy.oracle.reference_file import load_reference
from netvlad_deploy.parity.cases import won_by
from netvlad_deploy.parity.visibility import SHORT
from netvlad_deploy.runtime.open_runner import Candidate, open_runner
from netvlad_deploy.spec.layer import DESCRIPTOR, FEATURES
from netvlad_deploy.support.arrays import cosines, unit_rows
from netvlad_deploy.support.files import stage_files
from netvlad_deploy.tensorrt.engine import build_engine
from netvlad_deploy.workflow.source import DEFAULT_SPEC
from tests.modules import RANGE, features, make_module
from tools import (
    adopt_bars,
    backbone_bars,
    bulk_bars,
    file_bars,
    flow_bars,
    half_bars,
    image_bars,
    index_bars,
    latency_bars,
    ray_bars,
    report_bars,
    triton_bars,
)
from tools.bar import Bar, fastest, steady

SCALES = {1e-4: 1e-5, 1.0: 1e-5, 100.0: 1e-5, 1e4: 1e-4}
"""Scale of the L2-normalised features, and the bar of the largest absolute error."""

MARGINS = (0, 30, 50, 55, 60, 64, 100)
SPEED_SHAPES = ((1, 1200, 512, 64), (8, 300, 1024, 256), (32, 100, 512, 64))
TORCH_BAR, GEMM_BAR = 1.6, 1.7
GEMM_BARS = {(1, 1200, 512, 64): GEMM_BAR, (1, 4096, 1024, 64): 1.3}
RTX_VERSION = "1.7.1"


def accuracy(folder: Path) -> Iterator[Bar]:
    """ONNX Runtime on the CPU against the oracle, over sizes, BatchNorm, lengths and scales."""
    found: dict[float, list[tuple[float, float, str]]] = {scale: [] for scale in SCALES}
    for clusters, ghosts, batch_norm in itertools.product((1, 8, 64, 256), (0, 1, 8), (True, False)):
        module = make_module(clusters, 512, ghosts, batch_norm)
        artifact = export_onnx(module, folder / "m.onnx", force=True)
        with open_runner(artifact) as runner, open_runner(artifact, backend="oracle") as oracle:
            for rows, scale in itertools.product((1, 7, 300, 4096), SCALES):
                x = unit_rows(features(2, rows, 512, seed=rows)) * np.float32(scale)
                got, expected = (each.run({FEATURES: x})[DESCRIPTOR].astype(np.float64) for each in (runner, oracle))
                assert np.isfinite(got).all()
                long = np.linalg.norm(expected, axis=1) > SHORT
                distance = float((1 - cosines(got[long], expected[long])).max(initial=0.0))
                where = f"K={clusters} G={ghosts} N={rows} BatchNorm {'on' if batch_norm else 'off'}"
                found[scale].append((float(np.abs(got - expected).max()), distance, where))
    for scale, each in found.items():
        largest, _, where = max(each)
        distance = max(distance for _, distance, _ in each)
        text = f"1-cos {distance:.1e}, max abs {largest:.1e} ({where})"
        holds = distance < 1e-6 and largest < SCALES[scale]
        yield Bar(f"FP32 at scale {scale:g}: 1-cos < 1e-6, max abs < {SCALES[scale]:g}", text, holds)


def ghosts(folder: Path) -> Iterator[Bar]:
    """Ghost clusters that win every row, to where the right descriptor is zero."""
    artifact = export_onnx(make_module(64, 512, 8), folder / "m.onnx", force=True)
    parameters = load_reference(artifact.reference_path)
    with open_runner(artifact) as runner, open_runner(artifact, backend="oracle") as oracle:
        for margin in MARGINS:
            x = won_by(parameters, slice(parameters.spec.num_clusters, None), margin, 2, 300, np.random.default_rng(0))
            got, expected = (each.run({FEATURES: x})[DESCRIPTOR].astype(np.float64) for each in (runner, oracle))
            norms = [np.linalg.norm(values, axis=1) for values in (got, expected)]
            error = max(float(np.abs(got - expected).max()), float(np.abs(norms[0] - norms[1]).max()))
            text = f"{error:.1e} (norm {norms[1].min():.3g})"
            yield Bar(f"ghosts win every row by {margin}: norm and values to 1e-6", text, error < 1e-6)


def speed(folder: Path) -> Iterator[Bar]:
    """Time against the original's forward and against the layer's two matrix products alone."""
    for shape in SPEED_SHAPES:
        yield steady(functools.partial(against_torch, folder, shape))
    for shape in GEMM_BARS:
        yield steady(functools.partial(against_gemms, folder, shape))


def against_torch(folder: Path, shape: tuple[int, int, int, int]) -> Bar:
    """Where the two products alone are not 1.6 * 1.7 times as fast as torch, no graph around them is 1.6 times."""
    layer, torch_layer, gemms, feeds = speed_candidates(folder, shape)
    report = measure([torch_layer, layer, gemms], feeds, threads=2)
    ratio, room = (candidate.ratio for candidate in report.candidates[1:])
    assert ratio is not None
    assert room is not None
    promised = min(TORCH_BAR, 1 / (GEMM_BAR * room.value))
    return Bar(
        f"against torch at (B,N,D,K) = {shape}: {TORCH_BAR} times as fast, or what {GEMM_BAR} times its GEMMs leave",
        f"{1 / ratio.value:.2f} times [{1 / ratio.high:.2f}, {1 / ratio.low:.2f}] of {promised:.2f}, "
        f"its GEMMs alone {1 / room.value:.2f}",
        1 / ratio.low >= promised,
    )


def against_gemms(folder: Path, shape: tuple[int, int, int, int]) -> Bar:
    layer, _, gemms, feeds = speed_candidates(folder, shape)
    ratio = measure([gemms, layer], feeds, threads=2).candidates[1].ratio
    assert ratio is not None
    return Bar(
        f"against its two GEMMs at {shape}: at most {GEMM_BARS[shape]} times their time",
        f"{ratio.value:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]",
        ratio.low <= GEMM_BARS[shape],
    )


def speed_candidates(
    folder: Path, shape: tuple[int, int, int, int]
) -> tuple[Candidate, Candidate, Candidate, dict[str, np.ndarray]]:
    """Return the exported layer, the original's forward in torch, the two GEMMs alone, and what to feed them."""
    batch, rows, width, clusters = shape
    layer = export_onnx(make_module(clusters, width), folder / "speed.onnx", force=True).path
    assignment = np.random.default_rng(0).random((batch, clusters, rows), dtype=np.float32)
    gemms = export_gemms(folder / "gemms.onnx", width, assignment)
    feeds = {FEATURES: unit_rows(features(batch, rows, width))}
    return Candidate(path=layer), Candidate(path=layer, backend="torch"), Candidate(path=gemms), feeds


def export_gemms(path: Path, width: int, assignment: np.ndarray) -> Path:
    """Write `features @ W` and `assignment @ features`, of an assignment (B,K,N), as an artifact of its own."""
    clusters = assignment.shape[1]
    weight = onnx.numpy_helper.from_array(np.ones((width, clusters), np.float32), "W")
    tensor = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [
            onnx.helper.make_node("MatMul", ["features", "W"], ["l"]),
            onnx.helper.make_node("MatMul", ["assignment", "features"], ["v"]),
        ],
        "gemms",
        [tensor("features", 1, ["b", "n", width])],
        [tensor("l", 1, ["b", "n", clusters]), tensor("v", 1, ["b", clusters, width])],
        [weight, onnx.numpy_helper.from_array(assignment, "assignment")],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    artifact = OnnxArtifact(
        path=path,
        spec=replace(DEFAULT_SPEC, num_clusters=clusters, feature_size=width),
        precision="fp32",
        inputs=("features",),
        outputs=("l", "v"),
        dtypes={"features": "float32", "l": "float32", "v": "float32"},
        range=RANGE,
        origin="ones",
        parent=None,
        reference=FileReference(name="none", sha256=""),
        preprocessing="none",
        opset=18,
    )
    with stage_files(force=True) as staging:
        stage_artifact(staging, artifact, model.SerializeToString())
    return path


def engine(folder: Path) -> Iterator[Bar]:
    """Activation memory and kernels of the FP32 engine, at the profile 1x1 / 8x300 / 64x4096."""
    artifact = export_onnx(make_module(64, 512, 8), folder / "m.onnx", force=True)
    built = build_engine(artifact, folder / "m.engine", half_bars.WIDE_PROFILE, force=True)
    version = built.versions["tensorrt-rtx"]
    assert version.startswith(RTX_VERSION), f"the figures are of TensorRT-RTX {RTX_VERSION}, installed is {version}"
    yield half_bars.nodes("nodes", artifact, 28)
    yield half_bars.activations(f"TensorRT-RTX {RTX_VERSION} activations:", built.figures, 152)
    yield half_bars.kernels(f"TensorRT-RTX {RTX_VERSION} kernels", built.figures)


def command_line(folder: Path) -> Iterator[Bar]:
    """Start-up of `--help` and of what runs engines."""
    for bar in (help_time, import_time):
        yield steady(functools.partial(bar, folder))


def help_time(folder: Path) -> Bar:
    help_s, imports_s = (
        fastest([sys.executable, *arguments], folder)
        for arguments in (["-m", "netvlad_deploy", "--help"], ["-c", "import typer, numpy"])
    )
    limit_s = max(0.15, 1.3 * imports_s)
    return Bar(
        "--help: at most the larger of 150 ms and 1.3 times `import typer, numpy`",
        f"{help_s * 1e3:.0f} ms of {limit_s * 1e3:.0f} ms",
        help_s <= limit_s,
    )


def import_time(folder: Path) -> Bar:
    numpy_s, package_s, runner_s = (
        fastest([sys.executable, "-c", f"import {module}"], folder)
        for module in ("numpy", "netvlad_deploy.runtime", "netvlad_deploy.tensorrt.tensorrt_runner")
    )
    return Bar(
        "import netvlad_deploy.runtime, and of its TensorRT runner what is beyond NumPy: at most 100 ms each",
        f"{package_s * 1e3:.0f} ms, {(runner_s - numpy_s) * 1e3:.0f} ms",
        package_s <= 0.1 and runner_s - numpy_s <= 0.1,
    )


Group = Callable[[Path], Iterator[Bar]]

FIGURES: tuple[Group, ...] = (  # the longest first: none is begun when all others are done
    *half_bars.FIGURES,
    *bulk_bars.FIGURES,
    *index_bars.FIGURES,
    accuracy,
    ghosts,
    engine,
    *image_bars.FIGURES,
    *backbone_bars.FIGURES,
    *flow_bars.FIGURES,
    *file_bars.FIGURES,
)
TIMES: tuple[Group, ...] = (
    command_line,
    *half_bars.TIMES,
    *image_bars.TIMES,
    *adopt_bars.TIMES,
    *backbone_bars.TIMES,
    *flow_bars.TIMES,
    *report_bars.TIMES,
    *ray_bars.TIMES,
    speed,
    *latency_bars.TIMES,
    *triton_bars.TIMES,
)


def together() -> Iterator[Bar]:
    """Yield the bars of FIGURES, several groups at a time, each on one thread and in a folder of its own."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(os.cpu_count(), spawn, torch.set_num_threads, (1,)) as processes:
        for bars in processes.map(measured, FIGURES):
            yield from bars


def measured(group: Group) -> list[Bar]:
    with tempfile.TemporaryDirectory() as name:
        return list(group(Path(name)))


def alone(groups: Iterable[Group]) -> Iterator[Bar]:
    """Yield the bars of some groups, one group after the other, each in a folder of its own."""
    torch.set_num_threads(2)
    for group in groups:
        with tempfile.TemporaryDirectory() as name:
            yield from group(Path(name))


def main() -> None:
    """Print a line for each bar as it is measured."""
    known = [*FIGURES, *TIMES, backbone_bars.others]
    chosen = [each for each in known if {each.__name__, each.__module__.rpartition(".")[2]} & set(sys.argv[1:])]
    if len(sys.argv) > 1 and not chosen:
        raise SystemExit(f"no group is called so: choose from {', '.join(each.__name__ for each in known)}")
    if not half_bars.DATA.is_dir():
        raise SystemExit(f"make bars needs the shared data, there is no {half_bars.DATA}: set NETVLAD_DATA")
    failed = 0
    for bar in alone(chosen) if chosen else itertools.chain(together(), alone(TIMES)):
        failed += not bar.holds
        print(f"{'PASS' if bar.holds else 'FAIL'}  {bar.name}: {bar.measured}", flush=True)
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
