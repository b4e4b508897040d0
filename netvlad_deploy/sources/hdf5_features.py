"""Local descriptors in HDF5 files: as hloc writes them, or as plain datasets.

hloc has a group for each image, called as the image, with the dataset `descriptors` (D,N) beside others. A dataset that
stands in no such group is taken as (N,D). If only the other axis has D values, that one is taken, and said.

Source: cvg/Hierarchical-Localization, hloc/extract_features.py and hloc/utils/io.py.
"""

import logging
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from netvlad_deploy.sources.feature_files import FeatureFile, features_of
from netvlad_deploy.sources.image_folders import item_of_file
from netvlad_deploy.spec.items import Item, Load
from netvlad_deploy.support.arrays import Array
from netvlad_deploy.support.formats import naming, reading, shown
from netvlad_deploy.support.hdf5 import member, open_hdf5, read_bounded_dataset, walk
from netvlad_deploy.support.require import require

LOG = logging.getLogger(__name__)

HDF5_SUFFIXES: Final = (".h5", ".hdf5")
LOCAL_FEATURES: Final = "descriptors"
MAX_FEATURE_BYTES: Final = 1 << 28
"""Most bytes of one item: 65,536 local descriptors of 1,024 values."""


class Hdf5Features(FeatureFile):
    """The local descriptors of many images in an HDF5 file, sorted by name."""

    def __init__(self, path: Path, feature_size: int | None) -> None:
        super().__init__(path, feature_size)
        self._said = False

    def items(self) -> Iterator[Item]:
        """Yield an item for each group with local descriptors, and for each dataset outside of them.

        Raises: InputError if the file is missing or damaged; MissingDependencyError without h5py.
        """
        whole = item_of_file(self.path, self.path.name)
        h5py = require("h5py", extra="hdf5")
        with reading(self.path), naming(self.path), open_hdf5(h5py, self.path) as file:
            for path, group, dataset in walk(h5py, file):
                name, _, last = path.rpartition("/")
                of_image = bool(name) and LOCAL_FEATURES in group
                if not of_image or last == LOCAL_FEATURES:
                    size_bytes = int(dataset.size) * dataset.dtype.itemsize
                    yield replace(whole, name=name if of_image else path, part=path, size_bytes=size_bytes)

    def open(self, items: Iterable[Item]) -> Iterator[tuple[Item, Load]]:
        """Yield the items with what reads each; the file is closed with the last of them.

        Raises: InputError as `items`.
        """
        h5py = require("h5py", extra="hdf5")
        with reading(self.path), naming(self.path):
            file = open_hdf5(h5py, self.path)
        for item in items:
            yield item, partial(self._read, h5py, file, item.part)

    def _read(self, h5py: Any, file: Any, part: str) -> Array:
        with reading(self.path), naming(f"{self.path}: {shown(part)}"):
            group = file
            for name in part.split("/"):
                group = member(h5py, group, name)
            values: Array = read_bounded_dataset(group, MAX_FEATURE_BYTES)
            return features_of(values.T if self._is_turned(values, part) else values, self.feature_size)

    def _is_turned(self, values: Array, part: str) -> bool:
        """Return True for (D,N): by the length of its axes, and by the layout where both or none have D values."""
        name, _, last = part.rpartition("/")
        usual = bool(name) and last == LOCAL_FEATURES
        if values.ndim != 2:
            return False
        fits = [self.feature_size in (None, length) for length in values.shape]
        turned = usual if fits[0] == fits[1] else fits[0]
        if self.feature_size is not None and (all(fits) or turned != usual):
            layout = "(D,N)" if turned else "(N,D)"
            why = "both axes fit, and this is the layout of such a file" if all(fits) else "the only axis that fits"
            self._say(f"{self.path}: {part} {values.shape} is taken as {layout}: {why}")
        return turned

    def _say(self, line: str) -> None:
        """Say it for the first item that it is true of, not for a million."""
        if not self._said:
            LOG.warning("%s; said of the first alone", line)
        self._said = True
