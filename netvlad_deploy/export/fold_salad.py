"""SALAD as it is exported: Sinkhorn as a chain of divisions, with no maximum over N and no logarithm.

The three steps in the log domain are the same as dividing a matrix of masses by turns: by its sums over the local
descriptors, so that a cluster holds the mass 1 and the dustbin N - K, and by its sums over clusters and dustbin, so
that a local descriptor gives 1. The first division, of the exponentials of the scores, is a softmax over the local
descriptors, which cannot overflow. Behind it no sum comes near 0: the dustbin has the same score for all, so it holds
1 / N of its mass from each, and a cluster that holds the mass 1 keeps at least 1 / N of it.

What is the same for all local descriptors cancels in that first division: the dustbin's score, and the last bias of the
scores. `dust_bin` and that bias change no descriptor.

In an FP16 graph the matrix products are FP16, and the plan and every norm FP32:

    hidden unit j    w_j / 2^s_j and b_j / 2^s_j, so that |h_j| <= max|x| + |b_j| / 2^s_j; 2^s_j goes to the next layer
    values           f = 2^t f' + b: f' comes out of its product in FP16, and 2^t and b are applied to the K sums
    masses           divided by their sum over a cluster, which its L2 normalisation cancels: |sum| <= max|f'|
"""

import torch
from torch import Tensor, nn

from netvlad_deploy.export.fold_head import scale_columns
from netvlad_deploy.models.aggregators.base import Aggregator
from netvlad_deploy.models.aggregators.salad import SINKHORN_STEPS, Salad
from netvlad_deploy.spec.graph_options import GraphOptions


class TwoLayers(nn.Module):
    """Two layers with a ReLU between them: `product(x) * scale + bias` is their result."""

    first: Tensor
    first_bias: Tensor
    second: Tensor
    scale: Tensor
    bias: Tensor

    def __init__(self, layers: nn.Sequential, *, half: bool) -> None:
        super().__init__()
        state = {name: tensor.detach().double() for name, tensor in layers.state_dict().items()}
        first, second, bias = state["0.weight"].T, state["2.weight"].T, state["2.bias"]  # (I,H), (H,O), (O,)
        first_bias = state["0.bias"]
        scale = torch.ones(second.shape[1])
        self.has_scale = half
        if half:
            first, hidden_scale = scale_columns(first)
            second, scale = scale_columns(second * hidden_scale[:, None])
            first_bias = first_bias / hidden_scale
        dtype = torch.float16 if half else torch.float32
        for name, tensor in {"first": first, "first_bias": first_bias, "second": second}.items():
            self.register_buffer(name, tensor.to(dtype).contiguous())
        self.register_buffer("scale", scale.float())
        self.register_buffer("bias", bias.float())

    def product(self, vectors: Tensor) -> Tensor:
        """Return the second layer's product (...,O) of vectors (...,I), in the dtype of the weights."""
        return (vectors @ self.first + self.first_bias).relu() @ self.second

    def scaled(self, products: Tensor) -> Tensor:
        """Return products, or sums of them, in FP32 and with their scale."""
        products = products.to(self.bias.dtype)
        return products * self.scale if self.has_scale else products

    def forward(self, vectors: Tensor) -> Tensor:
        """Return the result (...,O) in FP32."""
        return self.scaled(self.product(vectors)) + self.bias


class FoldedSalad(nn.Module):
    """SALAD as it is exported: features (B,N,D) and token (B,D) to the descriptor (B, T+C*K)."""

    norm_floor: Tensor

    def __init__(self, module: Aggregator, options: GraphOptions) -> None:
        super().__init__()
        assert isinstance(module, Salad)
        self.options, half = options, options.half
        self.num_clusters = module.num_clusters
        self.token_features, self.cluster_features, self.score = (
            TwoLayers(layers, half=half) for layers in (module.token_features, module.cluster_features, module.score)
        )
        self.register_buffer("norm_floor", torch.tensor([1e-12]))  # the exporter takes a literal 1e-12 for 0

    def forward(self, features: Tensor, token: Tensor) -> Tensor:
        """Return the descriptor (B, T+C*K)."""
        dtype = self.score.first.dtype
        features, token = features.to(dtype), token.to(dtype)
        weights = self._plan(self.score.scaled(self.score.product(features)))  # (B,N,K)
        weights = (weights / weights.sum(1, keepdim=True)).to(dtype)
        sums = weights.transpose(1, 2) @ self.cluster_features.product(features)  # (B,K,N) x (B,N,C)
        bias = self.cluster_features.bias
        if self.options.half:  # the rounded weights of a cluster do not quite sum to 1
            bias = weights.to(bias.dtype).sum(1).unsqueeze(2) * bias  # (B,K,1) * (C,)
        clusters, cluster_ratios = self._normalize(self.cluster_features.scaled(sums) + bias)
        part, part_ratio = self._normalize(self.token_features(token))
        squares = (cluster_ratios * cluster_ratios).sum(1) + part_ratio * part_ratio  # (B,1)
        descriptor = torch.cat((part, clusters.transpose(1, 2).flatten(1)), dim=1)
        descriptor = descriptor / torch.maximum(squares.sqrt(), self.norm_floor)
        return descriptor.half() if self.options.output_dtype == "float16" else descriptor

    def _plan(self, scores: Tensor) -> Tensor:
        """Return the mass (B,N,K) of every local descriptor in every cluster, of scores (B,N,K)."""
        plan = scores.softmax(1)
        total = plan.sum(2, keepdim=True)  # (B,N,1)
        count = (total >= 0).to(total.dtype).sum(1, keepdim=True)  # N, without arithmetic on shapes
        root = (count - self.num_clusters).sqrt()  # NaN with fewer local descriptors than clusters, as in the original
        left = root * root  # the dustbin's mass (B,1,1)
        dust = 1 / count  # its share from every local descriptor
        for step in range(SINKHORN_STEPS):
            if step:
                plan = plan / plan.sum(1, keepdim=True)
                dust = dust / dust.sum(1, keepdim=True)
                total = plan.sum(2, keepdim=True)
            total = total + left * dust
            plan, dust = plan / total, dust / total
        return plan

    def _normalize(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return values L2-normalised over the last axis, and the norms that they then have."""
        norm = (values * values).sum(-1, keepdim=True).sqrt()
        divisor = torch.maximum(norm, self.norm_floor)
        return values / divisor, norm / divisor
