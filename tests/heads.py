"""Sharp heads as training leaves them, and the features on which FP16 is judged."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from netvlad_deploy.models.netvlad import NetVLAD
from netvlad_deploy.parity.heads import CaseParity, OutputParity, ParityReport
from netvlad_deploy.support.arrays import Float32, unit_rows

CENTROID_NORM = 0.9


def vocabulary_head(centroids: Float32, alpha: float, ghosts: int = 0) -> NetVLAD:
    """Return the layer of a vocabulary (K+G,D): W = 2 alpha c, b = -alpha |c|^2, as Arandjelovic et al. 2016 start it.

    BatchNorm carries the bias, with a variance of 1.
    """
    columns, width = centroids.shape
    module = NetVLAD(
        cluster_size=columns - ghosts, feature_size=width, ghost_clusters=ghosts, add_batch_norm=True
    ).eval()
    norm = module.batch_norm
    assert norm is not None
    assert norm.running_var is not None
    norm.running_var.fill_(1 - norm.eps)
    exact = torch.from_numpy(centroids.astype(np.float64))
    norm.bias.data.copy_(-alpha * (exact**2).sum(1))
    module.clusters.data.copy_(2 * alpha * exact.T)
    module.clusters2.data.copy_(exact[: columns - ghosts].T[None])
    return module


def sharp_head(clusters: int, width: int, ghosts: int, alpha: float, seed: int) -> NetVLAD:
    """Return the layer of a random vocabulary whose centroids, and ghosts, have norm 0.9."""
    centroids = unit_rows(np.random.default_rng(seed).standard_normal((clusters + ghosts, width)))
    return vocabulary_head((CENTROID_NORM * centroids).astype(np.float32), alpha, ghosts)


def trying_features(module: NetVLAD, seed: int, images: int = 32, rows: int = 300) -> Iterator[tuple[str, Float32]]:
    """Yield features (images, rows, D) by name, in float32."""
    random = np.random.default_rng(seed)
    width = module.spec.feature_size
    centroids = module.clusters2.detach()[0].T.numpy()

    def gaussian(count: int = rows) -> Float32:
        return random.standard_normal((images, count, width), dtype=np.float32)

    unit = unit_rows(gaussian())
    half = unit.copy()
    half[:, ::2] = 0
    chosen = centroids[random.integers(0, max(1, len(centroids) // 4), size=(images, rows))]
    wild = gaussian()
    yield "unit norm", unit
    yield "unit norm x 1e-4", unit * np.float32(1e-4)
    near: Float32 = chosen + np.float32(CENTROID_NORM / 2) * unit_rows(gaussian())
    yield "near a quarter of the centroids", near
    yield "N=8", unit_rows(gaussian(8))
    yield "half of the rows zero", half
    yield "N=1", unit_rows(gaussian(1))
    yield "gaussian", wild
    yield "gaussian x 100", wild * 100
    yield "norm 450", 450 * unit_rows(wild + 20)


def adapt_soccernet(path: Path, target: Path) -> Path:
    """Write the SoccerNet head (K=64, D=512, no bias) under the reference's own names."""
    state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    torch.save(
        {
            "clusters": state["pool_layer.conv.weight"][:, :, 0, 0].T.contiguous(),
            "clusters2": state["pool_layer.centroids"].T[None].contiguous(),
        },
        target,
    )
    return target


def outputs_of(report: ParityReport) -> Iterator[tuple[CaseParity, OutputParity]]:
    """Yield every case with each of its outputs, in order."""
    return ((case, output) for case in report.cases for output in case.outputs)
