"""HF-Net's global head as it is exported.

BatchNorm goes into the weights of the memberships, less what all clusters have in common. Residuals are c less the mean
of a cluster's local descriptors, times the sum A_k of its memberships: so the FP16 product holds no sum over N. Its two
L2-normalisations, over the clusters and over the whole, are one division; the third, before the projection, changes a
vector only if its length is below 1e-6, and then makes it 1: the whole is divided by its own length down to 1e-12.
"""

import torch
from torch import Tensor, nn

from netvlad_deploy.export.fold_head import ASSIGNMENT_FLOOR, centre_logits, scale_columns
from netvlad_deploy.export.fold_projection import FoldedMap
from netvlad_deploy.models.aggregators.base import Aggregator
from netvlad_deploy.models.aggregators.hfnet import SQUARE_FLOOR, HfNet
from netvlad_deploy.spec.graph_options import GraphOptions


class FoldedHfNet(nn.Module):
    """Features (B,N,D) to the descriptor (B,P)."""

    weight: Tensor
    bias: Tensor
    scale: Tensor
    clusters: Tensor
    norm_floor: Tensor
    whole_floor: Tensor
    assignment_floor: Tensor

    def __init__(self, module: Aggregator, options: GraphOptions) -> None:
        super().__init__()
        assert isinstance(module, HfNet)
        self.options = options
        factor = 1 / (module.running_var.double() + module.epsilon).sqrt()
        weight = module.memberships.detach().double() * factor
        centred, bias = centre_logits(weight, module.offset.detach().double() - module.running_mean.double() * factor)
        scale = torch.ones(len(factor))
        if options.half:
            centred, scale = scale_columns(centred)
        assert bias is not None
        floor = SQUARE_FLOOR**0.5
        tensors = {
            "weight": centred if options.half else centred.float(),
            "bias": bias.float(),
            "scale": scale.float(),
            "clusters": module.clusters.detach().float(),
            "norm_floor": torch.tensor([floor]),
            "whole_floor": torch.tensor([floor if module.projection is None else SQUARE_FLOOR]),
            "assignment_floor": torch.tensor([ASSIGNMENT_FLOOR]),
        }
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor.contiguous())
        self.projection = None
        if module.projection is not None:
            self.projection = FoldedMap(module.projection, "projection", half=options.half)

    def forward(self, features: Tensor) -> Tensor:
        """Return the descriptor (B,P)."""
        features, single = features.to(self.weight.dtype), self.bias.dtype
        logits = (features @ self.weight).to(single)  # (B,N,D) x (D,K)
        assignment = ((logits * self.scale if self.options.half else logits) + self.bias).softmax(2)
        total = assignment.sum(1, keepdim=True)  # (B,1,K)
        weights = (assignment / torch.maximum(total, self.assignment_floor)).to(features.dtype)
        mean = (weights.transpose(1, 2) @ features).to(single)  # (B,K,N) x (B,N,D)
        centre = self.clusters
        if self.options.half:  # the rounded weights of a cluster do not quite sum to 1
            centre = weights.to(single).sum(1).unsqueeze(2) * centre
        residuals = total.transpose(1, 2) * (centre - mean)  # (B,K,D)
        norm = (residuals * residuals).sum(1, keepdim=True).sqrt()  # (B,1,D)
        divisor = torch.maximum(norm, self.norm_floor)
        ratio = norm / divisor
        whole = torch.maximum((ratio * ratio).sum(2, keepdim=True).sqrt(), self.whole_floor)
        descriptor = (residuals / (divisor * whole)).flatten(1)
        if self.projection is not None:
            descriptor = self.projection(descriptor)
            length = (descriptor * descriptor).sum(1, keepdim=True).sqrt()
            descriptor = descriptor / torch.maximum(length, self.norm_floor)
        return descriptor.half() if self.options.output_dtype == "float16" else descriptor
