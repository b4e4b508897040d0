"""All shards joined into the target, and the file beside it that says what it is: `TARGET.json`.

The target, this file, and the list of what was skipped get their names together, or none does. A folder of shards stays
as it is, and gets `complete.json`.
"""

import contextlib
import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from netvlad_deploy.bulk.listing import line_of, listing_sha256
from netvlad_deploy.bulk.manifest import Manifest, differences
from netvlad_deploy.bulk.plan import COMPLETE_NAME, MANIFEST_NAME, Plan, is_one_of, load_plan, plan_folder, remove_plan
from netvlad_deploy.bulk.shards import ShardDone, read_shard, record_path, shard_path
from netvlad_deploy.descriptors.open_files import files_of, open_writer, read_descriptors
from netvlad_deploy.errors import ArtifactError, InputError, UsageError
from netvlad_deploy.spec.items import Item, Skipped, reason_words
from netvlad_deploy.support.files import Staging, read_bounded, sha256_file, stage_files
from netvlad_deploy.support.progress import Progress
from netvlad_deploy.support.sidecar import Form, read_sealed, seal

LOG = logging.getLogger(__name__)

FINISHED: Final = Form(
    kind="the record of an embedding",
    schema="netvlad-deploy/embedded/1",
    hash_name="record_sha256",
    remedy="choose another name or pass --force",
)
MAX_FINISHED_BYTES: Final = 16 * 2**20
MOST_LISTED: Final = 100
"""Skipped inputs that a result lists; the file of skipped ones has all."""

NAMED_SHARDS: Final = 10
"""Missing shards that an error names."""


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A run that is complete.

    Args:
        manifest: what it was asked for.
        descriptors: how many there are.
        reasons: how many inputs were skipped, by reason.
        skipped: the first of them.
        sha256: of the target; of the hashes of all shards, one a line, where they stay apart.
        size_bytes: of the target; of the files of all shards together.
    """

    manifest: Manifest
    descriptors: int
    reasons: Mapping[str, int]
    skipped: tuple[Skipped, ...]
    sha256: str
    size_bytes: int


def finished_path(target: Path) -> Path:
    """Return the path of the record beside a target, or in a folder of shards."""
    return target.with_name(f"{target.name}.json") if target.suffix else target / COMPLETE_NAME


def skipped_path(target: Path) -> Path:
    """Return the path of the list of what was skipped, JSON lines; it is there if anything was."""
    return target.with_name(f"{target.name}.skipped.jsonl") if target.suffix else target / "skipped.jsonl"


def result_files(target: Path) -> tuple[Path, ...]:
    """Return the files that a target consists of, none for a folder of shards, which is looked at when it is held."""
    return (*files_of(target), finished_path(target), skipped_path(target)) if target.suffix else ()


def merge(plan: Plan) -> Finished:
    """Join all shards into the target, which is replaced if it exists, and remove the plan; a folder stays.

    What stands in memory at once is a part of one shard.

    Raises: ArtifactError naming shards that are missing or damaged; InputError if there is no descriptor in any, and
        then the plan goes; OutputError if the disk refuses.
    """
    missing = [number for number in range(plan.shards) if not record_path(plan.folder, number).exists()]
    if missing:
        named = ", ".join(map(str, missing[:NAMED_SHARDS])) + (", ..." if len(missing) > NAMED_SHARDS else "")
        raise ArtifactError(
            f"{plan.folder} lacks {len(missing)} of {plan.shards} shards ({named}): run the command without --merge, "
            "or the parts that make them, with --shard"
        )
    if listing_sha256(plan.folder, plan.shards) != plan.manifest.listing_sha256:
        raise ArtifactError(f"{plan.folder} lists other inputs than it was made with: begin again with --force")
    finished = summed(plan, range(plan.shards))
    if not finished.descriptors:
        remove_plan(plan.folder)
        raise InputError(f"nothing to embed: {reason_words(finished.reasons)}, first {finished.skipped[0]}")
    joined = _join(plan, finished.descriptors) if plan.manifest.target else {}
    if joined:
        main = joined[plan.target]
        finished = Finished(**{**vars(finished), "sha256": sha256_file(main), "size_bytes": main.stat().st_size})
    with stage_files(force=True) as staging:
        for target, path in joined.items():
            path.replace(staging.add(target))
        _stage_skipped(staging, plan, finished)
        staging.write(finished_path(plan.target), seal(_record(finished), FINISHED))
    if plan.manifest.target:
        remove_plan(plan.folder)
    return finished


def summed(plan: Plan, numbers: Iterable[int], *, proven: bool = True) -> Finished:
    """Return the sums of some shards, `proven` by the hashes of their files.

    Raises: ArtifactError naming a shard that is missing or damaged.
    """
    reasons: Counter[str] = Counter()
    first: list[Skipped] = []
    digest = hashlib.sha256()
    descriptors = size_bytes = 0
    for done in _records(plan, numbers, proven=proven):
        reasons.update(one.reason for one in done.skipped)
        first += done.skipped[: MOST_LISTED - len(first)]
        digest.update(f"{done.sha256}\n".encode())
        descriptors, size_bytes = descriptors + done.descriptors, size_bytes + done.size_bytes
    return Finished(
        manifest=plan.manifest,
        descriptors=descriptors,
        reasons=dict(reasons),
        skipped=tuple(first),
        sha256=digest.hexdigest(),
        size_bytes=size_bytes,
    )


def _records(plan: Plan, numbers: Iterable[int], *, proven: bool) -> Iterator[ShardDone]:
    for number in numbers:
        done = read_shard(plan, number, proven=proven)
        if done is None:
            raise ArtifactError(f"{plan.folder} lacks shard {number}: run the command again")
        yield done


def _join(plan: Plan, count: int) -> dict[Path, Path]:
    """Write all descriptors into a file in the plan's folder; return where it, and what goes with it, shall stand."""
    joined = plan.folder / f".shard-joined{plan.target.suffix}"  # hidden: the folder may stand among the inputs
    progress = Progress("joining", count, "descriptors")
    with open_writer(joined, plan.manifest.header, count, force=True) as writer:
        for number in range(plan.shards):
            for names, descriptors, times in read_descriptors(shard_path(plan.folder, number)).timed_blocks():
                writer.write(names, descriptors, times)
                progress.advance(len(names))
    progress.finish()
    return dict(zip(files_of(plan.target), files_of(joined), strict=True))


def _stage_skipped(staging: Staging, plan: Plan, finished: Finished) -> None:
    """Write what was skipped, one line each, or remove an older file where nothing was."""
    path = skipped_path(plan.target)
    if not finished.reasons:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        return
    with staging.open(path) as stream:
        for done in _records(plan, range(plan.shards), proven=False):
            stream.writelines(f"{line_of(one)}\n".encode() for one in done.skipped)


def _record(finished: Finished) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(json.dumps({**asdict(finished), "manifest": finished.manifest.record}))
    return record


def read_finished(target: Path) -> Finished | None:
    """Return the record of a finished run, None if a file of the target, or its record, is not there or of others.

    Raises: ArtifactError if the record was written by another version of this package.
    """
    path = finished_path(target)
    files = files_of(target) if target.suffix else (target,)
    if not (all(each.exists() for each in files) and path.is_file()):
        return None
    content = read_bounded(path, MAX_FINISHED_BYTES)
    if FINISHED.hash_name.encode() not in content or b'"schema": "netvlad-deploy/embedded/' not in content:
        return None
    return read_sealed(Finished, content, str(path), FINISHED)


def remove_parts(target: Path) -> None:
    """Remove the plan that a complete target was joined of: whoever joined it was killed before that.

    A folder of shards stays, and so does the plan of another run, which a line in the log names.

    Raises: OutputError if the disk refuses.
    """
    finished, folder = read_finished(target), plan_folder(target)
    if finished is None or not target.suffix:
        return
    try:
        if (folder / MANIFEST_NAME).exists() and load_plan(folder).manifest.sha256 != finished.manifest.sha256:
            LOG.warning("%s stays: another run was begun there, which goes on with its own command", folder)
            return
    except ArtifactError as error:
        LOG.warning("%s stays: %s", folder, error)
        return
    remove_plan(folder)


def check_finished(finished: Finished, target: Path, wanted: Manifest, entries: Iterable[Item | Skipped]) -> None:
    """Refuse a target that a run has made which is not the wanted one; decodes nothing, and hashes no input.

    The target is hashed only if it was changed after its record was written. The files of the run are none of its
    inputs, although they may stand in a folder of these.
    Of a folder the shards are not looked at: `lost_shard` does that.

    Raises: UsageError naming what differs; ArtifactError if the target was changed.
    """
    was = finished.manifest
    if changed := differences(was, wanted, apart=("version",)):
        raise UsageError(
            f"{target} exists already, made with something else: {'; '.join(changed)}: choose another name or pass "
            "--force"
        )
    digest, items = hashlib.sha256(), 0
    for entry in entries:
        if is_one_of(entry, result_files(target)):
            LOG.info("%s is left out of the inputs, among which it stands: this run has made it", entry.path)
            continue
        digest.update(f"{line_of(entry)}\n".encode())
        items += isinstance(entry, Item)
    if digest.hexdigest() != was.listing_sha256:
        what = f"were {was.items}, are {items}" if items != was.items else "names, sizes or times of change differ"
        raise UsageError(f"{target} exists already, of other inputs ({what}): choose another name or pass --force")
    if target.suffix and _is_changed(target, finished.size_bytes, finished.sha256, finished_path(target)):
        raise ArtifactError(f"{target} was changed after it was written: {FINISHED.remedy}")


def lost_shard(finished: Finished, folder: Path) -> str:
    """Return in words which shard of a folder that was complete is gone or was changed, empty if none is."""
    plan = Plan(folder=folder, manifest=finished.manifest)
    for number in range(plan.shards):
        path = shard_path(folder, number)
        try:
            done = read_shard(plan, number, proven=False)
            if done is None or not path.is_file():
                return f"shard {number} is gone"
            if _is_changed(path, done.size_bytes, done.sha256, finished_path(folder)):
                return f"{path} was changed after it was written"
        except ArtifactError as error:
            return str(error)
    return ""


def _is_changed(path: Path, size_bytes: int, sha256: str, record: Path) -> bool:
    """Return True if a file is not the one of its record.

    It is hashed only if it was changed, or got its name, after the record did: a file that was moved there keeps its
    time of change.
    """
    status, since = path.stat(), record.stat()
    newer = status.st_mtime_ns > since.st_mtime_ns or status.st_ctime_ns > since.st_ctime_ns
    return status.st_size != size_bytes or (newer and sha256_file(path) != sha256)
