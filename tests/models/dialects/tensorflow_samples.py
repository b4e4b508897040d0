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
        dialect="netvlad-tf-open", width=width, formula=formulas.netvlad_tf_open, tiny=0.1, prefix="vgg16_netvlad_pca",
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


def keras_layer(random: Source, clusters: int, width: int, layer: str, *bias: int) -> State:
    """Return the weights of a layer that adds its centres, with a bias of this shape or without one."""
    head = random.convolution(clusters, width, 5.0, "", kernel="ij")
    state = {
        f"{layer}.cluster_centers": -head["centroids"].T[None, None, None],
        f"{layer}.kernel": head["conv.weight"].permute(2, 3, 1, 0),
    }
    return state | ({f"{layer}.bias": random(*bias, scale=2)} if bias else {})


def netvlad_keras(seed: int) -> Sample:
    random, clusters, width = Source(seed), 4, 9
    return Sample(
        dialect="netvlad-keras", width=width, formula=formulas.netvlad_keras, prefix="net_vlad_1", tiny=0.1,
        before=formulas.netvlad_keras_before_projection,
        state={
            "substract_average_1.average_rgb": torch.tensor([123.68, 116.779, 103.939]),
            **keras_layer(random, clusters, width, "net_vlad_1"),
            "conv2d_14.kernel": random(1, 1, clusters * width, 7), "conv2d_14.bias": random(7),
        },
    )  # fmt: skip


def tensorflow2_netvlad(seed: int) -> Sample:
    random, clusters, width = Source(seed), 5, 8
    return Sample(
        dialect="tensorflow2-netvlad", width=width, formula=formulas.tensorflow2_netvlad, prefix="net_vlad",
        before=formulas.tensorflow2_netvlad_before_projection,
        state={
            **keras_layer(random, clusters, width, "net_vlad", clusters),
            "dense.kernel": random(clusters * width, 6), "dense.bias": random(6),
        },
    )  # fmt: skip


def cerebro(seed: int) -> Sample:
    state = keras_layer(Source(seed), 6, 7, "net_vlad_layer_1", 1, 1, 6)
    return Sample(dialect="cerebro", width=7, formula=formulas.cerebro, prefix="net_vlad_layer_1", state=state)


def loupe_keras(seed: int) -> Sample:
    random, clusters, width, size = Source(seed), 4, 9, 6
    state = {
        "net_vlad_1.kernel_W1": random(width, clusters), "net_vlad_1.kernel_B1": random(clusters),
        "net_vlad_1.kernel_W2": random(1, width, clusters), "net_vlad_1.kernel_H1": random(width * clusters, size),
        "context_gating_1.kernel_W1": random(size, size), "context_gating_1.kernel_B1": random(size),
    }  # fmt: skip
    return Sample(
        dialect="loupe-keras", width=width, formula=formulas.loupe_keras, prefix="net_vlad_1", state=state,
        before=formulas.loupe_keras_before_projection,
    )  # fmt: skip


TENSORFLOW_SAMPLES: dict[str, Sample] = {
    "netvlad-tf-open": netvlad_tf_open(19),
    "loupe": loupe(20),
    "netvlad-keras": netvlad_keras(21),
    "tensorflow2-netvlad": tensorflow2_netvlad(22),
    "cerebro": cerebro(23),
    "loupe-keras": loupe_keras(24),
}
