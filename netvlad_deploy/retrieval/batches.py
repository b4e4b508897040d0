"""Batches that a runner takes, of local descriptors and of images: which items together, how many, and filled up."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np

from netvlad_deploy.errors import RunError
from netvlad_deploy.runner import Feeds, Runner
from netvlad_deploy.spec.images import AnyProfile
from netvlad_deploy.spec.layer import DESCRIPTOR
from netvlad_deploy.support.arrays import Array

Shape = tuple[int, ...]
Name = TypeVar("Name")


def batches(
    items: Iterable[tuple[Name, Array]], largest: Callable[[Shape], int], *, padded: bool = False
) -> Iterator[list[tuple[Name, Array]]]:
    """Yield named items that stand side by side and have one shape together, at most `largest` of that shape.

    Items that will be `padded` may differ in shape: the first one, which must be the longest, decides.
    """
    group: list[tuple[Name, Array]] = []
    for item in items:
        first = group[0][1].shape if group else ()
        if group and (len(group) >= largest(first) or (item[1].shape != first and not padded)):
            yield group
            group = []
        group.append(item)
    if group:
        yield group


def smallest_shape(profiles: Sequence[AnyProfile], shape: Shape, *, grows: int = 1) -> Shape | None:
    """Return the smallest shape within a profile to which this one can be filled up, None if there is none.

    A shape is (B,N) or (B,H,W). The first `grows` of its axes can be filled up: the batch by items that come again, N
    by padding. Without profiles every shape is taken as it is.
    """
    filled = [
        tuple(max(length, axis.min) for length, axis in zip(shape, profile.axes.values(), strict=True))
        for profile in profiles
        if all(length <= axis.max for length, axis in zip(shape, profile.axes.values(), strict=True))
    ]
    taken = [each for each in filled if each[grows:] == shape[grows:]]
    return min(taken, key=math.prod, default=None) if profiles else shape


def largest_batch(runner: Runner, asked: int, size: Shape, *, grows: int = 1) -> int:
    """Return the number of items of a size, (N,) or (H,W), to run at once: as many as asked, within a profile for it.

    Where no profile is for the size it is as many as asked: the runner refuses them, and says why.
    """
    fitting = [each for each in runner.profiles if smallest_shape([each], (1, *size), grows=grows) is not None]
    return min(asked, max((profile.batch.max for profile in fitting), default=asked))


def pad(sequences: Sequence[Array], *, shortest: int = 1) -> tuple[Array, Array]:
    """Return sequences (N_i,D) as one zero-padded array (B,N,D) and its mask (B,N), N at least `shortest`."""
    lengths = np.array([len(sequence) for sequence in sequences])
    longest = max(int(lengths.max()), shortest)
    padded = np.zeros((len(sequences), longest, sequences[0].shape[1]), dtype=sequences[0].dtype)
    for row, sequence in zip(padded, sequences, strict=True):
        row[: len(sequence)] = sequence
    return padded, np.arange(longest) < lengths[:, None]


def run_batch(runner: Runner, feeds: Feeds, names: Sequence[str], not_finite: str | None) -> Array:
    """Return the descriptor of each name (B,P); where every profile wants more items, the last one comes again.

    Raises: RunError if a descriptor is not finite, in the words of `not_finite` with {runner} and {name}; without
        words, whoever calls this looks for such descriptors.
    """
    shape = feeds[runner.inputs[0]].shape[:-1]
    missing = (smallest_shape(runner.profiles, shape) or shape)[0] - len(names)
    if missing > 0:
        feeds = {name: np.concatenate([array, *[array[-1:]] * missing]) for name, array in feeds.items()}
    descriptors = runner.run(feeds)[DESCRIPTOR][: len(names)]
    finite = np.isfinite(descriptors).all(axis=1)
    if not_finite is not None and not finite.all():
        raise RunError(not_finite.format(runner=runner.name, name=names[int(finite.argmin())]))
    return descriptors
