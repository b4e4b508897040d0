"""GhostVLAD of speaker recognition as it is exported: in the mean form, as a NetVLAD is (`export/fold_head.py`).

In an FP16 graph its three matrix products are FP16. The columns of the logits are centred and scaled, the last layer's
rows are scaled, and both scales are applied in FP32, so that no product exceeds its largest operand.
"""

import torch
from torch import Tensor, nn

from netvlad_deploy.export.fold_head import centre_logits
from netvlad_deploy.export.mean_form import ClusterMeans, Product, normalized
from netvlad_deploy.models.aggregators.base import Aggregator
from netvlad_deploy.models.aggregators.ghost_vlad import GhostVLAD
from netvlad_deploy.spec.graph_options import GraphOptions
from netvlad_deploy.spec.layer import NORM_FLOORS, RSQRT


class FoldedGhostVLAD(nn.Module):
    """Features (B,N,D) and assignment features (B,N,A) to the descriptor (B,P)."""

    norm_floor: Tensor

    def __init__(self, module: Aggregator, options: GraphOptions) -> None:
        super().__init__()
        assert isinstance(module, GhostVLAD)
        self.options, self.num_clusters = options, module.num_clusters
        state = {name: tensor.detach().double() for name, tensor in module.state_dict().items()}
        weight, bias = centre_logits(state["assignment.weight"].T, state["assignment.bias"])
        assert bias is not None
        self.logits = Product(weight, bias, half=options.half)
        self.projection = Product(state["projection.weight"].T, state["projection.bias"], half=options.half)
        self.means = ClusterMeans(state["centres"], half=options.half)
        self.register_buffer("norm_floor", torch.tensor([NORM_FLOORS[RSQRT]]))  # the exporter takes a literal for 0

    def forward(self, features: Tensor, assignment_features: Tensor) -> Tensor:
        """Return the descriptor (B,P)."""
        shares = self.logits(assignment_features).softmax(2)[:, :, : self.num_clusters]  # (B,N,K)
        means, centres, share_sum = self.means(shares, features.to(self.logits.weight.dtype))
        clusters = normalized(means - centres, 2, self.norm_floor / share_sum)
        descriptor = normalized(self.projection(clusters.flatten(1)).relu(), 1, self.norm_floor)
        return descriptor.half() if self.options.output_dtype == "float16" else descriptor
