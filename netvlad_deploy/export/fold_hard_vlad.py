"""VLAD with hard assignment as it is exported.

An assignment jumps where a cosine changes by ever so little, so cosines are in FP32 in every precision. Local
descriptors need no L2-normalisation for them: their length does not change which cosine is the largest. In an FP32
graph the weights of the sums hold 1 over that length, so that no normalised copy of the local descriptors is made. In
an FP16 graph it is made, since 1 over a length may overflow: the product of the sums has the weights 0 and 1, which are
exact, and the length of no sum exceeds the number of local descriptors.
"""

import torch
from torch import Tensor, nn

from netvlad_deploy.models.aggregators.base import Aggregator
from netvlad_deploy.models.aggregators.hard_vlad import HardVLAD
from netvlad_deploy.spec.graph_options import GraphOptions


class FoldedHardVLAD(nn.Module):
    """Features (B,N,D) to the descriptor (B, K*D)."""

    directions: Tensor
    centres: Tensor
    clusters: Tensor
    norm_floor: Tensor

    def __init__(self, module: Aggregator, options: GraphOptions) -> None:
        super().__init__()
        assert isinstance(module, HardVLAD)
        self.options = options
        centres = module.centres.detach().double()
        self.register_buffer("directions", nn.functional.normalize(centres, dim=1).T.float().contiguous())  # (D,K)
        self.register_buffer("centres", centres.float())
        self.register_buffer("clusters", torch.arange(len(centres)))
        self.register_buffer("norm_floor", torch.tensor([1e-12]))  # the exporter takes a literal 1e-12 for 0

    def forward(self, features: Tensor) -> Tensor:
        """Return the descriptor (B, K*D)."""
        single = self.norm_floor.dtype
        features = features.to(single)
        nearest = (features @ self.directions).argmax(2, keepdim=True)  # (B,N,1)
        belongs = (nearest == self.clusters).to(single)  # (B,N,K)
        length = torch.maximum((features * features).sum(2, keepdim=True).sqrt(), self.norm_floor)  # (B,N,1)
        if self.options.half:
            sums = (belongs.half().transpose(1, 2) @ (features / length).half()).to(single)
        else:
            sums = (belongs / length).transpose(1, 2) @ features  # (B,K,N) x (B,N,D)
        residuals = sums - belongs.sum(1).unsqueeze(2) * self.centres  # (B,K,1) * (K,D)
        norms = (residuals * residuals).sum(2, keepdim=True).sqrt()
        divisors = torch.maximum(norms, self.norm_floor)
        ratios = norms / divisors
        global_norm = torch.maximum((ratios * ratios).sum(1, keepdim=True).sqrt(), self.norm_floor)
        descriptor = (residuals / (divisors * global_norm)).flatten(1)
        return descriptor.half() if self.options.output_dtype == "float16" else descriptor
