"""Checkpoints of HF-Net and MobileNetVLAD, and their formula, written for this test alone."""

from typing import Any

import numpy as np
import torch

from netvlad_deploy.support.arrays import Float64
from tests.models.aggregators.formulas import Feeds
from tests.models.aggregators.formulas import State as StateArrays
from tests.models.aggregators.samples import Sample, Source, State


def length(values: Float64, axis: int) -> Float64:
    result: Float64 = np.sqrt(np.maximum((values**2).sum(axis=axis, keepdims=True), 1e-12))
    return result


def formula(
    state: StateArrays,
    feeds: Feeds,
    *,
    scope: str = "global_head.",
    residual: str = "c - x",
    axis: str = "K",
    order: str = "k*D+d",
    epsilon: float = 1e-3,
    shifted: bool = True,
    final_l2: bool = True,
) -> Float64:
    """Return the descriptors; the arguments swap a convention each."""
    own = {name.removeprefix(scope): each for name, each in state.items()}
    norm = {name: own[f"vlad.memberships.BatchNorm.{name}"] for name in ("beta", "moving_mean", "moving_variance")}
    descriptors = []
    for rows in feeds["features"]:
        scores = (rows @ own["vlad.memberships.weights"][0, 0] - norm["moving_mean"]) / np.sqrt(
            norm["moving_variance"] + epsilon
        )
        powers = np.exp(scores + norm["beta"] * shifted)
        memberships = powers / powers.sum(axis=1, keepdims=True)
        away = own["vlad.clusters"][0, 0] - rows[:, None]  # (N,K,D)
        summed = (memberships[:, :, None] * away).sum(axis=0) * (1 if residual == "c - x" else -1)  # (K,D)
        summed = summed / length(summed, 0 if axis == "K" else 1)
        whole = summed.reshape(-1) if order == "k*D+d" else summed.T.reshape(-1)
        whole = whole / length(whole, 0)
        if "dimensionality_reduction.weights" in own:
            whole = whole / length(whole, 0)
            whole = whole @ own["dimensionality_reduction.weights"] + own["dimensionality_reduction.biases"]
            whole = whole / length(whole, 0) if final_l2 else whole
        descriptors.append(whole)
    return np.stack(descriptors)


def mobilenetvlad(state: StateArrays, feeds: Feeds, **swap: Any) -> Float64:
    return formula(state, feeds, scope="", **swap)


def state_of(seed: int, scope: str, projection: int | None) -> State:
    random, clusters, width = Source(seed), 5, 12
    state = {
        "vlad.memberships.weights": random(1, 1, width, clusters, scale=1.5),
        "vlad.memberships.BatchNorm.beta": random(clusters),
        "vlad.memberships.BatchNorm.moving_mean": random(clusters),
        "vlad.memberships.BatchNorm.moving_variance": 10 ** random(clusters, scale=0.5),
        "vlad.clusters": random(1, 1, 1, clusters, width, scale=0.5),
    }
    if projection is not None:
        state["dimensionality_reduction.weights"] = random(clusters * width, projection)
        state["dimensionality_reduction.biases"] = random(projection, scale=0.3)
    return {scope + name: tensor for name, tensor in state.items()}


SWAPS: tuple[dict[str, Any], ...] = (
    {"residual": "x - c"}, {"axis": "D"}, {"order": "d*K+k"}, {"epsilon": 1e-1}, {"shifted": False},
)  # fmt: skip
HFNET_SAMPLES = {
    "hfnet": Sample(
        dialect="hfnet", state=state_of(5, "global_head.", 7), formula=formula, inputs={"features": 12}, norm=3.0,
        nodes=(40, 60), swaps=(*SWAPS, {"final_l2": False}), lengths=("final_l2",),
        beside={"local_head.detector.Conv.weights": torch.ones(3, 3, 4, 5)},
    ),
    "mobilenetvlad": Sample(
        dialect="hfnet", state=state_of(6, "", None), formula=mobilenetvlad, inputs={"features": 12}, norm=3.0,
        nodes=(35, 50), swaps=SWAPS,
    ),
}  # fmt: skip
