"""A random checkpoint of each aggregator as its own training code saves it, and swaps of its conventions."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from netvlad_deploy.support.arrays import Arrays
from tests.models.aggregators import formulas
from tests.models.aggregators.formulas import Formula

State = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A checkpoint and its formula.

    Args:
        dialect: the dialect that reads it, by its keys unless it is `chosen`.
        swaps: arguments of the formula that swap a convention each.
        lengths: names of the swaps that change the length of a descriptor alone.
        invisible: names of tensors that change no descriptor.
        inputs: the width of each input.
        nodes: largest numbers of nodes of the graphs in FP32 and in FP16.
        norm: norm of its local descriptors.
    """

    dialect: str
    state: State
    formula: Formula
    inputs: Mapping[str, int]
    swaps: tuple[Mapping[str, Any], ...]
    nodes: tuple[int, int]
    lengths: tuple[str, ...] = ()
    invisible: tuple[str, ...] = ()
    chosen: bool = False
    norm: float = 1.0
    beside: State = field(default_factory=dict)

    @property
    def options(self) -> dict[str, Any]:
        """Return the options of `read_head` that it takes."""
        return {"dialect": self.dialect if self.chosen else None}

    def save(self, folder: Path, changes: Mapping[str, Tensor] | None = None, prefix: str = "") -> Path:
        """Write it as PyTorch Lightning does, what stands beside the aggregator with it."""
        state = {**self.beside, **self.state, **(changes or {})}
        content = {
            "epoch": 3,
            "global_step": 900,
            "pytorch-lightning_version": "2.0.9",
            "state_dict": {f"{prefix}{name}": tensor for name, tensor in state.items()},
            "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(2, 2)}}}],
        }
        torch.save(content, folder / "last.ckpt")
        return folder / "last.ckpt"

    def feeds(self, num_features: int = 23, batch: int = 3) -> Arrays:
        """Return random inputs in FP16's numbers, so that a graph in FP16 is given the same ones."""
        random = np.random.default_rng(num_features)
        shapes = {
            name: (batch, width) if name == "token" else (batch, num_features, width)
            for name, width in self.inputs.items()
        }
        found = {name: random.standard_normal(shape) for name, shape in shapes.items()}
        return {
            name: (self.norm * each / np.linalg.norm(each, axis=-1, keepdims=True))
            .astype(np.float16)
            .astype(np.float64)
            for name, each in found.items()
        }

    def expected(self, feeds: Arrays, **swap: Any) -> Any:
        """Return the descriptors (B,P) that the formula gives, with a convention swapped if one is named."""
        return self.formula({name: tensor.double().numpy() for name, tensor in self.state.items()}, feeds, **swap)


class Source:
    """Random tensors from a seed."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, *shape: int, scale: float = 1.0) -> Tensor:
        return scale * torch.randn(*shape, generator=self.generator)

    def layer(self, name: str, outputs: int, inputs: int, *kernel: int, scale: float) -> State:
        """Return the weight and bias of a linear layer or a convolution."""
        weight = self(outputs, inputs, *kernel, scale=scale)
        return {f"{name}.weight": weight, f"{name}.bias": self(outputs, scale=0.5)}


def salad(seed: int) -> State:
    random, width = Source(seed), 12
    return {
        "aggregator.dust_bin": torch.tensor(1.3),
        **random.layer("aggregator.token_features.0", 7, width, scale=0.6),
        **random.layer("aggregator.token_features.2", 5, 7, scale=0.7),
        **random.layer("aggregator.cluster_features.0", 9, width, 1, 1, scale=0.6),
        **random.layer("aggregator.cluster_features.3", 6, 9, 1, 1, scale=0.7),
        **random.layer("aggregator.score.0", 8, width, 1, 1, scale=0.7),
        **random.layer("aggregator.score.3", 4, 8, 1, 1, scale=3.0),
    }


def speaker(seed: int) -> State:
    random, clusters, ghosts, width = Source(seed), 4, 2, 8
    return {
        "gvlad_center_assignment.kernel": random(3, 1, 5, clusters + ghosts),
        "gvlad_center_assignment.bias": random(clusters + ghosts),
        "gvlad_pool.centers": random(clusters + ghosts, width, scale=0.4),
        "fc6.kernel": random(clusters * width, 6, scale=0.5),
        "fc6.bias": random(6, scale=0.5),
    }


SAMPLES = {
    "salad": Sample(
        dialect="salad",
        state=salad(1),
        formula=formulas.salad,
        inputs={"features": 12, "token": 12},
        norm=3.5,
        nodes=(70, 81),
        swaps=(
            {"steps": 2},
            {"steps": 4},
            {"first": "descriptors"},
            {"dust": "1"},
            {"dust": "N"},
            {"order": "token, k*C+c"},
            {"order": "c*K+k, token"},
            {"cluster_axis": "K"},
            {"token_l2": False},
            {"final_l2": False},
            {"hidden": "tanh"},
        ),
        lengths=("final_l2",),
        invisible=("aggregator.dust_bin", "aggregator.score.3.bias"),
        beside={"backbone.model.stem.weight": Source(9)(12, 3, 14, 14)},
    ),
    "anyloc": Sample(
        dialect="anyloc",
        state={"c_centers": Source(2)(7, 10, scale=0.3) * torch.linspace(0.5, 2, 7)[:, None]},
        formula=formulas.anyloc,
        inputs={"features": 10},
        norm=3.5,
        nodes=(27, 31),
        chosen=True,
        swaps=(
            {"distance": "euclidean"},
            {"distance": "product"},
            {"descriptors_l2": False},
            {"intra": "K"},
            {"intra": "none"},
            {"order": "d*K+k"},
            {"sign": -1},
            {"empty": "-c"},
        ),
    ),
    "vgg-speaker-recognition": Sample(
        dialect="vgg-speaker-recognition",
        state=speaker(3),
        formula=formulas.speaker,
        inputs={"features": 8, "assignment_features": 15},
        norm=2.0,
        nodes=(26, 37),
        swaps=(
            {"assigned_by": "features"},
            {"ghosts": "dropped before softmax"},
            {"intra": "K"},
            {"vector_l2": True},
            {"order": "d*K+k"},
            {"relu": False},
            {"final_l2": False},
            {"kernel": "c*h+i"},
            {"sign": -1},
        ),
        lengths=("final_l2",),
        beside={"x_fc.kernel": Source(9)(3, 1, 5, 8), "prediction.kernel": Source(9)(6, 11)},
    ),
}
