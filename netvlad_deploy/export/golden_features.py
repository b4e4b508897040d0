"""Golden features of an aggregator: local descriptors, and its other inputs, with the descriptors of its formula."""

import contextlib
from collections.abc import Mapping

import numpy as np
import torch

from netvlad_deploy.errors import ExportError
from netvlad_deploy.export.make_goldens import ROUNDING_SEEDS, RoundedHead
from netvlad_deploy.models.aggregators.base import Aggregator
from netvlad_deploy.oracle.aggregators import FORMULAS
from netvlad_deploy.oracle.goldens import FP32, TF32, Golden, distances
from netvlad_deploy.spec.layer import TOKEN, input_shape
from netvlad_deploy.support.arrays import Array, Arrays, unit_rows

MORE_FEATURES = (0, 46, 257)
"""Numbers of local descriptors of golden features, beyond the least that the aggregator takes."""

DIRECTIONS = 8
"""Number of directions around which golden features lie: as in an image, many are alike."""


def golden_features(module: Aggregator, precision: str) -> tuple[Golden, ...]:
    """Return golden features with the descriptors of the aggregator's formula in float64.

    Each has two distances from its descriptor: of the torch module in FP32, and rounded as the precision rounds. For an
    FP32 graph the second is TF32, in which an engine may compute it.

    Raises: ExportError if a descriptor is not finite.
    """
    parameters = {name: tensor.numpy() for name, tensor in module.state_dict().items()}
    wide = {name: array.astype(np.float64) for name, array in parameters.items()}
    compared = TF32 if precision == FP32 else precision
    goldens = []
    for seed, more in enumerate(MORE_FEATURES):
        feeds = example_feeds(module, module.spec.least_features + more, seed)
        batch = {name: array[None].astype(np.float64) for name, array in feeds.items()}
        expected = FORMULAS[module.spec.name](module.spec, wide, batch)[0]
        if not np.isfinite(expected).all():
            raise ExportError(f"the descriptor of golden features {len(feeds[next(iter(feeds))])} is not finite")
        found = {FP32: _distance(module, feeds, expected, None)}
        found[compared] = max(
            _distance(module, feeds, expected, RoundedHead(each, fixed=(), stored=precision != FP32, logits=False))
            for each in ROUNDING_SEEDS
        )
        goldens.append(Golden(feeds=feeds, descriptor=expected, distances=found))
    return tuple(goldens)


def example_feeds(module: Aggregator, num_features: int, seed: int) -> Arrays:
    """Return random inputs without a batch axis: local descriptors (N,D) around a few directions, and the others."""
    random = np.random.default_rng(seed)
    feeds: Arrays = {}
    for name in module.spec.inputs:
        shape = input_shape(module.spec, name, (1, num_features))[1:]
        values = random.standard_normal(shape)
        if name != TOKEN:
            centres = random.standard_normal((DIRECTIONS, shape[-1]))
            values = values + centres[random.integers(0, DIRECTIONS, num_features)]
        in_half = (unit_rows(values) * module.feature_norm).astype(np.float16)  # graphs of both precisions take them
        feeds[name] = in_half.astype(np.float32)
    return feeds


def _distance(module: Aggregator, feeds: Mapping[str, Array], expected: Array, rounding: RoundedHead | None) -> float:
    """Return the distance of the module's descriptor from the expected one (P,), rounded by a mode if there is one."""
    tensors = [torch.from_numpy(array)[None] for array in feeds.values()]
    with torch.inference_mode(), rounding or contextlib.nullcontext():
        got = module(*tensors)
    return float(distances(got.numpy(), expected[None])[0])
