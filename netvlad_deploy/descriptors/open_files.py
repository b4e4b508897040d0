"""Opening files of descriptors by their suffix."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from netvlad_deploy.descriptors.hdf5_file import Hdf5Reader, Hdf5Writer
from netvlad_deploy.descriptors.header import DescriptorHeader
from netvlad_deploy.descriptors.npy_file import NpyReader, NpyWriter, names_path
from netvlad_deploy.descriptors.npz_file import NpzReader, NpzWriter
from netvlad_deploy.descriptors.parquet_file import ParquetReader, ParquetWriter
from netvlad_deploy.descriptors.reader import DescriptorReader
from netvlad_deploy.descriptors.shard_folder import ShardReader
from netvlad_deploy.descriptors.writer import Writer
from netvlad_deploy.errors import InputError, UsageError
from netvlad_deploy.support.files import Staging, stage_files

DESCRIPTOR_WRITERS: Final[Mapping[str, Callable[[Staging, ExitStack, Path, DescriptorHeader, int], Writer]]] = {
    ".npz": NpzWriter,
    ".npy": NpyWriter,
    ".h5": Hdf5Writer,
    ".parquet": ParquetWriter,
}
READERS: Final[Mapping[str, Callable[[Path], DescriptorReader]]] = {
    ".npz": NpzReader,
    ".npy": NpyReader,
    ".h5": Hdf5Reader,
    ".hdf5": Hdf5Reader,
    ".parquet": ParquetReader,
}


def check_target(target: Path) -> None:
    """Raise UsageError unless descriptors can be written into a file of this name."""
    if target.suffix not in DESCRIPTOR_WRITERS:
        known = ", ".join(DESCRIPTOR_WRITERS)
        raise UsageError(f"{target} does not end in {known}: name one of these, or a folder of shards without a suffix")


def files_of(target: Path) -> tuple[Path, ...]:
    """Return the files that descriptors in `target` take: itself, and of `.npy` the file of the names.

    >>> [path.name for path in files_of(Path("x.npy"))]
    ['x.npy', 'x.names.jsonl']
    """
    return (target, names_path(target)) if target.suffix == ".npy" else (target,)


@contextmanager
def open_writer(target: Path, header: DescriptorHeader, count: int, *, force: bool = False) -> Iterator[Writer]:
    """Open a file for `count` descriptors, which is there, whole, after the block, and not at all after an error.

    The suffix of the target says the format. Equal rows and headers give equal bytes.

    Raises: UsageError if the suffix is another, or the target exists and `force` is off; InputError as `Writer.write`;
        OutputError if the disk refuses; MissingDependencyError without the package of the format.

    >>> import numpy as np
    >>> made = {"artifact": "m.onnx", "sha256": "0" * 64, "precision": "fp32", "spec": {}, "images": None}
    >>> header = DescriptorHeader(**made, descriptor_size=2, dtype="float16")
    >>> with open_writer(Path("x.npz"), header, 1) as writer:
    ...     writer.write(["a.jpg"], np.array([[0.6, 0.8]], np.float32), [None])
    >>> [(names, values.shape) for names, values in read_descriptors(Path("x.npz")).blocks()]
    [(['a.jpg'], (1, 2))]
    """
    check_target(target)
    with stage_files(force=force) as staging, ExitStack() as opened:
        writer = DESCRIPTOR_WRITERS[target.suffix](staging, opened, target, header, count)
        yield writer
        writer.finish()


def read_descriptors(path: Path) -> DescriptorReader:
    """Return a reader of a file of descriptors, of this package or of others, or of a folder of such files.

    Its `blocks(rows)` yields names and descriptors, float32 (n,P), of at most `rows` rows at a time.

    >>> import numpy as np
    >>> np.savez("y.npz", names=np.array(["a.jpg"]), descriptors=np.ones((1, 4), np.float32))
    >>> reader = read_descriptors(Path("y.npz"))
    >>> reader.count, reader.descriptor_size, [names for names, _ in reader.blocks()]
    (1, 4, [['a.jpg']])

    Raises: InputError if it is missing, damaged, or no such file.
    """
    if os.path.isdir(path):  # noqa: PTH112 - in a closed folder `Path.is_dir` raises, and the reader says it better
        return ShardReader(path, READERS)
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise InputError(f"{path} is no file of descriptors: {', '.join(READERS)} are read")
    return reader(path)
