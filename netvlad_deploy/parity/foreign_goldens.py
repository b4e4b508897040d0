"""Golden inputs of a foreign file that is taken as it is: its own descriptors in FP32, and how far rounding moves them.

Nothing but the file says what is right. So its own descriptors are golden, and prove whatever is made of it: an engine,
another provider, another precision. The distances are those of the same file with the operands of its products rounded
on random grids: as FP32 rounds, and to 11 bits, as TF32 does.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from netvlad_deploy.errors import InputError, RunError
from netvlad_deploy.export.foreign.half import with_peaks
from netvlad_deploy.export.foreign.wrap import THEIRS, rounded
from netvlad_deploy.oracle.goldens import FP32, TF32, Golden, distances, golden_image, golden_sizes
from netvlad_deploy.runtime.foreign_runner import WrappedModel
from netvlad_deploy.spec.images import IMAGES, ImageInput
from netvlad_deploy.spec.layer import FEATURES
from netvlad_deploy.support.arrays import Array, Arrays, Float64, unit_rows

ROUNDED_SEEDS = range(3)
"""Seeds of the roundings that are tried on every golden input."""

FEATURE_COUNTS = (48, 63, 300)
"""Numbers of golden local descriptors where a file takes any."""

SAME_BESIDE = 1e-4
"""Largest distance by which a descriptor may differ in a batch of others: the sums of FP32 in another order."""

LEAST_GOLDENS = 2
"""Fewest golden inputs: one is judged by its distance from the others."""


def foreign_goldens(
    model: Any, images: ImageInput | None, width: int, fixed: Mapping[str, int], precision: str
) -> tuple[tuple[Golden, ...], bool]:
    """Return golden inputs with the descriptors of a wrapped model, and whether these have norm 1.

    Args:
        model: a ModelProto with an artifact's inputs and output.
        images: the preparation of its images, None if it takes features.
        width: D of its features.
        fixed: the lengths of the axes of its input that are fixed.
        precision: that of the graph which is made of it.

    Raises: InputError if it runs on fewer than two inputs, or a descriptor is not finite.
    """
    batch = fixed.get("batch", 1)
    plain = WrappedModel(model.SerializeToString())
    found: list[tuple[Arrays, Float64]] = []
    refused = ""
    for feeds in _inputs(images, width, fixed):
        try:
            descriptor = plain(feeds, batch)
            _check_alone(plain, feeds, descriptor, fixed)
            found.append((feeds, descriptor.astype(np.float64)))
        except RunError as error:
            refused = str(error)
    if len(found) < LEAST_GOLDENS:
        raise InputError(f"{refused or 'it runs on no golden input'}: say with --resize which size it takes")
    sizes = sorted({descriptor.size for _, descriptor in found})
    if len(sizes) > 1:
        raise InputError(f"its output has {sizes[0]} to {sizes[-1]} values, expected a vector of one length")
    exact = np.stack([descriptor for _, descriptor in found])
    if not np.isfinite(exact).all():
        raise InputError("its descriptor of a golden input is not finite")
    compared = TF32 if precision == FP32 else precision
    far = {
        FP32: _moved(model, found, batch, bits=24, sums=False),
        compared: _moved(model, found, batch, bits=11, sums=precision != FP32),
    }
    goldens = tuple(
        Golden(feeds=feeds, descriptor=descriptor, distances={name: far[name][index] for name in far})
        for index, (feeds, descriptor) in enumerate(found)
    )
    return goldens, bool(np.abs(np.linalg.norm(exact, axis=1) - 1).max() < 1e-4)


def _check_alone(model: WrappedModel, feeds: Arrays, descriptor: Array, fixed: Mapping[str, int]) -> None:
    """Raise InputError if the descriptor of an input (P,) is another one beside other inputs in its batch."""
    batch = fixed.get("batch", 2)
    if batch == 1:
        return
    others = {name: np.stack([array, *[np.flip(array, 0)] * (batch - 1)]) for name, array in feeds.items()}
    beside = model.batched(others)[0]
    moved = float(distances(beside[None], descriptor[None].astype(np.float64))[0])
    if not moved <= SAME_BESIDE:
        raise InputError(
            f"the descriptor of an input is moved by {moved:.2g} when others are in its batch: call eval() and export "
            "again, or export it for a batch of 1"
        )


def _inputs(images: ImageInput | None, width: int, fixed: Mapping[str, int]) -> Iterator[Arrays]:
    """Yield inputs without a batch axis, three where one size is all that is taken."""
    if images is not None:
        for seed, size in enumerate(golden_sizes(images)):
            yield {IMAGES: golden_image(*size, seed=seed)}
        return
    counts = [fixed["num_features"]] * 3 if "num_features" in fixed else FEATURE_COUNTS
    for seed, count in enumerate(counts):
        yield {FEATURES: _features(count, width, seed)}


def _features(count: int, width: int, seed: int) -> Array:
    """Return local descriptors (N,D) of norm 1 around a few directions: as in an image, many are alike."""
    random = np.random.default_rng(seed)
    centres = random.standard_normal((8, width))
    return unit_rows(random.standard_normal((count, width)) + centres[random.integers(0, 8, count)]).astype(np.float32)


def _moved(model: Any, found: list[tuple[Arrays, Float64]], batch: int, *, bits: int, sums: bool) -> list[float]:
    """Return the largest distance of each descriptor over the seeds of a rounding."""
    moved = np.zeros(len(found))
    for seed in ROUNDED_SEEDS:
        content = rounded(model, seed, bits=bits, sums=sums).SerializeToString()
        runner = WrappedModel(content, optimized=False)
        for index, (feeds, descriptor) in enumerate(found):
            far = float(distances(runner(feeds, batch)[None], descriptor[None])[0])
            moved[index] = max(moved[index], far)
    return [float(each) for each in moved]


def peaks_of(model: Any, names: tuple[str, ...], goldens: tuple[Golden, ...], batch: int) -> dict[str, float]:
    """Return the largest absolute value of each named tensor of a wrapped model over golden inputs."""
    watched, outputs = with_peaks(model, names)
    runner = WrappedModel(watched.SerializeToString())
    found = [runner.outputs(golden.feeds, batch, *outputs.values()) for golden in goldens]
    return {
        name.removeprefix(THEIRS): max(float(values[place]) for values in found) for place, name in enumerate(outputs)
    }
