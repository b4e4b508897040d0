"""The promises about files of other makers, measured for `make bars`: nodes, distance, speed, load of an adopted head.

The file is the loop over 64 clusters of 512 values, as torch's exporters unroll it, with a bias and normalised input.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime
import torch

from netvlad_deploy.report.adopt import Adoption
from netvlad_deploy.support.arrays import cosines, unit_rows
from netvlad_deploy.workflow.adopt import AdoptOptions, adopt
from tests.export.foreign.graphs import Looped, export_by_torch
from tools.bar import Bar, timed

CLUSTERS, WIDTH, POSITIONS = 64, 512, (30, 40)
MOST_NODES, MOST_DISTANCE, LEAST_RATIO, MOST_LOAD_S = 30, 1e-6, 3.0, 0.020
BLOCKS, LOADS = 15, 7


def unrolled(folder: Path) -> Adoption:
    """Return the adoption of an unrolled head; its file is `loop.onnx` in the folder."""
    torch.manual_seed(0)
    module = Looped(CLUSTERS, WIDTH, bias=True)
    centroids = unit_rows(np.random.default_rng(0).standard_normal((CLUSTERS, WIDTH))).astype(np.float32)
    module.centroids.data = torch.from_numpy(centroids)
    module.conv.weight.data = 20 * module.centroids[:, :, None, None]
    path = export_by_torch(module, folder / "loop.onnx", torch.zeros(1, WIDTH, *POSITIONS))
    return adopt(path, folder / "adopted.onnx", AdoptOptions(), force=True)


def session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def head(folder: Path) -> Iterator[Bar]:
    """Nodes of an adopted head, its distance from the file, and both in turns."""
    adoption = unrolled(folder)
    text = f"{adoption.adopted_nodes} of {adoption.nodes}"
    yield Bar(f"adopted head, K=64 D=512: at most {MOST_NODES} nodes", text, adoption.adopted_nodes <= MOST_NODES)
    maps = np.random.default_rng(1).standard_normal((2, WIDTH, *POSITIONS)).astype(np.float32)
    expected = session(folder / "loop.onnx").run(None, {"x": maps})[0]
    features = np.ascontiguousarray(maps.reshape(2, WIDTH, -1).transpose(0, 2, 1))
    got = session(folder / "adopted.onnx").run(None, {"features": features})[0]
    distance = 1 - float(cosines(got, expected).min())
    yield Bar(f"adopted head: 1-cos < {MOST_DISTANCE:g} from the file", f"{distance:.1e}", distance < MOST_DISTANCE)
    yield from speed(folder)


def speed(folder: Path) -> Iterator[Bar]:
    """The old and the new head in turns, one image of 1200 positions; and how long each takes to load."""
    old, new = session(folder / "loop.onnx"), session(folder / "adopted.onnx")
    maps = np.random.default_rng(1).standard_normal((1, WIDTH, *POSITIONS)).astype(np.float32)
    features = np.ascontiguousarray(maps.reshape(1, WIDTH, -1).transpose(0, 2, 1))
    ratios, times = [], []
    for block in range(BLOCKS + 1):  # the first one warms up
        pair = [timed(lambda: old.run(None, {"x": maps})), timed(lambda: new.run(None, {"features": features}))]
        if block:
            ratios.append(pair[0] / pair[1])
            times.append(pair)
    before, after = np.median(times, axis=0) * 1e3
    ratio = float(np.median(ratios))
    text = f"{ratio:.0f} times, {before:.1f} to {after:.2f} ms, the slowest block {min(ratios):.0f} times"
    yield Bar(f"adopted head: at least {LEAST_RATIO:g} times as fast as the file", text, min(ratios) >= LEAST_RATIO)
    names = ("loop.onnx", "adopted.onnx")
    loads = np.array([[timed(partial(session, folder / name)) for name in names] for _ in range(LOADS)])
    old_s, new_s = np.median(loads, axis=0)
    text = f"{new_s * 1e3:.1f} ms, the file {old_s * 1e3:.0f} ms"
    yield Bar(f"adopted head: loads in under {MOST_LOAD_S * 1e3:g} ms", text, new_s < MOST_LOAD_S)


TIMES = (head,)
