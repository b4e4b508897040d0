"""One source for all that was given: folders, files, patterns, a list, and files that hold many items."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from netvlad_deploy.errors import InputError, UsageError
from netvlad_deploy.sources.feature_files import FEATURE_FILES, NPY, NPZ, NpyFile, NpzFile
from netvlad_deploy.sources.globs import expand, fixed_folder, is_pattern
from netvlad_deploy.sources.hdf5_features import HDF5_SUFFIXES, Hdf5Features
from netvlad_deploy.sources.image_folders import IMAGE_SUFFIXES, Finder
from netvlad_deploy.sources.parquet_images import NO_NAME, PARQUET_SUFFIX, ParquetImages
from netvlad_deploy.sources.path_lists import read_list
from netvlad_deploy.sources.ros_bags import BAG_SUFFIXES, RosBag, is_bag_folder
from netvlad_deploy.sources.source import Source, read_image_file
from netvlad_deploy.spec.items import MOST_NAME_CHARACTERS, Item, Load, Skipped, is_name

HOLDERS: Final[Mapping[bool, Sequence[str]]] = {
    False: (PARQUET_SUFFIX, *BAG_SUFFIXES),
    True: (*FEATURE_FILES, *HDF5_SUFFIXES),
}
"""Suffixes of files that hold many items, of images and of local descriptors."""


def open_sources(
    texts: Sequence[str],
    *,
    listing: str | None = None,
    column: str | None = None,
    topic: str | None = None,
    features: bool = False,
    feature_size: int | None = None,
) -> Source:
    """Return one source for all that was given; nothing is read yet.

    Opened again with the same arguments, in another process or in the same, it has the same items in the same order as
    long as the files are the same.

    Args:
        texts: folders, files, or patterns with `*`, `?`, `[...]` or `**`, in their order.
        listing: a file with one path on each line, `-` for standard input, None for none; it comes last.
        column: of Parquet files, the column that holds images or their paths; None: the only one that can.
        topic: of ROS bags, the topic of the images; None: the only one.
        features: the items are local descriptors, not images.
        feature_size: D of the local descriptors, None where any is taken.

    Raises: UsageError if nothing was given.

    >>> Path("photos").mkdir()
    >>> _ = Path("photos/a.jpg").write_bytes(b"..."), Path("photos/b.txt").write_bytes(b"")
    >>> source = open_sources(["photos"])
    >>> [item.name for item in source.items()]
    ['a.jpg']
    >>> [(item.name, load()) for item, load in source.open(source.items())]
    [('a.jpg', b'...')]
    """
    if not texts and listing is None:
        raise UsageError("nothing to embed: name folders or files, or a list of them")
    return _Given(texts, listing, column, topic, features, feature_size)


@dataclass(frozen=True)
class _Given(Source):
    """All that was given, in its order.

    An item with a part is of a file that holds many, which its path leads to; any other is a file itself.
    """

    texts: Sequence[str]
    listing: str | None
    column: str | None
    topic: str | None
    features: bool
    feature_size: int | None

    def items(self) -> Iterator[Item | Skipped]:
        """Yield the items of everything that was given, one after another; names are not compared.

        Raises: InputError if something is missing or damaged, or cannot be read; UsageError if it is not what is taken,
            or there is no file that the column or the topic could be of.
        """
        try:
            for one in self._all():
                if isinstance(one, Skipped) or is_name(one.name):
                    yield one
                else:
                    yield Skipped(path=one.place[:MOST_NAME_CHARACTERS], reason=NO_NAME)
        except OSError as error:
            raise InputError(f"{error.filename or 'an input'} cannot be read: {error.strerror or error}") from error

    def open(self, items: Iterable[Item]) -> Iterator[tuple[Item, Load]]:
        """Yield the items with what loads each; a file that holds many is opened once for those side by side."""
        for (path, inside), group in itertools.groupby(items, key=lambda item: (item.path, bool(item.part))):
            if inside:
                yield from self._container(path).open(group)
            else:
                load = NpyFile(path, self.feature_size).alone if self.features else partial(read_image_file, path)
                yield from ((item, load) for item in group)

    def _all(self) -> Iterator[Item | Skipped]:
        finder = Finder(suffixes=(NPY,) if self.features else IMAGE_SUFFIXES)
        opened: set[type[Source]] = set()
        for text in self.texts:
            if is_pattern(text):
                root = fixed_folder(text)
                for path in expand(text):
                    yield from self._found(finder, opened, path, root)
            else:
                yield from self._found(finder, opened, Path(text), None)
        if self.listing is not None:
            for entry in read_list(self.listing):
                if isinstance(entry, Skipped):
                    yield entry
                else:
                    yield from self._found(finder, opened, entry, Path())
        if self.column is not None and ParquetImages not in opened:
            raise UsageError(f"no input is a Parquet file that could have the column {self.column}: leave it out")
        if self.topic is not None and RosBag not in opened:
            raise UsageError(f"no input is a ROS bag that could have the topic {self.topic}: leave it out")
        finder.log_others()

    def _found(
        self, finder: Finder, opened: set[type[Source]], path: Path, root: Path | None
    ) -> Iterator[Item | Skipped]:
        """Yield the items of a folder, of a file that is one, or of a file that holds many, whose kind is noted."""
        suffix = path.suffix.lower()
        if not self.features and suffix in HOLDERS[True] and path.is_file():
            raise UsageError(f"{path} holds local descriptors, not images: export the head with --input features")
        if self.features and suffix in (*IMAGE_SUFFIXES, *HOLDERS[False]) and path.is_file():
            raise UsageError(f"{path} holds images, not local descriptors: export with --input images")
        if (path.is_file() and suffix in HOLDERS[self.features]) or (not self.features and is_bag_folder(path)):
            container = self._container(path)
            opened.add(type(container))
            yield from container.items()
        else:
            yield from finder.find(path, root)

    def _container(self, path: Path) -> Source:
        """Return the source of the items in a file."""
        suffix = path.suffix.lower()
        if suffix == NPY:
            return NpyFile(path, self.feature_size)
        if suffix == NPZ:
            return NpzFile(path, self.feature_size)
        if suffix in HDF5_SUFFIXES:
            return Hdf5Features(path, self.feature_size)
        if suffix == PARQUET_SUFFIX:
            return ParquetImages(path, self.column)
        return RosBag(path, self.topic)
