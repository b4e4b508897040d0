"""The shards of a run as one flow: later ones are decoded while one is inferred and earlier ones are written.

    listings ──> describe: decoders, runner ──> descriptors of a shard ──> writer thread ──> its record

Each arrow is bounded, and no more than MOST_BEGUN shards are under way. Batches never cross shards, so that what a
shard holds depends on the plan alone, and not on who computed it, or when.
"""

import contextlib
import itertools
import logging
import threading
from collections.abc import Generator, Iterable, Iterator
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Final, NamedTuple

from netvlad_deploy.bulk.listing import read_listing
from netvlad_deploy.bulk.plan import Plan
from netvlad_deploy.bulk.shards import ShardDone, write_shard
from netvlad_deploy.errors import InputError, UnfitError
from netvlad_deploy.retrieval.in_order import InOrder
from netvlad_deploy.retrieval.stream import Result, describe
from netvlad_deploy.runner import Runner
from netvlad_deploy.sources.source import Source, size_and_change
from netvlad_deploy.spec.items import Content, Item, Load, Skipped, printable
from netvlad_deploy.support.claims import claimed
from netvlad_deploy.support.progress import Progress

LOG = logging.getLogger(__name__)

MOST_BEGUN: Final = 4
"""Shards under way at once, each with its claim: one is decoded, one is run, one waits, and one is written."""

RECORDS_BYTES: Final = 1 << 20
"""Records that wait for whoever takes them, each counted as a kibibyte."""

CHANGED: Final = "changed since the run was begun"
GONE: Final = "gone since the run was begun"


def embed_shards(
    plan: Plan,
    numbers: Iterable[int],
    runner: Runner,
    *,
    decoders: int | None = None,
    progress: Progress | None = None,
) -> Generator[ShardDone, None, None]:
    """Compute shards, and yield the record of each when it is there.

    A shard is claimed before its first item is read, until its record stands; its files are complete or not there,
    whatever ends this process. A generator that is not used to its end should be closed: that ends its threads, after
    the shard that is being written.

    Args:
        plan: the plan that they belong to.
        numbers: which shards, counted from 0; they are computed in ascending order.
        runner: the runner of the plan's artifact and head.
        decoders: threads that read and decode, as many as fit by themselves if None.
        progress: is moved on by each item, in another thread.

    Raises: UsageError if another process works on a shard; InputError if none of the inputs of one is there;
        OutputError if the disk refuses; RunError if a descriptor is not finite. The shards before that one are there.
    """
    flow = _Flow(plan, sorted(numbers), runner, decoders, progress)
    with contextlib.ExitStack() as stack:
        stack.callback(flow.give_up)
        records = stack.enter_context(flow.records)
        stack.callback(flow.stop)
        yield from records


class _Computed(NamedTuple):
    """A shard with a result for each of its items."""

    number: int
    entries: list[Item | Skipped]
    results: list[Result]


class _Flow:
    """The shards under way: claimed by the thread that feeds the decoders, and released by the one that writes."""

    def __init__(
        self, plan: Plan, numbers: list[int], runner: Runner, decoders: int | None, progress: Progress | None
    ) -> None:
        self._plan, self._numbers, self._runner = plan, numbers, runner
        self._decoders, self._progress = decoders, progress
        self._room = threading.Semaphore(MOST_BEGUN)
        self._claims: dict[int, contextlib.ExitStack] = {}
        self._entries: dict[int, list[Item | Skipped]] = {}
        self.records = InOrder(
            self._write, self._computed(), name="write", width=1, most_bytes=RECORDS_BYTES, size_of=lambda _: 0
        )

    def stop(self) -> None:
        """Let every thread end after what it is doing."""
        self.records.stop()
        self._room.release(MOST_BEGUN)  # for the thread that waits there

    def give_up(self) -> None:
        """Release the claims of the shards that were not written."""
        for claim in list(self._claims.values()):
            claim.close()

    def _contents(self) -> Iterator[tuple[Item, Load]]:
        """Claim one shard after another, and yield each of its items with what loads it."""
        source = self._plan.source()
        for number in self._numbers:
            self._room.acquire()
            claim = self._claims[number] = contextlib.ExitStack()
            claim.enter_context(claimed(self._plan.folder / f"shard-{number:06}.lock"))
            entries = self._entries[number] = read_listing(self._plan.folder, number)
            yield from _as_listed(source, (entry for entry in entries if isinstance(entry, Item)))

    def _computed(self) -> Iterator[_Computed]:
        """Yield each shard when all its items have their results: these come in order, so their number says whose."""
        size = self._plan.manifest.shard_size
        stream = describe(
            self._runner,
            self._plan.images,
            self._contents(),
            batch=self._plan.manifest.batch,
            apart=size,
            decoders=self._decoders,
        )
        with contextlib.closing(stream):
            for number in self._numbers:
                results: list[Result] = []
                for result in itertools.islice(stream, size):
                    if self.records.stopped:
                        return
                    if isinstance(result[1], Skipped):
                        LOG.warning("skipped %s", result[1])
                    results.append(result)
                    if self._progress is not None:
                        self._progress.advance()
                yield _Computed(number, self._entries.pop(number), results)

    def _write(self, shard: _Computed) -> ShardDone:
        """Write a shard and give up its claim."""
        with self._claims.pop(shard.number):
            _check_there(shard)
            found = {item.name: value for item, value in shard.results}
            values = [entry if isinstance(entry, Skipped) else found[entry.name] for entry in shard.entries]
            kept = [(item, value) for item, value in shard.results if not isinstance(value, Skipped)]
            skipped = [value for value in values if isinstance(value, Skipped)]
            done = write_shard(self._plan, shard.number, kept, skipped)
        self._room.release()
        return done


def _check_there(shard: _Computed) -> None:
    """Raise InputError if none of the inputs of a shard is there: it would be skipped as a whole."""
    if all(isinstance(value, Skipped) and value.reason == GONE for _, value in shard.results):
        raise InputError(
            f"none of the {len(shard.results)} inputs of shard {shard.number} is there, such as "
            f"{printable(shard.results[0][0].path)}: run the command where the plan was made, with the same files"
        )


def _as_listed(source: Source, items: Iterable[Item]) -> Iterator[tuple[Item, Load]]:
    """Yield items with what loads each; of one whose file is not the one that was listed, this says so.

    The source does not get to see those: it may refuse a file that is gone, with all its items.
    """
    for fault, group in itertools.groupby(_with_fault(items), key=itemgetter(0)):
        if fault:
            yield from ((item, partial(_refuse, fault)) for _, item in group)
        else:
            yield from source.open(item for _, item in group)


def _with_fault(items: Iterable[Item]) -> Iterator[tuple[str, Item]]:
    """Yield items, each with what has become of its file since it was listed, empty if nothing has."""
    path, found = Path(), None
    for item in items:
        if item.path != path:
            path, found = item.path, _found(item.path)
        if found is None:
            yield GONE, item
        elif found[1] != item.modified_ns or (not item.part and found[0] != item.size_bytes):
            yield CHANGED, item
        else:
            yield "", item


def _refuse(fault: str) -> Content:
    raise UnfitError(fault)


def _found(path: Path) -> tuple[int, int] | None:
    """Return the size of a file and when it was changed, None if it is gone."""
    try:
        return size_and_change(path)
    except OSError:
        return None
