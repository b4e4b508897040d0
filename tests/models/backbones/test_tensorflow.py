"""The whole network of netvlad_tf_open, from its checkpoint to a descriptor, against a pass written for the test."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from netvlad_deploy.models.crc32c import masked_crc32c
from netvlad_deploy.spec.images import ImageInput
from netvlad_deploy.support.arrays import Array
from tests.models.backbones import networks
from tests.models.backbones.networks import Maker, State
from tests.models.backbones.test_pipelines import CLUSTERS, WHITENED, distance, photos, with_images
from tests.models.bundles import write_bundle
from tests.models.dialects import tensorflow_formulas as formulas
from tests.pipelines import read_pipeline

pytestmark = pytest.mark.export

NAMES = {
    0: "conv1_1", 2: "conv1_2", 5: "conv2_1", 7: "conv2_2", 10: "conv3_1", 12: "conv3_2", 14: "conv3_3",
    17: "conv4_1", 19: "conv4_2", 21: "conv4_3", 24: "conv5_1", 26: "conv5_2", 28: "conv5_3",
}  # fmt: skip
MEAN = (90.0, 110.0, 130.0)


def head() -> dict[str, Array]:
    random, width = Maker(5), 512
    return {
        "assignment/kernel": random(1, 1, width, CLUSTERS, scale=8.0).numpy(),
        "cluster_centers": random(1, 1, 1, width, CLUSTERS, scale=0.05).numpy(),
        "WPCA/kernel": random(1, 1, width * CLUSTERS, WHITENED).numpy(),
        "WPCA/bias": random(WHITENED, scale=0.1).numpy(),
    }


def convolutions(weights: State) -> dict[str, Array]:
    """Return VGG16 in TensorFlow's layout, (H,W,I,O)."""
    kernels = {f"{NAMES[at]}/kernel": weights[f"{at}.weight"].numpy().transpose(2, 3, 1, 0) for at in NAMES}
    return kernels | {f"{NAMES[at]}/bias": weights[f"{at}.bias"].numpy() for at in NAMES}


def test_a_checkpoint_of_netvlad_tf_open_is_a_pipeline_with_its_own_mean(tmp_path: Path) -> None:
    weights = networks.vgg16_state()
    variables = {"average_rgb": np.array(MEAN, np.float32), **convolutions(weights), **head()}
    scoped = {f"vgg16_netvlad_pca/{name}": np.ascontiguousarray(array) for name, array in variables.items()}
    pipeline = read_pipeline(write_bundle(tmp_path, "vd16_pitts30k", scoped, shards=2, checksum=masked_crc32c))
    assert pipeline.name == "vgg16"
    assert pipeline.images == ImageInput(mean=MEAN, std=(1.0,) * 3, orient=True)
    images = photos()
    with torch.inference_mode():
        maps = networks.vgg16(weights, (images.float() - torch.tensor(MEAN)).permute(0, 3, 1, 2)).double().numpy()
    rows = maps.reshape(1, 512, -1).swapaxes(1, 2)
    state = {name.replace("/", "."): value.astype(np.float64) for name, value in head().items()}
    expected = formulas.netvlad_tf_open(state, rows, scope="")
    assert distance(pipeline, images, expected) < 1e-8
    assert distance(with_images(pipeline, replace(pipeline.images, mean=MEAN[::-1])), images, expected) > 1e-5
    assert distance(pipeline, images.flip(-1), expected) > 1e-4
