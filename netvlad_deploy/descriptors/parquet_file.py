"""Descriptors in a Parquet file: columns `name`, `time_ns` and `descriptor`, a list of fixed size.

The header is the value `netvlad_deploy` of the schema's metadata. Nothing is compressed: descriptors do not shrink.
"""

import contextlib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import numpy as np

from netvlad_deploy.descriptors.header import DescriptorHeader, header_from_json
from netvlad_deploy.descriptors.reader import DescriptorReader, Rows
from netvlad_deploy.descriptors.writer import Writer
from netvlad_deploy.errors import InputError
from netvlad_deploy.support.arrays import Array
from netvlad_deploy.support.files import Staging
from netvlad_deploy.support.formats import naming, shown
from netvlad_deploy.support.parquet import name_column, reading_parquet
from netvlad_deploy.support.require import require

HEADER_KEY: Final = b"netvlad_deploy"
DESCRIPTOR_COLUMNS: Final = ("descriptor", "global_descriptor", "embedding", "embeddings", "vector", "features")
"""Columns that hold descriptors, the first that is there; or else the only list of numbers."""

GROUP_BYTES: Final = 1 << 24
"""Bytes of the descriptors of one row group, whatever the calls of `write` bring: 16 MiB."""


class ParquetWriter(Writer):
    """Writes row groups of always the same rows, so that equal rows give equal bytes."""

    def __init__(self, staging: Staging, opened: ExitStack, target: Path, header: DescriptorHeader, count: int) -> None:
        super().__init__(target, header, count)
        self._pa = require("pyarrow", extra="parquet")
        parquet = require("pyarrow.parquet", extra="parquet")
        value = self._pa.float16() if header.dtype == "float16" else self._pa.float32()
        self._schema = self._pa.schema(
            [
                self._pa.field("name", self._pa.string(), nullable=False),
                self._pa.field("time_ns", self._pa.int64()),
                self._pa.field("descriptor", self._pa.list_(value, header.descriptor_size), nullable=False),
            ],
            metadata={HEADER_KEY: header.to_json()},
        )
        self._rows = max(1, GROUP_BYTES // (header.descriptor_size * np.dtype(header.dtype).itemsize))
        self._names: list[str] = []
        self._times: list[int | None] = []
        self._values: list[Array] = []
        stream = opened.enter_context(staging.open(target))
        options = {"compression": "none", "use_dictionary": False}
        self._file = opened.enter_context(parquet.ParquetWriter(stream, self._schema, **options))

    def _write(self, names: list[str], values: Array, times: list[int | None]) -> None:
        start = 0
        while start < len(names):
            end = start + self._rows - len(self._names)
            self._names += names[start:end]
            self._times += times[start:end]
            self._values.append(values[start:end].copy())
            start = end
            if len(self._names) == self._rows:
                self._flush()

    def _flush(self) -> None:
        """Write the rows that wait as one row group."""
        flat = self._pa.array(np.concatenate(self._values).ravel())
        lists = self._pa.FixedSizeListArray.from_arrays(flat, self.header.descriptor_size)
        columns = [self._pa.array(self._names, self._pa.string()), self._pa.array(self._times, self._pa.int64()), lists]
        self._file.write_table(self._pa.Table.from_arrays(columns, schema=self._schema), row_group_size=self._rows)
        self._names, self._times, self._values = [], [], []

    def _finish(self) -> None:
        if self._names:
            self._flush()


class ParquetReader(DescriptorReader):
    """Reads names and descriptors of a Parquet file, also of one with other columns, or lists of any size."""

    def __init__(self, path: Path) -> None:
        with _opened(path) as (pa, file):
            schema = file.schema_arrow
            self._column = _descriptor_column(pa, schema)
            self._named = name_column(pa, schema, {self._column})
            self._timed = "time_ns" in schema.names and schema.field("time_ns").type == pa.int64()
            header = header_from_json((schema.metadata or {}).get(HEADER_KEY, b""))
            count = file.metadata.num_rows
            kind = schema.field(self._column).type
            size = kind.list_size if pa.types.is_fixed_size_list(kind) else 0
            if not size:
                first = next(file.iter_batches(batch_size=1, columns=[self._column]), None)
                size = len(first.column(0)[0].as_py() or ()) if first is not None and len(first) else 0
        super().__init__(path, header, count, size)

    def _blocks(self, rows: int) -> Iterator[Rows]:
        with _opened(self.path) as (_, file):
            columns = [self._column, *([self._named] if self._named else []), *(["time_ns"] * self._timed)]
            start = 0
            for batch in file.iter_batches(batch_size=rows, columns=columns):
                numbers = range(start, start + len(batch))
                named = batch.column(self._named).to_pylist() if self._named else [*numbers]
                if None in named:
                    raise InputError(f"row {start + named.index(None)} has no {self._named}: write one in all rows")
                names = list(map(str, named))
                times = batch.column("time_ns").to_pylist() if self._timed else [None] * len(batch)
                yield names, self._values(batch.column(self._column), start), times
                start += len(batch)

    def _values(self, lists: Any, start: int) -> Array:
        """Return the descriptors (n,P) of a column of lists."""
        lengths = lists.value_lengths().to_numpy(zero_copy_only=False)
        wrong = np.flatnonzero(lengths != self.descriptor_size)
        flat = lists.flatten()
        if lists.null_count or flat.null_count or len(wrong):
            row = start + (int(wrong[0]) if len(wrong) else 0)
            raise InputError(f"row {row} has no descriptor of {self.descriptor_size} values: write all rows alike")
        values: Array = flat.to_numpy(zero_copy_only=False)
        return values.reshape(len(lists), self.descriptor_size)


def _descriptor_column(pa: Any, schema: Any) -> str:
    """Return the name of the column that holds descriptors.

    Raises: InputError if none does, or several could.
    """
    lists = [field.name for field in schema if _is_list(pa, field.type) and pa.types.is_floating(field.type.value_type)]
    known = [name for name in DESCRIPTOR_COLUMNS if name in lists]
    if known or len(lists) == 1:
        return str((known or lists)[0])
    columns = shown(", ".join(map(str, schema.names[:8])), 200)
    fault = "no column with lists of numbers" if not lists else "several columns with lists of numbers"
    raise InputError(f"has {fault}, but {columns}: call that of the descriptors {DESCRIPTOR_COLUMNS[0]}")


def _is_list(pa: Any, kind: Any) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Any]]:
    pa = require("pyarrow", extra="parquet")
    with reading_parquet(path) as file, naming(path):
        yield pa, file
