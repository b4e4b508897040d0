"""Bars of embedding at scale: killed at random and resumed, memory, and a command that finds everything done."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np

from netvlad_deploy.export.onnx_model import export_onnx
from netvlad_deploy.spec.images import Resize
from tests.bulk.conftest import write_photos
from tests.colour_graphs import band_pipeline
from tests.modules import make_module
from tools.bar import MIB, Bar, allowed

ROOT: Final = Path(__file__).parents[1]
IMAGES, FEW_IMAGES, FEATURES, FEW_FEATURES, KILLS = 5000, 500, 20_000, 500, 20
AGAIN_S: Final = 2.0
MEMORY: Final = """
import sys
from netvlad_deploy.support.machine import peak_memory_bytes
from netvlad_deploy.cli import main
sys.argv = ["netvlad-deploy", *sys.argv[1:]]
try:
    main()
finally:
    print(peak_memory_bytes(), file=sys.stderr)
"""


def bulk(folder: Path) -> Iterator[Bar]:
    """Embedding of 5,000 images and of 20,000 files of local descriptors, in processes of their own."""
    band_pipeline(folder / "m.onnx", Resize(size=(16, 12)))
    export_onnx(make_module(8, 16, 0), folder / "head.onnx")
    for count in (IMAGES, FEW_IMAGES):
        write_photos(folder / f"photos{count}", count)
    for count in (FEATURES, FEW_FEATURES):
        write_features(folder / f"x{count}", count)
    yield killed_and_resumed(folder)
    yield memory(folder, "images", "m.onnx", f"photos{IMAGES}", f"photos{FEW_IMAGES}")
    yield memory(folder, "files of local descriptors", "head.onnx", f"x{FEATURES}", f"x{FEW_FEATURES}")


def done_already(folder: Path) -> Iterator[Bar]:
    """Time the same command again: the walk, the times of change, and the start of Python."""
    band_pipeline(folder / "m.onnx", Resize(size=(16, 12)))
    write_photos(folder / "photos", IMAGES)
    words = ("embed", "m.onnx", "photos", "-o", "y.npz", "--json")
    times: list[float] = []
    for _ in range(4):
        started = time.monotonic()
        process = start(folder, *words)
        out, err = process.communicate()
        times.append(time.monotonic() - started)
        assert (process.returncode, json.loads(out)["complete"]) == (0, len(times) > 1), err
    fastest_s = min(times[1:])
    name = f"the same command again, {IMAGES} images done: {AGAIN_S:g} s"
    text = f"{fastest_s:.2f} s, after {times[0]:.1f} s the first time"
    yield Bar(name, text, fastest_s <= allowed(AGAIN_S, fastest_s))


FIGURES = (bulk, done_already)


def write_features(folder: Path, count: int) -> None:
    """Write files of local descriptors (20,16)."""
    folder.mkdir()
    numbers = np.random.default_rng(0)
    for number in range(count):
        np.save(folder / f"{number:05}.npy", numbers.standard_normal((20, 16), dtype=np.float32))


def start(folder: Path, *words: str, code: str = "") -> "subprocess.Popen[str]":
    """Start the command line in the folder."""
    call = ["-c", code] if code else ["-m", "netvlad_deploy"]
    return subprocess.Popen(
        [sys.executable, *call, "-q", *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def killed_and_resumed(folder: Path) -> Bar:
    """Kill the run of 5,000 images 20 times at random moments, and let it go on each time."""
    words = ("embed", "m.onnx", f"photos{IMAGES}", "--shard-size", "256", "-o")
    started = time.monotonic()
    whole = start(folder, *words, "whole.npz")
    _, err = whole.communicate()
    assert whole.returncode == 0, err
    duration_s = time.monotonic() - started
    moments, killed, runs = random.Random(0), 0, 0
    while killed < KILLS:
        runs += 1
        process = start(folder, *words, "y.npz")
        try:
            process.wait(moments.uniform(0.1, 0.4) * duration_s)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            killed += 1
        process.communicate()
        if killed < KILLS and (folder / "y.npz.json").exists():  # done: begin again
            assert (folder / "y.npz").read_bytes() == (folder / "whole.npz").read_bytes()
            (folder / "y.npz").unlink()
            (folder / "y.npz.json").unlink()
    last = start(folder, *words, "y.npz")
    _, err = last.communicate()
    same = last.returncode == 0 and (folder / "y.npz").read_bytes() == (folder / "whole.npz").read_bytes()
    left = (folder / "y.npz.parts").exists()
    text = f"killed {killed} times in {runs} runs: {'equal' if same else f'differs {err[-200:]}'}"
    return Bar(f"Killed {KILLS} times at random moments, resumed: equal in every byte", text, same and not left)


def memory(folder: Path, what: str, artifact: str, many: str, few: str) -> Bar:
    """Compare the peak memory of a run of many items with that of one of few, each in a process of its own."""
    peaks = []
    for inputs in (few, many):
        process = start(folder, "embed", artifact, inputs, "-o", f"{inputs}.npz", "--decoders", "1", code=MEMORY)
        _, err = process.communicate()
        assert process.returncode == 0, err
        peaks.append(int(err.split()[-1]))
        shutil.rmtree(folder / f"{inputs}.npz.parts", ignore_errors=True)
    ratio = peaks[1] / peaks[0]
    text = f"{peaks[1] / MIB:.0f} against {peaks[0] / MIB:.0f} MiB ({ratio:.3f})"
    counts = [name.lstrip("photsx") for name in (many, few)]
    return Bar(f"peak memory of {counts[0]} {what} within 10 % of that of {counts[1]}", text, ratio < 1.1)
