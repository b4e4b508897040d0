"""A checkpoint of a dialect for the tests, and random tensors for it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.models.dialects.formulas import Formula

State = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A checkpoint, the dialect it is, and its formula; `chosen` if it does not load without its name.

    `before` is the formula without the projection, for a checkpoint that has one; `tiny` is the norm of its smallest
    local descriptors.
    """

    dialect: str
    state: State
    formula: Formula
    width: int
    prefix: str = ""
    chosen: bool = False
    before: Formula | None = None
    tiny: float = 1e-6

    @property
    def projected(self) -> bool:
        """Return True if something follows the head."""
        return self.before is not None

    @property
    def options(self) -> dict[str, Any]:
        """Return the options of `read_head` that it takes."""
        return {"prefix": self.prefix, "dialect": self.dialect if self.chosen else None}

    def save(self, folder: Path, state: State | None = None) -> Path:
        """Write it as a training script does, its optimiser beside it."""
        content = {"epoch": 7, "state_dict": self.state if state is None else state, "optimizer": {"lr": 1e-3}}
        torch.save(content, folder / "best.pth.tar")
        return folder / "best.pth.tar"


class Source:
    """Random tensors from a seed."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, *shape: int, scale: float = 1.0) -> Tensor:
        return scale * torch.randn(*shape, generator=self.generator)

    def convolution(self, clusters: int, width: int, alpha: float, layer: str, kernel: str = "ij") -> State:
        """Return a sharp 1x1 convolution, as pytorch-NetVlad starts it, and centroids of uneven norm."""
        centroids = self(clusters, width, scale=0.4)
        weight = alpha * torch.nn.functional.normalize(centroids) + self(clusters, width, scale=0.2)
        shape = (clusters, width, *(1 for _ in kernel))
        return {f"{layer}conv.weight": weight.reshape(shape), f"{layer}centroids": centroids}

    def batch_norm(self, columns: int, name: str) -> State:
        """Return BatchNorm with statistics far from 0 and 1."""
        return {
            f"{name}.weight": 0.5 + torch.rand(columns, generator=self.generator),
            f"{name}.bias": self(columns),
            f"{name}.running_mean": self(columns),
            f"{name}.running_var": 10 ** (2 * torch.rand(columns, generator=self.generator) - 1),
            f"{name}.num_batches_tracked": torch.tensor(900),
        }

    def columns(self, clusters: int, ghosts: int, width: int, scale: float) -> State:
        """Return `clusters`, `clusters2` and BatchNorm."""
        return {
            "clusters": self(width, clusters + ghosts, scale=scale),
            "clusters2": self(1, width, clusters, scale=0.7),
            **self.batch_norm(clusters + ghosts, "batch_norm"),
        }

    def vgg(self, start: str) -> State:
        """Return some of a backbone."""
        return {f"{start}0.weight": self(4, 3, 3, 3), f"{start}0.bias": self(4), f"{start}2.weight": self(4, 4, 3, 3)}
