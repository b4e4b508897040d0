"""A small pipeline, and photos that make seven shards of three."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from netvlad_deploy.artifact import OnnxArtifact
from netvlad_deploy.bulk.manifest import Given, Manifest
from netvlad_deploy.bulk.plan import Plan, make_plan, plan_folder, source_of
from netvlad_deploy.descriptors.header import DescriptorHeader
from netvlad_deploy.spec.images import ImageInput, Resize
from tests.colour_graphs import band_pipeline

PHOTOS, SHARD_SIZE, SHARDS = 20, 3, 7
RUN = ("embed", "m.onnx", "photos", "--shard-size", SHARD_SIZE, "--batch", 2)
"""The command that most tests give, but for its target."""


def write_photos(folder: Path, count: int) -> None:
    """Write photos of noise."""
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(count):
        Image.fromarray(random.integers(0, 256, (24, 24, 3), dtype=np.uint8)).save(folder / f"{number:04}.png")


def plan_of(photos: Path, target: Path, *, values: int, batch: int, shard_size: int) -> Plan:
    """Make the plan of a folder of photos, for a runner that is of no file and gives descriptors of so many values."""
    images = json.loads(json.dumps(asdict(ImageInput())))
    wanted = Manifest(
        version="",
        target=target.name,
        header=DescriptorHeader(
            artifact="m.onnx",
            sha256="0" * 64,
            precision="fp32",
            descriptor_size=values,
            dtype="float32",
            spec={},
            images=images,
        ),
        backend=None,
        head=None,
        batch=batch,
        given=Given(inputs=(str(photos),)),
        shard_size=shard_size,
    )
    folder = plan_folder(target)
    folder.mkdir()
    return make_plan(folder, wanted, source_of(wanted).items())


@pytest.fixture
def pipeline(tmp_path: Path) -> OnnxArtifact:
    """Return a pipeline in the test's folder, beside the folder `photos`."""
    write_photos(tmp_path / "photos", PHOTOS)
    return band_pipeline(tmp_path / "m.onnx", Resize(size=(16, 12)))
