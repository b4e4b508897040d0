"""GhostVLAD of speaker recognition as it is exported: in the mean form, as a NetVLAD is (`export/fold_head.py`).

In an FP16 graph its three matrix products are FP16. The columns of the logits are centred and scaled, the last layer's
rows are scaled, and both scales are applied in FP32, so that no product exceeds its largest operand.
"""

import torch
from torch import Tensor, nn

from netvlad_deploy.export.fold_head import ASSIGNMENT_FLOOR, centre_logits, scale_columns
from netvlad_deploy.models.aggregators.base import Aggregator
from netvlad_deploy.models.aggregators.ghost_vlad import GhostVLAD
from netvlad_deploy.spec.graph_options import GraphOptions
from netvlad_deploy.spec.layer import NORM_FLOORS, RSQRT


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


class FoldedGhostVLAD(nn.Module):
    """Features (B,N,D) and assignment features (B,N,A) to the descriptor (B,P)."""

    centres: Tensor
    norm_floor: Tensor
    assignment_floor: Tensor

    def __init__(self, module: Aggregator, options: GraphOptions) -> None:
        super().__init__()
        assert isinstance(module, GhostVLAD)
        self.options, self.num_clusters = options, module.num_clusters
        state = {name: tensor.detach().double() for name, tensor in module.state_dict().items()}
        weight, bias = centre_logits(state["assignment.weight"].T, state["assignment.bias"])
        assert bias is not None
        self.logits = Product(weight, bias, half=options.half)
        self.projection = Product(state["projection.weight"].T, state["projection.bias"], half=options.half)
        self.register_buffer("centres", state["centres"].float())
        # Buffers, since the exporter takes small literals for 0.
        self.register_buffer("norm_floor", torch.tensor([NORM_FLOORS[RSQRT]]))
        self.register_buffer("assignment_floor", torch.tensor([ASSIGNMENT_FLOOR]))

    def forward(self, features: Tensor, assignment_features: Tensor) -> Tensor:
        """Return the descriptor (B,P)."""
        shares = self.logits(assignment_features).softmax(2)[:, :, : self.num_clusters]  # (B,N,K)
        share_sum = shares.sum(1, keepdim=True)  # (B,1,K)
        weights = (shares / torch.maximum(share_sum, self.assignment_floor)).to(self.logits.weight.dtype)
        means = (weights.transpose(1, 2) @ features.to(weights.dtype)).to(shares.dtype)  # (B,K,N) x (B,N,D)
        centres = self.centres
        if self.options.half:  # the rounded weights of a cluster do not quite sum to 1
            centres = weights.to(shares.dtype).sum(1).unsqueeze(2) * centres  # (B,K,1) * (K,D)
        clusters = self._normalize(means - centres, self.norm_floor / share_sum.transpose(1, 2))
        descriptor = self._normalize(self.projection(clusters.flatten(1)).relu(), self.norm_floor)
        return descriptor.half() if self.options.output_dtype == "float16" else descriptor

    def _normalize(self, values: Tensor, floor: Tensor) -> Tensor:
        """Return values L2-normalised over the last axis, their norms taken as at least `floor`."""
        return values / torch.maximum((values * values).sum(-1, keepdim=True).sqrt(), floor)
