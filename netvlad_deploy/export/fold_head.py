"""Fold BatchNorm away, rewrite the layer in the mean form, and round it to the precision of the export.

    s  = gamma / sqrt(var + eps)            BatchNorm in eval mode is affine:
    W' = W * s,  b' = beta - mean * s       x W' + b' = BatchNorm(x W)

    A_k = sum_n a_nk                        the sum of a cluster's assignments
    V_k = A_k (sum_n (a_nk / A_k) x_n - c_k) = A_k V'_k

Intra-normalisation cancels A_k, so the graph computes V'_k (docs/adr/0001-mean-form.md), whose divisor is
max(|V'_k|, 1e-12 / A_k), or sqrt(|V'_k|^2 + (1e-6 / A_k)^2) in the epsilon mode `add`. Then the squared norm of the
descriptor is the sum of r_k^2 = |V'_k|^2 / divisor^2: K numbers for each image instead of D*K.

In an FP16 graph the matrix products alone are FP16 (docs/adr/0008-fp16-in-two-matrix-products.md).

    W'_k, b'_k  less their mean over k      softmax ignores an offset that all clusters share; logits become smaller
    W'_k / 2^s_k, and 2^s_k times x W'_k    |W'_k|_1 <= 1, so |x W'_k| <= max|x|: no logit overflows
    V'_k = sum_n w_nk x_n - (sum_n w_nk) c_k    with the weights w as rounded: half the error near a centre

A layer that L2-normalises its input divides logits and weights by the norms s_n, since a normalised copy of x would be
the largest tensor of the graph (docs/adr/0023-norms-beside-the-products.md). FP16 weights are scaled, too:

    l_nk = (x_n.W'_k) / s_n + b'_k,     V'_k = sum_n (w_nk / s_n) x_n - c_k
    r_n = min(t / s_n, 2^15)            t, the mean norm of an image, 2^15 at most: no weight and no mean overflows
    V'_k = (sum_n (w_nk r_n) x_n) / t - (sum_n (w_nk r_n) / r_n) c_k        each (w_nk r_n) as rounded
"""

import torch
from torch import Tensor, nn

from netvlad_deploy.errors import FoldError
from netvlad_deploy.export.fold_projection import FoldedMap, affine_of
from netvlad_deploy.models.affine import is_finite
from netvlad_deploy.models.netvlad import NetVLAD
from netvlad_deploy.spec.graph_options import LARGEST_SCALE, GraphOptions
from netvlad_deploy.spec.layer import ADD, CLUSTERS_LAST, NORM_FLOORS, NetVLADSpec

ASSIGNMENT_FLOOR = 1e-37
"""Smallest divisor of an assignment: a normal FP32 number, below every sum of assignments that changes a descriptor."""


def fold(module: NetVLAD, options: GraphOptions | None = None) -> "FoldedNetVLAD":
    """Return the module in the mean form, with BatchNorm folded into the assignment weights.

    The fold is computed in float64 and rounded once, to the precision of `options`.

    Raises: FoldError if the module is in training mode, a variance is negative or a value is not finite.
    Source: Ioffe & Szegedy 2015, algorithm 2.
    """
    check_foldable(module)
    weight = module.clusters.detach().double()
    bias = None
    if module.batch_norm is not None:
        scale, bias = affine_of(module.batch_norm, "batch_norm")
        weight = weight * scale
    elif module.assignment_bias is not None:
        bias = module.assignment_bias.detach().double()
    folded = FoldedNetVLAD(weight, bias, module.clusters2.detach().double()[0].T, module.spec, options)
    if module.projection is not None:
        folded.projection = FoldedMap(module.projection, "projection", half=folded.options.half)
    if module.gating is not None:
        folded.gating = FoldedMap(module.gating, "gating")
    for name, tensor in folded.named_buffers():
        if not is_finite(tensor):
            raise FoldError(f"folded {name} is not finite: a running_var of BatchNorm is too small for FP32")
    return folded.eval()


def check_foldable(module: nn.Module, prefix: str = "") -> None:
    """Check the mode and the state of a module; `prefix` precedes its names in errors.

    Raises: FoldError if a submodule is in training mode, a value is not finite or a variance is negative.
    """
    for name, part in module.named_modules():
        if part.training:
            where = f"{prefix}{name}" or "the module"
            raise FoldError(f"{where} is in training mode, with batch statistics: call eval() first")
    for name, tensor in module.state_dict().items():
        if not is_finite(tensor):
            raise FoldError(f"{prefix}{name} is not finite: the checkpoint is damaged or training diverged")
        if name.endswith("running_var") and (tensor < 0).any():
            raise FoldError(f"{prefix}{name} has a negative value: the checkpoint is damaged")


def centre_logits(weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Return weight (D,K+G) and bias (K+G,) less their means over the columns, which softmax ignores.

    A single column stays as it is: it would become 0.

    >>> centre_logits(torch.tensor([[1.0, 3.0]]), torch.tensor([0.0, 4.0]))
    (tensor([[-1.,  1.]]), tensor([-2.,  2.]))
    """
    if weight.shape[1] == 1:
        return weight, bias
    return weight - weight.mean(1, keepdim=True), None if bias is None else bias - bias.mean()


def scale_columns(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return weight (D,K+G) over its scale in FP16, and the scale (K+G,): powers of two, 1 for a zero column.

    No column of the result has an L1 norm above 1. The norm is taken after rounding, which may increase it.

    >>> scale_columns(torch.tensor([[3.0, 0.25], [1.0, 0.0]], dtype=torch.float64))
    (tensor([[0.7500, 1.0000],
            [0.2500, 0.0000]], dtype=torch.float16), tensor([4.0000, 0.2500], dtype=torch.float64))
    """
    norm = weight.abs().sum(0)
    exponent = torch.where(norm > 0, norm.log2().ceil(), 0)
    rounded = (weight * torch.exp2(-exponent)).half()
    exponent += rounded.double().abs().sum(0) > 1
    scale = torch.exp2(exponent)
    return (weight / scale).half(), scale


class FoldedNetVLAD(nn.Module):
    """The layer as it is exported: features (B,N,D) to the descriptor (B,P), and the stages before it.

    It takes `assignment_weight` (D,K+G), `assignment_bias` (K+G,) or None, and `centroids` (K,D) in float64, and rounds
    them; the options are FP32 by default.
    """

    projection: FoldedMap | None
    gating: FoldedMap | None

    assignment_weight: Tensor
    assignment_bias: Tensor | None
    assignment_scale: Tensor | None
    centroids: Tensor
    norm_floor: Tensor
    added_square: Tensor | None
    assignment_floor: Tensor
    largest_scale: Tensor | None

    def __init__(
        self,
        assignment_weight: Tensor,
        assignment_bias: Tensor | None,
        centroids: Tensor,
        spec: NetVLADSpec,
        options: GraphOptions | None = None,
    ) -> None:
        super().__init__()
        self.spec = spec
        self.options = options or GraphOptions()
        scale = None
        if self.options.half:
            assignment_weight, assignment_bias = centre_logits(assignment_weight, assignment_bias)
        if self.options.half_logits:
            assignment_weight, scale = scale_columns(assignment_weight)
        else:
            assignment_weight = assignment_weight.float()
        self._hold("assignment_weight", assignment_weight)
        self._hold("assignment_bias", None if assignment_bias is None else assignment_bias.float())
        self._hold("assignment_scale", None if scale is None else scale.float())
        self._hold("centroids", centroids.float().contiguous())
        self.projection = self.gating = None
        # These are buffers because the exporter's optimiser takes a literal 1e-12 for zero and removes it.
        floor = NORM_FLOORS[spec.epsilon]
        self._hold("norm_floor", torch.tensor([floor]))
        self._hold("added_square", torch.tensor([floor**2]) if spec.epsilon == ADD else None)
        scaled = spec.normalize_input and self.options.half
        self._hold("largest_scale", torch.tensor([LARGEST_SCALE]) if scaled else None)
        self._hold("assignment_floor", torch.tensor([ASSIGNMENT_FLOOR]))

    def _hold(self, name: str, value: Tensor | None) -> None:
        """Register a buffer, or set an attribute to None.

        torch's exporter fails on a buffer that is None, and traces such a module again in a slower way.
        """
        if value is None:
            setattr(self, name, None)
        else:
            self.register_buffer(name, value)

    def forward(self, features: Tensor, mask: Tensor | None = None) -> tuple[Tensor, ...]:
        """Return the stages: (B,N,K+G), (B,N,K), twice (B,K,D), the aggregate (B, D*K) and the projected descriptor."""
        rounded = features.half() if self.options.half else features
        norms = self._norms(features) if self.spec.normalize_input else None  # (B,N,1)
        logits = self._logits(features, rounded, norms)
        assignment = self._soft_assignment(logits, mask)
        assignment_sum = assignment.sum(1, keepdim=True)  # (B,1,K)
        weights = assignment / torch.maximum(assignment_sum, self.assignment_floor)
        mean_residual = self._mean_residual(weights, rounded, norms, mask)
        assignment_sum = assignment_sum.transpose(1, 2)  # (B,K,1)
        aggregate = self._normalize(mean_residual, assignment_sum)
        stages = logits, assignment, mean_residual, mean_residual * assignment_sum
        if self.projection is None:
            return *stages, self._stored(aggregate)
        return *stages, aggregate, self._stored(self._project(self.projection(aggregate)))

    def _norms(self, features: Tensor) -> Tensor:
        """Return the norms (B,N,1) of the local descriptors in FP32, kept from 0 as in `spec.epsilon`."""
        wide = features.to(self.norm_floor.dtype)
        return self._divisor((wide * wide).sum(-1, keepdim=True))

    def _logits(self, features: Tensor, rounded: Tensor, norms: Tensor | None) -> Tensor:
        """Return logits (B,N,K+G) in FP32, of `rounded` features if the weights are FP16."""
        single = self.norm_floor.dtype
        if self.assignment_scale is None:
            logits = features.to(single) @ self.assignment_weight  # (B,N,D) x (D,K+G)
        else:
            logits = (rounded @ self.assignment_weight).to(single)
        logits = logits if norms is None else logits / norms  # before the scale: TensorRT-RTX then keeps FP16 products
        logits = logits if self.assignment_scale is None else logits * self.assignment_scale
        return logits if self.assignment_bias is None else logits + self.assignment_bias

    def _mean_residual(self, weights: Tensor, rounded: Tensor, norms: Tensor | None, mask: Tensor | None) -> Tensor:
        """Return V' (B,K,D) of `rounded` features (B,N,D), their norms (B,N,1) and FP32 weights (B,N,K)."""
        if not self.options.half:
            weights = weights if norms is None else weights / norms
            return weights.transpose(1, 2) @ rounded - self._centre(weights)  # (B,K,N) x (B,N,D)
        if norms is None:
            weights = weights.half()
            mean = (weights.transpose(1, 2) @ rounded).to(self.centroids.dtype)
        else:
            scale, factor = self._weight_scales(norms, mask)
            weights = (weights * factor).half()
            mean = (weights.transpose(1, 2) @ rounded).to(self.centroids.dtype) / scale
            weights = weights.to(self.centroids.dtype) / factor
        return mean - self._centre(weights)

    def _centre(self, weights: Tensor) -> Tensor:
        """Return the centroids (K,D), in an FP16 graph (B,K,D), each times the sum of its rounded weights."""
        if not self.options.half:
            return self.centroids  # (K,D)
        return weights.to(self.centroids.dtype).sum(1, keepdim=True).transpose(1, 2) * self.centroids  # (B,K,1) * (K,D)

    def _weight_scales(self, norms: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return t (B,1,1) and r (B,N,1) of norms (B,N,1); rows outside the mask have norm 0 in the mean."""
        assert self.largest_scale is not None
        counted = norms if mask is None else norms * mask.unsqueeze(-1).to(norms.dtype)
        scale = torch.minimum(torch.maximum(counted.mean(1, keepdim=True), self.norm_floor), self.largest_scale)
        return scale, torch.minimum(scale / norms, self.largest_scale)

    def _soft_assignment(self, logits: Tensor, mask: Tensor | None) -> Tensor:
        if self.options.half:  # written out, because TensorRT keeps a second copy of the logits for Softmax
            exponentials = (logits - logits.amax(-1, keepdim=True)).exp()
            assignment = exponentials / exponentials.sum(-1, keepdim=True)
        else:
            assignment = logits.softmax(-1)
        if self.spec.num_ghost_clusters:
            assignment = assignment[..., : self.spec.num_clusters]
        return assignment if mask is None else assignment * mask.unsqueeze(-1).to(assignment.dtype)

    def _normalize(self, mean_residual: Tensor, assignment_sum: Tensor) -> Tensor:
        """Return the aggregate (B, D*K): intra-normalised and L2-normalised in one division, flattened as in `spec`."""
        squares = (mean_residual * mean_residual).sum(-1, keepdim=True)  # (B,K,1)
        floor = self.norm_floor / assignment_sum
        if self.spec.epsilon == ADD:
            squared_divisor = squares + floor * floor
            divisor, ratio_square = squared_divisor.sqrt(), squares / squared_divisor
        else:
            norm = squares.sqrt()
            divisor = torch.maximum(norm, floor)
            ratio = norm / divisor
            ratio_square = ratio * ratio
        global_divisor = self._divisor(ratio_square.sum(1, keepdim=True))  # (B,1,1)
        normalized = mean_residual / (divisor * global_divisor)
        if self.spec.flatten == CLUSTERS_LAST:
            normalized = normalized.transpose(1, 2)
        return normalized.flatten(1)

    def _divisor(self, squares: Tensor) -> Tensor:
        """Return the norm of a sum of squares, kept from 0 as in `spec.epsilon`."""
        if self.added_square is not None:
            return (squares + self.added_square).sqrt()
        return torch.maximum(squares.sqrt(), self.norm_floor)

    def _l2_normalize(self, values: Tensor) -> Tensor:
        """Return values L2-normalised over the last axis."""
        return values / self._divisor((values * values).sum(-1, keepdim=True))

    def _project(self, projected: Tensor) -> Tensor:
        """Return a projection (B,P) after the L2-normalisations and the gating of `spec`."""
        following = self.spec.projection
        if following is not None and following.l2:
            projected = self._l2_normalize(projected)
        if self.gating is not None:
            projected = projected * self.gating(projected).sigmoid()
        return self._l2_normalize(projected) if following is not None and following.final_l2 else projected

    def _stored(self, descriptor: Tensor) -> Tensor:
        return descriptor.half() if self.options.output_dtype == "float16" else descriptor
