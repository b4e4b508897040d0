"""Fit a vocabulary, a head without training: clusters of local descriptors, and a whitening of descriptors.

Source: Arandjelovic et al. 2016, section 3 and appendix A (the initialisation of the layer); whitening as in
Patch-NetVLAD's add_pca.py, with its 1e-9.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np
import torch

from netvlad_deploy.errors import InputError
from netvlad_deploy.models.dialects.collaborative_experts import BACKBONE, COLLABORATIVE_EXPERTS
from netvlad_deploy.models.netvlad import NetVLAD
from netvlad_deploy.models.pipeline import Pipeline
from netvlad_deploy.oracle.reference_file import ASSIGNMENT_BIAS, NORMALIZE_INPUT, PROJECTION_L2
from netvlad_deploy.spec.images import ImageInput
from netvlad_deploy.support.arrays import Array, Arrays, Float32, Float64
from netvlad_deploy.support.records import from_record
from netvlad_deploy.support.require import require

K_MEANS_BATCH_SIZE, K_MEANS_STARTS = 4096, 3
"""Local descriptors in a step of mini-batch k-means, and random starts of which it keeps the best."""

ASSIGNMENT_RATIO = 0.01
"""Average assignment to the second-nearest centroid, as a part of that to the nearest."""

VARIANCE_FLOOR = 1e-9
MIN_VARIANCE_RATIO = 1e-7
"""A direction with a smaller part of the largest variance comes from rounding, not from the data."""

SHARPNESS_BLOCK_ROWS, GRAM_BLOCK_COLUMNS = 4096, 2048
"""Rows, or columns, that are converted to float64 at a time."""

PROJECTION_WEIGHT, PROJECTION_BIAS = "projection.weight", "projection.bias"
METADATA_KEY = "netvlad-deploy/vocabulary/1"


@dataclass(frozen=True, kw_only=True)
class VocabularyRecord:
    """The record in the metadata of a vocabulary file: its backbone, its image input, and how it was fitted.

    It has names and numbers only: nothing is imported because a file names it.

    Args:
        backbone: the name of the backbone.
        images: the image input: resize, crop and normalisation of each image.
        num_images: number of images on which it was fitted.
        num_descriptors: number of local descriptors on which the clusters were fitted.
        seed: seed of the sample and of k-means.
        alpha: sharpness of the assignments, see `sharpness`.
        versions: versions of the packages that fitted it.
    """

    backbone: str
    images: ImageInput
    num_images: int
    num_descriptors: int
    seed: int
    alpha: float
    versions: Mapping[str, str]

    def metadata(self) -> dict[str, str]:
        """Return the record as the metadata of a safetensors file."""
        return {METADATA_KEY: json.dumps(asdict(self), sort_keys=True)}

    @classmethod
    def parse(cls, metadata: Mapping[str, str]) -> "VocabularyRecord | None":
        """Return the record in the metadata of a file, None if there is none.

        Raises: InputError if the record is damaged.
        """
        if METADATA_KEY not in metadata:
            return None
        try:
            return from_record(cls, json.loads(metadata[METADATA_KEY]))
        except (ValueError, RecursionError) as error:
            raise InputError(f"the record of its vocabulary is damaged ({error}): fit it again") from error


def local_descriptors(pipeline: Pipeline, images: Array) -> Float32:
    """Return the L2-normalised local descriptors (B,N,D) of images (B,H,W,3), uint8 RGB."""
    with torch.inference_mode():
        rows = torch.nn.functional.normalize(pipeline.local_descriptors(torch.from_numpy(images)), dim=2)
    return rows.numpy()


def descriptors(pipeline: Pipeline, images: Array) -> Float32:
    """Return the descriptors (B, D*K) of images (B,H,W,3), uint8 RGB."""
    with torch.inference_mode():
        result: Float32 = pipeline(torch.from_numpy(images)).numpy()
    return result


def fit_clusters(points: Float32, clusters: int, seed: int) -> Float32:
    """Return the centroids (clusters,D) of points (M,D) by mini-batch k-means; a seed always gives the same centroids.

    Raises: InputError if there are fewer points than clusters.
    """
    if len(points) < clusters:
        raise InputError(f"{len(points)} local descriptors are too few for {clusters} clusters: pass more images")
    k_means = require("sklearn.cluster", extra="fit").MiniBatchKMeans(
        n_clusters=clusters, batch_size=K_MEANS_BATCH_SIZE, n_init=K_MEANS_STARTS, random_state=seed
    )
    # Several threads would add in an order that changes from run to run, and with it the rounding.
    with require("threadpoolctl", extra="fit").threadpool_limits(1):
        k_means.fit(points)
    centroids: Float32 = k_means.cluster_centers_.astype(np.float32)
    return centroids


def sharpness(points: Float32, centroids: Float32) -> float:
    """Return alpha = -ln(0.01) / mean(d2^2 - d1^2), with the distances d1, d2 to the two nearest centroids.

    Raises: InputError if no point is nearer to one centroid than to all others.

    >>> points = np.array([[0.0], [1.0]], np.float32)
    >>> round(sharpness(points, centroids=points), 3)
    4.605
    """
    centres = centroids.astype(np.float64)
    gaps = 0.0
    for start in range(0, len(points), SHARPNESS_BLOCK_ROWS):
        rows = points[start : start + SHARPNESS_BLOCK_ROWS].astype(np.float64)
        squares = (centres**2).sum(axis=1) - 2 * rows @ centres.T  # |x|^2 is the same for every centroid
        nearest = np.partition(squares, 1, axis=1)
        gaps += float((nearest[:, 1] - nearest[:, 0]).sum())
    if not gaps > 0:
        raise InputError("every local descriptor is as near to two centroids: the images are all alike")
    return -math.log(ASSIGNMENT_RATIO) * len(points) / gaps


def head_state(centroids: Float32, alpha: float) -> Arrays:
    """Return the state of a layer that L2-normalises its input, with weights 2 alpha c and biases -alpha |c|^2.

    Its softmax assigns x to a centroid c by exp(-alpha |x - c|^2), divided by the sum over all centroids.
    """
    centres = centroids.astype(np.float64)
    return {
        "clusters": (2 * alpha * centres.T).astype(np.float32),
        "clusters2": centroids.T[None],
        ASSIGNMENT_BIAS: (-alpha * (centres**2).sum(axis=1)).astype(np.float32),
        NORMALIZE_INPUT: np.ones((), np.float32),
    }


def head_module(state: Arrays) -> NetVLAD:
    """Return the module in eval mode that has the state of `head_state`."""
    tensors = {name: torch.from_numpy(array) for name, array in state.items()}
    return COLLABORATIVE_EXPERTS.convert(tensors, "").netvlad("the vocabulary")


def backbone_state(pipeline: Pipeline) -> Arrays:
    """Return the backbone's tensors under the names of a vocabulary file."""
    state = pipeline.backbone.state_dict()
    return {BACKBONE + name: tensor.numpy() for name, tensor in state.items()}


def fit_whitening(points: Float32, size: int) -> Arrays:
    """Return the whitening of points (M,L) to `size` values, as a projection with an L2 normalisation after it.

    With the first principal directions U (L,size) its weight is W = U^T / sqrt(variance + 1e-9), its bias -W mean.

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
    if variances[-1] <= MIN_VARIANCE_RATIO * variances[0]:
        rank = int((variances > MIN_VARIANCE_RATIO * variances[0]).sum())
        raise InputError(f"whitening to {size} values: the images span {rank} directions only, ask for fewer")
    weight = directions.T / np.sqrt(variances + VARIANCE_FLOOR)[:, None]
    return {
        PROJECTION_WEIGHT: weight.astype(np.float32),
        PROJECTION_BIAS: (-weight @ mean).astype(np.float32),
        PROJECTION_L2: np.ones((), np.float32),
    }


def _principal(points: Float32, mean: Float64, size: int) -> tuple[Float64, Float64]:
    """Return the first principal directions (L,size) of points (M,L), and the variance (size,) along each.

    They come from the smaller of the two Gram matrices, (M,M) or (L,L); there are usually fewer images than values. The
    value of a direction that is largest by magnitude is made positive, which fixes the sign.
    """
    count, length = points.shape
    blocks = [slice(start, start + GRAM_BLOCK_COLUMNS) for start in range(0, length, GRAM_BLOCK_COLUMNS)]

    def centred(block: slice) -> Float64:
        return points[:, block].astype(np.float64) - mean[block]

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
