"""The formulas of aggregators other than NetVLAD, in float64, by the name in their spec.

Each reads the unfolded parameters by the names of the torch module's state, and shares no code with that module, its
fold or its graph.
"""

from collections.abc import Callable, Mapping
from typing import Final, TypeAlias

import numpy as np

from netvlad_deploy.oracle.equations import soft_assignment
from netvlad_deploy.spec.layer import AggregatorSpec
from netvlad_deploy.support.arrays import Array, Float64

Formula: TypeAlias = Callable[[AggregatorSpec, Mapping[str, Array], Mapping[str, Array]], Float64]
"""A function of the spec, the parameters and the feeds (B,...), all in float64, that returns descriptors (B,P)."""

TENSORFLOW: Final = 1e-6
"""Least norm of `tf.nn.l2_normalize`, which takes its square as at least 1e-12."""


def _salad(_: AggregatorSpec, state: Mapping[str, Array], feeds: Mapping[str, Array]) -> Float64:
    """Return SALAD's descriptors: every step of Sinkhorn as its log-sum-exp, with the dustbin as one more row.

    Source: serizba/salad, models/aggregators/salad.py.
    """

    def network(name: str, values: Array) -> Float64:
        hidden = np.maximum(values @ state[f"{name}.0.weight"].T + state[f"{name}.0.bias"], 0)
        result: Float64 = hidden @ state[f"{name}.2.weight"].T + state[f"{name}.2.bias"]
        return result

    scores, values = network("score", feeds["features"]), network("cluster_features", feeds["features"])
    batch, count, clusters = scores.shape
    dust = np.full((batch, count, 1), state["dust_bin"])
    table = np.concatenate((scores, dust), axis=2).swapaxes(1, 2)  # (B,K+1,N)
    whole = np.log(count + clusters)
    with np.errstate(divide="ignore", invalid="ignore"):  # of N = K the dustbin has no mass, of fewer it is NaN
        rows = np.append(np.zeros(clusters), np.log(float(count - clusters))) - whole
    by_row, by_column = np.zeros((batch, clusters + 1)), np.zeros((batch, count))
    for _step in range(3):
        by_row = rows - _log_sum_exp(table + by_column[:, None, :], 2)
        by_column = -whole - _log_sum_exp(table + by_row[:, :, None], 1)
    mass = np.exp(table + by_row[:, :, None] + by_column[:, None, :] + whole)[:, :clusters]
    parts = np.einsum("bkn,bnc->bck", mass, values)
    joined = (_unit(network("token_features", feeds["token"]), 1), _unit(parts, 1).reshape(batch, -1))
    return _unit(np.concatenate(joined, axis=1), 1)


def _log_sum_exp(values: Float64, axis: int) -> Float64:
    """Return the logarithm of a sum of exponentials over an axis."""
    largest = values.max(axis=axis, keepdims=True)
    largest = np.where(np.isfinite(largest), largest, 0)
    with np.errstate(divide="ignore"):  # a dustbin without mass has the logarithm -inf
        summed: Float64 = np.log(np.exp(values - largest).sum(axis=axis)) + largest.squeeze(axis)
    return summed


def _unit(values: Float64, axis: int, least: float = 1e-12) -> Float64:
    """Return values L2-normalised over an axis, every norm taken as at least `least`."""
    normal: Float64 = values / np.maximum(np.sqrt((values**2).sum(axis=axis, keepdims=True)), least)
    return normal


def _hard_vlad(_: AggregatorSpec, state: Mapping[str, Array], feeds: Mapping[str, Array]) -> Float64:
    """Return the descriptors of VLAD with hard assignment, cluster by cluster.

    Source: AnyLoc/AnyLoc, utilities.py, class VLAD.
    """
    centres = state["centres"]
    cosines = _unit(feeds["features"], 2) @ _unit(centres, 1).T
    nearest = cosines.argmax(axis=2)  # (B,N)
    found = np.zeros((len(nearest), *centres.shape))
    for image, cluster in np.ndindex(found.shape[:2]):
        own = feeds["features"][image][nearest[image] == cluster]
        found[image, cluster] = (_unit(own, 1) - centres[cluster]).sum(axis=0)
    return _unit(_unit(found, 2).reshape(len(found), -1), 1)


def _hfnet(spec: AggregatorSpec, state: Mapping[str, Array], feeds: Mapping[str, Array]) -> Float64:
    """Return the descriptors of HF-Net's global head: residuals c - x, normalised over the clusters.

    Source: ethz-asl/hfnet, hfnet/models/utils/layers.py.
    """
    slope = 1 / np.sqrt(state["running_var"] + float(spec.settings["epsilon"]))
    scores = (feeds["features"] @ state["memberships"] - state["running_mean"]) * slope + state["offset"]
    masses = soft_assignment(scores, len(state["clusters"]))
    found = np.empty((len(scores), *state["clusters"].shape))
    for cluster, centre in enumerate(state["clusters"]):
        found[:, cluster] = np.einsum("bn,bnd->bd", masses[:, :, cluster], centre - feeds["features"])
    whole = _unit(_unit(found, 1, TENSORFLOW).reshape(len(found), -1), 1, TENSORFLOW)
    if not spec.settings["projected"]:
        return whole
    projected = _unit(whole, 1, TENSORFLOW) @ state["projection.weight"].T + state["projection.bias"]
    return _unit(projected, 1, TENSORFLOW)


def _ghost_vlad(_: AggregatorSpec, state: Mapping[str, Array], feeds: Mapping[str, Array]) -> Float64:
    """Return the descriptors of GhostVLAD with two inputs, residual by residual.

    Source: WeidiXie/VGG-Speaker-Recognition, src/model.py.
    """
    logits = feeds["assignment_features"] @ state["assignment.weight"].T + state["assignment.bias"]
    shares = soft_assignment(logits, len(state["centres"]))
    clusters = [
        (shares[:, :, [k]] * (feeds["features"] - centre)).sum(axis=1) for k, centre in enumerate(state["centres"])
    ]
    joined = np.concatenate([_unit(cluster, 1, TENSORFLOW) for cluster in clusters], axis=1)
    return _unit(np.maximum(joined @ state["projection.weight"].T + state["projection.bias"], 0), 1, TENSORFLOW)


FORMULAS: Final[dict[str, Formula]] = {
    "salad": _salad,
    "hard-vlad": _hard_vlad,
    "hfnet": _hfnet,
    "ghost-vlad": _ghost_vlad,
}
