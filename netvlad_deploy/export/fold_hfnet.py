"""HF-Net's global head as it is exported.

BatchNorm goes into the weights of the memberships, less what all clusters have in common. Residuals are c less the mean
of a cluster's local descriptors, times the sum A_k of its memberships: so the FP16 product holds no sum over N. Its two
L2-normalisations, over the clusters and over the whole, are one division; the third, before the projection, changes a
vector only if its length is below 1e-6, and then makes it 1: the whole is divided by its own length down to 1e-12.
"""

import torch
from torch import Tensor, nn

from netvlad_deploy.export.fold_head import centre_logits
from netvlad_deploy.export.fold_projection import FoldedMap
from netvlad_deploy.export.mean_form import ClusterMeans, Product, normalized
from netvlad_deploy.models.aggregators.base import Aggregator
from netvlad_deploy.models.aggregators.hfnet import SQUARE_FLOOR, HfNet
from netvlad_deploy.spec.graph_options import GraphOptions


class FoldedHfNet(nn.Module):
    """Features (B,N,D) to the descriptor (B,P)."""

    norm_floor: Tensor
    whole_floor: Tensor

    def __init__(self, module: Aggregator, options: GraphOptions) -> None:
        super().__init__()
        assert isinstance(module, HfNet)
        self.options = options
        factor = 1 / (module.running_var.double() + module.epsilon).sqrt()
        weight = module.memberships.detach().double() * factor
        centred, bias = centre_logits(weight, module.offset.detach().double() - module.running_mean.double() * factor)
        self.logits = Product(centred, bias, half=options.half)
        self.means = ClusterMeans(module.clusters, half=options.half)
        floor = SQUARE_FLOOR**0.5
        # Buffers, since the exporter takes small literals for 0.
        self.register_buffer("norm_floor", torch.tensor([floor]))
        self.register_buffer("whole_floor", torch.tensor([floor if module.projection is None else SQUARE_FLOOR]))
        self.projection = None
        if module.projection is not None:
            self.projection = FoldedMap(module.projection, "projection", half=options.half)

    def forward(self, features: Tensor) -> Tensor:
        """Return the descriptor (B,P)."""
        features = features.to(self.logits.weight.dtype)
        means, centres, total = self.means(self.logits(features).softmax(2), features)
        residuals = total * (centres - means)  # (B,K,D)
        norm = (residuals * residuals).sum(1, keepdim=True).sqrt()  # (B,1,D)
        divisor = torch.maximum(norm, self.norm_floor)
        ratio = norm / divisor
        whole = torch.maximum((ratio * ratio).sum(2, keepdim=True).sqrt(), self.whole_floor)
        descriptor: Tensor = (residuals / (divisor * whole)).flatten(1)
        if self.projection is not None:
            descriptor = normalized(self.projection(descriptor), 1, self.norm_floor)
        return descriptor.half() if self.options.output_dtype == "float16" else descriptor
