"""A random checkpoint of each dialect of TensorFlow and Keras, with the tensors that its own code saves."""

import torch

from tests.models.dialects import tensorflow_formulas as formulas
from tests.models.dialects.sample import Sample, Source, State


def netvlad_tf_open(seed: int) -> Sample:
    """Return the variables of a checkpoint; its local descriptors are not so small that the epsilons would show."""
    random, clusters, width = Source(seed), 4, 9
    head = random.convolution(clusters, width, 10.0, "", kernel="ij")
    state = {
        "average_rgb": torch.tensor([123.68, 116.78, 103.94]),
        "conv1_1.kernel": random(3, 3, 3, 4), "conv1_1.bias": random(4),
        "assignment.kernel": head["conv.weight"].permute(2, 3, 1, 0),
        "cluster_centers": -head["centroids"].T[None, None, None],
        "WPCA.kernel": random(1, 1, clusters * width, 7), "WPCA.bias": random(7),
    }  # fmt: skip
    return Sample(
        dialect="netvlad-tf-open", width=width, formula=formulas.netvlad_tf_open, tiny=0.1,
        before=formulas.netvlad_tf_open_before_pca,
        state={f"vgg16_netvlad_pca.{name}": tensor for name, tensor in state.items()},
    )  # fmt: skip


def slim(random: Source, columns: int, name: str) -> State:
    """Return the BatchNorm of slim, which counts no steps."""
    renamed = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}
    norm = random.batch_norm(columns, "bn")
    return {f"{name}.{own}": norm[f"bn.{torchs}"] for torchs, own in renamed.items()}


def loupe(seed: int) -> Sample:
    random, clusters, width, size = Source(seed), 4, 9, 6
    state = {
        "cluster_weights": random(width, clusters), "cluster_weights2": random(1, width, clusters),
        **slim(random, clusters, "cluster_bn"), "hidden1_weights": random(width * clusters, size),
        "gating_weights": random(size, size), **slim(random, size, "gating_bn"),
    }  # fmt: skip
    return Sample(
        dialect="loupe", width=width, prefix="tower.video_VLAD", formula=formulas.loupe,
        before=formulas.loupe_before_projection,
        state={f"tower.video_VLAD.{name}": tensor for name, tensor in state.items()},
    )  # fmt: skip


TENSORFLOW_SAMPLES: dict[str, Sample] = {
    "netvlad-tf-open": netvlad_tf_open(19),
    "loupe": loupe(20),
}
