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
