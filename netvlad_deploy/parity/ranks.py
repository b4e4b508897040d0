"""Agreement of a candidate's ranking of a bank of images with the reference's: the cost of drift for retrieval.

Two arrangements: the candidate's queries against the candidate's own bank, and crossed, against the reference's bank,
the way an index is upgraded step by step. Each side rounds the features as its own input does. Figures, no verdict: a
wrong aggregation can retrieve well, so ranks never stand in for numeric parity.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from netvlad_deploy.errors import ParityError
from netvlad_deploy.oracle.equations import ReferenceParameters
from netvlad_deploy.retrieval.embed_features import embed_array, embed_sequences
from netvlad_deploy.retrieval.recall import nearness
from netvlad_deploy.runner import Runner
from netvlad_deploy.spec.profiles import Profile
from netvlad_deploy.support.arrays import Array, Arrays, Float32, Float64, unit_rows

DEPTH = 10  # best matches that are compared
NEAR_TIES = "near ties"
PLACES, VIEWS, LENGTH = 8, 8, 64  # of the bank of near ties: each view has LENGTH local descriptors


@dataclass(frozen=True, kw_only=True)
class Bank:
    """Features of the images to rank, and of the queries; without queries each image is ranked against the others."""

    name: str
    images: Array | Arrays
    queries: Array | Arrays | None = None


@dataclass(frozen=True, kw_only=True)
class RetrievalParity:
    """Agreement of two rankings, the second being the reference's.

    Args:
        top1: share of queries with the same best match.
        top10: mean share of the reference's first ten that are among the candidate's first ten.
        rank_distance: mean difference of rank of the reference's first ten.
        swapped_gap: largest difference of similarity, by the reference, of two images that the candidate swaps; at
            least one of them is in the reference's first ten.
    """

    bank: str
    arrangement: str
    queries: int
    images: int
    top1: float
    top10: float
    rank_distance: float
    swapped_gap: float


def compare_retrieval(candidate: Runner, reference: Runner, bank: Bank) -> Iterator[RetrievalParity]:
    """Yield the agreement of the candidate with the reference on its own bank, and crossed on the reference's.

    Raises: InputError if the features do not fit; ParityError if the bank has fewer than two images.
    """
    images = [_descriptors(runner, bank.images) for runner in (candidate, reference)]
    queries = images
    if bank.queries is not None:
        queries = [_descriptors(runner, bank.queries) for runner in (candidate, reference)]
    if len(images[0]) < 2:
        raise ParityError(f"bank {bank.name} has fewer than two images: nothing to rank")

    def similarities(asked: Float64, index: Float64) -> Float64:
        blocks = nearness(asked, index, alone=bank.queries is None, unit=reference.spec.unit_length)
        return np.concatenate([near for _, near in blocks])  # (queries, images)

    expected = similarities(queries[1], images[1])
    for arrangement, index in (("own bank", images[0]), ("crossed", images[1])):
        yield _agreement(bank.name, arrangement, similarities(queries[0], index), expected)


def near_ties(parameters: ReferenceParameters, *, shapes: Profile | None = None) -> Bank:
    """Return a bank of eight places in eight views each, from nearly identical to clearly different.

    The similarities of the views of one place differ by 1e-8 and more, so small errors swap some of them.
    """
    shapes = shapes or Profile()
    rows = min(max(LENGTH, shapes.num_features.min), shapes.num_features.max)
    random = np.random.default_rng(0)
    width = parameters.spec.feature_size
    places = unit_rows(random.standard_normal((PLACES, 1, rows, width), dtype=np.float32))
    noise = unit_rows(random.standard_normal((PLACES, VIEWS, rows, width), dtype=np.float32))
    amplitudes = np.geomspace(1e-4, 0.3, VIEWS, dtype=np.float32)[:, None, None]
    views: Float32 = unit_rows(places + amplitudes * noise)
    return Bank(name=NEAR_TIES, images=views.reshape(-1, rows, width))


def _descriptors(runner: Runner, features: Array | Arrays) -> Float64:
    if isinstance(features, dict):
        features = np.stack(list(embed_sequences(runner, features, batch=32).values()))
    else:
        features = embed_array(runner, features, batch=32)
    return features.astype(np.float64)


def _agreement(bank: str, arrangement: str, got: Float64, expected: Float64) -> RetrievalParity:
    depth = min(DEPTH, int(np.isfinite(expected[0]).sum()))
    orders = [np.argsort(-values, axis=1, kind="stable") for values in (got, expected)]
    ranks = [np.argsort(order, axis=1, kind="stable") for order in orders]
    first = orders[1][:, :depth]  # (queries, depth)
    best = np.take_along_axis(expected, orders[0][:, :1], axis=1) >= expected.max(axis=1, keepdims=True)
    moved = np.take_along_axis(ranks[0], first, axis=1)
    gaps = [_swapped_gap(*rows) for rows in zip(got, expected, first, strict=True)]
    return RetrievalParity(
        bank=bank,
        arrangement=arrangement,
        queries=len(got),
        images=got.shape[1],
        top1=float(best.mean()),
        top10=float((moved < depth).mean()),
        rank_distance=float(np.abs(moved - np.arange(depth)).mean()),
        swapped_gap=max(gaps),
    )


def _swapped_gap(got: Float64, expected: Float64, first: Array) -> float:
    """Return the largest gap in `expected` (images,) between one of `first` and an image that `got` ranks wrongly."""
    others = np.isfinite(expected)
    gap = expected[first][:, None] - expected[others]
    swapped = (got[first][:, None] - got[others]) * gap < 0
    return float(np.abs(gap[swapped]).max(initial=0.0))
