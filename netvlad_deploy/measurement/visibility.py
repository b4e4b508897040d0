"""Which faults the tolerance of a case would reveal, and which it would hide.

Faults are planted in the oracle's own descriptor: two clusters change places, a centroid changes its sign, or a
cluster's part is turned round. The first two count in a case if they move the descriptor at least half as far as the
one of them that moves it most, the last if the part is at least half as long as the longest. A fault is revealed if it
moves some cluster's part, or some value of a projected descriptor, by more than twice the tolerance: an honest error
hides at most one tolerance of it, and the judgement allows another. A case is worth a verdict if every fault that
counts is revealed. Where every descriptor is near zero, the fault is a descriptor that is not.

Of a layer with a projection only neighbouring clusters change places, in four images at most: each swap takes a product
with the projection.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from netvlad_deploy.arrays import Array, Arrays, Float64
from netvlad_deploy.measurement.localise import cluster_errors
from netvlad_deploy.measurement.rounding import TINY
from netvlad_deploy.oracle import (
    LinearMap,
    ReferenceParameters,
    aggregate,
    by_cluster,
    divisor,
    l2_normalize,
    project,
    sigmoid,
)
from netvlad_deploy.spec import DESCRIPTOR, RESIDUAL_SUM, SOFT_ASSIGNMENT

CERTAIN = 2.0
"""Tolerances that a fault must move a descriptor by, to be revealed whatever rounding does."""

COUNTS = 0.5
"""Share of the largest fault's effect from which a fault counts in a case."""

SHORT = 0.5
"""Norm of the aggregate up to which an image has no direction to judge."""

UNKNOWN_LENGTH = 1.0
"""Tolerance from which a short descriptor may be one of length 1: nothing is known of its assignments."""

CHANGES = np.geomspace(1e-8, 10.0, 181)
"""Relative changes of a centroid that are tried: 20 a decade."""

SMALL = 1e-3
"""Change of a centroid from which that of a projected descriptor is taken to be in proportion."""

IMAGES = 4
"""Images in which the faults of a layer with a projection are planted."""


@dataclass(frozen=True, kw_only=True)
class Visibility:
    """Faults of a case (K+1,K): two clusters in each other's place, on the diagonal the sign of a centroid, then turns.

    `smallest_fault` is the smallest relative change of a centroid, whichever it is, that would be revealed, None in a
    case of short descriptors alone. `zero` says whether one that is not near zero would be revealed there.
    """

    counts: Array
    revealed: Array
    smallest_fault: float | None
    zero: bool = True

    @property
    def reason(self) -> str:
        """Return why the case is not worth a verdict, nothing if it is."""
        if not self.zero:
            return "the right descriptor is near zero, and one that is not would be within the tolerance"
        found = [kind for kind, faults in _by_kind(self.counts & ~self.revealed).items() if len(faults)]
        return f"{' and '.join(found)} would be within the tolerance" if found else ""


def _by_kind(faults: Array) -> dict[str, Array]:
    """Return the clusters of each of the faults (K+1,K), by what they are."""
    return {
        "clusters in each other's place": np.argwhere(np.triu(faults[:-1] | faults[:-1].T, 1)),
        "a centroid of the wrong sign": np.argwhere(np.diag(faults)),
        "a cluster's part turned round": np.argwhere(faults[-1]),
    }


def unseen(sights: Iterable[Visibility]) -> str:
    """Return which faults count in some case and are revealed in none, in words; nothing if there is none."""
    sights = list(sights)
    if not sights:
        return ""
    hidden = np.any([each.counts for each in sights], axis=0) & ~np.any([each.revealed for each in sights], axis=0)
    kinds = {kind: faults for kind, faults in _by_kind(hidden).items() if len(faults)}
    if not kinds:
        return ""
    kind, faults = next(iter(kinds.items()))
    number = sum(map(len, kinds.values()))
    more = f", nor {number - 1} other such faults" if number > 1 else ""
    return f"no case would reveal {kind} ({' and '.join(map(str, faults[0].tolist()))}{more})"


def visibility(
    parameters: ReferenceParameters, expected: Arrays, allowed: Float64, short_limit: float = np.inf
) -> Visibility:
    """Return which faults the tolerance of the descriptor would reveal.

    Args: expected: the oracle's; allowed: (B,K), or (B,P) after a projection; short_limit: absolute tolerance of a
        value where the aggregate is short.
    """
    clusters = parameters.spec.num_clusters
    vectors = aggregate(parameters, expected[RESIDUAL_SUM])
    long = np.linalg.norm(vectors, axis=-1) > SHORT
    if not long.any():
        none = np.zeros((clusters + 1, clusters), dtype=np.bool_)
        zero = _shows_if_not_zero(parameters, expected, allowed, short_limit)
        return Visibility(counts=none, revealed=none, smallest_fault=None, zero=zero)
    kept = {name: expected[name][long] for name in (RESIDUAL_SUM, SOFT_ASSIGNMENT)}
    if parameters.projection is None:
        moved, over, smallest = _unprojected(parameters, vectors[long], kept, CERTAIN * allowed[long])
    else:
        moved, over, smallest = _projected(parameters, vectors[long], kept, CERTAIN * allowed[long])
    share = np.linalg.norm(by_cluster(vectors[long], parameters.spec), axis=-1).max(axis=0)
    counts = np.vstack([(moved >= COUNTS * moved.max()) & (moved > 0), share >= COUNTS * share.max()])
    return Visibility(counts=counts, revealed=over, smallest_fault=smallest)


def _shows_if_not_zero(parameters: ReferenceParameters, expected: Arrays, allowed: Float64, limit: float) -> bool:
    """Return whether a descriptor whose clamps do not act would be revealed where the right one is near zero."""
    residuals = expected[RESIDUAL_SUM]
    norms = np.linalg.norm(residuals, axis=-1, keepdims=True)
    wrong = np.where(norms > 0, residuals / np.maximum(norms, TINY), 1.0)
    right, other = (project(parameters, aggregate(parameters, each)) for each in (residuals, wrong))
    errors = cluster_errors(DESCRIPTOR, other - right, parameters.spec)
    known = allowed.max(axis=-1) < UNKNOWN_LENGTH
    return bool((errors > CERTAIN * allowed).any() or (np.abs(other - right)[known] > CERTAIN * limit).any())


@dataclass(frozen=True, kw_only=True)
class _Products:
    """Products (B,K) that say what a change of a centroid does to its part: |V|^2, A V.c and A^2 |c|^2; and sum r^2."""

    square: Float64
    mixed: Float64
    centre: Float64
    epsilon: str

    def moved(self, change: float) -> Float64:
        """Return by how much each cluster's part moves if its centroid is multiplied by 1 + change."""
        before = self._scale(self.square, self.square)
        square = np.maximum(self.square - 2 * change * self.mixed + change**2 * self.centre, 0)
        after = self._scale(square, self.square)
        product = (self.square - change * self.mixed) * before * after
        moved: Float64 = np.sqrt(np.maximum(self.square * before**2 + square * after**2 - 2 * product, 0))
        return moved

    def _scale(self, square: Float64, others: Float64) -> Float64:
        """Return what one residual of this square is multiplied by, where the others have theirs."""
        ratios, own = (each / divisor(each, self.epsilon) ** 2 for each in (others, square))
        total = np.maximum(ratios.sum(axis=-1, keepdims=True) - ratios, 0) + own
        scale: Float64 = 1 / (divisor(square, self.epsilon) * divisor(total, self.epsilon))
        return scale


def _unprojected(
    parameters: ReferenceParameters, vectors: Float64, expected: Arrays, limits: Float64
) -> tuple[Float64, Array, float]:
    """Return by how much faults move the descriptor (K,K), which of all (K+1,K) are revealed, and the smallest."""
    parts = by_cluster(vectors, parameters.spec)  # (B,K,D)
    squares = (parts**2).sum(axis=-1)
    apart = squares[:, :, None] + squares[:, None, :] - 2 * parts @ parts.swapaxes(1, 2)
    swapped = np.sqrt(np.maximum(apart, 0))  # (B,K,K)
    over = swapped > np.minimum(limits[:, :, None], limits[:, None, :])
    residuals, total = expected[RESIDUAL_SUM], expected[SOFT_ASSIGNMENT].sum(axis=1)
    products = _Products(
        square=(residuals**2).sum(axis=-1),
        mixed=total * (residuals * parameters.centroids).sum(axis=-1),
        centre=total**2 * (parameters.centroids**2).sum(axis=-1),
        epsilon=parameters.epsilon,
    )
    flipped = products.moved(-2.0)
    moved, revealed = swapped.max(axis=0), over.any(axis=0)
    np.fill_diagonal(moved, flipped.max(axis=0))
    np.fill_diagonal(revealed, (flipped > limits).any(axis=0))
    turned = (2 * np.sqrt(squares) > limits).any(axis=0)
    seen = np.array([(products.moved(change) > limits).any(axis=0) for change in CHANGES])  # (changes, K)
    smallest = np.where(seen.any(axis=0), CHANGES[seen.argmax(axis=0)], np.inf)
    return moved, np.vstack([revealed, turned]), _whichever(smallest, squares)


def _whichever(smallest: Float64, squares: Float64) -> float:
    """Return the largest of the changes (K,) of clusters that have a part worth the name in squares (B,K)."""
    share = squares.max(axis=0)
    return float(smallest[share >= COUNTS * share.max()].max())


def _projected(
    parameters: ReferenceParameters, vectors: Float64, expected: Arrays, limits: Float64
) -> tuple[Float64, Array, float]:
    """Return the same as `_unprojected` of a layer with a projection, the clusters swapped with the next one."""
    projection = parameters.projection
    assert projection is not None
    few = np.unique(np.linspace(0, len(vectors) - 1, IMAGES).astype(int))
    vectors, limits = vectors[few], limits[few]
    parts = by_cluster(vectors, parameters.spec)
    following = np.roll(np.arange(parameters.spec.num_clusters), -1)
    wrong = [
        parts[:, following],
        parts[:, np.roll(np.arange(len(following)), 1)],
        -parts,
        *_with_centroids(parameters, {name: values[few] for name, values in expected.items()}, (-2.0, SMALL)),
    ]
    ahead, behind, turned, flipped, changed = _moved_products(parameters, projection, [each - parts for each in wrong])
    origin = projection.offset(np.zeros(len(projection.weight)))
    products = projection(vectors) - origin
    factor = _factor(projection)
    right = _follow(parameters, products + origin)

    def effect(change: Float64) -> Float64:
        difference: Float64 = np.abs(_follow(parameters, products + origin + factor * change) - right)
        return difference

    moved = np.zeros((len(following), len(following)))
    revealed = np.zeros((len(following) + 1, len(following)), dtype=np.bool_)
    smallest = np.full(len(following), np.inf)
    for cluster, other in enumerate(following.tolist()):
        faults = {(cluster, other): ahead[cluster] + behind[other]} if other != cluster else {}
        for place, change in (faults | {(cluster, cluster): flipped[cluster]}).items():
            difference = effect(change)
            moved[place] = np.linalg.norm(difference, axis=-1).max()
            revealed[place] = (difference > limits).any()
        revealed[-1, cluster] = (effect(turned[cluster]) > limits).any()
        slope = effect(changed[cluster]) / SMALL
        smallest[cluster] = np.divide(limits, slope, out=np.full_like(slope, np.inf), where=slope > TINY).min()
    return moved, revealed, _whichever(smallest, (parts**2).sum(axis=-1))


def _with_centroids(parameters: ReferenceParameters, expected: Arrays, changes: Iterable[float]) -> Iterator[Float64]:
    """Yield the parts (B,K,D) with each centroid multiplied by 1 + change, over the global norm as it is."""
    residuals = expected[RESIDUAL_SUM]
    centres = expected[SOFT_ASSIGNMENT].sum(axis=1)[..., None] * parameters.centroids
    squares = (residuals**2).sum(axis=-1)
    ratios = squares / divisor(squares, parameters.epsilon) ** 2
    whole = divisor(ratios.sum(axis=-1), parameters.epsilon)[:, None, None]
    for change in changes:
        yield l2_normalize(residuals - change * centres, parameters.epsilon) / whole


def _moved_products(parameters: ReferenceParameters, projection: LinearMap, changes: list[Float64]) -> Float64:
    """Return what changes (B,K,D) of single parts do to the products: (changes, K, B, P)."""
    stacked = np.concatenate(changes).transpose(1, 2, 0)  # (K, D, changes * B)
    found = np.empty((stacked.shape[0], len(projection.weight), stacked.shape[2]))
    for block, rows in projection.blocks():
        found[:, block] = by_cluster(rows, parameters.spec).swapaxes(0, 1) @ stacked
    clusters, size, _ = found.shape
    split: Float64 = found.reshape(clusters, size, len(changes), -1).transpose(2, 0, 3, 1)
    return split


def _factor(projection: LinearMap) -> Float64 | float:
    """Return what BatchNorm multiplies products by, with its sign."""
    norm = projection.batch_norm
    return 1.0 if norm is None else norm.weight / np.sqrt(norm.running_var + norm.eps)


def _follow(parameters: ReferenceParameters, values: Float64) -> Float64:
    """Return what follows the projection of `values` (B,P): its L2 norm and gating."""
    if parameters.projection_l2:
        values = l2_normalize(values, parameters.epsilon)
    return values if parameters.gating is None else values * sigmoid(parameters.gating(values))
