"""Modules, features and an independent copy of the layer for the tests."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from netvlad_deploy.models.netvlad import NetVLAD, initialize
from netvlad_deploy.oracle.equations import ReferenceParameters
from netvlad_deploy.oracle.reference_file import parameters_from_arrays, reference_arrays
from netvlad_deploy.spec.graph_options import FeatureRange
from netvlad_deploy.spec.layer import NetVLADSpec, Projection

RANGE = FeatureRange(norm=1, largest=None, logit_slope=2, logit_step=2.0**-22)
"""What an artifact needs to say where a test does not care."""


def make_module(clusters: int, width: int, ghosts: int = 0, batch_norm: bool = True, seed: int = 0) -> NetVLAD:
    """Return an eval module whose BatchNorm statistics are far from 0 and 1, as training leaves them."""
    spec = NetVLADSpec(num_clusters=clusters, feature_size=width, num_ghost_clusters=ghosts, batch_norm=batch_norm)
    module = initialize(spec, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    if (norm := module.batch_norm) is not None:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        columns = clusters + ghosts
        norm.running_mean.copy_(torch.randn(columns, generator=generator))
        norm.running_var.copy_(10 ** (2.5 * torch.rand(columns, generator=generator) - 2))
        norm.weight.data.copy_(0.5 + torch.rand(columns, generator=generator))
        norm.bias.data.copy_(torch.randn(columns, generator=generator))
    return module


def features(*shape: int, seed: int = 0, scale: float = 1.0) -> npt.NDArray[np.float32]:
    """Return gaussian features (B,N,D)."""
    values = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
    values *= scale
    return values


class StraightNetVLAD(nn.Module):
    """The layer as its papers state it, in whatever dtype its tensors have: one image and cluster at a time.

    Written for these tests from the equations, with the state_dict names of the collaborative-experts module.
    """

    def __init__(self, clusters: int, width: int, ghosts: int, batch_norm: bool) -> None:
        super().__init__()
        self.clusters = nn.Parameter(torch.zeros(width, clusters + ghosts))
        self.clusters2 = nn.Parameter(torch.zeros(1, width, clusters))
        if batch_norm:
            self.batch_norm = nn.BatchNorm1d(clusters + ghosts)

    def forward(self, x: Tensor) -> Tensor:
        """Return descriptors (B, D*K) of x (B,N,D)."""
        batch, rows, width = x.shape
        count = self.clusters2.shape[2]
        logits = x.reshape(batch * rows, width) @ self.clusters
        if hasattr(self, "batch_norm"):
            logits = self.batch_norm(logits)
        assignment = torch.exp(logits - torch.logsumexp(logits, dim=1, keepdim=True)).reshape(batch, rows, -1)
        images = []
        for item in range(batch):
            columns = []
            for k in range(count):
                residuals = assignment[item, :, k, None] * (x[item] - self.clusters2[0, :, k])
                total = residuals.sum(dim=0)
                columns.append(total / total.norm().clamp_min(1e-12))
            matrix = torch.stack(columns, dim=1)  # (D,K): index d*K + k
            images.append(matrix.reshape(-1) / matrix.norm().clamp_min(1e-12))
        return torch.stack(images)


def make_projected(
    projection: Projection, clusters: int = 6, width: int = 16, ghosts: int = 2, *, seed: int = 0, **conventions: Any
) -> NetVLAD:
    """Return an eval module as `make_module` does, followed by a projection whose statistics are trained, too."""
    spec = NetVLADSpec(
        num_clusters=clusters, feature_size=width, num_ghost_clusters=ghosts, projection=projection, **conventions
    )
    module, head = initialize(spec, seed), make_module(clusters, width, ghosts, seed=seed)
    module.load_state_dict(head.state_dict(), strict=False)
    generator = torch.Generator().manual_seed(seed + 2)
    for part in (module.projection, module.gating):
        if part is None:
            continue
        if part.bias is not None:
            part.bias.data.copy_(0.2 * torch.randn(part.bias.shape, generator=generator))
        if (norm := part.batch_norm) is not None and norm.running_mean is not None and norm.running_var is not None:
            columns = norm.num_features
            norm.running_mean.copy_(0.1 * torch.randn(columns, generator=generator))
            norm.running_var.copy_(0.02 * torch.rand(columns, generator=generator) + 0.002)
            norm.weight.data.copy_(0.5 + torch.rand(columns, generator=generator))
            norm.bias.data.copy_(torch.randn(columns, generator=generator))
    return module


def parameters_of(module: NetVLAD) -> ReferenceParameters:
    """Return what the oracle reads of a module's file."""
    from netvlad_deploy.export.onnx_model import _reference_arrays

    return parameters_from_arrays(reference_arrays(_reference_arrays(module), module.spec))
