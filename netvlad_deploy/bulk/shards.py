"""The work on one shard: its descriptors in one file, written whole, and a record of them.

The record is what counts: a shard without one is not there. Batches never cross shards, so that what a shard holds
depends on the plan alone, and not on who computed it, or when.
"""

import contextlib
import logging
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import numpy as np

from netvlad_deploy.bulk.listing import read_listing
from netvlad_deploy.bulk.plan import Plan
from netvlad_deploy.descriptors.open_files import open_writer
from netvlad_deploy.errors import ArtifactError, InputError, OutputError
from netvlad_deploy.retrieval.stream import describe
from netvlad_deploy.runner import Runner
from netvlad_deploy.sources.source import size_and_change
from netvlad_deploy.spec.items import Item, Skipped, printable
from netvlad_deploy.support.arrays import Float32
from netvlad_deploy.support.claims import claimed
from netvlad_deploy.support.files import read_bounded, sha256_file, write_text
from netvlad_deploy.support.progress import Progress
from netvlad_deploy.support.records import from_record
from netvlad_deploy.support.sidecar import Form, seal, unseal

LOG = logging.getLogger(__name__)

SHARD_SUFFIX: Final = ".npz"
MAX_RECORD_BYTES: Final = 1 << 30
RECORD: Final = Form(
    kind="the record of a shard",
    schema="netvlad-deploy/embedding-shard/1",
    hash_name="record_sha256",
    remedy="run the command again, which makes the shard again",
)
CHANGED: Final = "changed since the run was begun"
GONE: Final = "gone since the run was begun"


@dataclass(frozen=True, kw_only=True)
class ShardDone:
    """A shard that is there.

    Args:
        manifest_sha256: of the run that it belongs to.
        shard: its number.
        descriptors: how many it holds.
        skipped: inputs that gave none.
        sha256: of its file.
        size_bytes: of its file.
    """

    manifest_sha256: str
    shard: int
    descriptors: int
    skipped: tuple[Skipped, ...]
    sha256: str
    size_bytes: int


def shard_path(folder: Path, shard: int) -> Path:
    """Return the path of a shard's descriptors."""
    return folder / f"shard-{shard:06}{SHARD_SUFFIX}"


def record_path(folder: Path, shard: int) -> Path:
    """Return the path of a shard's record."""
    return folder / f"shard-{shard:06}.json"


def embed_shard(
    plan: Plan, number: int, runner: Runner, *, decoders: int | None = None, progress: Progress | None = None
) -> ShardDone:
    """Compute a shard, unless it is there: its file is complete or not there, whatever ends this process.

    Args:
        plan: the plan that it belongs to.
        number: which shard, counted from 0.
        runner: the runner of the plan's artifact and head.
        decoders: threads that read and decode, as many as fit by themselves if None.
        progress: is moved on by each item.

    Raises: UsageError if another process works on it; InputError if none of its inputs is there; OutputError if the
        disk refuses; RunError if a descriptor is not finite.
    """
    with claimed(plan.folder / f"shard-{number:06}.lock"):
        done = find_shard(plan, number)
        if done is not None:
            return done
        entries = read_listing(plan.folder, number)
        items = [entry for entry in entries if isinstance(entry, Item)]
        lost: dict[str, Skipped] = {}  # by the name of the item: files are looked at ahead of what comes out
        contents = plan.source().open(_unchanged(items, lost))
        kept: list[Item] = []
        rows: list[Float32] = []
        stream = describe(runner, plan.images, contents, batch=plan.manifest.batch, decoders=decoders)
        with contextlib.closing(stream) as results:
            for item, value in results:
                if isinstance(value, Skipped):
                    LOG.warning("skipped %s", value)
                    lost[item.name] = value
                else:
                    kept.append(item)
                    rows.append(value)
                if progress is not None:
                    progress.advance()
        if items and sum(one.reason == GONE for one in lost.values()) == len(items):
            raise InputError(
                f"none of the {len(items)} inputs of shard {number} is there, such as {printable(items[0].path)}: run "
                "the command where the plan was made, with the same files"
            )
        skipped = [entry if isinstance(entry, Skipped) else lost.get(entry.name) for entry in entries]
        return _write(plan, number, kept, rows, [one for one in skipped if one is not None])


def _unchanged(items: Iterable[Item], lost: dict[str, Skipped]) -> Iterator[Item]:
    """Yield the items whose files are those that were listed; the others join `lost` by their names."""
    path, found = Path(), None
    for item in items:
        if item.path != path:
            path, found = item.path, _found(item.path)
        if found is not None and found[1] == item.modified_ns and (item.part or found[0] == item.size_bytes):
            yield item
            continue
        one = Skipped(path=printable(item.path), reason=GONE if found is None else CHANGED)
        LOG.warning("skipped %s", one)
        lost[item.name] = one


def _found(path: Path) -> tuple[int, int] | None:
    """Return the size of a file and when it was changed, None if it is gone."""
    try:
        return size_and_change(path)
    except OSError:
        return None


def _write(plan: Plan, number: int, kept: list[Item], rows: list[Float32], skipped: list[Skipped]) -> ShardDone:
    """Write the descriptors of a shard and its record, and give the record its name last."""
    header = plan.manifest.header
    values = np.stack(rows) if rows else np.empty((0, header.descriptor_size), np.float32)
    with _apart(plan.folder, number) as apart:
        path, record = shard_path(apart, number), record_path(apart, number)
        with open_writer(path, header, len(kept)) as writer:
            writer.write([item.name for item in kept], values, [item.time_ns for item in kept])
        done = ShardDone(
            manifest_sha256=plan.manifest.sha256,
            shard=number,
            descriptors=len(kept),
            skipped=tuple(skipped),
            sha256=sha256_file(path),
            size_bytes=path.stat().st_size,
        )
        write_text(record, seal(asdict(done), RECORD).decode())
        for written in (path, record):
            written.replace(plan.folder / written.name)
    return done


@contextlib.contextmanager
def _apart(folder: Path, number: int) -> Iterator[Path]:
    """Yield an empty folder for the files of a shard that this process holds; it goes at the end.

    Processes that write files into one folder take turns, and look at all that it holds for what killed ones have left.
    With many processes at many thousands of shards that would take longer than the work.

    Raises: OutputError if the disk refuses.
    """
    apart = folder / f".shard-{number:06}"
    try:
        shutil.rmtree(apart, ignore_errors=True)  # of a process that was killed
        apart.mkdir()
        yield apart
    except OSError as error:
        raise OutputError(f"{error.filename or apart} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(apart, ignore_errors=True)


def find_shard(plan: Plan, number: int) -> ShardDone | None:
    """Return the record of a shard, None if it is not there; a damaged one is named in the log, and counts as none.

    The file of its descriptors is read whole and compared with its hash.

    Raises: OutputError if a damaged shard cannot be removed.
    """
    try:
        return read_shard(plan, number)
    except ArtifactError as error:
        LOG.warning("shard %d is made again: %s", number, error)
    try:
        record_path(plan.folder, number).unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"{error.filename} cannot be removed: {error.strerror or error}") from error
    return None


def read_shard(plan: Plan, number: int, *, proven: bool = True) -> ShardDone | None:
    """Return the record of a shard, None if it is not there; `proven` by the hash of its file.

    Raises: ArtifactError if the record or the file is damaged, or of another run.
    """
    path, record = shard_path(plan.folder, number), record_path(plan.folder, number)
    if not record.exists():
        return None
    fields = unseal(read_bounded(record, MAX_RECORD_BYTES), str(record), RECORD)
    try:
        done = from_record(ShardDone, fields)
    except ValueError as error:
        raise ArtifactError(f"{record} has fields of another version ({error}): {RECORD.remedy}") from error
    if (done.manifest_sha256, done.shard) != (plan.manifest.sha256, number):
        raise ArtifactError(f"{record} belongs to another run, or to another shard: {RECORD.remedy}")
    if proven and (found := sha256_file(path, missing=RECORD.remedy)) != done.sha256:
        raise ArtifactError(f"{path} has SHA-256 {found[:12]}, it was written with {done.sha256[:12]}: {RECORD.remedy}")
    return done
