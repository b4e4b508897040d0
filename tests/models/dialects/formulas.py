"""The layer of each dialect in float64 NumPy, from its own tensors as its own code saves them.

Each stands for itself: none knows the reference, the oracle or another dialect. x is (B,N,D).
"""

from collections.abc import Callable, Mapping

import numpy as np

from netvlad_deploy.support.arrays import Float64

State = Mapping[str, Float64]
Formula = Callable[[State, Float64], Float64]


def softmax(logits: Float64, axis: int) -> Float64:
    powers = np.exp(logits - logits.max(axis=axis, keepdims=True))
    result: Float64 = powers / powers.sum(axis=axis, keepdims=True)
    return result


def unit(values: Float64, axis: int) -> Float64:
    result: Float64 = values / np.maximum(np.sqrt((values**2).sum(axis=axis, keepdims=True)), 1e-12)
    return result


def batch_norm(logits: Float64, state: State, name: str) -> Float64:
    centred = logits - state[f"{name}.running_mean"]
    scaled = centred / np.sqrt(state[f"{name}.running_var"] + 1e-5)
    return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]


def collaborative_experts(state: State, x: Float64) -> Float64:
    logits = x @ state["clusters"]
    if "batch_norm.weight" in state:
        logits = batch_norm(logits, state, "batch_norm")
    count = state["clusters2"].shape[2]
    assignment = softmax(logits, 2)[:, :, :count]
    vlad = np.einsum("bnk,bnd->bdk", assignment, x) - assignment.sum(axis=1)[:, None] * state["clusters2"]
    return unit(unit(vlad, 1).reshape(len(x), -1), 1)


def text_pooling(state: State, x: Float64) -> Float64:
    start = "module.text_pooling."
    own = {key.removeprefix(start): value for key, value in state.items() if key.startswith(start)}
    return collaborative_experts(own, x)


def mixture_of_embedding_experts(state: State, x: Float64) -> Float64:
    assignment = softmax(x @ state["clusters"], 2)
    residuals = x[:, :, :, None] - state["clusters2"][None]
    vlad = (assignment[:, :, None] * residuals).sum(axis=1)
    return unit(unit(vlad, 1).reshape(len(x), -1), 1)


def pytorch_netvlad(state: State, x: Float64, pool: str = "pool.") -> Float64:
    maps = unit(x, 2).swapaxes(1, 2)
    logits = np.einsum("kd,bdn->bkn", state[f"{pool}conv.weight"][:, :, 0, 0], maps)
    if f"{pool}conv.bias" in state:
        logits += state[f"{pool}conv.bias"][:, None]
    assignment = softmax(logits, 1)
    vlad = np.zeros((len(x), *state[f"{pool}centroids"].shape))
    for cluster, centroid in enumerate(state[f"{pool}centroids"]):
        vlad[:, cluster] = ((maps - centroid[:, None]) * assignment[:, cluster, None]).sum(axis=2)
    return unit(unit(vlad, 2).reshape(len(x), -1), 1)


def pytorch_netvlad_parallel(state: State, x: Float64) -> Float64:
    return pytorch_netvlad(state, x, "pool.module.")


def patch_netvlad(state: State, x: Float64) -> Float64:
    encoded = pytorch_netvlad(state, x)[:, :, None, None]
    whitened = np.einsum("pihw,bihw->bp", state["WPCA.0.weight"], encoded) + state["WPCA.0.bias"]
    return unit(whitened, 1)


def deep_visual_geo_localization(state: State, x: Float64, layer: str = "aggregation") -> Float64:
    maps = unit(x, 2).swapaxes(1, 2)
    weight = state[f"{layer}.conv.weight"]
    assignment = softmax(weight.reshape(weight.shape[:2]) @ maps, 1)
    residuals = maps[:, None] - state[f"{layer}.centroids"][None, :, :, None]
    vlad = (residuals * assignment[:, :, None]).sum(axis=3)
    return unit(unit(vlad, 2).reshape(len(x), -1), 1)


def deep_visual_geo_localization_before_fc(state: State, x: Float64) -> Float64:
    return deep_visual_geo_localization(state, x, "aggregation.0")


def deep_visual_geo_localization_fc(state: State, x: Float64) -> Float64:
    pooled = deep_visual_geo_localization_before_fc(state, x)
    return unit(np.einsum("pi,bi->bp", state["aggregation.1.weight"], pooled) + state["aggregation.1.bias"], 1)


def openibl(state: State, x: Float64) -> Float64:
    rows = unit(x, 2)
    assignment = softmax(rows @ state["net_vlad.conv.weight"][:, :, 0, 0].T, 2)
    weighted = assignment.swapaxes(1, 2) @ rows
    vlad = weighted - assignment.sum(axis=1)[:, :, None] * state["net_vlad.centroids"]
    return unit(unit(vlad, 2).reshape(len(x), -1), 1)


def openibl_pca(state: State, x: Float64) -> Float64:
    vlad = openibl(state, x)
    weight = state["pca_layer.weight"]
    return unit(vlad @ weight.reshape(len(weight), -1).T + state["pca_layer.bias"], 1)


def openplacerecognition_before_projection(state: State, x: Float64, head: str = "head.") -> Float64:
    maps = unit(x, 2).swapaxes(1, 2)
    scores = np.einsum("kdij,bdn->bkn", state[f"{head}conv.weight"], maps)
    if f"{head}conv.bias" in state:
        scores += state[f"{head}conv.bias"][:, None]
    scores = softmax(scores, 1)
    vlad = np.einsum("bkn,bdn->bkd", scores, maps) - scores.sum(axis=2)[:, :, None] * state[f"{head}centroids"]
    return unit(unit(vlad, 2).reshape(len(x), -1), 1)


def openplacerecognition(state: State, x: Float64, head: str = "head.") -> Float64:
    pooled = openplacerecognition_before_projection(state, x, head)
    result: Float64 = pooled @ state[f"{head}out_projection.weight"].T + state[f"{head}out_projection.bias"]
    return result


def bare_openplacerecognition_before_projection(state: State, x: Float64) -> Float64:
    return openplacerecognition_before_projection(state, x, "")


def bare_openplacerecognition(state: State, x: Float64) -> Float64:
    return openplacerecognition(state, x, "")


def lyakaap(state: State, x: Float64, layer: str = "net_vlad.") -> Float64:
    rows = unit(x, 2)
    logits = np.einsum("bnd,kdij->bnk", rows, state[f"{layer}conv.weight"]) + state[f"{layer}conv.bias"]
    residuals = rows[:, :, None] - state[f"{layer}centroids"]
    vlad = (residuals * softmax(logits, 2)[..., None]).sum(axis=1)
    return unit(unit(vlad, 2).reshape(len(x), -1), 1)


def lyakaap_bare(state: State, x: Float64) -> Float64:
    return lyakaap(state, x, "")


def soccernet(state: State, x: Float64) -> Float64:
    images = []
    for frames in unit(x, 2):
        assignment = softmax(frames @ state["pool_layer.conv.weight"][:, :, 0, 0].T, 1)
        residuals = frames[:, None] - state["pool_layer.centroids"]
        images.append(np.einsum("nk,nkd->kd", assignment, residuals))
    return unit(unit(np.stack(images), 2).reshape(len(x), -1), 1)


def soccernet_temporally_aware(state: State, x: Float64, layer: str = "pool_layer.") -> Float64:
    """Return the descriptors of the one layer, or of one of the two of NetVLAD++."""
    images = []
    for frames in unit(x, 2):
        assignment = softmax(frames @ state[f"{layer}clusters"], 1)
        vlad = frames.T @ assignment - assignment.sum(axis=0) * state[f"{layer}clusters2"][0]
        images.append(unit(vlad, 0).reshape(-1))
    return unit(np.stack(images), 1)


def soccernet_after(state: State, x: Float64) -> Float64:
    return soccernet_temporally_aware(state, x, "pool_layer_after.")


def hloc(state: State, x: Float64) -> Float64:
    columns = unit(x, 2).swapaxes(1, 2)
    scores = softmax(np.einsum("kdi,bdn->bkn", state["netvlad.score_proj.weight"], columns), 1)
    difference = columns[:, :, None] - state["netvlad.centers"][None, :, :, None]
    vlad = (scores[:, None] * difference).sum(axis=3)
    return unit(unit(vlad, 1).reshape(len(x), -1), 1)


def hloc_whiten(state: State, x: Float64) -> Float64:
    return unit(hloc(state, x) @ state["whiten.weight"].T + state["whiten.bias"], 1)


def matconvnet_unit(values: Float64, axis: int) -> Float64:
    result: Float64 = values / np.sqrt((values**2).sum(axis=axis, keepdims=True) + 1e-12)
    return result


def relja_before_pca(state: State, x: Float64) -> Float64:
    """Return MATLAB's descriptors: `vlad.negated_centres` is added, and y(1,K,D) is read column by column."""
    images = []
    for rows in matconvnet_unit(x, 2):
        scores = rows @ state["vlad.assignment"] + state.get("vlad.assignment_bias", 0.0)
        assignment = softmax(scores, 1)
        y = np.zeros(state["vlad.negated_centres"].shape[::-1])
        for k, offset in enumerate(state["vlad.negated_centres"].T):
            y[k] = (assignment[:, k, None] * (rows + offset)).sum(axis=0)
        images.append(matconvnet_unit(y, 1).ravel(order="F"))
    return matconvnet_unit(np.stack(images), 1)


def relja(state: State, x: Float64) -> Float64:
    return matconvnet_unit(relja_before_pca(state, x) @ state["pca.weight"] + state["pca.bias"], 1)


def pointnetvlad_before_projection(state: State, x: Float64) -> Float64:
    activation = x @ state["net_vlad.cluster_weights"]
    if "net_vlad.cluster_biases" in state:
        activation = activation + state["net_vlad.cluster_biases"]
    else:
        activation = batch_norm(activation, state, "net_vlad.bn1")
    activation = softmax(activation, 2)
    total = activation.sum(axis=1, keepdims=True) * state["net_vlad.cluster_weights2"]
    vlad = (activation.swapaxes(1, 2) @ x).swapaxes(1, 2) - total
    return unit(unit(vlad, 1).reshape(len(x), -1), 1)


def pointnetvlad(state: State, x: Float64) -> Float64:
    hidden = pointnetvlad_ungated(state, x)
    gates = hidden @ state["net_vlad.context_gating.gating_weights"]
    if "net_vlad.context_gating.gating_biases" in state:
        gates = gates + state["net_vlad.context_gating.gating_biases"]
    else:
        gates = batch_norm(gates, state, "net_vlad.context_gating.bn1")
    gated: Float64 = hidden / (1 + np.exp(-gates))
    return gated


def pointnetvlad_ungated(state: State, x: Float64) -> Float64:
    hidden = pointnetvlad_before_projection(state, x) @ state["net_vlad.hidden1_weights"]
    return batch_norm(hidden, state, "net_vlad.bn2")


def loupe(state: State, x: Float64, layer: str) -> Float64:
    """Return the gated descriptor of LOUPE's layer where the BatchNorm after the projection is not applied."""
    own = {key.removeprefix(layer): value for key, value in state.items() if key.startswith(layer)}
    descriptors = []
    for rows in x:
        logits = rows @ own["cluster_weights"]
        logits = logits + own["cluster_biases"] if "cluster_biases" in own else batch_norm(logits, own, "bn1")
        assignment = softmax(logits, 1)
        vlad = rows.T @ assignment - assignment.sum(axis=0) * own["cluster_weights2"][0]
        flat = unit(unit(vlad, 0).reshape(1, -1), 1)
        hidden = flat @ own["hidden1_weights"]
        gates = hidden @ own["context_gating.gating_weights"]
        biased = "context_gating.gating_biases" in own
        gates = gates + own["context_gating.gating_biases"] if biased else batch_norm(gates, own, "context_gating.bn1")
        descriptors.append(hidden[0] / (1 + np.exp(-gates[0])))
    return np.stack(descriptors)


def overlaptransformer(state: State, x: Float64) -> Float64:
    return unit(loupe(state, unit(x, 2), "net_vlad."), 1)


def cvtnet(state: State, x: Float64) -> Float64:
    return unit(loupe(state, unit(x, 2), "net_vlad."), 1)


def cvtnet_view(state: State, x: Float64) -> Float64:
    return unit(loupe(state, x, "net_vlad_ri."), 1)


def overlapnetvlad(state: State, x: Float64) -> Float64:
    return loupe(state, x, "vlad.")


def before_projection_of(layer: str, *, normalized: bool) -> Formula:
    """Return LOUPE's layer up to its projection."""

    def formula(state: State, x: Float64) -> Float64:
        own = {f"net_vlad.{key.removeprefix(layer)}": value for key, value in state.items() if key.startswith(layer)}
        return pointnetvlad_before_projection(own, unit(x, 2) if normalized else x)

    return formula


def supervlad(state: State, x: Float64, ghosts: int = 1) -> Float64:
    columns = state["aggregation.conv.weight"]
    maps = unit(x, 2)
    shares = softmax(np.tensordot(maps, columns.reshape(columns.shape[:2]), axes=(2, 1)), 2)
    sums = np.stack([(shares[:, :, [k]] * maps).sum(axis=1) for k in range(len(columns) - ghosts)], axis=1)
    return unit(unit(sums, 2).reshape(len(x), -1), 1)


def supervlad_one_cluster(state: State, x: Float64) -> Float64:
    return supervlad(state, x, ghosts=2)


def anyloc_soft(state: State, x: Float64) -> Float64:
    centres = state["c_centers"]
    directions = unit(centres, 1).astype(np.float32)  # a head has tensors of float32
    cosines = np.einsum("bnd,kd->bnk", unit(x, 2), directions.astype(np.float64))
    shares = softmax(cosines, 2)
    residuals = unit(x, 2)[:, :, None] - centres  # (B,N,K,D)
    return unit(unit((shares[..., None] * residuals).sum(axis=1), 2).reshape(len(x), -1), 1)
