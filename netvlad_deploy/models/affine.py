"""A linear map of a whole descriptor, whose matrix may be half a gigabyte and is never copied as a whole."""

import copy
import math
from collections.abc import Iterator
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

BLOCK_ROWS = 64
"""Rows of a matrix that are converted at a time: 16 MiB of float64 for a descriptor of 32,768 values."""

ModuleType = TypeVar("ModuleType", bound=nn.Module)


class AffineMap(nn.Module):
    """Map (B,I) to (B,P): a product with `weight` (P,I), followed by a bias, by BatchNorm or by neither."""

    def __init__(self, inputs: int, outputs: int, *, bias: bool, batch_norm: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / math.sqrt(inputs))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None
        self.batch_norm = nn.BatchNorm1d(outputs) if batch_norm else None

    def forward(self, vectors: Tensor) -> Tensor:
        """Return the mapped vectors (B,P), in the dtype of the vectors (B,I)."""
        mapped = product(vectors, self.weight)
        if self.batch_norm is not None:
            mapped = self.batch_norm(mapped)
        return mapped if self.bias is None else mapped + self.bias


def product(vectors: Tensor, weight: Tensor) -> Tensor:
    """Return vectors (B,I) times the transpose of a matrix (P,I), converted block by block if its dtype differs.

    >>> product(torch.tensor([[1.0, 2.0]]), torch.eye(2, dtype=torch.float64))
    tensor([[1., 2.]])
    """
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
    """Return the slices of a matrix's rows, BLOCK_ROWS each, to convert one at a time.

    Write results into a tensor allocated before the loop: a small tensor allocated within it would lie between the
    blocks, and keep the allocator from using the memory of one block for the next.
    """
    return (slice(start, start + BLOCK_ROWS) for start in range(0, len(weight), BLOCK_ROWS))


def in_float64(module: ModuleType) -> ModuleType:
    """Return a copy of a module that computes in float64, but shares the matrices of linear maps in their own dtype."""
    shared = {id(part.weight): part.weight for part in module.modules() if isinstance(part, AffineMap)}
    copied = copy.deepcopy(module, dict(shared))
    for tensor in (*copied.parameters(), *copied.buffers()):
        if tensor.is_floating_point() and id(tensor) not in shared:
            tensor.data = tensor.data.double()
    return copied


def is_finite(tensor: Tensor) -> bool:
    """Return True if every value is finite.

    The extremes are looked at, since NaN is the minimum of any tensor that holds one: a mask would be as large as the
    tensor.
    """
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    return all(bool(extreme.isfinite()) for extreme in tensor.detach().aminmax())
