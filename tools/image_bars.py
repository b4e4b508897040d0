"""The promises about images, measured for `make bars`: a real walk, a large pipeline, how fast images go through."""

import json
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

from examples import demo
from netvlad_deploy.artifact import Artifact
from netvlad_deploy.export.onnx_model import export_onnx
from netvlad_deploy.models.assembly import read_backbone
from netvlad_deploy.models.backbones import find_backbone
from netvlad_deploy.models.netvlad import initialize
from netvlad_deploy.models.pipeline import Pipeline
from netvlad_deploy.models.vocabulary import local_descriptors
from netvlad_deploy.oracle.goldens import golden_image
from netvlad_deploy.retrieval.embed_images import embed_images
from netvlad_deploy.retrieval.loading import load_images
from netvlad_deploy.runtime.open_runner import Candidate, open_runner
from netvlad_deploy.sources.image_folders import find_images
from netvlad_deploy.spec.graph_options import GraphOptions
from netvlad_deploy.spec.images import IMAGES, ImageChanges, ImageInput, Resize
from netvlad_deploy.spec.items import Item
from netvlad_deploy.spec.layer import DESCRIPTOR, FEATURES, NetVLADSpec
from netvlad_deploy.support.arrays import Array, unit_rows
from netvlad_deploy.workflow.export import export
from netvlad_deploy.workflow.source import Source, load_module
from netvlad_deploy.workflow.validate import validate
from tools.bar import MIB, Bar, allowed, printed, steady

LEAST_RECALL, LEAST_GAIN, MOST_DISTANCE, MOST_SECONDS = 0.86, 0.10, 1e-4, 60.0
EXPORT_S, BUILD_S, HOST_BYTES = 20.0, 5.0, 2.5e9
GROWTH = 2.5
EQUAL = 1e-4
WHITENED, CLUSTERS, WIDTH = 4096, 64, 512
Sides = list[Any]
"""Something of the queries, and of the database."""

LEAST_SHARE, ROUNDS, IN_A_ROUND, BATCH = 0.9, 5, 16, 8


def untrained(backbone: str, size: str, clusters: int = CLUSTERS) -> Pipeline:
    """Return a backbone of random weights for images of a size, under a NetVLAD."""
    ready = read_backbone(backbone, changes=ImageChanges(resize=Resize.parse(size)), seed=0)
    spec = NetVLADSpec(num_clusters=clusters, feature_size=ready.width, batch_norm=False, normalize_input=True)
    return ready.under(initialize(spec, 0))


def photos(folder: Path, images: ImageInput, count: int | None = None) -> tuple[list[Item], list[Array]]:
    """Return the photos of a folder, or `count` of them in turn, as files and decoded as a pipeline takes them."""
    files, _ = find_images([folder])
    files = files if count is None else (files * count)[:count]
    with load_images(files, images) as loaded:
        return files, [image for _, image in loaded if isinstance(image, np.ndarray)]


def corridor(folder: Path) -> Iterator[Bar]:
    """From two folders of photos to recall, in FP32 and FP16 by strict emulation, and against mean pooling."""
    walk = demo.corridor()
    started = time.perf_counter()
    checkpoint = demo.vocabulary(walk, folder)
    report = demo.retrieve(walk, checkpoint, folder)
    seconds = time.perf_counter() - started
    recalls = [one.found.recall[1] for one in report.candidates]
    text = " and ".join(f"{recall:.0%}" for recall in recalls)
    yield Bar(f"corridor, recall@1 in FP32 and FP16: at least {LEAST_RECALL:.0%}", text, min(recalls) >= LEAST_RECALL)
    names, features = features_of(checkpoint)
    mean = mean_pooling(names, features)
    gain = min(recalls) - mean
    yield Bar(
        f"corridor: at least {LEAST_GAIN:.0%} over mean pooling", f"{gain:.0%} over {mean:.0%}", gain >= LEAST_GAIN
    )
    (agreement,) = report.agreements
    yield Bar("corridor: FP16 and FP32 agree on every top-1", f"{agreement.top1:.0%}", agreement.top1 == 1)
    distance = agreement.distance
    assert distance is not None
    text = f"{distance:.1e} ({agreement.image})"
    yield Bar(f"corridor: 1-cos of FP16 and FP32 at most {MOST_DISTANCE:g}", text, distance <= MOST_DISTANCE)
    limit_s = allowed(MOST_SECONDS, seconds)
    text = f"{seconds:.0f} s of {limit_s:.0f} s on this machine"
    yield Bar(f"corridor: folders to recall, both precisions, in {MOST_SECONDS:g} s", text, seconds <= limit_s)
    yield from ranks(checkpoint, features, folder)


def features_of(checkpoint: Path) -> tuple[Sides, Sides]:
    """Return the names of queries and database of the corridor, and their L2-normalised local descriptors (B,N,D)."""
    pipeline, names, features = load_module(Source(checkpoint=checkpoint, takes=IMAGES))[0], [], []
    assert isinstance(pipeline, Pipeline)
    for side in (demo.corridor().queries, demo.corridor().database):
        files, images = photos(side, pipeline.images)
        names.append([file.name for file in files])
        features.append(local_descriptors(pipeline, np.stack(images)))
    return names, features


def mean_pooling(names: Sides, features: Sides) -> float:
    """Return recall@1 of the corridor by the mean of the same local descriptors, counted here."""
    truth = demo.corridor().ground_truth
    assert truth is not None
    positives = json.loads(truth.read_text())["positives"]
    queries, database = (unit_rows(side.mean(axis=1)) for side in features)
    best = (queries @ database.T).argmax(axis=1)
    right = [names[1][index] in positives[query] for query, index in zip(names[0], best, strict=True)]
    return float(np.mean(right))


def ranks(checkpoint: Path, features: Sides, folder: Path) -> Iterator[Bar]:
    """Ranks by the head alone: FP16 descriptors on their own index and on an FP32 one."""
    queries, database = folder / "queries.npy", folder / "database.npy"
    for path, side in zip((queries, database), features, strict=True):
        np.save(path, side)
    head = folder / "corridor-head.onnx"
    export(Source(checkpoint=checkpoint, takes=FEATURES), head, GraphOptions(precision="fp16"))
    report = validate(Candidate(path=head), bank=database, queries=queries)
    for figure in report.retrieval:
        if figure.bank == database.name:
            text = (
                f"{figure.top1:.0%}, top-10 {figure.top10:.1%}, rank distance {figure.rank_distance:.3f}, "
                f"largest swapped gap {figure.swapped_gap:.1e}"
            )
            yield Bar(f"FP16, corridor photos, {figure.arrangement}: top-1 agreement 100 %", text, figure.top1 == 1)


def write_patch_netvlad(path: Path) -> Path:
    """Write VGG16, 64 clusters and a whitening to 4096 values as Patch-NetVLAD saves them, with random weights."""
    torch.manual_seed(0)
    state = {f"encoder.{name}": tensor for name, tensor in find_backbone("vgg16").build().state_dict().items()}
    centroids = torch.nn.functional.normalize(torch.randn(CLUSTERS, WIDTH), dim=1)
    state |= {"pool.conv.weight": 30 * centroids[..., None, None], "pool.centroids": 0.9 * centroids}
    weight = torch.randn(WHITENED, CLUSTERS * WIDTH, 1, 1)
    state |= {"WPCA.0.weight": weight, "WPCA.0.bias": torch.zeros(WHITENED)}
    torch.save({"state_dict": state, "num_pcs": WHITENED}, path)
    return path


def large_pipeline(folder: Path) -> Iterator[Bar]:
    """A 480x640 VGG16 with NetVLAD and a whitening to 4096, in FP16, by the command line."""
    write_patch_netvlad(folder / "large.pth.tar")
    export = ["export", "large.pth.tar", "--precision", "fp16", "-o", "large.onnx", "--force"]
    build = ["build", "large.onnx", "--flavor", "tensorrt-rtx", "--profile", "1x480x640", "--force"]
    name, peaks = "VGG16 + NetVLAD + 4096 whitening, 480x640, FP16", list[float]()
    for words, limit_s, does in ((export, EXPORT_S, "exports"), (build, BUILD_S, "builds with TensorRT-RTX")):
        yield steady(partial(command_bar, f"{name}: {does} in {limit_s:g} s", words, limit_s, folder, peaks))
    text = " and ".join(f"{peak / 1e9:.2f}" for peak in peaks)
    yield Bar(f"{name}: host memory of both under {HOST_BYTES / 1e9:g} GB", f"{text} GB", max(peaks) < HOST_BYTES)
    _, peak = printed(COMMAND, "validate", "large.onnx", folder=folder)
    yield Bar(
        f"{name}: host memory of validate under {HOST_BYTES / 1e9:g} GB", f"{peak / 1e9:.2f} GB", peak < HOST_BYTES
    )
    figures = json.loads((folder / "large.engine.json").read_text())["figures"]
    text = f"{figures['build_ms']:.0f} ms, {(figures['activation_bytes'] or 0) / MIB:.0f} MiB of activations"
    yield Bar(f"{name}: figures in the sidecar", text, bool(figures["activation_bytes"]) and figures["host_bytes"] > 0)


COMMAND = """
import resource, subprocess, sys, time
started = time.perf_counter()
command = [sys.executable, "-m", "netvlad_deploy", *sys.argv[1:]]
subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
print(time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)
"""
"""Prints the seconds and the peak memory, in bytes, of a command in a process of its own."""


def command_bar(name: str, words: list[str], limit_s: float, folder: Path, peaks: list[float]) -> Bar:
    """Return the bar of a command's seconds, more on a machine that is slow now; its memory joins the peaks."""
    seconds, peak = printed(COMMAND, *words, folder=folder)
    peaks.append(peak)
    most = allowed(limit_s, seconds)
    return Bar(name, f"{seconds:.1f} s of {most:.1f} s on this machine", seconds <= most)


GROWTH_SCRIPT = """
from netvlad_deploy.export.onnx_model import export_onnx
from netvlad_deploy.models.netvlad import NetVLAD
from netvlad_deploy.spec.layer import Projection
from tools.bar import most_resident, resident_bytes
export_onnx(NetVLAD(4, 8, projection=Projection(size=4)).eval(), "small.onnx", force=True)
layer = NetVLAD(64, 512, projection=Projection(size=4096)).eval()
for parameter in layer.parameters(): parameter.data.normal_()
before = resident_bytes()
print((most_resident(lambda: export_onnx(layer, "grown.onnx", force=True)) - before) / layer.projection.weight.nbytes)
"""


def memory(folder: Path) -> Iterator[Bar]:
    """How much an export grows by, against the size of its whitening."""
    (growth,) = printed(GROWTH_SCRIPT, folder=folder)
    name = f"export of a {WHITENED} x {CLUSTERS * WIDTH} whitening in FP32: grows by at most {GROWTH} times its size"
    yield Bar(name, f"{growth:.2f} times", growth <= GROWTH)


def throughput(folder: Path) -> Iterator[Bar]:
    """Files against the bare session on the same images in memory, by the benchmark's usual network and size."""
    usual = export_onnx(untrained("resnet18-conv4", "480x640"), folder / "usual.onnx")
    shares = rounds_of(usual, IN_A_ROUND)
    share = sorted(shares)[ROUNDS // 2]
    name = f"embed, ResNet-18 at 480x640, 2 cores: at least {LEAST_SHARE:.0%} of the bare session's images/s"
    yield Bar(name, ", ".join(f"{each:.0%}" for each in shares), share >= LEAST_SHARE)


def rounds_of(artifact: Artifact, count: int) -> list[float]:
    """Return the share of the bare session's speed in some rounds over this many photos of the corridor."""
    assert artifact.images is not None
    files, images = photos(demo.corridor().database, artifact.images, count)
    batches = [np.stack(images[start : start + BATCH]) for start in range(0, len(images), BATCH)]
    session = onnxruntime.InferenceSession(artifact.path, providers=["CPUExecutionProvider"])
    shares = []
    with open_runner(artifact, spin=False) as runner:  # as `embed` opens it
        for _ in range(ROUNDS):
            started = time.perf_counter()
            for batch in batches:
                session.run(None, {IMAGES: batch})
            between = time.perf_counter()
            embed_images(runner, artifact.images, files, batch=BATCH)
            shares.append((between - started) / (time.perf_counter() - between))
    return shares


def backbones(folder: Path) -> Iterator[Bar]:
    """ONNX Runtime against torch for each kind of backbone, untrained, at three sizes, two of them odd."""
    for name in ("vgg16", "alexnet", "resnet18-conv5", "resnet50-conv4", "efficientnet-lite0"):
        pipeline, worst = untrained(name, "120x160", 8), 0.0
        with open_runner(export_onnx(pipeline, folder / f"{name}.onnx")) as runner, torch.inference_mode():
            for height, width in ((120, 160), (97, 131), (225, 301)):
                images = golden_image(height, width, seed=1)[None]
                expected = pipeline(torch.from_numpy(images)).numpy()
                worst = max(worst, float(np.abs(runner.run({IMAGES: images})[DESCRIPTOR] - expected).max()))
        yield Bar(f"{name}: ONNX Runtime equals torch to {EQUAL:g} at three sizes", f"{worst:.1e}", worst < EQUAL)


FIGURES = (corridor, backbones, memory)
TIMES = (throughput, large_pipeline)
