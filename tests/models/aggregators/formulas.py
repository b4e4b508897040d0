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
