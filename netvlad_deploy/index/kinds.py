"""The kinds of an index: what each keeps, how much memory that takes, and which one fits a number of descriptors.

Only the standard library is imported, since the command line lists the kinds.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from netvlad_deploy.errors import UsageError

AUTO: Final = "auto"
FLAT, FLOAT16, IVF, HNSW = INDEXED = ("flat", "float16", "ivf", "hnsw")
INDEX_KINDS: Final = (AUTO, *INDEXED)

FACTORIES: Final[Mapping[str, str]] = {FLAT: "Flat", FLOAT16: "SQfp16", IVF: "IVF{lists},SQfp16", HNSW: "HNSW32,SQfp16"}
"""The text by which FAISS makes each kind. Source: FAISS, the wiki's page on the index factory."""

SCANNED_BYTES: Final = 2**30
"""Most bytes that a search reads of an index that is compared as a whole: a core reads them in a tenth of a second."""

TRAINING_BYTES: Final = 2**28
"""Bytes of the sample from which the lists of an ivf are made: it stands in memory beside the index."""

LIST_SAMPLES: Final = 39
"""Descriptors of the sample for each list. Source: FAISS, ClusteringParameters.min_points_per_centroid."""

GRAPH_BYTES: Final = 300
"""Bytes of the links of a descriptor in an hnsw: 64 on the lowest level, of 4 bytes each, a few above, its places."""

GIB: Final = 2**30


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A kind of index for some descriptors.

    Args:
        kind: one of INDEXED.
        reason: why this one.
        memory_bytes: what the index takes in memory, about.
        lists: into how many lists an ivf divides the descriptors, 0 for the other kinds.
        samples: of how many descriptors these lists are made.
    """

    kind: str
    reason: str
    memory_bytes: int
    lists: int = 0
    samples: int = 0

    @property
    def factory(self) -> str:
        """Return the text by which FAISS makes the index."""
        return FACTORIES[self.kind].format(lists=self.lists)


def choose(kind: str, count: int, size: int, memory_bytes: int) -> Choice:
    """Return the index for `count` descriptors of `size` values: the kind that is asked for, or AUTO's.

    Raises: UsageError if it would take more memory than that.

    >>> choose(AUTO, 1_000, 4096, 2**34).kind, choose(AUTO, 100_000, 4096, 2**34).kind
    ('flat', 'float16')
    >>> choose(AUTO, 1_000_000, 4096, 2**34).reason
    'one search would read 7.6 GiB of a float16 index, of which an ivf reads a part'
    """
    if kind != AUTO:
        return _checked(_choice(kind, count, size, "asked for"), count, size, memory_bytes)
    most = min(SCANNED_BYTES, memory_bytes)
    whole = {one: _memory(one, count, size) for one in (FLAT, FLOAT16)}
    if whole[FLAT] <= most:
        return _choice(FLAT, count, size, f"exact, and one search reads {_in_words(whole[FLAT])}")
    if whole[FLOAT16] <= most:
        return _choice(
            FLOAT16, count, size, f"one search reads {_in_words(whole[FLOAT16])}, of flat {_in_words(whole[FLAT])}"
        )
    reason = f"one search would read {_in_words(whole[FLOAT16])} of a float16 index, of which an ivf reads a part"
    return _checked(_choice(IVF, count, size, reason), count, size, memory_bytes)


def _choice(kind: str, count: int, size: int, reason: str) -> Choice:
    if kind != IVF:
        return Choice(kind=kind, reason=reason, memory_bytes=_memory(kind, count, size))
    samples = max(1, min(count, TRAINING_BYTES // (4 * size)))
    lists = max(1, min(samples // LIST_SAMPLES, round(4 * math.sqrt(count))))
    memory_bytes = _memory(IVF, count, size) + lists * size * 4
    return Choice(kind=IVF, reason=reason, memory_bytes=memory_bytes, lists=lists, samples=samples)


def _memory(kind: str, count: int, size: int) -> int:
    """Return the bytes of the descriptors in an index, and of what it keeps beside each of them."""
    values = {FLAT: 4}.get(kind, 2) * size
    return count * (values + {IVF: 8, HNSW: GRAPH_BYTES}.get(kind, 0))


def _checked(choice: Choice, count: int, size: int, memory_bytes: int) -> Choice:
    if choice.memory_bytes <= memory_bytes:
        return choice
    raise UsageError(
        f"{count} descriptors of {size} values take {_in_words(choice.memory_bytes)} as {choice.kind}, --memory allows "
        f"{_in_words(memory_bytes)}: allow more, or shorten the descriptors by a whitening (fit --whitening)"
    )


def _in_words(size_bytes: int) -> str:
    return f"{size_bytes / GIB:.1f} GiB" if size_bytes >= GIB else f"{size_bytes / 2**20:.1f} MiB"
