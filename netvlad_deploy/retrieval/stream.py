"""From contents to descriptors: decoded ahead, in batches, several of them in flight, and given out in order.

    contents ──> decoder threads ──> portions of batches ──> lanes: runner.run ──> descriptors

Each arrow is a bounded queue, so that reading, decoding, computing and writing go on at the same time and the memory
does not grow with the number of items.
"""

import contextlib
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from netvlad_deploy.errors import UsageError
from netvlad_deploy.retrieval.batches import Shape, batches, largest_batch, pad, run_batch, smallest_shape
from netvlad_deploy.retrieval.decoding import check_decoder, without_warnings
from netvlad_deploy.retrieval.in_order import InOrder
from netvlad_deploy.retrieval.loading import (
    Loaded,
    Prepare,
    feature_preparer,
    first_warning,
    image_preparer,
    loading,
    takes_mask,
    usual_decoders,
)
from netvlad_deploy.retrieval.pace import paced
from netvlad_deploy.runner import Feeds, Runner
from netvlad_deploy.spec.images import IMAGES, ImageInput
from netvlad_deploy.spec.items import Item, Load, Skipped
from netvlad_deploy.spec.layer import FEATURES, MASK
from netvlad_deploy.support.arrays import Array, Float32
from netvlad_deploy.support.machine import available_cores

DONE_BYTES: Final = 2**26
"""Descriptors that wait for whoever takes them: so a sink may stop to write, and the runner goes on."""

PORTION_BATCHES: Final = 8
PORTION_BYTES: Final = 2**26
"""Items of different shapes are sorted by shape among so many batches, or as many bytes if that is less."""

IMAGES_NOT_FINITE: Final = "descriptors of {runner} are not finite for {name}"
FEATURES_NOT_FINITE: Final = "{runner} gave a descriptor that is not finite for {name}: scale its features down"

Result = tuple[Item, Float32 | Skipped]


def describe(
    runner: Runner,
    images: ImageInput | None,
    contents: Iterable[tuple[Item, Load]],
    *,
    batch: int,
    apart: int | None = None,
    decoders: int | None = None,
    lanes: int | None = None,
) -> Generator[Result, None, None]:
    """Yield each item with its descriptor (P,) float32, or why it has none, in the order of the contents.

    The results depend on the contents and the batch alone, not on threads: which items share a batch, and so the last
    bits of a descriptor, follow from their order and shapes.

    Args:
        runner: computes the descriptors; it must stay open as long as they are taken.
        images: how a pipeline takes images; None for local descriptors.
        contents: the items, and for each the function that reads it, which is called in a decoder thread. One other
            thread iterates over them.
        batch: most items that run at once; a profile may take fewer.
        apart: no batch holds items from both sides of a multiple of this number, counted from the first one.
        decoders: threads that read and decode; by default as many as keep the runner busy, up to the cores.
        lanes: batches that are run at the same time; by default as many as are of use to the runner.

    A generator that is not used to its end should be closed: that ends its threads.

    Raises: RunError if a descriptor is not finite or the runner failed; UsageError if the runner takes other inputs,
        or no more than one batch at a time.
    """
    lanes = lanes or runner.lanes
    if lanes > 1 and not runner.concurrent:
        raise UsageError(f"{runner.name} runs one batch at a time, got {lanes} lanes")
    if others := set(runner.inputs) - {FEATURES if images is None else IMAGES, MASK}:
        raise UsageError(f"{runner.name} takes {', '.join(sorted(others))} too, which no item has")
    if images is not None:
        check_decoder()
    return _results(_Batching(runner, images, batch, apart), contents, decoders, lanes)


@dataclass(frozen=True)
class _Batching:
    """Which items of a runner share a batch, and how they are run."""

    runner: Runner
    images: ImageInput | None
    batch: int
    apart: int | None

    @property
    def prepare(self) -> Prepare:
        return feature_preparer(self.runner) if self.images is None else image_preparer(self.images, self.runner)

    @property
    def padded(self) -> bool:
        return self.images is None and takes_mask(self.runner)

    def largest(self, shape: Shape) -> int:
        """Return how many items (N,D) or (H,W,3) of a shape run at once."""
        return largest_batch(self.runner, self.batch, shape[:-1], grows=2 if self.padded else 1)

    def portions(self, loaded: Iterable[Loaded]) -> Iterator[list[Loaded]]:
        """Yield items that stand together: a batch of one shape, or several batches where shapes differ."""
        portion: list[Loaded] = []
        shapes: set[Shape] = set()
        count = size_bytes = 0
        for number, one in enumerate(loaded, 1):
            portion.append(one)
            if not isinstance(one.values, Skipped):
                shapes.add(one.values.shape)
                count, size_bytes = count + 1, size_bytes + one.values.nbytes
            whole = len(shapes) == 1 and count >= self.largest(next(iter(shapes)))
            large = count >= self.batch and size_bytes >= PORTION_BYTES
            parted = self.apart is not None and number % self.apart == 0
            if whole or large or parted or len(portion) >= PORTION_BATCHES * self.batch:
                yield portion
                portion, shapes, count, size_bytes = [], set(), 0, 0
        if portion:
            yield portion

    def run(self, portion: Sequence[Loaded], *, stopped: Callable[[], bool]) -> list[Result]:
        """Return the results of a portion in its order, fewer if the stream was stopped meanwhile."""
        results = {index: one.values for index, one in enumerate(portion) if isinstance(one.values, Skipped)}
        arrays = [(index, one.values) for index, one in enumerate(portion) if not isinstance(one.values, Skipped)]
        arrays.sort(key=lambda each: each[1].shape, reverse=True)
        words = FEATURES_NOT_FINITE if self.images is None else IMAGES_NOT_FINITE
        for group in batches(arrays, self.largest, padded=self.padded):
            if stopped():
                return []
            names = [portion[index].item.name for index, _ in group]
            feeds = self.feeds([array for _, array in group])
            descriptors = run_batch(self.runner, feeds, names, words).astype(np.float32, copy=False)
            results |= {index: descriptor for (index, _), descriptor in zip(group, descriptors, strict=True)}
        return [(one.item, results[index]) for index, one in enumerate(portion)]

    def feeds(self, arrays: Sequence[Array]) -> Feeds:
        """Return what the runner takes for items: images (B,H,W,3), or features (B,N,D) and their mask if need be."""
        if self.images is not None:
            return {IMAGES: np.stack(arrays)}
        shape = len(arrays), len(arrays[0])
        fitting = smallest_shape(self.runner.profiles, shape, grows=2) if self.padded else None
        features, mask = pad(arrays, shortest=(fitting or shape)[1])
        feeds = {FEATURES: features.astype(self.runner.dtype, copy=False)}
        if MASK in self.runner.inputs or (self.padded and not mask.all()):
            feeds[MASK] = mask
        return feeds


def _results(
    batching: _Batching, contents: Iterable[tuple[Item, Load]], decoders: int | None, lanes: int
) -> Generator[Result, None, None]:
    silence = contextlib.nullcontext() if batching.images is None else without_warnings()
    loaded = loading(contents, batching.prepare, decoders=decoders or usual_decoders())
    ahead = loaded if decoders else paced(loaded, lambda: runs, most=available_cores())
    runs = InOrder(
        lambda portion: batching.run(portion, stopped=lambda: runs.stopped),
        batching.portions(first_warning(ahead)),
        name="run",
        width=lanes,
        most_bytes=DONE_BYTES,
        size_of=lambda results: sum(each.nbytes for _, each in results if not isinstance(each, Skipped)),
    )
    with silence, loaded, runs:
        try:
            for results in runs:
                yield from results
        finally:
            runs.stop()  # first, since what is loaded ends when it is stopped, and a part of it is not run
            loaded.stop()
