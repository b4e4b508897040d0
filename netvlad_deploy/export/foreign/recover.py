"""Recover the parameters of a NetVLAD from what it computes, and take their exact values from its constants.

For one local descriptor x, repeated over all positions, every cluster's part of the aggregate is the unit vector from
its centroid to x, over the square root of the number of clusters. Two such lines meet in the centroid. So neither the
order of the values nor the form in which residuals are written (a loop over the clusters, a broadcast, x - c or x + c')
needs to be read from the graph: the order shows in the norms of the parts, and the centroid that was measured says
which constant of the file it is.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Final

import numpy as np

from netvlad_deploy.errors import InputError
from netvlad_deploy.export.foreign.paths import Paths
from netvlad_deploy.export.foreign.sites import Site
from netvlad_deploy.oracle import equations
from netvlad_deploy.oracle.reference_file import parameters_from_arrays, reference_arrays
from netvlad_deploy.spec.layer import ADD, CLAMP, CLUSTERS_FIRST, CLUSTERS_LAST, RSQRT, NetVLADSpec, Projection
from netvlad_deploy.support.arrays import Array, Arrays, Float64

Aggregate = Callable[[Array], Array]
"""The head of the file, from features (B,N,D) float32 to its aggregate (B,M)."""

SEEN: Final = 1e-9
"""Least assignment of a local descriptor from which its line to a centroid is trusted."""

WHOLE: Final = 1e-3
"""Least assignment from which no constant beside a norm shortens a cluster's part."""

LINES: Final = 12
"""Most lines to a centroid of which the best two are taken."""

SAME: Final = 1e-3
"""Largest distance of a measured centroid from the constant that it is, relative to their norms."""

RANDOM_SCALES: Final = (0.1, 1.0, 10.0)
PROBE_SCALES: Final = tuple(float(2**power) for power in range(-6, 15))
"""Norms of local descriptors in random directions, and those that are tried for one near a cluster."""

NOISES: Final = (0.5, 0.5, 0.3, 0.3, 0.1, 0.1)
"""Distances of local descriptors from the direction of a cluster that they are near, in units of their norm."""

FLOOR_SCALES: Final = (1e-8, 1e-7, 1e-6, 1e-4, 1.0, 10.0, 100.0)
"""Norms of single local descriptors that show how a norm is kept from 0, directly or through tiny assignments."""

FIRST_SEED: Final = 2016
"""First part of every seed: centroids drawn from a plain seed of NumPy would else be the very rows that are tried."""

LARGEST_POOLED: Final = 2**24
"""Most values of a constant in which centroids are looked for."""


@dataclass(frozen=True, kw_only=True)
class Recovered:
    """A layer as it was recovered: its spec, and its tensors by the names of the reference module, FP32.

    `notes` are what the spec cannot say, in sentences.
    """

    spec: NetVLADSpec
    tensors: Arrays
    notes: tuple[str, ...] = ()

    def parameters(self) -> equations.ReferenceParameters:
        """Return what the oracle reads."""
        return parameters_from_arrays(reference_arrays(self.tensors, self.spec))


def recover(site: Site, run: Aggregate, rows: int, batch: int, *, normalize_input: bool) -> Recovered:
    """Return the layer at a site, without its projection.

    Args:
        site: the place.
        run: its head.
        rows: N with which it runs; a local descriptor is repeated as often.
        batch: B with which it runs.
        normalize_input: whether local descriptors are L2-normalised first.

    Raises: InputError if the measured parts do not fit.
    """
    probes = _probes(site)
    vectors = _run_singly(run, probes, rows, batch)
    clusters, rest = divmod(vectors.shape[1], site.feature_size)
    if rest or not 1 <= clusters <= site.logits.columns:
        raise InputError(
            f"its aggregate has {vectors.shape[1]} values, no multiple of D={site.feature_size} for up to "
            f"{site.logits.columns} clusters"
        )
    seen = probes / np.linalg.norm(probes, axis=1, keepdims=True) if normalize_input else probes
    assignment = _assignments(site, seen)[:, :clusters]
    parts, flatten = _parts(vectors, clusters, site.feature_size, assignment > WHOLE)
    measured = _centroids(seen, parts, assignment)
    centroids = _named(measured, _pool(site.paths, site.constants, site.feature_size))
    tensors: Arrays = {
        "clusters": site.logits.weight.astype(np.float32),
        "clusters2": centroids.astype(np.float32).T[None],
    }
    scale, offset = site.logits.scale, site.logits.offset
    if scale is not None:
        tensors |= unit_batch_norm("batch_norm", scale, offset)
    elif offset is not None:
        tensors["assignment_bias"] = offset.astype(np.float32)
    spec = NetVLADSpec(
        num_clusters=clusters,
        feature_size=site.feature_size,
        num_ghost_clusters=site.logits.columns - clusters,
        batch_norm=scale is not None,
        assignment_bias=scale is None and offset is not None,
        normalize_input=normalize_input,
        flatten=flatten,
    )
    return _with_epsilon(Recovered(spec=spec, tensors=tensors), run, rows, batch)


def unit_batch_norm(name: str, scale: Float64, offset: Float64 | None) -> Arrays:
    """Return a factor and a term (C,) as a BatchNorm that has seen mean 0 and variance 1, so that neither is folded."""
    term = np.zeros_like(scale) if offset is None else offset
    state = {"weight": scale, "bias": term, "running_mean": np.zeros_like(scale), "running_var": np.ones_like(scale)}
    return {
        **{f"{name}.{key}": value.astype(np.float32) for key, value in state.items()},
        f"{name}.eps": np.zeros(()),
    }


def projected(site: Site, found: Recovered) -> Recovered:
    """Return the layer with the projection of its site."""
    if site.tail is None:
        return found
    product = site.tail.product
    if product.weight.shape[0] != found.spec.aggregate_size:
        raise InputError(
            f"a matrix of {product.weight.shape[0]} rows follows {found.spec.aggregate_size} values of its aggregate"
        )
    tensors: Arrays = {"projection.weight": np.ascontiguousarray(product.weight.T.astype(np.float32))}
    if product.scale is not None:
        tensors |= unit_batch_norm("projection.batch_norm", product.scale, product.offset)
    elif product.offset is not None:
        tensors["projection.bias"] = product.offset.astype(np.float32)
    projection = Projection(
        size=product.columns,
        bias=product.scale is None and product.offset is not None,
        batch_norm=product.scale is not None,
        l2=site.tail.l2,
    )
    return replace(found, spec=replace(found.spec, projection=projection), tensors={**found.tensors, **tensors})


def _random_rows(count: int, width: int, seed: int) -> Float64:
    values = np.random.default_rng((FIRST_SEED, seed)).standard_normal((count, width))
    rows: Float64 = values / np.linalg.norm(values, axis=1, keepdims=True)
    return rows


def _probes(site: Site) -> Float64:
    """Return local descriptors (R,D): some in random directions, and some near each column of the logits' matrix.

    Those near a column are as long as its cluster likes them best: far too short or too long ones all go to the
    clusters of the largest biases, or of the largest weights.
    """
    weight = site.logits.weight.astype(np.float64).T  # (C,D)
    weight = weight * (1.0 if site.logits.scale is None else site.logits.scale[:, None])
    centred = weight - weight.mean(axis=0) if len(weight) > 1 else weight
    near = np.repeat(centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-30), len(NOISES), axis=0)
    near = near + np.resize(NOISES, len(near))[:, None] * _random_rows(len(near), near.shape[1], seed=1)
    columns = np.repeat(np.arange(len(weight)), len(NOISES))
    liked = np.stack([_assignments(site, scale * near)[np.arange(len(near)), columns] for scale in PROBE_SCALES])
    scales = np.array(PROBE_SCALES)[np.minimum(liked, 0.5).argmax(axis=0)]  # the least that wins, else the best
    rows = _random_rows(36, near.shape[1], seed=0)
    lengths = np.resize(np.repeat(RANDOM_SCALES, 2), len(rows))
    probes: Float64 = np.concatenate((rows * lengths[:, None], near * scales[:, None]))
    return probes.astype(np.float32).astype(np.float64)


def _run_singly(run: Aggregate, probes: Float64, rows: int, batch: int) -> Float64:
    """Return the aggregate (R,M) of each probe (R,D), which is all local descriptors of its image, `rows` times."""
    found = []
    for start in range(0, len(probes), batch):
        chosen = np.resize(probes[start : start + batch], (batch, probes.shape[1])).astype(np.float32)
        vectors = run(np.repeat(chosen[:, None], rows, axis=1))
        found.append(vectors.astype(np.float64)[: len(probes) - start])
    return np.concatenate(found)


def _assignments(site: Site, probes: Float64) -> Float64:
    """Return the soft assignments (R,C) of local descriptors (R,D)."""
    logits = probes @ site.logits.weight.astype(np.float64)
    logits = logits if site.logits.scale is None else logits * site.logits.scale
    return equations.soft_assignment(
        logits if site.logits.offset is None else logits + site.logits.offset, site.logits.columns
    )


def _parts(vectors: Float64, clusters: int, width: int, seen: Array) -> tuple[Float64, str]:
    """Return aggregates (R,M) as unit vectors (R,K,D) by cluster, and their order, in which all parts are as long.

    Raises: InputError if that is so in neither order.
    """
    ways = {
        CLUSTERS_FIRST: vectors.reshape(-1, clusters, width),
        CLUSTERS_LAST: vectors.reshape(-1, width, clusters).swapaxes(1, 2),
    }
    uneven = {}
    telling = seen.sum(axis=1) >= min(2, clusters)  # a single part is as long as itself in any order
    for flatten, parts in ways.items():
        norms = np.linalg.norm(parts, axis=-1)
        rows = np.isfinite(norms).all(axis=1) & telling
        longest = np.where(seen, norms, 0).max(axis=1)
        apart = np.where(seen, 1 - norms / np.maximum(longest, 1e-30)[:, None], 0)[rows]
        uneven[flatten] = float(np.median(apart.max(axis=1))) if rows.any() else np.inf
    flatten = min(uneven, key=lambda each: uneven[each])
    if not uneven[flatten] < SAME:
        raise InputError(
            f"the parts of its clusters differ in length by {uneven[flatten]:.2g} of the longest, expected "
            "intra-normalisation"
        )
    parts = ways[flatten]
    return parts / np.maximum(np.linalg.norm(parts, axis=-1, keepdims=True), 1e-30), flatten


def _centroids(seen: Float64, parts: Float64, assignment: Float64) -> Float64:
    """Return the centroids (K,D) in which the lines from local descriptors (R,D) along unit vectors (R,K,D) meet.

    Raises: InputError if two lines to a centroid miss each other, or no two are seen.
    """
    found = np.empty(parts.shape[1:])
    for cluster in range(parts.shape[1]):
        usable = np.flatnonzero((assignment[:, cluster] > SEEN) & np.isfinite(parts[:, cluster]).all(axis=1))
        usable = usable[np.argsort(-assignment[usable, cluster])][:LINES]
        meetings = [_meeting(seen[[a, b]], parts[[a, b], cluster]) for a, b in combinations(usable, 2)]
        if not meetings:
            raise InputError(f"no local descriptor that was tried is assigned to its cluster {cluster}")
        point, _, miss = min(meetings, key=lambda each: each[1])
        if not miss < SAME:
            raise InputError(f"residuals of its cluster {cluster} meet in no centroid: they miss it by {miss:.2g}")
        found[cluster] = point
    return found


def _meeting(points: Float64, directions: Float64) -> tuple[Float64, float, float]:
    """Return where two lines nearly meet, how unsure that is, and by how much they miss, relative to their length."""
    (first, second), apart = directions, points[0] - points[1]
    cosine = float(first @ second)
    sine = max(1 - cosine**2, 1e-30)
    lengths = np.array([apart @ first - cosine * (apart @ second), cosine * (apart @ first) - apart @ second]) / sine
    ends = points - lengths[:, None] * directions
    size = max(float(np.abs(lengths).max()), 1e-30)
    return ends.mean(axis=0), size / sine**0.5, float(np.linalg.norm(ends[0] - ends[1])) / size


def _pool(paths: Paths, names: Iterable[str], width: int) -> Float64:
    """Return all rows of D values (R,D) that stand in these constants, along any axis."""
    rows = []
    for name in names:
        value = paths.constants[name]
        if value.dtype.kind != "f" or value.size % width or not 0 < value.size <= LARGEST_POOLED:
            continue
        axes = [axis for axis, length in enumerate(value.shape) if length == width]
        rows += [np.moveaxis(value, axis, -1).reshape(-1, width) for axis in axes]
        if not axes:
            rows += [value.reshape(-1, width), value.reshape(width, -1).T]
    return np.unique(np.concatenate(rows), axis=0).astype(np.float64) if rows else np.empty((0, width))


def _named(measured: Float64, pool: Float64) -> Float64:
    """Return the rows of constants (R,D), or their negatives, that the measured centroids (K,D) are.

    Raises: InputError if one stands in no constant.
    """
    found = np.empty_like(measured)
    both = np.concatenate((pool, -pool))
    squares = (both**2).sum(axis=1)
    for cluster, centroid in enumerate(measured):
        best = int(np.argmin(squares - 2 * both @ centroid)) if len(both) else -1
        off = np.linalg.norm(both[best] - centroid) / max(np.linalg.norm(centroid), 1e-3) if len(both) else np.inf
        if not off < SAME:
            raise InputError(f"its cluster {cluster} has a centroid that stands in none of its constants")
        found[cluster] = both[best]
    return found


def _with_epsilon(found: Recovered, run: Aggregate, rows: int, batch: int) -> Recovered:
    """Return the layer with the epsilon mode whose results are nearest to those of the head for small norms."""
    width = found.spec.feature_size
    singles = np.concatenate([scale * _random_rows(6, width, seed=2) for scale in FLOOR_SCALES])
    given = singles.astype(np.float32)
    vectors = _run_singly(run, given.astype(np.float64), rows, batch)
    finite = np.isfinite(vectors).all(axis=1)
    off = {}
    for epsilon in (CLAMP, RSQRT, ADD):
        parameters = replace(found, spec=replace(found.spec, epsilon=epsilon)).parameters()
        features = np.repeat(given[:, None], rows, axis=1)
        logits = equations.assignment_logits(parameters, features)
        assignment = equations.soft_assignment(logits, found.spec.num_clusters)
        seen = equations.local_descriptors(parameters, features)
        wanted = equations.aggregate(parameters, equations.residual_sum(assignment, seen, parameters.centroids))
        off[epsilon] = float(np.abs(wanted - vectors)[finite].max(initial=0.0))
    best = min(off, key=lambda each: off[each])
    chosen = CLAMP if off[CLAMP] <= 2 * off[best] else best
    said = f"norms below 1e-04 are kept from 0 in another way: descriptors of such features differ by {off[chosen]:.1g}"
    notes = (said,) if off[chosen] > SAME else ()
    return replace(found, spec=replace(found.spec, epsilon=chosen), notes=notes)
