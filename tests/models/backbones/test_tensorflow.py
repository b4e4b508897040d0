"""The whole network of netvlad_tf_open, and its copy in Keras, from a file to a descriptor, against a pass written for
the test."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from netvlad_deploy.errors import InputError
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


def of_tensorflow(folder: Path, weights: State) -> Path:
    variables = {"average_rgb": np.array(MEAN, np.float32), **convolutions(weights), **head()}
    scoped = {f"vgg16_netvlad_pca/{name}": np.ascontiguousarray(array) for name, array in variables.items()}
    return write_bundle(folder, "vd16_pitts30k", scoped, shards=2, checksum=masked_crc32c)


def of_keras(folder: Path, weights: State, **beside: Array) -> Path:
    """Write a model whose layers Keras has numbered; the last convolution is the PCA, or one `beside` it."""
    pytest.importorskip("h5py")
    from tests.models.keras_files import write_keras

    own, state = head(), {"substract_average_1.average_rgb": np.array(MEAN, np.float32)}
    vgg16 = convolutions(weights)
    for number, at in enumerate(NAMES, 1):
        state |= {f"conv2d_{number}.{part}": vgg16[f"{NAMES[at]}/{part}"] for part in ("kernel", "bias")}
    state |= {f"conv2d_14.{part}": own[f"WPCA/{part}"] for part in ("kernel", "bias")}
    state |= {"net_vlad_1.cluster_centers": own["cluster_centers"], "net_vlad_1.kernel": own["assignment/kernel"]}
    return write_keras(folder / "netvlad_weights.h5", {**state, **beside})


@pytest.mark.parametrize("write", [of_tensorflow, of_keras])
def test_a_file_is_a_pipeline_with_its_own_mean(tmp_path: Path, write: Callable[[Path, State], Path]) -> None:
    weights = networks.vgg16_state()
    pipeline = read_pipeline(write(tmp_path, weights))
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


def test_another_convolution_of_keras_is_refused(tmp_path: Path) -> None:
    """A layer 1x1 that takes no descriptor stands somewhere else in the network."""
    path = of_keras(tmp_path, networks.vgg16_state(), **{"conv2d_15.kernel": np.ones((1, 1, 512, 512), np.float32)})
    with pytest.raises(InputError, match=r"beside the head, and nothing says whether that stands before or after it"):
        read_pipeline(path)
