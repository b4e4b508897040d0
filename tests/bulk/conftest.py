"""A small pipeline, and photos that make seven shards of three."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from netvlad_deploy.artifact import OnnxArtifact
from netvlad_deploy.spec.images import Resize
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


@pytest.fixture
def pipeline(tmp_path: Path) -> OnnxArtifact:
    """Return a pipeline in the test's folder, beside the folder `photos`."""
    write_photos(tmp_path / "photos", PHOTOS)
    return band_pipeline(tmp_path / "m.onnx", Resize(size=(16, 12)))
