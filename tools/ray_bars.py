"""What a fleet costs beside the work itself, measured for `make bars`: the plan, a shard, the join, and Ray."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from netvlad_deploy.bulk.flow import embed_shards
from netvlad_deploy.bulk.manifest import Given, Manifest
from netvlad_deploy.bulk.merge import merge
from netvlad_deploy.bulk.open_plan import header_for, open_plan_runner
from netvlad_deploy.bulk.plan import Plan, make_plan, plan_folder, remove_plan, source_of
from netvlad_deploy.bulk.shards import record_path
from netvlad_deploy.export.onnx_model import export_onnx
from netvlad_deploy.oracle.goldens import golden_image
from netvlad_deploy.runtime.open_runner import Candidate
from tests.modules import make_module
from tests.pipelines import tiny_pipeline
from tools.bar import MIB, Bar, steady
from tools.image_bars import untrained

LISTED, MOST_LISTED_US, MOST_PLAN_BYTES = 20_000, 150.0, 200.0
MOST_SHARD_MS, JOINED, LEAST_JOINED_MIBS = 150.0, 8192, 30.0
PHOTOS, SHARD, LEAST_SHARE = 96, 8, 0.8


def planned(folder: Path, candidate: Candidate, inputs: Path, target: str, shard_size: int) -> Plan:
    """Make the plan of a run of one folder or file."""
    wanted = Manifest(
        version="",
        target=target,
        header=header_for(candidate, head=None, dtype="float32"),
        backend=None,
        head=None,
        batch=8,
        given=Given(inputs=(str(inputs),)),
        shard_size=shard_size,
    )
    at = plan_folder(folder / target)
    at.mkdir()
    return make_plan(at, wanted, source_of(wanted).items())


def costs(folder: Path) -> Iterator[Bar]:
    """What an image costs in the plan, and a shard beside its images."""
    artifact = export_onnx(tiny_pipeline(), folder / "tiny.onnx")
    candidate, photo = Candidate(path=artifact.path), folder / "listed" / "000000.png"
    photo.parent.mkdir()
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(photo)
    for number in range(1, LISTED):
        photo.with_name(f"{number:06}.png").hardlink_to(photo)
    started = time.process_time()
    plan = planned(folder, candidate, photo.parent, "listed.npz", 1)
    one_each_us = (time.process_time() - started) / LISTED * 1e6
    with open_plan_runner(plan, candidate) as runner:
        list(embed_shards(plan, [0], runner))
        started = time.perf_counter()
        for number in range(1, 51):
            list(embed_shards(plan, [number], runner))
        shard_ms = (time.perf_counter() - started) / 50 * 1e3
    remove_plan(plan.folder)
    plan.folder.rmdir()
    started = time.process_time()
    plan = planned(folder, candidate, photo.parent, "listed.npz", 1024)
    each_us = (time.process_time() - started) / LISTED * 1e6
    plan_bytes = sum(path.stat().st_size for path in plan.folder.iterdir()) / LISTED
    yield Bar(
        f"a plan of {LISTED} images: at most {MOST_LISTED_US:g} us of CPU and {MOST_PLAN_BYTES:g} bytes for each",
        f"{each_us:.0f} us, {plan_bytes:.0f} bytes; with a file for each {one_each_us:.0f} us",
        each_us <= MOST_LISTED_US and plan_bytes <= MOST_PLAN_BYTES,
    )
    yield Bar(
        f"a shard of one small image, all in all: at most {MOST_SHARD_MS:g} ms",
        f"{shard_ms:.0f} ms",
        shard_ms <= MOST_SHARD_MS,
    )


def joined(folder: Path) -> Iterator[Bar]:
    """How fast shards are joined into one file, hashes and flushes to the disk included."""
    artifact = export_onnx(make_module(64, 64), folder / "head.onnx")
    candidate, inputs = Candidate(path=artifact.path), folder / "joined.npy"
    np.save(inputs, np.random.default_rng(0).standard_normal((JOINED, 2, 64)).astype(np.float32))
    plan = planned(folder, candidate, inputs, "joined.npz", 1024)
    with open_plan_runner(plan, candidate) as runner:
        list(embed_shards(plan, range(plan.shards), runner))
    started = time.perf_counter()
    finished = merge(plan)
    speed = finished.size_bytes / MIB / (time.perf_counter() - started)
    yield Bar(
        f"shards joined into one .npz: at least {LEAST_JOINED_MIBS:g} MiB/s",
        f"{speed:.0f} MiB/s of {finished.size_bytes / MIB:.0f} MiB",
        speed >= LEAST_JOINED_MIBS,
    )


def on_ray(folder: Path) -> Iterator[Bar]:
    """A cluster of this machine against no cluster, by the time between the first shard and the last."""
    export_onnx(untrained("resnet18-conv4", "480x640", 16), folder / "m.onnx")
    (folder / "photos").mkdir()
    for number in range(PHOTOS):
        Image.fromarray(golden_image(480, 640, seed=number)).save(folder / "photos" / f"{number:03}.jpg")
    yield steady(lambda: beside_plain(folder))


def beside_plain(folder: Path) -> Bar:
    """Measure one run without Ray, and one on Ray."""
    plain, ray = (images_per_second(folder, options) for options in ((), ("--ray", "local")))
    return Bar(
        f"embed --ray local, ResNet-18 at 480x640, without its start: at least {LEAST_SHARE:.0%} of embed's images/s",
        f"{ray / plain:.0%}, {ray:.1f} of {plain:.1f} images/s",
        ray >= LEAST_SHARE * plain,
    )


def images_per_second(folder: Path, options: tuple[str, ...]) -> float:
    """Return the speed of a run of `embed` from the end of its first shard to the end of its last."""
    command = ["embed", "m.onnx", "photos", "-o", "shards", "--shard-size", str(SHARD), "--force", *options]
    subprocess.run([sys.executable, "-m", "netvlad_deploy", *command], cwd=folder, check=True, capture_output=True)
    ends = sorted(record_path(folder / "shards", number).stat().st_mtime for number in range(PHOTOS // SHARD))
    return (PHOTOS - SHARD) / (ends[-1] - ends[0])


TIMES: tuple[Callable[[Path], Iterator[Bar]], ...] = (costs, joined, on_ray)
