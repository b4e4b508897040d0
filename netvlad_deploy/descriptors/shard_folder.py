"""Descriptors in a folder of shards, which are files of one format: read in the order of their names, as one."""

import itertools
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

from netvlad_deploy.descriptors.reader import DescriptorReader, Rows
from netvlad_deploy.errors import ArtifactError, InputError
from netvlad_deploy.support.files import read_bounded

MANIFEST_NAME: Final = "manifest.json"
MAX_MANIFEST_BYTES: Final = 1 << 24
SHARD_NAME: Final = re.compile(r"shard-(\d+)")


class ShardReader(DescriptorReader):
    """Reads the shards of a folder one after another; what stands in memory is a block of one.

    Args:
        folder: the folder.
        readers: what reads a file, by its suffix.

    Raises: InputError if it holds no shard, files of several formats, or is not complete; or if two shards do not
        belong together.
    """

    def __init__(self, folder: Path, readers: Mapping[str, Callable[[Path], DescriptorReader]]) -> None:
        try:
            found = sorted(folder.iterdir())
        except OSError as error:
            raise InputError(f"{folder} cannot be read: {error.strerror or error}") from error
        paths = [path for path in found if path.suffix in readers and not path.name.startswith(".")]
        if not paths:
            raise InputError(f"{folder} holds no file of descriptors: {', '.join(readers)} are read")
        if len(suffixes := sorted({path.suffix for path in paths})) > 1:
            raise InputError(f"{folder} holds {' and '.join(suffixes)} files: keep the shards of one run alone in it")
        _check_complete(folder, paths)
        self.shards = [readers[path.suffix](path) for path in paths]
        first = next((shard for shard in self.shards if shard.count), self.shards[0])
        for shard in self.shards:
            if shard.descriptor_size != first.descriptor_size or shard.header != first.header:
                raise InputError(
                    f"{shard.path} and {first.path} are of different artifacts: keep the shards of one run alone"
                )
        super().__init__(folder, first.header, sum(shard.count for shard in self.shards), first.descriptor_size)

    def _blocks(self, rows: int) -> Iterator[Rows]:
        for shard in self.shards:
            yield from shard._blocks(rows)


def _check_complete(folder: Path, paths: list[Path]) -> None:
    """Raise InputError if the manifest of a run, or the numbers of the shards, say that one is missing."""
    numbers = {int(match[1]) for path in paths if (match := SHARD_NAME.fullmatch(path.stem))}
    if not numbers:
        return
    count = max(numbers) + 1
    try:
        said = json.loads(read_bounded(folder / MANIFEST_NAME, MAX_MANIFEST_BYTES))["shards"]
        count = max(count, said if type(said) is int else 0)
    except (ArtifactError, ValueError, KeyError, TypeError, RecursionError):
        pass  # somebody else's folder: its numbers are all there is
    if lacking := count - len(numbers):  # no set of them all: a name or a manifest may claim any number
        first = next(number for number in itertools.count() if number not in numbers)
        raise InputError(f"{folder} lacks {lacking} of {count} shards, first {first}: finish the run")
