"""What a fleet costs beside the work itself, measured for `make bars`: the plan, a shard, the join, and Ray."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from netvlad_deploy.bulk.manifest import Given, Manifest
from netvlad_deploy.bulk.merge import merge
from netvlad_deploy.bulk.open_plan import header_for, open_plan_runner
from netvlad_deploy.bulk.plan import Plan, make_plan, plan_folder, remove_plan, source_of
from netvlad_deploy.bulk.shards import embed_shard
from netvlad_deploy.export.onnx_model import export_onnx
from netvlad_deploy.fleet.embed_on_ray import embed_on_ray
from netvlad_deploy.runtime.open_runner import Candidate
from netvlad_deploy.spec.graph_options import GraphOptions
from netvlad_deploy.spec.images import ImageChanges, Resize
from netvlad_deploy.workflow.export import export
from netvlad_deploy.workflow.source import Source
from tests.modules import make_module
from tests.pipelines import tiny_pipeline
from tools.bar import MIB, Bar
from tools.half_bars import DATA

LISTED, MOST_LISTED_US, MOST_PLAN_BYTES = 20_000, 150.0, 200.0
MOST_SHARD_MS, JOINED, LEAST_JOINED_MIBS = 100.0, 8192, 30.0
COPIES, PHOTOS_OF_A_SHARD, LEAST_SHARE, ROUNDS = 5, 25, 0.8, 2


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
        embed_shard(plan, 0, runner)
        started = time.perf_counter()
        for number in range(1, 51):
            embed_shard(plan, number, runner)
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
        for number in range(plan.shards):
            embed_shard(plan, number, runner)
    started = time.perf_counter()
    finished = merge(plan)
    speed = finished.size_bytes / MIB / (time.perf_counter() - started)
    yield Bar(
        f"shards joined into one .npz: at least {LEAST_JOINED_MIBS:g} MiB/s",
        f"{speed:.0f} MiB/s of {finished.size_bytes / MIB:.0f} MiB",
        speed >= LEAST_JOINED_MIBS,
    )


def on_ray(folder: Path) -> Iterator[Bar]:
    """A ResNet-18 on photos of 480x640, plain and by a Ray cluster of this machine, in turns."""
    changes = ImageChanges(resize=Resize(size=(240, 320)))
    artifact = export(Source(backbone="resnet18", num_clusters=16, changes=changes), folder / "r.onnx", GraphOptions())
    candidate, photos = Candidate(path=artifact.path), folder / "photos"
    photos.mkdir()
    for path in sorted((DATA / "corridor").glob("*/*.jpg")):
        for copy in range(COPIES):
            (photos / f"{path.parent.name}-{path.stem}-{copy}.jpg").symlink_to(path)
    speeds: dict[str, list[float]] = {"plain": [], "Ray": []}
    starts: list[float] = []
    for number in range(ROUNDS):
        for way, compute in (("plain", plainly), ("Ray", by_ray)):
            plan = planned(folder, candidate, photos, f"{way}-{number}.npz", PHOTOS_OF_A_SHARD)
            began = time.perf_counter()
            times = compute(plan, candidate)
            speeds[way].append((len(times) - 1) * PHOTOS_OF_A_SHARD / (times[-1] - times[0]))
            if way == "Ray":
                starts.append(times[0] - began - PHOTOS_OF_A_SHARD / speeds[way][-1])
    plain, ray = (max(each) for each in speeds.values())
    yield Bar(
        f"Ray on one machine, after its start: at least {LEAST_SHARE:.0%} of the plain run's images/s",
        f"{ray / plain:.0%}, {ray:.1f} of {plain:.1f} images/s, the faster of {ROUNDS} each; start {min(starts):.0f} s",
        ray / plain >= LEAST_SHARE,
    )


def plainly(plan: Plan, candidate: Candidate) -> list[float]:
    """Compute all shards as one machine does; return when each was done, in seconds."""
    times = []
    with open_plan_runner(plan, candidate) as runner:
        for number in range(plan.shards):
            embed_shard(plan, number, runner)
            times.append(time.perf_counter())
    return times


def by_ray(plan: Plan, candidate: Candidate) -> list[float]:
    """Compute all shards on a cluster of this machine; return when each was done, in seconds."""
    times: list[float] = []
    embed_on_ray("local", plan, candidate, range(plan.shards), done=lambda _: times.append(time.perf_counter()))
    return times


TIMES: tuple[Callable[[Path], Iterator[Bar]], ...] = (costs, joined, on_ray)
