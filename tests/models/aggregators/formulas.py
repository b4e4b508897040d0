"""Each aggregator in float64 NumPy, from the tensors that its own code saves, with every convention as an argument.

The defaults are the original's; any other value is a convention swapped. None knows the module, the fold, the graph or
the formula of the package.
"""

from collections.abc import Callable, Mapping

import numpy as np

from netvlad_deploy.support.arrays import Float64

State = Mapping[str, Float64]
Feeds = Mapping[str, Float64]
Formula = Callable[..., Float64]


def unit(values: Float64, axis: int) -> Float64:
    result: Float64 = values / np.maximum(np.sqrt((values**2).sum(axis=axis, keepdims=True)), 1e-12)
    return result


def salad(
    state: State,
    feeds: Feeds,
    *,
    steps: int = 3,
    dust: str = "N-K",
    order: str = "token, c*K+k",
    cluster_axis: str = "C",
    token_l2: bool = True,
    final_l2: bool = True,
    hidden: str = "relu",
    first: str = "clusters",
) -> Float64:
    """Return the descriptors (B, T+C*K): Sinkhorn as divisions of masses, not of logarithms, image by image."""

    def network(name: str, layers: tuple[int, int], x: Float64) -> Float64:
        for layer in layers:
            weight, bias = (state[f"aggregator.{name}.{layer}.{each}"] for each in ("weight", "bias"))
            x = x @ weight.reshape(weight.shape[:2]).T + bias
            if layer == layers[0]:
                x = np.maximum(x, 0) if hidden == "relu" else np.tanh(x)
        return x

    found = []
    for x, token in zip(feeds["features"], feeds["token"], strict=True):
        scores, values = network("score", (0, 3), x), network("cluster_features", (0, 3), x)
        count, clusters = scores.shape
        mass = np.exp(np.column_stack([scores, np.full(count, state["aggregator.dust_bin"])]))  # (N,K+1)
        wanted = np.ones(clusters + 1)
        wanted[-1] = {"N-K": count - clusters, "1": 1, "N": count}[dust]
        for _ in range(steps):
            if first == "clusters":
                mass = mass / mass.sum(axis=0) * wanted
            mass = mass / mass.sum(axis=1, keepdims=True)
            if first != "clusters":
                mass = mass / mass.sum(axis=0) * wanted
        parts = unit(mass[:, :-1].T @ values, 1 if cluster_axis == "C" else 0)  # (K,C)
        scene = network("token_features", (0, 2), token)
        scene = unit(scene, 0) if token_l2 else scene
        flat = parts.T.ravel() if "c*K+k" in order else parts.ravel()
        joined = np.concatenate([scene, flat] if order.startswith("token") else [flat, scene])
        found.append(unit(joined, 0) if final_l2 else joined)
    return np.stack(found)


def anyloc(
    state: State,
    feeds: Feeds,
    *,
    distance: str = "cosine",
    descriptors_l2: bool = True,
    intra: str = "D",
    order: str = "k*D+d",
    sign: int = 1,
    empty: str = "0",
) -> Float64:
    """Return the descriptors (B, K*D), descriptor by descriptor as they are assigned."""
    centres = state["c_centers"]
    found = np.zeros((len(feeds["features"]), *centres.shape))
    for image, features in enumerate(feeds["features"]):
        seen = set()
        for x in features:
            if distance == "cosine":
                scores = [x @ c / np.linalg.norm(x) / np.linalg.norm(c) for c in centres]
            else:
                scores = [-float(((x - c) ** 2).sum()) for c in centres] if distance == "euclidean" else centres @ x
            nearest = int(np.argmax(scores))
            seen.add(nearest)
            found[image, nearest] += sign * ((x / np.linalg.norm(x) if descriptors_l2 else x) - centres[nearest])
        if empty == "-c":
            for cluster in set(range(len(centres))) - seen:
                found[image, cluster] = -centres[cluster]
    if intra != "none":
        found = unit(found, 2 if intra == "D" else 1)
    flat = found.reshape(len(found), -1) if order == "k*D+d" else found.swapaxes(1, 2).reshape(len(found), -1)
    return unit(flat, 1)


def speaker(
    state: State,
    feeds: Feeds,
    *,
    assigned_by: str = "assignment_features",
    ghosts: str = "dropped after softmax",
    intra: str = "D",
    vector_l2: bool = False,
    order: str = "k*D+d",
    relu: bool = True,
    final_l2: bool = True,
    kernel: str = "i*C+c",
    sign: int = 1,
) -> Float64:
    """Return the descriptors (B,P), moment by moment, the logits as a convolution over all rows of its kernel."""
    weight, centres = state["gvlad_center_assignment.kernel"], state["gvlad_pool.centers"]
    rows, _, channels = weight.shape[:3]
    count = len(state["fc6.kernel"]) // centres.shape[1]
    found = []
    for features, others in zip(feeds["features"], feeds[assigned_by], strict=True):
        total = np.zeros((count, centres.shape[1]))
        for x, other in zip(features, others, strict=True):
            shape = (rows, channels) if kernel == "i*C+c" else (channels, rows)
            window = np.resize(other, rows * channels).reshape(shape)
            window = window if kernel == "i*C+c" else window.T
            logits = np.einsum("ic,ick->k", window, weight[:, 0]) + state["gvlad_center_assignment.bias"]
            logits = logits if ghosts == "dropped after softmax" else logits[:count]
            shares = np.exp(logits - logits.max())
            shares /= shares.sum()
            total += sign * shares[:count, None] * (x - centres[:count])
        clusters = unit(total, 1 if intra == "D" else 0)
        vector = clusters.ravel() if order == "k*D+d" else clusters.T.ravel()
        vector = unit(vector, 0) if vector_l2 else vector
        result = vector @ state["fc6.kernel"] + state["fc6.bias"]
        result = np.maximum(result, 0) if relu else result
        found.append(unit(result, 0) if final_l2 else result)
    return np.stack(found)


def crn(
    state: State,
    feature_map: Float64,
    *,
    map_l2: bool = True,
    edge: str = "what is left",
    doubling: str = "half pixels",
    mask: str = "after softmax",
    padding: str = "0",
    last_relu: bool = True,
    context: str = "L2-normalised",
) -> Float64:
    """Return the descriptors (B, K*D) of feature maps (B,D,h,w), every average and convolution window by window."""
    found = []
    for own in feature_map:
        unit_map = unit(own, 0) if map_l2 else own
        seen = unit_map if context == "L2-normalised" else own
        depth, height, width = seen.shape
        halved = np.zeros((depth, height // 2, width // 2))
        for row, column in np.ndindex(halved.shape[1:]):
            window = seen[:, 2 * row : 2 * row + 3, 2 * column : 2 * column + 3]
            halved[:, row, column] = window.sum(axis=(1, 2)) / (9 if edge == "always 9" else window[0].size)
        channels = []
        for side in (3, 5, 7):
            kernel, bias = (state[f"aggregation.crn.filter_{side}_{side}.{each}"] for each in ("weight", "bias"))
            far = side // 2
            framed = np.pad(halved, ((0, 0), (far, far), (far, far)), mode="constant" if padding == "0" else "edge")
            for weights, offset in zip(kernel, bias, strict=True):
                values = np.zeros(halved.shape[1:])
                for row, column in np.ndindex(values.shape):
                    values[row, column] = (framed[:, row : row + side, column : column + side] * weights).sum() + offset
                channels.append(np.maximum(values, 0))
        last = state["aggregation.crn.acc_w.weight"][0, :, 0, 0]
        weights = np.tensordot(last, np.stack(channels), axes=1) + state["aggregation.crn.acc_w.bias"][0]
        weights = np.maximum(weights, 0) if last_relu else weights
        weights = doubled(doubled(weights, doubling).T, doubling).T
        x, places = unit_map.reshape(depth, -1).T, weights.ravel()  # (N,D), (N,)
        logits = x @ state["aggregation.conv.weight"][:, :, 0, 0].T
        if mask == "before softmax":
            logits = logits * places[:, None]
        shares = np.exp(logits - logits.max(axis=1, keepdims=True))
        shares /= shares.sum(axis=1, keepdims=True)
        shares = shares * places[:, None] if mask == "after softmax" else shares
        residuals = np.stack(
            [(shares[:, [k]] * (x - centre)).sum(axis=0) for k, centre in enumerate(state["aggregation.centroids"])]
        )
        found.append(unit(unit(residuals, 1).ravel(), 0))
    return np.stack(found)


def doubled(values: Float64, rule: str) -> Float64:
    """Return twice as many rows, between two of the old ones by their distance from the middle of a pixel."""
    rows = np.arange(2 * len(values))
    places = (rows + 0.5) / 2 - 0.5 if rule == "half pixels" else rows * (len(values) - 1) / (2 * len(values) - 1)
    places = np.clip(places, 0, len(values) - 1)
    before = np.minimum(places.astype(int), len(values) - 1)
    after = np.minimum(before + 1, len(values) - 1)
    part = (places - before)[:, None]
    result: Float64 = (1 - part) * values[before] + part * values[after]
    return result
