"""The inputs of each shard, in a file of JSON lines that is written once.

The first line says which shard it is, how many items it has, and the SHA-256 of the lines after it. A line is an item,
as the list of its fields in the order of FIELDS, or an object with what was skipped while the inputs were listed.
"""

import contextlib
import hashlib
import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final

from netvlad_deploy.errors import ArtifactError, UsageError
from netvlad_deploy.spec.items import Item, Skipped, printable
from netvlad_deploy.support.files import read_bounded, write_hashed
from netvlad_deploy.support.formats import writing
from netvlad_deploy.support.progress import Progress
from netvlad_deploy.support.unique_names import UniqueNames

LOG = logging.getLogger(__name__)

FIELDS: Final = ("name", "path", "part", "size_bytes", "modified_ns", "time_ns")
MAX_LISTING_BYTES: Final = 1 << 30


def listing_path(folder: Path, shard: int) -> Path:
    """Return the path of the inputs of a shard."""
    return folder / f"shard-{shard:06}.inputs.jsonl"


def line_of(entry: Item | Skipped) -> str:
    """Return an item, or what was skipped, as a line."""
    if isinstance(entry, Skipped):
        return json.dumps(asdict(entry))
    return json.dumps([getattr(entry, name) for name in FIELDS], default=str)  # a path is no JSON


def entry_of(line: str) -> Item | Skipped:
    """Return the item, or what was skipped, of a line.

    Raises: ValueError or TypeError if it is none.
    """
    value = json.loads(line)
    if isinstance(value, dict):
        return Skipped(**value)
    fields = dict(zip(FIELDS, value, strict=True))
    return Item(**{**fields, "path": Path(fields["path"])})


def write_listings(folder: Path, entries: Iterable[Item | Skipped], shard_size: int) -> tuple[int, int, str]:
    """Write the inputs of each shard into a folder; return how many items and shards there are, and their SHA-256.

    What was skipped stands where it was met. The memory that this takes does not grow with the number of items.

    Raises: UsageError if two items have the same name; OutputError if the disk refuses.
    """
    digest, counted = hashlib.sha256(), Progress("listing", 0, "inputs")
    lines: list[str] = []
    inside: list[Item] = []
    items = shards = 0
    with writing(folder), contextlib.closing(UniqueNames()) as names:
        for entry in entries:
            if isinstance(entry, Item):
                if len(inside) == shard_size:
                    _write_listing(folder, shards, inside, lines, names)
                    shards, inside, lines = shards + 1, [], []
                items += 1
                inside.append(entry)
            else:
                LOG.warning("skipped %s", entry)
            line = f"{line_of(entry)}\n"
            digest.update(line.encode())
            lines.append(line)
            counted.total = items + 1  # how many there are is not known
            counted.reach(items)
        counted.finish()
        if lines:
            _write_listing(folder, shards, inside, lines, names)
            shards += 1
    return items, shards, digest.hexdigest()


def _write_listing(folder: Path, shard: int, items: Sequence[Item], lines: Sequence[str], names: UniqueNames) -> None:
    """Write the inputs of a shard.

    Raises: UsageError if an item has the name of another one, of this shard or of one before.
    """
    if (place := names.first_repeated([item.name for item in items])) is not None:
        where = f"{items[place].name}, the second time in {printable(items[place].path)}"
        raise UsageError(f"two inputs have the same name {where}: embed them apart")
    content = "".join(lines).encode()
    head = {"shard": shard, "items": len(items), "sha256": hashlib.sha256(content).hexdigest()}
    write_hashed(listing_path(folder, shard), [f"{json.dumps(head)}\n".encode(), content])


def read_listing(folder: Path, shard: int) -> list[Item | Skipped]:
    """Return the inputs of a shard in their order.

    Raises: ArtifactError if the file is missing, damaged, or that of another shard.
    """
    try:
        return [entry_of(line) for line in _lines(folder, shard)]
    except (ValueError, TypeError, RecursionError) as error:
        raise ArtifactError(f"{listing_path(folder, shard)} is damaged ({error}): begin again with --force") from error


def _lines(folder: Path, shard: int) -> list[str]:
    path = listing_path(folder, shard)
    content = read_bounded(path, MAX_LISTING_BYTES, missing="it is a part of the plan: begin again with --force")
    first, _, rest = content.partition(b"\n")
    try:
        head = json.loads(first)
        proven = (head["shard"], head["sha256"]) == (shard, hashlib.sha256(rest).hexdigest())
    except (ValueError, KeyError, TypeError, RecursionError):
        proven = False
    if not proven:
        raise ArtifactError(f"{path} was changed after it was written: begin again with --force")
    return rest.decode().splitlines()


def listing_sha256(folder: Path, shards: int) -> str:
    """Return the SHA-256 of the inputs of all shards, which `write_listings` has returned.

    Raises: ArtifactError if the file of a shard is missing or damaged.
    """
    digest = hashlib.sha256()
    for shard in range(shards):
        for line in _lines(folder, shard):
            digest.update(f"{line}\n".encode())
    return digest.hexdigest()
