"""The base of what writes a file of descriptors: rows in, checked one by one, a complete file out."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from netvlad_deploy.descriptors.header import MAX_HEADER_BYTES, DescriptorHeader
from netvlad_deploy.errors import InputError
from netvlad_deploy.spec.items import MOST_NAME_CHARACTERS, is_name
from netvlad_deploy.support.arrays import Array
from netvlad_deploy.support.formats import shown


class Writer(ABC):
    """Writes descriptors row by row into staged files; how many rows one call brings changes no byte.

    A format takes two arguments before these: the `Staging` of its files, and the `ExitStack` that closes what it
    opens.

    Args:
        target: the file.
        header: what made the descriptors.
        count: how many there will be.
    """

    def __init__(self, target: Path, header: DescriptorHeader, count: int) -> None:
        self.target = target
        self.header = header
        self.count = count
        self.written = 0
        if (size := len(header.to_json())) > MAX_HEADER_BYTES:
            raise InputError(f"the header of {target} has {size} bytes, expected {MAX_HEADER_BYTES} at most")

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
        if (wrong := next((name for name in names if not is_name(name)), None)) is not None:
            most = f"1 to {MOST_NAME_CHARACTERS} characters of Unicode, no NUL"
            raise InputError(f"{wrong[:40]!a} is no name: expected {most}")
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
            raise InputError(f"the descriptor of {shown(names[row])} {fault}: write float32, or look at its image")
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

    def _finish(self) -> None:  # noqa: B027 - a format may need no more than its rows
        """Write what comes after the rows."""
