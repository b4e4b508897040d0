"""Recall@N and mean average precision of descriptors: the search for the right place again, exact.

Every query ranks the whole database by Euclidean distance, which for descriptors of norm 1 is the order of the dot
product. Where two images are equally near, the one that comes first in the database wins.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from netvlad_deploy.errors import InputError
from netvlad_deploy.retrieval.embed_images import Described
from netvlad_deploy.retrieval.ground_truth import Positives
from netvlad_deploy.support.arrays import Array, Float32, cosines

DEPTHS: Final = (1, 5, 10)
SHOWN: Final = 5
"""Number of best matches of a query that are kept; the first right image is always kept."""

QUERY_BLOCK: Final = 256
"""Queries whose distances to the whole database are computed at once."""

Order = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Match:
    """A database image that a query was given, its rank from 1, its cosine with the query, and whether it is right."""

    name: str
    rank: int
    similarity: float
    right: bool


@dataclass(frozen=True, kw_only=True)
class QueryResult:
    """Result of one query: the rank of the first right image from 1, average precision, and the best matches."""

    query: str
    first_right: int
    average_precision: float
    matches: tuple[Match, ...]


@dataclass(frozen=True, kw_only=True)
class Recall:
    """Results of all queries.

    Args:
        recall: by N, the share of all queries with a right image among the first N; one that has none is a miss. This
            is the figure to compare with published ones.
            Source: Arandjelovic et al. 2016, section 5.1; the divisor in Nanne/pytorch-NetVlad, main.py,
            QVPR/Patch-NetVLAD, feature_match.py, and gmberton/deep-visual-geo-localization-benchmark, test.py.
        recall_answerable: the same of the queries that have a right image.
        mean_average_precision: mean over the queries of the average precision, which is the mean, over the query's
            right images, of the share of right ones among all images up to and including that one.
        queries: each query that has a right image, in order.
        num_queries: how many were asked, those without one as well.
    """

    recall: Mapping[int, float]
    recall_answerable: Mapping[int, float]
    mean_average_precision: float
    queries: tuple[QueryResult, ...]
    num_queries: int


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Two artifacts on the same images.

    Args:
        top1: share of all queries with the same best match.
        differing: the queries whose best match differs.
        distance: largest 1 - cosine of the two descriptors of one image, None if they differ in length.
        image: the image with that distance.
    """

    candidate: str
    reference: str
    top1: float
    differing: tuple[str, ...]
    distance: float | None
    image: str | None


def measure_recall(queries: Described, database: Described, positives: Positives, *, alone: bool) -> Recall:
    """Return the recall of the queries in the database; those without a right image in it are misses, and no results.

    `alone` says that both are the same images: a query then never matches itself.

    Raises: InputError if no query has a right image.
    """
    index = {name: place for place, name in enumerate(database.names)}
    results = []
    check_answerable(queries.names, database.names, positives, alone=alone)
    for place, order in rank(queries, database, alone=alone):
        query = queries.names[place]
        if right := {index[name] for name in _right(query, index, positives, alone=alone)}:
            hits = np.isin(order, list(right))  # (N,) by rank
            results.append(_result(query, queries.descriptors[place], database, order, hits))
    hit = {depth: sum(one.first_right <= depth for one in results) for depth in DEPTHS}
    return Recall(
        recall={depth: count / len(queries.names) for depth, count in hit.items()},
        recall_answerable={depth: count / len(results) for depth, count in hit.items()},
        mean_average_precision=float(np.mean([one.average_precision for one in results])),
        queries=tuple(results),
        num_queries=len(queries.names),
    )


def check_answerable(queries: Iterable[str], database: Collection[str], positives: Positives, *, alone: bool) -> None:
    """Raise InputError if no query has a right image in the database, itself left out if `alone`."""
    known = frozenset(database)
    if not any(_right(query, known, positives, alone=alone) for query in queries):
        raise InputError("no query has a right image in the database: nothing to evaluate")


def _right(query: str, database: Collection[str], positives: Positives, *, alone: bool) -> list[str]:
    """Return the names of a query's right images that are in the database."""
    return [name for name in positives.get(query, ()) if name in database and not (alone and name == query)]


def rank(queries: Described, database: Described, *, alone: bool) -> Iterator[tuple[int, Order]]:
    """Yield each query's place and its database images from the nearest to the farthest, itself left out if `alone`."""
    for start, near in nearness(queries.descriptors, database.descriptors, alone=alone):
        orders = np.argsort(-near, axis=1, kind="stable")
        yield from enumerate(orders[:, :-1] if alone else orders, start)


def agree(
    names: tuple[str, str], queries: tuple[Described, Described], database: tuple[Described, Described], *, alone: bool
) -> Agreement:
    """Return the agreement of a candidate, the first of each pair, with a reference on the same images."""
    best = [
        np.concatenate([near.argmax(axis=1) for _, near in nearness(asked.descriptors, known.descriptors, alone=alone)])
        for asked, known in zip(queries, database, strict=True)
    ]
    differing = tuple(queries[0].names[place] for place in np.flatnonzero(best[0] != best[1]))
    distance, image = None, None
    if queries[0].descriptors.shape[1] == queries[1].descriptors.shape[1]:
        pairs = (database,) if alone else (database, queries)
        distances = np.concatenate([1 - cosines(got.descriptors, expected.descriptors) for got, expected in pairs])
        images = database[0].names + (() if alone else queries[0].names)
        worst = int(distances.argmax())
        distance, image = float(distances[worst]), images[worst]
    return Agreement(
        candidate=names[0],
        reference=names[1],
        top1=1 - len(differing) / len(queries[0].names),
        differing=differing,
        distance=distance,
        image=image,
    )


def nearness(queries: Array, images: Array, *, alone: bool, unit: bool = False) -> Iterator[tuple[int, Array]]:
    """Yield the first place of each block of queries, and the nearness of all images to them (Q,N).

    Nearness is q.d - |d|^2 / 2, which falls as the Euclidean distance grows; `unit` says that every |d| is 1, so that
    q.d alone is enough. `alone` says that queries and images are the same: none is near itself.
    """
    halves = None if unit else np.array([0.5 * np.linalg.norm(row.astype(np.float64)) ** 2 for row in images])
    for start in range(0, len(queries), QUERY_BLOCK):
        near = queries[start : start + QUERY_BLOCK] @ images.T
        if halves is not None:
            near = near - halves.astype(near.dtype)
        if alone:
            rows = np.arange(len(near))
            near[rows, start + rows] = -np.inf
        yield start, near


def _result(
    query: str, descriptor: Float32, database: Described, order: Order, hits: npt.NDArray[np.bool_]
) -> QueryResult:
    right = np.flatnonzero(hits)  # places in the ranking, from 0
    return QueryResult(
        query=query,
        first_right=int(right[0]) + 1,
        average_precision=float(np.mean(np.arange(1, len(right) + 1) / (right + 1))),
        matches=tuple(
            Match(
                name=database.names[order[place]],
                rank=place + 1,
                similarity=float(cosines(descriptor[None], database.descriptors[order[place]][None])[0]),
                right=bool(hits[place]),
            )
            for place in sorted({*range(min(SHOWN, len(order))), int(right[0])})
        ),
    )
