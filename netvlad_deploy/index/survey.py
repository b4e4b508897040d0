"""What is known of descriptors before they are indexed: a first reading, in bounded memory, that checks all of them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from netvlad_deploy.descriptors.reader import DescriptorReader
from netvlad_deploy.errors import InputError
from netvlad_deploy.index.kinds import FLAT, Choice
from netvlad_deploy.support.arrays import Float32

BLOCK_BYTES: Final = 2**25
"""Bytes of the descriptors that are read at once."""

UNIT_ERROR: Final = 1e-3
"""How far the length of a descriptor may be from 1: rounded to float16, values are off by 5e-4 of themselves at most.

Source: IEEE 754, the 11 significant bits of binary16.
"""

HALF_MAX: Final = 65504.0
"""Largest value of FP16: an index that rounds to it would keep anything larger as infinite."""

HELD_OUT: Final = 200
"""Most descriptors that are kept out of the index until its recall has been measured with them as queries."""

HELD_SHARE: Final = 10
"""One of so many descriptors is kept out at most."""

SEED: Final = 0
"""Seed of the choice of the sample and of those that are kept out."""


class Block(NamedTuple):
    """Some descriptors (n,P) that stand side by side, their names, their lengths (n,), and the place of the first."""

    start: int
    names: list[str]
    rows: Float32
    lengths: Float32


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What the first reading found.

    Args:
        unit: whether every descriptor has length 1.
        held: the places of those that are kept out at first, rising.
        queries: their descriptors (Q,P).
        sample: the descriptors (S,P) of which the lists of an ivf are made; none of them is held out.
    """

    unit: bool
    held: npt.NDArray[np.int64]
    queries: Float32
    sample: Float32


def blocks(reader: DescriptorReader) -> Iterator[Block]:
    """Yield all descriptors of a file, which the reader has checked, and their lengths.

    Raises: InputError naming the first that has no length, or a name that holds a line break; and as the reader.
    """
    start = 0
    for names, given in reader.blocks(max(1, BLOCK_BYTES // (4 * reader.descriptor_size))):
        rows = np.ascontiguousarray(given, dtype=np.float32)
        with np.errstate(over="ignore"):
            lengths = np.sqrt(np.einsum("np,np->n", rows, rows))
        wrong = ~(np.isfinite(lengths) & (lengths > 0))
        if wrong.any():
            place = int(wrong.argmax())
            raise InputError(
                f"{reader.path}: the descriptor of {names[place]} has length {lengths[place]:g}, expected a finite one "
                "above 0: leave it out, or embed again"
            )
        if broken := next((name for name in names if "\n" in name), None):
            raise InputError(f"{reader.path}: the name {broken!r} holds a line break: rename it")
        yield Block(start, names, rows, lengths)
        start += len(names)


def survey(reader: DescriptorReader, choice: Choice) -> Survey:
    """Read all descriptors once; an index that is exact needs neither queries nor a sample.

    Raises: InputError naming a descriptor that FP16, which all other kinds keep, cannot hold; and as `blocks`.
    """
    count = 0 if choice.kind == FLAT else min(HELD_OUT, reader.count // HELD_SHARE)
    samples = min(choice.samples, reader.count - count)
    chosen = np.random.default_rng(SEED).permutation(reader.count)[: count + samples]
    held, sampled = np.sort(chosen[:count]), np.sort(chosen[count:])
    queries, sample = (np.empty((len(one), reader.descriptor_size), np.float32) for one in (held, sampled))
    farthest = 0.0
    for start, names, rows, lengths in blocks(reader):
        if choice.kind != FLAT and lengths.max(initial=0) > HALF_MAX:
            largest = np.abs(rows).max(axis=1)
            if largest.max() > HALF_MAX:
                name, value = names[int(largest.argmax())], largest.max()
                raise InputError(
                    f"{reader.path}: the descriptor of {name} holds {value:g}, and {choice.kind} keeps values up to "
                    f"{HALF_MAX:g}: take the kind flat, or scale the descriptors to length 1"
                )
        farthest = max(farthest, float(np.abs(lengths - 1).max(initial=0)))
        for places, kept in ((held, queries), (sampled, sample)):
            first, last = np.searchsorted(places, (start, start + len(names)))
            kept[first:last] = rows[places[first:last] - start]
    return Survey(unit=farthest <= UNIT_ERROR, held=held, queries=queries, sample=sample)
