"""Opening Parquet files that others wrote, and finding the column of names in one."""

import contextlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, Final

from netvlad_deploy.support.formats import reading
from netvlad_deploy.support.require import require

NAME_COLUMNS: Final = (
    "name", "id", "key", "__key__", "image_id", "image_name", "filename", "file_name", "image_path", "path",
)  # fmt: skip
"""Columns that hold the names of rows, the first that is there."""

READ_AHEAD_BYTES: Final = 1 << 20
LARGEST_UNBUFFERED_BYTES: Final = 1 << 26
"""Larger files are read a block at a time; of others pyarrow reads a column of a row group at once.

Reading by blocks, pyarrow takes and fills as many bytes as a page claims, up to 2 GiB: too many for a small file.
"""


@contextlib.contextmanager
def reading_parquet(path: Path) -> Iterator[Any]:
    """Open a Parquet file to be read row group by row group, in columns.

    Raises: InputError if it is missing or damaged; MissingDependencyError without pyarrow.
    """
    parquet = require("pyarrow.parquet", extra="parquet")
    with reading(path):
        ahead = READ_AHEAD_BYTES if path.stat().st_size > LARGEST_UNBUFFERED_BYTES else 0
        with parquet.ParquetFile(path, pre_buffer=False, buffer_size=ahead) as file:
            yield file


def name_column(pa: Any, schema: Any, others: Collection[str]) -> str | None:
    """Return the column with the names of the rows, texts or whole numbers, beside other columns; None without one."""
    for name in NAME_COLUMNS:
        if name in schema.names and name not in others:
            kind = schema.field(name).type
            if holds_text(pa, kind) or pa.types.is_integer(kind):
                return name
    return None


def holds_text(pa: Any, kind: Any) -> bool:
    """Return True for texts, however Arrow keeps them: a category of pandas is an index into a dictionary of texts."""
    if pa.types.is_dictionary(kind):
        return holds_text(pa, kind.value_type)
    return str(kind) in ("string", "large_string", "string_view")
