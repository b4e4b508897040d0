"""A vocabulary for people without a trained head: clusters of local descriptors, and whitening of descriptors.

Source: Arandjelovic et al. 2016, section 3 and appendix A (the initialisation of the layer); whitening as in
Patch-NetVLAD's add_pca.py, with its 1e-9.
"""

import math

import numpy as np
import torch

from netvlad_deploy.errors import InputError
from netvlad_deploy.models.dialects.collaborative_experts import BACKBONE
from netvlad_deploy.models.netvlad import NetVLAD
from netvlad_deploy.models.pipeline import Pipeline
from netvlad_deploy.oracle.reference_file import ASSIGNMENT_BIAS, NORMALIZE_INPUT, PROJECTION_L2
from netvlad_deploy.support.arrays import Array, Arrays, Float32, Float64
from netvlad_deploy.support.require import require

BATCH_SIZE, STARTS = 4096, 3
"""Local descriptors in a step of mini-batch k-means, and how many starts it chooses from."""

ASSIGNMENT_RATIO = 0.01
"""The second-nearest centroid gets, on average, this much of the nearest one's assignment."""

VARIANCE_FLOOR = 1e-9
RANK = 1e-7
"""A direction with less of the largest one's variance is rounding, not data."""

BLOCK_ROWS, COLUMNS = 4096, 2048
"""How many rows, or columns, are converted to float64 at once."""

WEIGHT, PROJECTION_BIAS = "projection.weight", "projection.bias"


def local_descriptors(pipeline: Pipeline, images: Array) -> Float32:
    """Return the L2-normalised local descriptors (B,N,D) of images (B,H,W,3)."""
    with torch.inference_mode():
        rows = torch.nn.functional.normalize(pipeline.local_descriptors(torch.from_numpy(images)), dim=2)
    result: Float32 = rows.numpy()
    return result


def descriptors(pipeline: Pipeline, images: Array) -> Float32:
    """Return the descriptors (B, D*K) of images (B,H,W,3)."""
    with torch.inference_mode():
        result: Float32 = pipeline(torch.from_numpy(images)).numpy()
    return result


def fit_clusters(points: Float32, clusters: int, seed: int) -> Float32:
    """Return the centroids (clusters,D) of points (M,D) by mini-batch k-means; the same seed gives the same ones.

    It runs on one thread, whose order of additions does not change.

    Raises: InputError if there are fewer points than clusters.
    """
    if len(points) < clusters:
        raise InputError(f"{len(points)} local descriptors are too few for {clusters} clusters: pass more images")
    k_means = require("sklearn.cluster", extra="fit").MiniBatchKMeans(
        n_clusters=clusters, batch_size=BATCH_SIZE, n_init=STARTS, random_state=seed
    )
    with require("threadpoolctl", extra="fit").threadpool_limits(1):
        k_means.fit(points)
    centroids: Float32 = k_means.cluster_centers_.astype(np.float32)
    return centroids


def sharpness(points: Float32, centroids: Float32) -> float:
    """Return alpha = -ln(0.01) / mean(d2^2 - d1^2), over distances to the nearest and second-nearest centroid.

    Raises: InputError if no point is nearer to one centroid than to all others.
    """
    centres = centroids.astype(np.float64)
    gaps = 0.0
    for start in range(0, len(points), BLOCK_ROWS):
        rows = points[start : start + BLOCK_ROWS].astype(np.float64)
        squares = (centres**2).sum(axis=1) - 2 * rows @ centres.T  # |x|^2 is the same for every centroid
        nearest = np.partition(squares, 1, axis=1)
        gaps += float((nearest[:, 1] - nearest[:, 0]).sum())
    if not gaps > 0:
        raise InputError("every local descriptor is as near to two centroids: the images are all alike")
    return -math.log(ASSIGNMENT_RATIO) * len(points) / gaps


def head_state(centroids: Float32, alpha: float) -> Arrays:
    """Return the layer under the reference's own names: w = 2 alpha c, b = -alpha |c|^2, local descriptors normalised.

    Then softmax(w x + b) is exp(-alpha |x - c|^2) over its sum.
    """
    centres = centroids.astype(np.float64)
    return {
        "clusters": (2 * alpha * centres.T).astype(np.float32),
        "clusters2": centroids.T[None],
        ASSIGNMENT_BIAS: (-alpha * (centres**2).sum(axis=1)).astype(np.float32),
        NORMALIZE_INPUT: np.ones((), np.float32),
    }


def head_module(state: Arrays) -> NetVLAD:
    """Return the module of `head_state`."""
    _, width, clusters = state["clusters2"].shape
    module = NetVLAD(clusters, width, add_batch_norm=False, assignment_bias=True, normalize_input=True)
    tensors = {name: torch.from_numpy(state[name]) for name in ("clusters", "clusters2", ASSIGNMENT_BIAS)}
    module.load_state_dict(tensors, strict=True)
    return module.eval()


def backbone_state(pipeline: Pipeline) -> Arrays:
    """Return the backbone's tensors as a vocabulary file names them."""
    state = pipeline.backbone.state_dict()
    return {BACKBONE + name: tensor.numpy() for name, tensor in state.items()}


def fit_whitening(points: Float32, size: int) -> Arrays:
    """Return the projection W = U^T / sqrt(variance + 1e-9), b = -W mean of points (M,L) to `size` values, then L2.

    Raises: InputError if there are too few points, or they span too few directions.
    """
    count, length = points.shape
    if not size < count or size > length:
        raise InputError(
            f"whitening to {size} values needs more than {size} images and descriptors at least as long: got {count} "
            f"images, {length} values"
        )
    mean = points.mean(axis=0, dtype=np.float64)
    directions, variances = _principal(points, mean, size)
    if variances[-1] <= RANK * variances[0]:
        rank = int((variances > RANK * variances[0]).sum())
        raise InputError(f"whitening to {size} values: the images span {rank} directions only, ask for fewer")
    weight = directions.T / np.sqrt(variances + VARIANCE_FLOOR)[:, None]
    return {
        WEIGHT: weight.astype(np.float32),
        PROJECTION_BIAS: (-weight @ mean).astype(np.float32),
        PROJECTION_L2: np.ones((), np.float32),
    }


def _principal(points: Float32, mean: Float64, size: int) -> tuple[Float64, Float64]:
    """Return the first principal directions (L,size), and the variance along each.

    From the smaller of the two Gram matrices: fewer images than values is the usual case. The largest value of a
    direction is positive, which fixes its sign.
    """
    count, length = points.shape
    blocks = [slice(start, start + COLUMNS) for start in range(0, length, COLUMNS)]

    def centred(block: slice) -> Float64:
        result: Float64 = points[:, block].astype(np.float64) - mean[block]
        return result

    if count <= length:
        gram = np.zeros((count, count))
        for block in blocks:
            columns = centred(block)
            gram += columns @ columns.T
        squares, left = np.linalg.eigh(gram)
        squares, left = squares[::-1][:size], left[:, ::-1][:, :size]
        left = left / np.sqrt(np.maximum(squares, np.finfo(np.float64).tiny))
        directions = np.concatenate([centred(block).T @ left for block in blocks])
    else:
        rows = centred(slice(None))
        squares, vectors = np.linalg.eigh(rows.T @ rows)
        squares, directions = squares[::-1][:size], vectors[:, ::-1][:, :size]
    signs = np.sign(directions[np.abs(directions).argmax(axis=0), np.arange(size)])
    return directions * signs, squares / (count - 1)
