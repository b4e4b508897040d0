"""The layers of TensorFlow and Keras in float64 NumPy, from their own tensors as their own code saves them.

Each stands for itself: none knows the reference, the oracle or another dialect. x is (B,N,D).
"""

import numpy as np

from netvlad_deploy.support.arrays import Float64
from tests.models.dialects.formulas import State, matconvnet_unit, softmax


def tensorflow_unit(values: Float64, axis: int) -> Float64:
    """Return `tf.nn.l2_normalize`: the square of a norm is taken as at least 1e-12."""
    result: Float64 = values / np.sqrt(np.maximum((values**2).sum(axis=axis, keepdims=True), 1e-12))
    return result


def netvlad_tf_open_before_pca(state: State, x: Float64, scope: str = "vgg16_netvlad_pca.") -> Float64:
    """Return the descriptors of `layers.netVLAD`, which adds its centres to L2-normalised local descriptors."""
    images = []
    for rows in tensorflow_unit(x, 2):
        assignment = softmax(rows @ state[f"{scope}assignment.kernel"][0, 0], 1)
        moved = rows[:, :, None] + state[f"{scope}cluster_centers"][0, 0]  # (N,D,K)
        vlad = np.einsum("nk,ndk->kd", assignment, moved)
        images.append(matconvnet_unit(vlad, 1).T.reshape(-1))
    return matconvnet_unit(np.stack(images), 1)


def netvlad_tf_open(state: State, x: Float64, scope: str = "vgg16_netvlad_pca.") -> Float64:
    kernel, bias = state[f"{scope}WPCA.kernel"], state[f"{scope}WPCA.bias"]
    return tensorflow_unit(np.einsum("hwip,bi->bp", kernel, netvlad_tf_open_before_pca(state, x, scope)) + bias, 1)


def slim_batch_norm(values: Float64, state: State, name: str) -> Float64:
    factor = state[f"{name}.gamma"] / np.sqrt(state[f"{name}.moving_variance"] + 0.001)
    return values * factor + (state[f"{name}.beta"] - state[f"{name}.moving_mean"] * factor)


def loupe_before_projection(state: State, x: Float64, scope: str = "tower.video_VLAD.") -> Float64:
    logits = x @ state[f"{scope}cluster_weights"]
    if f"{scope}cluster_biases" in state:
        logits = logits + state[f"{scope}cluster_biases"]
    else:
        logits = slim_batch_norm(logits, state, f"{scope}cluster_bn")
    activation = softmax(logits, 2)
    vlad = np.einsum("bnk,bnd->bdk", activation, x)
    vlad -= activation.sum(axis=1)[:, None] * state[f"{scope}cluster_weights2"]
    return tensorflow_unit(tensorflow_unit(vlad, 1).reshape(len(x), -1), 1)


def loupe(state: State, x: Float64, scope: str = "tower.video_VLAD.") -> Float64:
    hidden = loupe_before_projection(state, x, scope) @ state[f"{scope}hidden1_weights"]
    gates = hidden @ state[f"{scope}gating_weights"]
    if f"{scope}gating_biases" in state:
        gates = gates + state[f"{scope}gating_biases"]
    else:
        gates = slim_batch_norm(gates, state, f"{scope}gating_bn")
    gated: Float64 = hidden / (1 + np.exp(-gates))
    return gated


def netvlad_keras_before_projection(state: State, x: Float64) -> Float64:
    own = {"assignment.kernel": state["net_vlad_1.kernel"], "cluster_centers": state["net_vlad_1.cluster_centers"]}
    return netvlad_tf_open_before_pca(own, x, "")


def netvlad_keras(state: State, x: Float64) -> Float64:
    kernel, bias = state["conv2d_14.kernel"][0, 0], state["conv2d_14.bias"]
    return tensorflow_unit(netvlad_keras_before_projection(state, x) @ kernel + bias, 1)


def tensorflow2_netvlad_before_projection(state: State, x: Float64) -> Float64:
    """Return the descriptors of a layer that takes VGG16's features as they come."""
    kernel, bias, centres = (state[f"net_vlad.{name}"] for name in ("kernel", "bias", "cluster_centers"))
    a = softmax(np.einsum("bnd,hwdk->bnk", x, kernel) + bias, 2)
    v = (a[:, :, None] * (x[..., None] + centres[0, 0])).sum(axis=1)  # (B,D,K)
    v = matconvnet_unit(v.swapaxes(1, 2), 2).swapaxes(1, 2)
    return matconvnet_unit(v.reshape(len(x), -1), 1)


def tensorflow2_netvlad(state: State, x: Float64) -> Float64:
    dense = tensorflow2_netvlad_before_projection(state, x) @ state["dense.kernel"] + state["dense.bias"]
    return tensorflow_unit(dense, 1)


def cerebro(state: State, x: Float64) -> Float64:
    layer = "net_vlad_layer_1."
    scores = np.stack([rows @ state[f"{layer}kernel"][0, 0] for rows in x]) + state[f"{layer}bias"]
    assigned = softmax(scores, 2)
    sums = (
        np.einsum("bnk,bnd->bkd", assigned, x)
        + assigned.sum(axis=1)[..., None] * state[f"{layer}cluster_centers"][0, 0, 0].T
    )
    return tensorflow_unit(tensorflow_unit(sums, 2).reshape(len(x), -1), 1)


def loupe_keras_before_projection(state: State, x: Float64) -> Float64:
    renamed = {"kernel_W1": "cluster_weights", "kernel_B1": "cluster_biases", "kernel_W2": "cluster_weights2"}
    own = {renamed[name]: state[f"net_vlad_1.{name}"] for name in renamed}
    return loupe_before_projection(own, x, "")


def loupe_keras(state: State, x: Float64) -> Float64:
    hidden = loupe_keras_before_projection(state, x) @ state["net_vlad_1.kernel_H1"]
    gates = hidden @ state["context_gating_1.kernel_W1"] + state["context_gating_1.kernel_B1"]
    gated: Float64 = hidden / (1 + np.exp(-gates))
    return gated
