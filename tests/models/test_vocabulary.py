"""The maths of a vocabulary against formulas written for the test."""

import math

import numpy as np
import pytest

from netvlad_deploy.errors import InputError
from netvlad_deploy.models.vocabulary import (
    PROJECTION_BIAS,
    PROJECTION_WEIGHT,
    fit_clusters,
    fit_whitening,
    head_module,
    head_state,
    sharpness,
)
from netvlad_deploy.support.arrays import Float32, Float64

pytestmark = pytest.mark.export


def clouds(clusters: int, width: int, count: int = 100, seed: int = 0) -> tuple[Float32, Float64]:
    """Return points around unit vectors, and those vectors."""
    random = np.random.default_rng(seed)
    centres = random.standard_normal((clusters, width))
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    points = np.repeat(centres, count, axis=0) + 0.02 * random.standard_normal((clusters * count, width))
    return random.permutation(points.astype(np.float32)), centres


def squared_distances(points: Float32, centroids: Float32) -> Float64:
    difference = points[:, None].astype(np.float64) - centroids[None]
    result: Float64 = (difference**2).sum(axis=2)
    return result


def test_the_centroids_are_those_of_the_clouds() -> None:
    points, centres = clouds(7, 12)
    found = fit_clusters(points, 7, seed=0)
    assert np.sqrt(squared_distances(found, centres.astype(np.float32)).min(axis=0)).max() < 0.02
    assert found.dtype == np.float32


def test_a_seed_gives_the_same_centroids_and_another_gives_others() -> None:
    points = np.random.default_rng(5).standard_normal((3000, 16)).astype(np.float32)
    first, again, other = (fit_clusters(points, 8, seed) for seed in (3, 3, 4))
    assert np.array_equal(first, again)
    assert not np.allclose(np.sort(first, axis=0), np.sort(other, axis=0), atol=1e-3)


def test_too_few_points_are_refused() -> None:
    with pytest.raises(InputError, match="4 local descriptors are too few for 5 clusters: pass more images"):
        fit_clusters(np.eye(4, dtype=np.float32), 5, 0)


def test_alpha_by_hand() -> None:
    """Two centroids at 0 and 1: x = 0.1 gives 0.81 - 0.01 = 0.8, x = 0.8 gives 0.64 - 0.04 = 0.6."""
    points, centroids = np.array([[0.1], [0.8]], np.float32), np.array([[0.0], [1.0]], np.float32)
    assert sharpness(points, centroids) == pytest.approx(math.log(100) / 0.7, rel=1e-6)
    assert math.exp(-sharpness(points[:1], centroids) * 0.8) == pytest.approx(0.01, rel=1e-6)


def test_alpha_over_several_blocks_of_points() -> None:
    points, centres = clouds(6, 10, count=1500)
    squares = np.sort(squared_distances(points, centres.astype(np.float32)), axis=1)
    expected = -np.log(0.01) / (squares[:, 1] - squares[:, 0]).mean()
    assert sharpness(points, centres.astype(np.float32)) == pytest.approx(expected, rel=1e-6)


def test_images_that_are_all_alike_have_no_alpha() -> None:
    with pytest.raises(InputError, match="the images are all alike"):
        sharpness(np.ones((5, 3), np.float32), np.ones((2, 3), np.float32))


def test_the_head_assigns_by_squared_distance() -> None:
    """softmax(w x + b) of normalised x is exp(-alpha d^2) over its sum; a bias of -alpha |c| is not."""
    import torch

    points, centres = clouds(4, 9, count=20)
    centroids, alpha = (0.8 * centres).astype(np.float32), 6.0
    state = head_state(centroids, alpha)
    x = 3 * points[None, :30].astype(np.float64)
    rows = x / np.linalg.norm(x, axis=2, keepdims=True)
    powers = np.exp(-alpha * squared_distances(rows[0].astype(np.float32), centroids))
    assignment = powers / powers.sum(axis=1, keepdims=True)
    residuals = np.einsum("nk,nkd->dk", assignment, rows[0][:, None] - centroids[None].astype(np.float64))
    residuals /= np.linalg.norm(residuals, axis=0)
    expected = residuals.reshape(-1) / np.sqrt(len(centroids))

    def difference() -> float:
        got = head_module(state)(torch.from_numpy(x.astype(np.float32))).detach().numpy()[0]
        return float(np.abs(got - expected).max())

    assert difference() < 1e-5
    state["assignment_bias"] = (-alpha * np.linalg.norm(centroids, axis=1) * np.arange(4)).astype(np.float32)
    assert difference() > 1e-3


@pytest.mark.parametrize(("count", "length"), [(30, 200), (300, 20)])
def test_whitening_equals_the_formula_and_decorrelates(count: int, length: int) -> None:
    """There are fewer images than values, and more."""
    random = np.random.default_rng(count)
    points = (random.standard_normal((count, length)) * random.uniform(0.1, 2, length) + 3).astype(np.float32)
    size = 12
    projection = fit_whitening(points, size)
    wide = points.astype(np.float64)
    centred = wide - wide.mean(axis=0)
    _, singular, rows = np.linalg.svd(centred, full_matrices=False)
    variances = singular[:size] ** 2 / (count - 1)
    weight = rows[:size] / np.sqrt(variances + 1e-9)[:, None]
    got = projection[PROJECTION_WEIGHT].astype(np.float64)
    signs = np.sign((got * weight).sum(axis=1, keepdims=True))
    assert np.abs(got - signs * weight).max() < 1e-4 * np.abs(weight).max()
    assert np.allclose(projection[PROJECTION_BIAS], -got @ wide.mean(axis=0), atol=1e-3)
    white = wide @ got.T + projection[PROJECTION_BIAS]
    assert np.abs(np.cov(white.T) - np.eye(size)).max() < 1e-3
    unscaled = centred @ rows[:size].T
    assert np.abs(np.cov(unscaled.T) - np.eye(size)).max() > 0.1
    assert np.array_equal(got, fit_whitening(points, size)[PROJECTION_WEIGHT])


@pytest.mark.parametrize(
    ("count", "length", "size", "message"),
    [
        (12, 40, 12, "needs more than 12 images and descriptors at least as long: got 12 images, 40 values"),
        (40, 8, 12, "got 40 images, 8 values"),
    ],
)
def test_whitening_of_too_little_is_refused(count: int, length: int, size: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        fit_whitening(np.random.default_rng(0).standard_normal((count, length)).astype(np.float32), size)


def test_whitening_of_repeated_images_says_how_many_directions_there_are() -> None:
    points = np.random.default_rng(0).standard_normal((6, 50)).astype(np.float32)
    with pytest.raises(InputError, match="the images span 5 directions only, ask for fewer"):
        fit_whitening(np.concatenate([points, points]), 8)
