"""The base of what writes a file of descriptors: rows in, checked one by one, a complete file out."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from netvlad_deploy.descriptors.header import DescriptorHeader
from netvlad_deploy.errors import InputError
from netvlad_deploy.support.arrays import Array
from netvlad_deploy.support.files import Staging

MAX_DESCRIPTOR_NAME = 4_095
"""Longest name of a descriptor, as of a path."""


class Writer(ABC):
    """Writes descriptors row by row into staged files; how many rows one call brings changes no byte.

    Args:
        staging: the files of the result, which become visible together.
        target: the file.
        header: what made the descriptors.
        count: how many there will be.
    """

    def __init__(self, staging: Staging, target: Path, header: DescriptorHeader, count: int) -> None:
        self.staging = staging
        self.target = target
        self.header = header
        self.count = count
        self.written = 0

    def write(self, names: Sequence[str], descriptors: Array, times_ns: Sequence[int | None] | None = None) -> None:
        """Write descriptors (n,P), float32 or float16, with their names and their time stamps in nanoseconds.

        Raises: InputError if shapes or names do not fit, a value is not finite, or float16 cannot hold it.
        """
        times: list[int | None] = [None] * len(names) if times_ns is None else list(times_ns)
        if descriptors.shape != (len(names), self.header.descriptor_size) or len(times) != len(names):
            raise InputError(
                f"descriptors have shape {descriptors.shape}, expected ({len(names)}, {self.header.descriptor_size}), "
                f"and {len(times)} time stamps"
            )
        if self.written + len(names) > self.count:
            raise InputError(f"{self.target} was announced with {self.count} descriptors, and gets more")
        for name in names:
            check_name(name)
        with np.errstate(over="ignore"):
            values = np.ascontiguousarray(descriptors, dtype=np.dtype(self.header.dtype).newbyteorder("<"))
        finite = np.isfinite(values).all(axis=1)
        if not finite.all():
            row = int(finite.argmin())
            fault = (
                f"holds values that {self.header.dtype} cannot"
                if np.isfinite(descriptors[row]).all()
                else "is not finite"
            )
            raise InputError(f"the descriptor of {names[row]} {fault}: write float32, or look at its image")
        self._write(list(names), values, times)
        self.written += len(names)

    def finish(self) -> None:
        """Complete the files.

        Raises: InputError if there were fewer rows than announced.
        """
        if self.written != self.count:
            raise InputError(f"{self.target} was announced with {self.count} descriptors, and got {self.written}")
        self._finish()

    @abstractmethod
    def _write(self, names: list[str], values: Array, times: list[int | None]) -> None:
        """Write checked rows (n,P), little-endian, in the dtype of the header."""

    @abstractmethod
    def _finish(self) -> None:
        """Complete the files."""

    @abstractmethod
    def close(self) -> None:
        """Release what is open, complete or not."""


def check_name(name: str) -> None:
    """Raise InputError unless every format can hold a name."""
    if not name or len(name) > MAX_DESCRIPTOR_NAME or "\0" in name or not _encodes(name):
        raise InputError(f"{name[:40]!a} is no name: expected 1 to {MAX_DESCRIPTOR_NAME} characters of Unicode, no NUL")


def _encodes(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
