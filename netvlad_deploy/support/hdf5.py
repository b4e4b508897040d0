"""Looking into HDF5 files that others wrote: nothing outside the file is ever opened."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from netvlad_deploy.errors import InputError
from netvlad_deploy.support.formats import HDF5_MAGIC, shown

MAX_LINK_LENGTH: Final = 4_095
MAX_DEPTH: Final = 64
LEAST_LINK_BYTES: Final = 8
"""Fewest bytes that a link takes in a file. Source: HDF5 File Format Specification 3.0, IV.A.2.g, link message."""


SUPERBLOCK_BYTES: Final = 96
"""Bytes of a superblock of version 0 or 1 that are looked at."""

FIRST_USER_BLOCK: Final = 512
"""A superblock stands at the start of a file, at this place, or at twice or four times that, and so on."""


def open_hdf5(h5py: Any, path: Path) -> Any:
    """Return an HDF5 file, open for reading.

    Raises: InputError if its superblock has a block for a driver, as one of several files that are read as one has: it
        may claim 4 GiB, and the HDF5 library takes that memory; errors of `formats.READER_ERRORS` if it is damaged.
    """
    if _has_driver_block(path):
        raise InputError(
            "is damaged, or one of several files of HDF5's multi or family driver: "
            "fetch it again, or h5repack them into one"
        )
    return h5py.File(path, "r")


def _has_driver_block(path: Path) -> bool:
    """Return True if a superblock of version 0 or 1 has the address of a block for a driver.

    Source: HDF5 File Format Specification 3.0, II.A and II.B, superblock and file driver info.
    """
    with path.open("rb") as stream:
        size, place = stream.seek(0, 2), 0
        while place < size:
            stream.seek(place)
            block = stream.read(SUPERBLOCK_BYTES)
            if block.startswith(HDF5_MAGIC) and len(block) == SUPERBLOCK_BYTES:
                version, width = block[8], block[13]
                start = (24 if version == 0 else 28) + 3 * width
                return version <= 1 and block[start : start + width] != b"\xff" * width
            place = max(FIRST_USER_BLOCK, 2 * place)
    return False


def member(h5py: Any, group: Any, name: str) -> Any:
    """Return what a link within the file points at.

    Raises: InputError if it points elsewhere, or its values stand elsewhere.
    """
    if not isinstance(group.get(name, getlink=True), h5py.HardLink) or len(name) > MAX_LINK_LENGTH:
        raise InputError(f"has a link in place of {shown(name, 40)}: save it again into one file")
    found = group[name]
    if getattr(found, "external", None) or getattr(found, "is_virtual", False):
        raise InputError(f"keeps the values of {shown(name)} in another file: save it again into one file")
    return found


def walk(h5py: Any, file: Any) -> Iterator[tuple[str, Any, Any]]:
    """Yield path, group and dataset of every dataset of a file, sorted by name in each group.

    Raises: InputError for a link out of the file, a deeper tree than MAX_DEPTH, such as one that holds itself, or more
        members than a file of its size has links: groups that hold the same groups twice, over and over, have no end.
    """
    links = iter(range(file.id.get_filesize() // LEAST_LINK_BYTES))
    return _below(h5py, file, "", links)


def _below(h5py: Any, group: Any, path: str, links: Iterator[int]) -> Iterator[tuple[str, Any, Any]]:
    if path.count("/") > MAX_DEPTH:
        raise InputError(f"has groups within groups over {MAX_DEPTH} deep: save it again")
    for name in group:
        if next(links, None) is None:
            raise InputError("has groups that hold the same groups again and again: save it again without such links")
        found = member(h5py, group, name)
        if isinstance(found, h5py.Group):
            yield from _below(h5py, found, f"{path}{name}/", links)
        elif isinstance(found, h5py.Dataset):
            yield f"{path}{name}", group, found


def read_bounded_dataset(dataset: Any, largest: int) -> Any:
    """Return the values of a dataset as an array, in this machine's byte order.

    Raises: InputError if it would take more than `largest` bytes, or one of its chunks would.
    """
    claimed = max(math.prod(dataset.shape), math.prod(dataset.chunks or ())) * dataset.dtype.itemsize
    if claimed > largest:
        raise InputError(f"{shown(dataset.name)} claims {claimed} bytes, expected {largest} at most")
    values = dataset[()]
    return values.astype(values.dtype.newbyteorder("="), copy=False)
