"""CRN as it is exported: the mask of the feature map, then a NetVLAD in the mean form (`export/fold_head.py`).

The average over 3x3 does not reach beyond the map: at its lower and right edge it is over what is left. That is written
as two averages over a map with zeros around those edges, of its values and of ones, one divided by the other, since
runtimes differ in how they count at an edge that is rounded up.

In an FP16 graph the convolutions of the context and the two matrix products are FP16. The mask, its doubling, softmax,
sums and norms are FP32.
"""

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional

from netvlad_deploy.export.fold_head import centre_logits
from netvlad_deploy.export.mean_form import ClusterMeans, Product, normalized
from netvlad_deploy.models.aggregators.base import Aggregator
from netvlad_deploy.models.aggregators.crn import CONTEXT_FILTERS, ContextReweighting
from netvlad_deploy.spec.graph_options import GraphOptions

LOWER_AND_RIGHT = (0, 1, 0, 1)
"""Zeros around a map, as torch's `pad` takes them: one column on the right, one row below."""


class FoldedCRN(nn.Module):
    """Local descriptors (B,N,D) and their feature map (B,D,h,w) to the descriptor (B, K*D)."""

    norm_floor: Tensor

    def __init__(self, module: Aggregator, options: GraphOptions) -> None:
        super().__init__()
        assert isinstance(module, ContextReweighting)
        self.options = options
        self.context = nn.ModuleList(_copied(module.filters[name], half=options.half) for name in CONTEXT_FILTERS)
        self.accumulation = _copied(module.accumulation, half=False)
        weight, _ = centre_logits(module.clusters.detach().double(), None)
        self.logits = Product(weight, None, half=options.half)
        self.means = ClusterMeans(module.centres, half=options.half)
        self.register_buffer("norm_floor", torch.tensor([1e-12]))  # the exporter takes a literal 1e-12 for 0

    def forward(self, features: Tensor, feature_map: Tensor) -> Tensor:
        """Return the descriptor (B, K*D)."""
        single = self.norm_floor.dtype
        stored = torch.float16 if self.options.half else single
        features = normalized(features.to(single), 2, self.norm_floor).to(stored)
        mask = self._mask(normalized(feature_map.to(single), 1, self.norm_floor))  # (B,1,h,w)
        shares = self.logits(features).softmax(2) * mask.permute(0, 2, 3, 1).flatten(1, 2)  # (B,N,K) * (B,N,1)
        means, centres, share_sum = self.means(shares, features)
        clusters = normalized(means - centres, 2, self.norm_floor / share_sum)
        descriptor = normalized(clusters.flatten(1), 1, self.norm_floor)
        return descriptor.half() if self.options.output_dtype == "float16" else descriptor

    def _mask(self, feature_map: Tensor) -> Tensor:
        """Return the weights (B,1,h,w) of the positions of a feature map in FP32."""
        ones = (feature_map[:, :1] <= 1).to(feature_map.dtype)  # no value of a unit vector is above 1
        sums, counts = (
            functional.avg_pool2d(functional.pad(each, LOWER_AND_RIGHT), kernel_size=3, stride=2)
            for each in (feature_map, ones)
        )
        halved = sums / counts
        if self.options.half:
            halved = halved.half()
        context = torch.cat([convolution(halved) for convolution in self.context], dim=1).relu()
        weights = self.accumulation(context.to(self.norm_floor.dtype)).relu()
        return functional.interpolate(weights, scale_factor=2, mode="bilinear")


def _copied(convolution: nn.Module, *, half: bool) -> nn.Module:
    """Return a copy of a convolution, in FP16 or FP32, without gradients."""
    return copy.deepcopy(convolution).requires_grad_(False).to(torch.float16 if half else torch.float32)
