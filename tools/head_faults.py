"""Faults to plant in the parameters of a head: what a wrong loader or a wrong graph would compute."""

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from netvlad_deploy.oracle.equations import BatchNorm, ReferenceParameters
from netvlad_deploy.support.arrays import Array


def permuted(parameters: ReferenceParameters, columns: Array, clusters: Array) -> ReferenceParameters:
    """Return the head whose columns and centroids are these of the head given."""
    norm, bias = parameters.batch_norm, parameters.bias
    vectors = {} if norm is None else {name: getattr(norm, name)[columns] for name in vars(norm) if name != "eps"}
    return replace(
        parameters,
        clusters=parameters.clusters[:, columns],
        centroids=parameters.centroids[clusters],
        batch_norm=None if norm is None else BatchNorm(**vectors, eps=norm.eps),
        bias=None if bias is None else bias[columns],
    )


Fault = Callable[[ReferenceParameters, np.random.Generator], ReferenceParameters | None]


def swapped(parameters: ReferenceParameters, random: np.random.Generator) -> ReferenceParameters | None:
    spec = parameters.spec
    if spec.num_clusters == 1:
        return None
    one, other = random.choice(spec.num_clusters, 2, replace=False)
    columns = np.arange(spec.num_clusters + spec.num_ghost_clusters)
    columns[[one, other]] = columns[[other, one]]
    return permuted(parameters, columns, columns[: spec.num_clusters])


def negated(parameters: ReferenceParameters, random: np.random.Generator) -> ReferenceParameters:
    return replace(parameters, centroids=-parameters.centroids)


def wrong_slice(parameters: ReferenceParameters, random: np.random.Generator) -> ReferenceParameters | None:
    spec = parameters.spec
    if not spec.num_ghost_clusters:
        return None
    columns = np.roll(np.arange(spec.num_clusters + spec.num_ghost_clusters), -spec.num_ghost_clusters)
    return permuted(parameters, columns, np.arange(spec.num_clusters))


def one_centroid(parameters: ReferenceParameters, random: np.random.Generator) -> ReferenceParameters:
    centroids = parameters.centroids.copy()
    centroids[random.integers(len(centroids))] *= -1
    return replace(parameters, centroids=centroids)


def one_column(parameters: ReferenceParameters, random: np.random.Generator) -> ReferenceParameters:
    clusters = parameters.clusters.copy()
    clusters[:, random.integers(clusters.shape[1])] *= -1
    return replace(parameters, clusters=clusters)


FAULTS: Mapping[str, Fault] = {
    "two clusters swapped": swapped,
    "centroids negated": negated,
    "the wrong ghost slice": wrong_slice,
    "one centroid negated": one_centroid,
    "one column negated": one_column,
}

PLANTED = ("two clusters swapped", "centroids negated", "one centroid negated")
"""Those that `parity/visibility.py` plants, one cluster at a time, whatever the layer is."""
