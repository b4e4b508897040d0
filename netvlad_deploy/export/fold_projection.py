"""Fold the BatchNorm of a projection and of its gating into their matrices, and round the projection to FP16.

    y = (v P^T) s + p,  s = gamma / sqrt(var + eps),  p = beta - mean s       BatchNorm in eval mode is affine
    P'_j = s_j P_j / 2^t_j,  y_j = 2^t_j (v P'^T)_j + p_j                     FP16 alone

|v| is at most 1, so |v.P'_j| <= |P'_j| (Cauchy and Schwarz): t_j is chosen such that the Euclidean norm of a row is at
most 1, and no product overflows. The L1 norm is up to 181 times as large for 32,768 values: a bound by it would make
most of them subnormal. This product alone is FP16. The matrix may be half a gigabyte: it is converted by blocks of
rows, and in FP32 without BatchNorm the module's own tensor is used, not a copy.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from netvlad_deploy.errors import FoldError
from netvlad_deploy.models.affine import AffineMap, row_blocks, row_norms


def affine_of(norm: nn.BatchNorm1d, name: str) -> tuple[Tensor, Tensor]:
    """Return scale and offset (P,), float64, to which BatchNorm amounts in eval mode; `name` is its name in errors.

    Raises: FoldError if it has no running statistics, or no weight and bias.
    Source: Ioffe & Szegedy 2015, algorithm 2.
    """
    mean, variance = norm.running_mean, norm.running_var
    if mean is None or variance is None:
        raise FoldError(f"{name} has no running statistics: train with track_running_stats=True")
    if norm.weight is None or norm.bias is None:
        raise FoldError(f"{name} has no weight and bias: train with affine=True")
    scale = norm.weight.detach().double() / (variance.double() + norm.eps).sqrt()
    return scale, norm.bias.detach().double() - mean.double() * scale


class FoldedMap(nn.Module):
    """A linear map with its BatchNorm folded in: vectors (B,I) to (B,P), in one FP16 product if `half`.

    Raises: FoldError if its BatchNorm has no running statistics, or no weight and bias.
    """

    weight: Tensor
    bias: Tensor | None
    scale: Tensor | None

    def __init__(self, linear: AffineMap, name: str, *, half: bool = False) -> None:
        super().__init__()
        weight, factor = linear.weight.detach(), None
        bias = None if linear.bias is None else linear.bias.detach()
        if linear.batch_norm is not None:
            factor, bias = affine_of(linear.batch_norm, f"{name}.batch_norm")
        scale = _row_scale(weight, factor) if half else None
        if factor is not None or scale is not None:
            weight = _scaled(weight, factor, scale, torch.float16 if half else torch.float32)
        self.register_buffer("weight", weight if half else weight.float())
        self.register_buffer("bias", None if bias is None else bias.float())
        self.register_buffer("scale", None if scale is None else scale.float())

    def forward(self, vectors: Tensor) -> Tensor:
        """Return the mapped vectors (B,P) in the dtype of the vectors (B,I)."""
        if self.scale is None:
            return functional.linear(vectors, self.weight, self.bias)
        mapped = functional.linear(vectors.to(self.weight.dtype), self.weight).to(vectors.dtype) * self.scale
        return mapped if self.bias is None else mapped + self.bias

    @property
    def largest(self) -> float:
        """Return an upper bound of the absolute values that come out for vectors of length 1."""
        norms = row_norms(self.weight)
        if self.scale is not None:
            norms = norms * self.scale
        return float((norms if self.bias is None else norms + self.bias.abs()).max())


def _row_scale(weight: Tensor, factor: Tensor | None) -> Tensor:
    """Return powers of two (P,); each row, times its factor and divided by its power, has Euclidean norm at most 1."""
    norm = row_norms(weight)
    norm = norm if factor is None else norm * factor.abs()
    return torch.exp2(torch.where(norm > 0, norm.log2().ceil(), 0))


def _scaled(weight: Tensor, factor: Tensor | None, scale: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Return weight (P,I), each row times its `factor` and divided by its `scale`, rounded once to `dtype`."""
    by = torch.ones(len(weight), dtype=torch.float64) if factor is None else factor
    by = (by if scale is None else by / scale)[:, None]
    result = torch.empty(weight.shape, dtype=dtype)
    for block in row_blocks(weight):
        result[block] = (weight[block].double() * by[block]).to(dtype)
    return result
