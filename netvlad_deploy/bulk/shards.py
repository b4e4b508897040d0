"""The files of one shard: its descriptors, written whole, and a record of them.

The record is what counts: a shard without one is not there.
"""

import contextlib
import logging
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import numpy as np

from netvlad_deploy.bulk.plan import Plan
from netvlad_deploy.descriptors.open_files import open_writer
from netvlad_deploy.errors import ArtifactError, OutputError
from netvlad_deploy.spec.items import Item, Skipped
from netvlad_deploy.support.arrays import Float32
from netvlad_deploy.support.files import read_bounded, sha256_file, write_text
from netvlad_deploy.support.formats import writing
from netvlad_deploy.support.sidecar import Form, read_sealed, seal

LOG = logging.getLogger(__name__)

SHARD_SUFFIX: Final = ".npz"
MAX_RECORD_BYTES: Final = 1 << 30
RECORD: Final = Form(
    kind="the record of a shard",
    schema="netvlad-deploy/embedding-shard/1",
    hash_name="record_sha256",
    remedy="run the command again, which makes the shard again",
)
ROWS_TOGETHER: Final = 64
"""Descriptors that are copied at once on their way into a file."""


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


def write_shard(plan: Plan, number: int, kept: Sequence[tuple[Item, Float32]], skipped: Sequence[Skipped]) -> ShardDone:
    """Write a shard that this process holds and then its record, which is returned.

    Args:
        plan: the plan that it belongs to.
        number: which shard, counted from 0.
        kept: items with their descriptors (P,), in their order.
        skipped: inputs that have none.

    Raises: OutputError if the disk refuses.
    """
    with _apart(plan.folder, number) as apart:
        path, record = shard_path(apart, number), record_path(apart, number)
        with open_writer(path, plan.manifest.header, len(kept)) as writer:
            for start in range(0, len(kept), ROWS_TOGETHER):
                items, rows = zip(*kept[start : start + ROWS_TOGETHER], strict=True)
                writer.write([item.name for item in items], np.stack(rows), [item.time_ns for item in items])
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
        with writing(apart):
            apart.mkdir()
            yield apart
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
    done = read_sealed(ShardDone, read_bounded(record, MAX_RECORD_BYTES), str(record), RECORD)
    if (done.manifest_sha256, done.shard) != (plan.manifest.sha256, number):
        raise ArtifactError(f"{record} belongs to another run, or to another shard: {RECORD.remedy}")
    if proven and (found := sha256_file(path, missing=RECORD.remedy)) != done.sha256:
        raise ArtifactError(f"{path} has SHA-256 {found[:12]}, it was written with {done.sha256[:12]}: {RECORD.remedy}")
    return done
