"""The base of what reads a file of descriptors: block by block, whoever wrote it."""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Final, TypeAlias

import numpy as np

from netvlad_deploy.descriptors.header import MAX_DESCRIPTOR_SIZE, DescriptorHeader
from netvlad_deploy.errors import InputError
from netvlad_deploy.support.arrays import Array, Float32
from netvlad_deploy.support.formats import shown
from netvlad_deploy.support.unique_names import UniqueNames

READ_ROWS: Final = 4096
MAX_BLOCK_BYTES: Final = 1 << 28
"""Most bytes of the descriptors of one block: 256 MiB, however many rows were asked for."""

Rows: TypeAlias = tuple[list[str], Array, list[int | None]]
"""Names, descriptors (n,P) as the file holds them, and time stamps."""


class DescriptorReader(ABC):
    """Named descriptors in a file, read in blocks; the file is open only while they are read.

    Args:
        path: the file.
        header: what made the descriptors, None in a file that somebody else wrote.
        count: how many there are.
        descriptor_size: P, the values of one.

    Raises: InputError if a descriptor would be empty or too large, or is of another size than the header says.
    """

    def __init__(self, path: Path, header: DescriptorHeader | None, count: int, descriptor_size: int) -> None:
        self.path = path
        self.header = header
        self.count = count
        self.descriptor_size = descriptor_size
        if not 0 < descriptor_size <= MAX_DESCRIPTOR_SIZE:
            raise InputError(f"{path} has descriptors of {descriptor_size} values, expected 1 to {MAX_DESCRIPTOR_SIZE}")
        if header is not None and header.descriptor_size != descriptor_size:
            raise InputError(
                f"{path} has descriptors of {descriptor_size} values, and its header says {header.descriptor_size}: "
                "embed again"
            )

    def blocks(self, rows: int = READ_ROWS) -> Iterator[tuple[list[str], Float32]]:
        """Yield names and descriptors (n,P) in the order of the file, up to `rows` at a time.

        Raises: InputError if the file is damaged, a name comes twice, or a value is not finite.
        """
        for names, values, _ in self.timed_blocks(rows):
            yield names, values

    def timed_blocks(self, rows: int = READ_ROWS) -> Iterator[tuple[list[str], Float32, list[int | None]]]:
        """Yield the same with the time stamp of each in nanoseconds, None where it has none.

        Raises: as `blocks`.
        """
        rows = max(1, min(rows, MAX_BLOCK_BYTES // (self.descriptor_size * 4)))
        count = 0
        with contextlib.closing(UniqueNames()) as seen:
            for names, values, times in self._blocks(rows):
                if (place := seen.first_repeated(names)) is not None:
                    raise InputError(f"{self.path} holds a name twice, {shown(names[place])}: rename one of the two")
                with np.errstate(over="ignore"):
                    single = values.astype(np.float32, copy=False)
                finite = np.isfinite(single).all(axis=1)
                if not finite.all():
                    name = names[int(finite.argmin())]
                    raise InputError(f"{self.path}: the descriptor of {shown(name)} is not finite: embed it again")
                count += len(names)
                yield names, single, times
        if count != self.count:
            raise InputError(f"{self.path} holds {count} descriptors, expected {self.count}: it is damaged")

    @abstractmethod
    def _blocks(self, rows: int) -> Iterator[Rows]:
        """Yield the rows of the file, at most `rows` at a time."""
