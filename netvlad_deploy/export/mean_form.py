"""Parts that the folds of aggregators share: a product in FP16, and the mean form of a cluster (`fold_head.py`)."""

import torch
from torch import Tensor, nn

from netvlad_deploy.export.fold_head import ASSIGNMENT_FLOOR, scale_columns


class Product(nn.Module):
    """A linear map of vectors (...,I) to FP32 values (...,O), its weight (I,O) in FP16 with a scale for each column."""

    weight: Tensor
    scale: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor | None, *, half: bool) -> None:
        super().__init__()
        self.has_scale, self.has_bias = half, bias is not None
        weight, scale = scale_columns(weight) if half else (weight.float(), torch.ones(weight.shape[1]))
        self.register_buffer("weight", weight.contiguous())
        self.register_buffer("scale", scale.float())
        self.register_buffer("bias", torch.zeros_like(scale).float() if bias is None else bias.float())

    def forward(self, vectors: Tensor) -> Tensor:
        """Return the mapped vectors in FP32."""
        products = (vectors.to(self.weight.dtype) @ self.weight).to(self.bias.dtype)
        products = products * self.scale if self.has_scale else products
        return products + self.bias if self.has_bias else products


class ClusterMeans(nn.Module):
    """Shares (B,N,K) of local descriptors in clusters to the mean of each cluster, beside its centre, of centres (K,D).

    In an FP16 graph the product alone is FP16.
    """

    centres: Tensor
    floor: Tensor

    def __init__(self, centres: Tensor, *, half: bool) -> None:
        super().__init__()
        self.half_products = half
        self.register_buffer("centres", centres.detach().float().contiguous())
        self.register_buffer("floor", torch.tensor([ASSIGNMENT_FLOOR]))  # the exporter takes a small literal for 0

    def forward(self, shares: Tensor, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return means (B,K,D), centres (K,D) or (B,K,D), and the sums of the shares (B,K,1), in FP32.

        Features (B,N,D) have the dtype of the product.
        """
        share_sum = shares.sum(1, keepdim=True)  # (B,1,K)
        weights = (shares / torch.maximum(share_sum, self.floor)).to(features.dtype)
        means = (weights.transpose(1, 2) @ features).to(shares.dtype)  # (B,K,N) x (B,N,D)
        centres = self.centres
        if self.half_products:  # the rounded weights of a cluster do not quite sum to 1
            centres = weights.to(shares.dtype).sum(1).unsqueeze(2) * centres  # (B,K,1) * (K,D)
        return means, centres, share_sum.transpose(1, 2)


def normalized(values: Tensor, axis: int, floor: Tensor) -> Tensor:
    """Return values L2-normalised over an axis, their norms taken as at least `floor`."""
    return values / torch.maximum((values * values).sum(axis, keepdim=True).sqrt(), floor)
