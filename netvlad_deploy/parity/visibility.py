"""The faults that the tolerance of a case would reveal, and those that it would hide.

Faults are planted in the oracle's own descriptor, one at a time. The effect of a fault is how far it moves a cluster's
part of the descriptor, or the whole of a projected one. docs/error-model.md says which faults count in a case, and why
("What a tolerance would reveal"); a case is worth a verdict if it reveals all of them.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from netvlad_deploy.oracle import equations
from netvlad_deploy.oracle.equations import ReferenceParameters, after_projection, by_cluster, divisor
from netvlad_deploy.parity.localise import cluster_errors
from netvlad_deploy.parity.projection_error import batch_norm_factor
from netvlad_deploy.parity.rounding import TINY
from netvlad_deploy.runner import Feeds
from netvlad_deploy.spec.layer import DESCRIPTOR, FEATURES, MASK, RESIDUAL_SUM, SOFT_ASSIGNMENT
from netvlad_deploy.support.arrays import Array, Arrays, Float64

SWAP = "clusters in each other's place"
SIGN = "a centroid of the wrong sign"
ASSIGNMENTS = "a cluster with the assignments of the next column"
TURN = "a cluster's part turned round"

CERTAIN = 2.0
"""Tolerances that a fault must move a descriptor by, so that no rounding can hide it."""

COUNTS = 0.5
"""Share of the largest fault's effect from which a fault counts in a case."""

NO_FAULT = 1e-6
"""Effect, over the descriptor's length, up to which a fault is none: equal clusters change places, for instance."""

SHORT = 0.5
"""Norm of the aggregate up to which an image has no direction to judge."""

UNKNOWN_LENGTH = 1.0
"""Tolerance from which a short descriptor may be one of length 1: nothing is known of its assignments."""

CHANGES = np.geomspace(1e-8, 10.0, 181)
"""Relative changes of a centroid that are tried: 20 a decade."""

SMALL = 1e-3
"""Relative change of a centroid whose effect on a projected descriptor is computed; others are in proportion to it."""

IMAGES_JUDGED = 4
"""Images in which the faults of a layer with a projection are planted."""


@dataclass(frozen=True, kw_only=True)
class Visibility:
    """The faults that count in a case, and those of all faults that it reveals, by kind: swaps (K,K), the others (K,).

    `smallest_fault` is the smallest relative change of a centroid, whichever it is, that would be revealed. A case of
    short descriptors alone has none, and no faults; `zero` says whether a descriptor that is not near zero would be
    revealed there.
    """

    counts: Arrays
    revealed: Arrays
    smallest_fault: float | None
    zero: bool = True

    @property
    def reason(self) -> str:
        """Return the reason for which the case is not worth a verdict, empty if it is."""
        if not self.zero:
            return "the right descriptor is near zero, and one that is not would be within the tolerance"
        if self.counts and not any(counts.any() for counts in self.counts.values()):
            return "the descriptor is the same whatever the weights of the head are"
        found = [kind for kind, counts in self.counts.items() if (counts & ~self.revealed[kind]).any()]
        return f"{' and '.join(found)} would be within the tolerance" if found else ""


def unseen(sights: Iterable[Visibility]) -> str:
    """Return the faults that count in some case and are revealed in none, in words; empty if there is none.

    Wrong assignments are left to each case: in TF32 and FP16 a right file may not reveal those of two columns that
    nearly agree.
    """
    sights = [each for each in sights if each.counts]
    hidden = []
    for kind in [kind for kind in sights[0].counts if kind != ASSIGNMENTS] if sights else ():
        counts = np.any([each.counts[kind] for each in sights], axis=0)
        revealed = np.any([each.revealed[kind] for each in sights], axis=0)
        hidden += [(kind, fault) for fault in np.argwhere(counts & ~revealed).tolist()]
    if not hidden:
        return ""
    kind, fault = hidden[0]
    more = f", nor {len(hidden) - 1} other such faults" if len(hidden) > 1 else ""
    return f"no case would reveal {kind} ({' and '.join(map(str, fault))}{more})"


def visibility(
    parameters: ReferenceParameters, feeds: Feeds, expected: Arrays, allowed: Float64, short_limit: float = np.inf
) -> Visibility:
    """Return the faults that count, and those that the tolerance of the descriptor would reveal.

    Args:
        parameters: the layer.
        feeds: the features, and the mask if there is one.
        expected: the outputs of the oracle for the feeds.
        allowed: tolerance of each cluster (B,K), or of each value (B,P) after a projection.
        short_limit: absolute tolerance of a value where the aggregate is short.

    Of a layer with a projection only neighbouring clusters change places, in IMAGES_JUDGED images at most: each swap
    takes a product with the projection.
    """
    vectors = equations.aggregate(parameters, expected[RESIDUAL_SUM])
    images = np.flatnonzero(np.linalg.norm(vectors, axis=-1) > SHORT)
    if not len(images):
        zero = _shows_if_not_zero(parameters, expected, allowed, short_limit)
        return Visibility(counts={}, revealed={}, smallest_fault=None, zero=zero)
    if parameters.projection is not None:
        images = images[np.unique(np.linspace(0, len(images) - 1, IMAGES_JUDGED).astype(int))]
    arrays = {name: values[images] for name, values in {**feeds, **expected}.items()}
    follow = _unprojected if parameters.projection is None else _projected
    moved, revealed, smallest = follow(parameters, vectors[images], arrays, CERTAIN * allowed[images])
    turn = moved[TURN].max()
    largest = min(turn, max(moved[kind].max() for kind in (SWAP, SIGN, ASSIGNMENTS)))
    counts = {kind: _at_least(effects, turn if kind == TURN else largest) for kind, effects in moved.items()}
    lengths = np.linalg.norm(by_cluster(vectors[images], parameters.spec), axis=-1).max(axis=0)
    change = float(smallest[_at_least(lengths, lengths.max())].max())
    return Visibility(counts=counts, revealed=revealed, smallest_fault=change)


def _shows_if_not_zero(parameters: ReferenceParameters, expected: Arrays, allowed: Float64, limit: float) -> bool:
    """Return True if a descriptor whose clamps do not act would be revealed where the right one is near zero."""
    residuals = expected[RESIDUAL_SUM]
    norms = np.linalg.norm(residuals, axis=-1, keepdims=True)
    wrong = np.where(norms > 0, residuals / np.maximum(norms, TINY), 1.0)
    right, other = (equations.project(parameters, equations.aggregate(parameters, each)) for each in (residuals, wrong))
    errors = cluster_errors(DESCRIPTOR, other - right, parameters.spec)
    known = allowed.max(axis=-1) < UNKNOWN_LENGTH
    return bool((errors > CERTAIN * allowed).any() or (np.abs(other - right)[known] > CERTAIN * limit).any())


def _at_least(effects: Float64, largest: float) -> Array:
    """Mark the faults whose effects are at least the share of the largest from which a fault counts."""
    return (effects >= COUNTS * largest) & (effects > NO_FAULT)


def _unprojected(
    parameters: ReferenceParameters, vectors: Float64, arrays: Arrays, limits: Float64
) -> tuple[Arrays, Arrays, Float64]:
    """Return the effect of each fault, by kind; whether it is over the limits (B,K) in some image; and `smallest` (K,).

    `smallest` is the least relative change of each centroid that is over the limits. `vectors` are the aggregates
    (B, D*K), `arrays` the features and the outputs of the oracle for them.
    """
    parts = by_cluster(vectors, parameters.spec)  # (B,K,D)
    squares = (parts**2).sum(axis=-1)
    apart = squares[:, :, None] + squares[:, None, :] - 2 * parts @ parts.swapaxes(1, 2)
    effects = {SWAP: np.triu(np.sqrt(np.maximum(apart, 0)), 1)}  # (B,K,K)
    for kind, wrong in _wrong_parts(parameters, parts, arrays).items():
        effects[kind] = np.linalg.norm(wrong - parts, axis=-1)
    seen = np.array([(each > limits).any(axis=0) for each in _moved_by_centroids(parameters, arrays)])  # (changes, K)
    smallest = np.where(seen.any(axis=0), CHANGES[seen.argmax(axis=0)], np.inf)
    pairs = np.minimum(limits[:, :, None], limits[:, None, :])
    over = {kind: each > (pairs if kind == SWAP else limits) for kind, each in effects.items()}
    moved = {kind: each.max(axis=0) for kind, each in effects.items()}
    return moved, {kind: each.any(axis=0) for kind, each in over.items()}, smallest


def _wrong_parts(parameters: ReferenceParameters, parts: Float64, arrays: Arrays) -> dict[str, Float64]:
    """Return the parts (B,K,D) as each would be if it alone were wrong, by the kind of the fault."""
    features, residuals = equations.local_descriptors(parameters, arrays[FEATURES]), arrays[RESIDUAL_SUM]
    logits = np.roll(equations.assignment_logits(parameters, arrays[FEATURES]), -1, axis=-1)
    others = equations.soft_assignment(logits, parameters.spec.num_clusters, arrays.get(MASK))
    centres = _sum_of_centroids(parameters, arrays)
    return {
        SIGN: _normalized(parameters, residuals + 2 * centres, residuals),
        ASSIGNMENTS: _normalized(parameters, equations.residual_sum(others, features, parameters.centroids), residuals),
        TURN: -parts,
    }


def _sum_of_centroids(parameters: ReferenceParameters, arrays: Arrays) -> Float64:
    """Return each centroid times the sum of its assignments (B,K,D): the term that a residual sum subtracts."""
    centres: Float64 = arrays[SOFT_ASSIGNMENT].sum(axis=1)[..., None] * parameters.centroids
    return centres


def _normalized(parameters: ReferenceParameters, residuals: Float64, right: Float64) -> Float64:
    """Return the parts (B,K,D) of residual sums, each among the right residual sums of the other clusters."""
    squares, others = ((each**2).sum(axis=-1) for each in (residuals, right))
    return residuals * _scale(squares, others, parameters.epsilon)[..., None]


def _scale(square: Float64, others: Float64, epsilon: str) -> Float64:
    """Return the factor of both norms on each residual sum (B,K), from its |V|^2 and those of all clusters (B,K)."""
    ratios, own = (each / divisor(each, epsilon) ** 2 for each in (others, square))
    total = np.maximum(ratios.sum(axis=-1, keepdims=True) - ratios, 0) + own
    scale: Float64 = 1 / (divisor(square, epsilon) * divisor(total, epsilon))
    return scale


def _moved_by_centroids(parameters: ReferenceParameters, arrays: Arrays) -> Iterator[Float64]:
    """Yield for each of CHANGES by how much every part (B,K) moves if its centroid is multiplied by 1 + change."""
    residuals, centres = arrays[RESIDUAL_SUM], _sum_of_centroids(parameters, arrays)
    right, mixed, centre = (each.sum(axis=-1) for each in (residuals**2, residuals * centres, centres**2))
    before = _scale(right, right, parameters.epsilon)
    for change in CHANGES:
        square = np.maximum(right - 2 * change * mixed + change**2 * centre, 0)
        after = _scale(square, right, parameters.epsilon)
        product = (right - change * mixed) * before * after
        yield np.sqrt(np.maximum(right * before**2 + square * after**2 - 2 * product, 0))


def _projected(
    parameters: ReferenceParameters, vectors: Float64, arrays: Arrays, limits: Float64
) -> tuple[Arrays, Arrays, Float64]:
    """Return the same as `_unprojected` of a layer with a projection, each cluster swapped with the next alone."""
    projection = parameters.projection
    assert projection is not None
    parts = by_cluster(vectors, parameters.spec)
    clusters = parameters.spec.num_clusters
    residuals = arrays[RESIDUAL_SUM]
    changed = _normalized(parameters, residuals - SMALL * _sum_of_centroids(parameters, arrays), residuals)
    singles = _wrong_parts(parameters, parts, arrays)
    wrong = [np.roll(parts, -1, axis=1), np.roll(parts, 1, axis=1), changed, *singles.values()]
    ahead, behind, slopes, *changes = _moved_products(parameters, projection, [each - parts for each in wrong])
    products = projection(vectors)
    factor = batch_norm_factor(projection)
    right = after_projection(parameters, products)
    longest = max(np.linalg.norm(right, axis=-1).max(), TINY)

    def effects(change: Float64) -> Float64:
        """Return by how much each value (B,P) moves where the products move by `change`."""
        difference: Float64 = np.abs(after_projection(parameters, products + factor * change) - right)
        return difference

    shapes = {SWAP: (clusters, clusters), **dict.fromkeys(singles, (clusters,))}
    moved: Arrays = {kind: np.zeros(shape) for kind, shape in shapes.items()}
    revealed: Arrays = {kind: np.zeros(shape, dtype=np.bool_) for kind, shape in shapes.items()}
    smallest = np.full(clusters, np.inf)
    for cluster in range(clusters):
        following = (cluster + 1) % clusters
        faults = [(kind, (cluster,), change[cluster]) for kind, change in zip(singles, changes, strict=True)]
        swap = [(SWAP, (cluster, following), ahead[cluster] + behind[following])] if following != cluster else []
        for kind, place, change in (*faults, *swap):
            difference = effects(change)
            moved[kind][place] = np.linalg.norm(difference, axis=-1).max() / longest
            revealed[kind][place] = (difference > limits).any()
        slope = effects(slopes[cluster]) / SMALL
        smallest[cluster] = np.divide(limits, slope, out=np.full_like(slope, np.inf), where=slope > TINY).min()
    return moved, revealed, smallest


def _moved_products(
    parameters: ReferenceParameters, projection: equations.LinearMap, changes: list[Float64]
) -> Float64:
    """Return the changes of the products (changes, K, B, P) for changes (B,K,D) of single parts."""
    stacked = np.concatenate(changes).transpose(1, 2, 0)  # (K, D, changes * B)
    found = np.empty((stacked.shape[0], len(projection.weight), stacked.shape[2]))
    for block, rows in projection.blocks():
        found[:, block] = by_cluster(rows, parameters.spec).swapaxes(0, 1) @ stacked
    clusters, size, _ = found.shape
    split: Float64 = found.reshape(clusters, size, len(changes), -1).transpose(2, 0, 3, 1)
    return split
