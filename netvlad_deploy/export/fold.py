"""Fold BatchNorm away and rewrite the layer in the mean form.

    s  = gamma / sqrt(var + eps)            BatchNorm in eval mode is affine:
    W' = W * s,  b' = beta - mean * s       x W' + b' = BatchNorm(x W)

    A_k = sum_n a_nk                        the sum of a cluster's assignments
    V_k = A_k (sum_n (a_nk / A_k) x_n - c_k) = A_k V'_k

Intra-normalisation cancels A_k, so the graph computes V'_k: the weighted mean of the features less the centre. The
weights of a cluster sum to 1, so nothing overflows that was not infinite before, and no product of two sums is
left. The clamp max(|V_k|, 1e-12) becomes max(|V'_k|, 1e-12 / A_k), which for an empty cluster (A_k = 0) divides
by infinity and gives exactly 0. After intra-normalisation the squared norm of the descriptor is the sum of
r_k^2 = (|V'_k| / max(|V'_k|, 1e-12 / A_k))^2: K numbers for each image instead of D*K.
"""

import torch
from torch import Tensor, nn

from netvlad_deploy.errors import FoldError
from netvlad_deploy.models.netvlad import NetVLAD
from netvlad_deploy.spec import NORM_FLOOR, NetVLADSpec

ASSIGNMENT_FLOOR = 1e-37
"""Smallest divisor for an assignment: below every sum that the clamp of the norm leaves visible, and normal in FP32."""


def fold(module: NetVLAD, *, probe: bool = False) -> "FoldedNetVLAD":
    """Return the module in the mean form, with BatchNorm in the assignment projection.

    The fold is computed in float64 and rounded once to FP32. With `probe` the module also returns the soft
    assignment and the residual sum.

    Raises: FoldError if the module is in training mode, a variance is negative or a value is not finite.
    Source: Ioffe & Szegedy 2015, algorithm 2.
    """
    _check_foldable(module)
    weight = module.clusters.detach().double()
    bias = None
    if (norm := module.batch_norm) is not None:
        mean, variance = norm.running_mean, norm.running_var
        if mean is None or variance is None:
            raise FoldError("batch_norm has no running statistics: train with track_running_stats=True")
        if norm.weight is None or norm.bias is None:
            raise FoldError("batch_norm has no weight and bias: train with affine=True")
        scale = norm.weight.detach().double() / (variance.double() + norm.eps).sqrt()
        weight = weight * scale
        bias = norm.bias.detach().double() - mean.double() * scale
    folded = FoldedNetVLAD(weight, bias, module.clusters2.detach().double()[0].T, module.spec, probe)
    for name, tensor in folded.named_buffers():
        if not tensor.isfinite().all():
            raise FoldError(f"folded {name} is not finite: batch_norm.running_var is too small for FP32")
    return folded.eval()


def _check_foldable(module: NetVLAD) -> None:
    for name, part in module.named_modules():
        if part.training:
            raise FoldError(f"{name or 'the module'} is in training mode, with batch statistics: call eval() first")
    for name, tensor in module.state_dict().items():
        if not tensor.isfinite().all():
            raise FoldError(f"{name} is not finite: the checkpoint is damaged or training diverged")
        if name.endswith("running_var") and (tensor < 0).any():
            raise FoldError(f"{name} has a negative value: the checkpoint is damaged")


class FoldedNetVLAD(nn.Module):
    """The layer as it is exported: features (B,N,D) to descriptor (B, D*K), probes on request.

    Args: assignment_weight (D,K+G); assignment_bias (K+G,) or None; centroids (K,D), all rounded here to FP32.
    """

    assignment_weight: Tensor
    assignment_bias: Tensor | None
    centroids: Tensor
    norm_floor: Tensor
    assignment_floor: Tensor

    def __init__(
        self,
        assignment_weight: Tensor,
        assignment_bias: Tensor | None,
        centroids: Tensor,
        spec: NetVLADSpec,
        probe: bool,
    ) -> None:
        super().__init__()
        self.spec = spec
        self.probe = probe
        self.register_buffer("assignment_weight", assignment_weight.float())
        self.register_buffer("assignment_bias", None if assignment_bias is None else assignment_bias.float())
        self.register_buffer("centroids", centroids.float().contiguous())
        # Buffers, not literals: the exporter's optimiser takes 1e-12 for zero and drops it.
        self.register_buffer("norm_floor", torch.tensor([NORM_FLOOR]))
        self.register_buffer("assignment_floor", torch.tensor([ASSIGNMENT_FLOOR]))

    def forward(self, features: Tensor, mask: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor, Tensor]:
        """Return the descriptor, and with `probe` on also soft_assignment (B,N,K) and residual_sum (B,K,D)."""
        assignment = self._soft_assignment(features, mask)
        assignment_sum = assignment.sum(1, keepdim=True)  # (B,1,K)
        weights = assignment / torch.maximum(assignment_sum, self.assignment_floor)
        assignment_sum = assignment_sum.transpose(1, 2)  # (B,K,1)
        mean_residual = weights.transpose(1, 2) @ features - self.centroids  # (B,K,N) x (B,N,D) - (K,D)
        descriptor = self._normalize(mean_residual, assignment_sum)
        if self.probe:
            return descriptor, assignment, mean_residual * assignment_sum
        return descriptor

    def _soft_assignment(self, features: Tensor, mask: Tensor | None) -> Tensor:
        logits = features @ self.assignment_weight  # (B,N,D) x (D,K+G)
        if self.assignment_bias is not None:
            logits = logits + self.assignment_bias
        assignment = logits.softmax(-1)
        if self.spec.num_ghost_clusters:
            assignment = assignment[..., : self.spec.num_clusters]
        return assignment if mask is None else assignment * mask.unsqueeze(-1).to(assignment.dtype)

    def _normalize(self, mean_residual: Tensor, assignment_sum: Tensor) -> Tensor:
        """Intra-normalise and L2-normalise (B,K,D) in one division, then flatten to d*K + k."""
        norm = (mean_residual * mean_residual).sum(-1, keepdim=True).sqrt()  # (B,K,1)
        divisor = torch.maximum(norm, self.norm_floor / assignment_sum)
        ratio = norm / divisor
        global_norm = torch.maximum((ratio * ratio).sum(1, keepdim=True).sqrt(), self.norm_floor)  # (B,1,1)
        return (mean_residual / (divisor * global_norm)).transpose(1, 2).flatten(1)
