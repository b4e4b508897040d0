"""Images in Parquet files: encoded, as bytes or as Hugging Face's struct of bytes and path, or paths to files.

Source: huggingface/datasets, src/datasets/features/image.py: an image is stored as a struct of `bytes` and `path`, one
of which may be null.
"""

import bisect
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from netvlad_deploy.errors import InputError, UsageError
from netvlad_deploy.sources.image_folders import IMAGE_SUFFIXES, item_of_file
from netvlad_deploy.sources.path_lists import MISSING
from netvlad_deploy.sources.source import Source, read_image_file
from netvlad_deploy.spec.items import Content, Item, Load, Skipped, printable
from netvlad_deploy.support.formats import naming, shown
from netvlad_deploy.support.parquet import holds_text, name_column, reading_parquet
from netvlad_deploy.support.require import require

PARQUET_SUFFIX: Final = ".parquet"
NO_NAME: Final = "without a name that can be kept"
ROWS_AT_ONCE: Final = 10_000
IMAGES_AT_ONCE: Final = 16


class ParquetImages(Source):
    """The images of a Parquet file, a row each, in their order.

    They are called by a column such as `name` or `id` if there is one, else by their path, or `FILE/ROW`.

    Args:
        path: the file.
        column: the column that holds images or their paths, None for the only one that can.
    """

    def __init__(self, path: Path, column: str | None) -> None:
        self.path = path
        self.column = column

    def items(self) -> Iterator[Item | Skipped]:
        """Yield an item for each row; images in the file are not read for it.

        An image whose path stands in the file is an item of its own file, relative to the working directory.

        Raises: InputError if the file is missing or damaged; UsageError if it is not clear which column is meant;
            MissingDependencyError without pyarrow.
        """
        whole = item_of_file(self.path, self.path.name)
        with reading_parquet(self.path) as file, naming(self.path):
            column, is_path = self._content_column(file)
            named = name_column(require("pyarrow", extra="parquet"), file.schema_arrow, {column})
            columns = [*([named] if named else []), *([column] if is_path else [])]
            for row, values in enumerate(_rows(file, columns)):
                name = str(values[0]) if named and values[0] is not None else None
                if is_path:
                    yield self._file(values[-1], name if named else values[-1], row)
                else:
                    yield replace(whole, name=name or "" if named else f"{self.path.name}/{row}", part=str(row))

    def open(self, items: Iterable[Item]) -> Iterator[tuple[Item, Load]]:
        """Yield the items with what loads each; row groups without any of them are not read.

        Raises: InputError as `items`.
        """
        with reading_parquet(self.path) as file, naming(self.path):
            rows = _Rows(file, self._content_column(file)[0])
            for item in items:
                yield item, partial(self._load, int(item.part), rows.value(int(item.part)))

    def _row(self, row: int) -> str:
        return f"{printable(self.path)}, row {row}"

    def _file(self, text: str | None, name: str | None, row: int) -> Item | Skipped:
        """Return the item of a file whose path stands in a row."""
        if not text:
            return Skipped(path=self._row(row), reason=MISSING)
        try:
            return item_of_file(Path(text), name or "")
        except (InputError, ValueError):
            return Skipped(path=printable(text.replace("\0", "?")), reason=MISSING, detail=self._row(row))

    def _load(self, row: int, value: Any) -> Content:
        """Return the encoded image of a row."""
        if isinstance(value, dict):
            value = value.get("bytes") or value.get("path")
        if isinstance(value, str):
            return read_image_file(Path(value))
        if not value:
            raise InputError(f"{self._row(row)} holds no image")
        return bytes(value)

    def _content_column(self, file: Any) -> tuple[str, bool]:
        """Return the column with images or paths, and whether it holds paths.

        Raises: UsageError if there is none, or there are several.
        """
        pa = require("pyarrow", extra="parquet")
        schema = file.schema_arrow
        images = [field.name for field in schema if _holds_images(pa, field.type)]
        texts = [field.name for field in schema if holds_text(pa, field.type)]
        listed = shown(", ".join(map(str, schema.names[:12])), 300)
        if self.column is not None:
            if self.column not in (*images, *texts):
                raise UsageError(f"{self.path} has no images or paths in {self.column}; its columns are {listed}")
            return self.column, self.column in texts
        found = images or [name for name in texts if _first_is_path(file, name)]
        if len(found) != 1:
            fault = f"images may be in {shown(', '.join(found), 300)}" if found else f"no images or paths, but {listed}"
            raise UsageError(f"{self.path} has {fault}: choose with --column")
        return found[0], not images


class _Rows:
    """The values of one column, row by row, forwards; a few are held at a time."""

    def __init__(self, file: Any, column: str) -> None:
        self._file = file
        self._column = column
        sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        self._starts = [0, *itertools.accumulate(sizes)]
        self._group, self._first, self._values = -1, 0, ()
        self._batches: Iterator[Any] = iter(())

    def value(self, row: int) -> Any:
        """Return the value of a row.

        Raises: InputError if there is no such row.
        """
        if row >= self._starts[-1]:
            raise InputError(f"has {self._starts[-1]} rows, and no row {row}: it is another file now")
        group = bisect.bisect_right(self._starts, row) - 1
        if group != self._group:
            self._group, self._first, self._values = group, self._starts[group], ()
            self._batches = self._file.iter_batches(IMAGES_AT_ONCE, row_groups=[group], columns=[self._column])
        while row >= self._first + len(self._values):
            batch = next(self._batches, None)
            if batch is None:
                raise InputError(f"lacks row {row}, which it says it has: fetch it again, or write it again")
            self._first += len(self._values)
            self._values = batch.column(0)
        return self._values[row - self._first].as_py()


def _rows(file: Any, columns: list[str]) -> Iterator[tuple[Any, ...]]:
    """Yield the values of some columns row by row; without columns an empty tuple for each row."""
    if not columns:
        yield from itertools.repeat((), file.metadata.num_rows)
        return
    for batch in file.iter_batches(ROWS_AT_ONCE, columns=columns):
        yield from zip(*(batch.column(name).to_pylist() for name in columns), strict=True)


def _holds_images(pa: Any, kind: Any) -> bool:
    """Return True for encoded bytes, and for Hugging Face's struct with them."""
    if pa.types.is_struct(kind):
        place = kind.get_field_index("bytes")
        return place >= 0 and _holds_images(pa, kind.field(place).type)
    return str(kind) in ("binary", "large_binary", "binary_view")


def _first_is_path(file: Any, column: str) -> bool:
    """Return True if the first text of a column ends as the path of an image does."""
    first = next((value for (value,) in _rows(file, [column]) if value), "")
    return Path(first).suffix.lower() in IMAGE_SUFFIXES
