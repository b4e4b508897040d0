"""A linear map of a whole descriptor: its matrix may be half a gigabyte, and is never copied as a whole."""

import copy
import math
from collections.abc import Iterator
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

BLOCK_ROWS = 64
"""Rows of a matrix that are converted at once: 16 MiB of float64 for a descriptor of 32,768 values."""

ModuleType = TypeVar("ModuleType", bound=nn.Module)


class AffineMap(nn.Module):
    """Map (B,I) to (B,P): a product with `weight` (P,I), and a bias or BatchNorm or neither."""

    def __init__(self, inputs: int, outputs: int, *, bias: bool, batch_norm: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / math.sqrt(inputs))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None
        self.batch_norm = nn.BatchNorm1d(outputs) if batch_norm else None

    def forward(self, vectors: Tensor) -> Tensor:
        """Return the map of vectors, in their dtype."""
        mapped = product(vectors, self.weight)
        if self.batch_norm is not None:
            mapped = self.batch_norm(mapped)
        return mapped if self.bias is None else mapped + self.bias


def product(vectors: Tensor, weight: Tensor) -> Tensor:
    """Return vectors (B,I) times the transpose of a matrix (P,I), which is converted in blocks if it must be."""
    if vectors.dtype == weight.dtype:
        return functional.linear(vectors, weight)
    products = torch.empty(*vectors.shape[:-1], len(weight), dtype=vectors.dtype)
    for block in row_blocks(weight):
        products[..., block] = functional.linear(vectors, weight[block].to(vectors.dtype))
    return products


def row_norms(weight: Tensor) -> Tensor:
    """Return the Euclidean norms (P,) of the rows of a matrix, in float64."""
    norms = torch.empty(len(weight), dtype=torch.float64)
    for block in row_blocks(weight):
        norms[block] = weight[block].double().norm(dim=1)
    return norms


def row_blocks(weight: Tensor) -> Iterator[slice]:
    """Yield blocks of rows to convert one at a time, into a result that is there before.

    A small tensor that outlives each block would keep the memory of all of them from being used again.
    """
    return (slice(start, start + BLOCK_ROWS) for start in range(0, len(weight), BLOCK_ROWS))


def in_float64(module: ModuleType) -> ModuleType:
    """Return a copy of a module that computes in float64; it shares the matrices of linear maps, as they are."""
    shared = {id(part.weight): part.weight for part in module.modules() if isinstance(part, AffineMap)}
    copied = copy.deepcopy(module, dict(shared))
    for tensor in (*copied.parameters(), *copied.buffers()):
        if tensor.is_floating_point() and id(tensor) not in shared:
            tensor.data = tensor.data.double()
    return copied


def is_finite(tensor: Tensor) -> bool:
    """Return whether every value is finite, without a mask as large as the tensor: NaN is its own extreme."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    return all(bool(extreme.isfinite()) for extreme in tensor.detach().aminmax())
