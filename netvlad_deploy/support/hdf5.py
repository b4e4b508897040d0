"""Looking into HDF5 files that others wrote: nothing outside the file is ever opened."""

import math
from collections.abc import Iterator
from typing import Any, Final

from netvlad_deploy.errors import InputError
from netvlad_deploy.support.formats import shown

MAX_LINK_LENGTH: Final = 4_095
MAX_DEPTH: Final = 64
LEAST_LINK_BYTES: Final = 8
"""Fewest bytes that a link takes in a file. Source: HDF5 File Format Specification 3.0, IV.A.2.g, link message."""


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
