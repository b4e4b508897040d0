"""Make an index of descriptors with FAISS, and measure its recall with descriptors that it does not hold yet."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from netvlad_deploy.descriptors.reader import DescriptorReader
from netvlad_deploy.index.exact import DEPTH, ExactNearest
from netvlad_deploy.index.kinds import FLAT, HNSW, IVF, Choice
from netvlad_deploy.index.survey import Survey, blocks, survey
from netvlad_deploy.support.progress import Progress
from netvlad_deploy.support.require import require

LOG = logging.getLogger(__name__)

LEAST_RECALL: Final = 0.99
"""Recall@10 for which an ivf reads more lists, and an hnsw keeps more candidates."""

FIRST_VISITED: Final = {IVF: 1, HNSW: 16}
MOST_CANDIDATES: Final = 4096
"""Where the search of an hnsw stops to look for a better recall: it would compare most descriptors by then."""


@dataclass(frozen=True, kw_only=True)
class Built:
    """An index of FAISS in memory, and what is known of it.

    Args:
        index: FAISS's object.
        unit: whether every descriptor has length 1, so that it compares by dot product, not by distance.
        visited: how many lists of an ivf, or candidates of an hnsw, a search looks at; 0 for the other kinds.
        recall: recall@10 against exact search, None where there were too few descriptors to measure it.
        queries: how many queries measured it.
    """

    index: Any
    unit: bool
    visited: int
    recall: float | None
    queries: int


def build_index(reader: DescriptorReader, choice: Choice, write_names: Callable[[Sequence[str]], None]) -> Built:
    """Return the index of all descriptors of a file, which is read twice; `write_names` gets their names in its order.

    Those that measure the recall join the index at its end, after they have been its queries. Equal files give equal
    indexes on one machine.

    Raises: InputError if descriptors cannot be indexed; MissingDependencyError without FAISS.
    """
    faiss = require("faiss", extra="index")
    known = survey(reader, choice)
    index = empty_index(faiss, reader.descriptor_size, choice, unit=known.unit)
    threads = faiss.omp_get_max_threads()
    adding = 1 if choice.kind == HNSW else threads  # the order in which threads link descriptors is nobody's promise
    try:
        faiss.omp_set_num_threads(adding)
        held, exact = _fill(index, reader, choice, known, write_names)
        faiss.omp_set_num_threads(threads)
        visited, recall = _measured(index, choice, exact)
        faiss.omp_set_num_threads(adding)
        index.add(known.queries)
        write_names(held)
    finally:
        faiss.omp_set_num_threads(threads)
    return Built(index=index, unit=known.unit, visited=visited, recall=recall, queries=len(held))


def empty_index(faiss: Any, size: int, choice: Choice, *, unit: bool) -> Any:
    """Return an index of FAISS of a kind, without descriptors, for those of `size` values."""
    metric = faiss.METRIC_INNER_PRODUCT if unit else faiss.METRIC_L2
    index = faiss.index_factory(size, choice.factory, metric)
    if choice.kind == IVF:
        index.cp.min_points_per_centroid = 1  # small samples are no mistake here, and FAISS would print that they are
    return index


def _fill(
    index: Any,
    reader: DescriptorReader,
    choice: Choice,
    known: Survey,
    write_names: Callable[[Sequence[str]], None],
) -> tuple[list[str], ExactNearest]:
    """Train an index and add all descriptors but those held out; return the names of these and the exact answers."""
    if not index.is_trained:
        index.train(known.sample if choice.kind == IVF else known.queries[:1])
    _reserve(index, choice, reader.count * reader.descriptor_size)
    held, exact = [], ExactNearest(known.queries, unit=known.unit)
    progress = Progress("indexing", reader.count, "descriptors")
    for start, names, rows, _ in blocks(reader):
        first, last = np.searchsorted(known.held, (start, start + len(names)))
        out = known.held[first:last] - start
        held += [names[place] for place in out]
        kept = np.setdiff1d(np.arange(len(names)), out)
        exact.see(rows[kept], index.ntotal)
        index.add(rows[kept])
        write_names([names[place] for place in kept])
        progress.advance(len(names))
    return held, exact


def _reserve(index: Any, choice: Choice, values: int) -> None:
    """Take the memory of an index without lists at once: otherwise it doubles as it grows, and is copied each time."""
    if choice.kind != IVF:
        faiss = require("faiss", extra="index")
        codes = faiss.downcast_index(index.storage).codes if choice.kind == HNSW else index.codes
        codes.resize(values * (4 if choice.kind == FLAT else 2))
        codes.resize(0)


def _measured(index: Any, choice: Choice, exact: ExactNearest) -> tuple[int, float | None]:
    """Return how many lists or candidates a search shall look at, and the recall@10 that this gives.

    As few of them as have LEAST_RECALL, by powers of two; or all, which a line in the log says.
    """
    if choice.kind == FLAT:
        return 0, 1.0
    most = {IVF: choice.lists, HNSW: MOST_CANDIDATES}.get(choice.kind, 0)
    if not len(exact.queries):
        set_visited(index, choice.kind, most)
        return most, None
    visited = min(most, FIRST_VISITED.get(choice.kind, 0))
    while True:
        set_visited(index, choice.kind, visited)
        recall = exact.recall(index.search(exact.queries, DEPTH)[1])
        LOG.debug("%s: recall@%d %.4f, %d visited", choice.kind, DEPTH, recall, visited)
        if recall >= LEAST_RECALL or visited >= most:
            return visited, recall
        visited = min(most, 2 * visited)


def set_visited(index: Any, kind: str, visited: int) -> None:
    """Set how many lists of an ivf, or candidates of an hnsw, a search looks at."""
    if kind == IVF:
        index.nprobe = visited
    elif kind == HNSW:
        index.hnsw.efSearch = visited
