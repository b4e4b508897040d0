"""Resize pixels in NumPy as torch and OpenCV do it: every value is a weighted sum of neighbours, rows then columns.

A filter is two vectors of weights for each output place, for the rows and for the columns. Pillow, which is
faster, computes the other filters: see `images.FILTERS`.
"""

from typing import Final

import numpy as np
import numpy.typing as npt

from netvlad_deploy.spec.images import ALIASED, ANTIALIASED, AREA, NEAREST, Size
from netvlad_deploy.support.arrays import Array, Float32

OUTPUT_BLOCK: Final = 32
"""Output places that share a matrix product: their neighbours overlap, so that few of its weights are 0."""

SLIVER: Final = 1e-3
"""A smaller part of a pixel counts as none in `area`. Source: OpenCV, `computeResizeAreaTab` in resize.cpp."""

Weights = tuple[npt.NDArray[np.int64], Float32]
"""First neighbour of each output place (N,), and the weights of its T neighbours (N,T)."""


def resample(pixels: npt.NDArray[np.uint8], size: Size, kernel: str, factor: float | None = None) -> Float32:
    """Return an image (H,W,C) at another height and width, not rounded.

    Args:
        pixels: the image.
        size: its new height and width.
        kernel: a filter of this module.
        factor: multiplier of both sides before they were rounded down to `size`. torch then places the pixels by the
            factor; without one, by the quotient of the lengths. `area` takes no notice of it.

    OpenCV's `area` enlarges by plain bilinear sampling if either side grows, which its users ask for. Source: cvg's
    Hierarchical-Localization, `resize_image` in extract_features.py; torch, `compute_scales_value` in UpSample.h.
    """
    if kernel == AREA and (size[0] > pixels.shape[0] or size[1] > pixels.shape[1]):
        kernel, factor = ALIASED, None
    rows, columns = (_weights(kernel, *lengths, factor) for lengths in zip(pixels.shape, size, strict=False))
    shorter = _shrink_rows(pixels.transpose(2, 0, 1), rows)  # (C,H,W) to (C,N,W)
    resampled: Float32 = _shrink_rows(shorter.transpose(0, 2, 1), columns).transpose(2, 1, 0)
    return resampled


def to_bytes(values: Float32) -> npt.NDArray[np.uint8]:
    """Return values rounded to whole numbers from 0 to 255, halves to the even one."""
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def _shrink_rows(planes: Array, weights: Weights) -> Float32:
    """Return the weighted sums of rows of (C,H,W) as (C,N,W)."""
    starts, shares = weights
    length, taps = planes.shape[1], shares.shape[1]
    result = np.empty((planes.shape[0], len(starts), planes.shape[2]), np.float32)
    for first in range(0, len(starts), OUTPUT_BLOCK):
        inside = starts[first : first + OUTPUT_BLOCK]
        low, high = int(inside[0]), min(int(inside[-1]) + taps, length)
        matrix = np.zeros((len(inside), high - low + taps), np.float32)
        places = (inside - low)[:, None] + np.arange(taps)
        np.put_along_axis(matrix, places, shares[first : first + OUTPUT_BLOCK], axis=1)
        np.matmul(
            matrix[:, : high - low],
            np.ascontiguousarray(planes[:, low:high], dtype=np.float32),
            out=result[:, first : first + OUTPUT_BLOCK],
        )
    return result


def _weights(kernel: str, length: int, target: int, factor: float | None) -> Weights:
    """Return the weights of an axis; those of places outside it are 0."""
    if kernel == AREA:
        starts, shares = _area(length, target)
    else:  # torch computes how far apart output places are, and all that follows, in float32
        scale = np.float32(length) / np.float32(target) if factor is None else np.float32(1 / factor)
        weigh = {ANTIALIASED: _antialiased, ALIASED: _aliased, NEAREST: _nearest}[kernel]
        starts, shares = weigh(length, target, scale)
    outside = starts[:, None] + np.arange(shares.shape[1]) >= length
    return starts, np.where(outside, 0, shares).astype(np.float32)


def _aliased(length: int, target: int, scale: np.float32) -> Weights:
    """Weigh the two nearest pixels. Source: torch, `area_pixel_compute_source_index` in UpSample.h."""
    exact = np.float64(scale) * (np.arange(target) + 0.5) - 0.5  # rounded once, as a fused product is
    place = np.maximum(exact.astype(np.float32), 0)
    starts = np.minimum(place.astype(np.int64), length - 1)
    share = place - starts.astype(np.float32)
    last = starts == length - 1
    shares = np.stack([np.where(last, 1, 1 - share), np.where(last, 0, share)], axis=1)
    return starts, shares.astype(np.float32)


def _antialiased(length: int, target: int, scale: np.float32) -> Weights:
    """Weigh by a triangle as wide as two output places. Source: torch, `_compute_indices_min_size_weights_aa`."""
    support, half = max(scale, np.float32(1)), np.float32(0.5)
    centre = scale * (np.arange(target, dtype=np.float32) + half)
    starts = np.maximum((centre - support + half).astype(np.int64), 0)
    stops = np.minimum((centre + support + half).astype(np.int64), length)
    place = starts[:, None] + np.arange(int((stops - starts).max()))
    distance = np.abs((place - centre[:, None].astype(np.float64) + 0.5) / np.float64(support))
    shares = np.where(place < stops[:, None], np.maximum(1 - distance, 0), 0)
    return starts, (shares / shares.sum(axis=1, keepdims=True)).astype(np.float32)


def _area(length: int, target: int) -> Weights:
    """Weigh each pixel by the part of it that lies under the output place. Source: OpenCV, `INTER_AREA`."""
    scale = length / target
    low = np.arange(target) * scale
    high = np.minimum(low + scale, length)
    starts = np.minimum(np.floor(low + SLIVER).astype(np.int64), length - 1)
    place = starts[:, None] + np.arange(int(np.ceil(scale)) + 1)
    shares = np.minimum(place + 1, high[:, None]) - np.maximum(place, low[:, None])
    return starts, np.where(shares > SLIVER, shares / (high - low)[:, None], 0).astype(np.float32)


def _nearest(length: int, target: int, scale: np.float32) -> Weights:
    """Take one pixel. Source: torch, `nearest_neighbor_compute_source_index`."""
    place = scale * np.arange(target, dtype=np.float32)
    return np.minimum(place.astype(np.int64), length - 1), np.ones((target, 1), np.float32)
