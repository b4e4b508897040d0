"""The plan of a run: a folder with the manifest, and for each shard its inputs, its descriptors and its record.

The folder stands beside the target, as `TARGET.parts`, until all shards are there and joined. A target without a suffix
is a folder of shards: it is the folder of the plan, and stays.
"""

import contextlib
import logging
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Final

from netvlad_deploy.bulk.listing import line_of, read_listing, write_listings
from netvlad_deploy.bulk.manifest import MANIFEST, Manifest, differences, read_manifest
from netvlad_deploy.errors import ArtifactError, InputError, OutputError, UsageError
from netvlad_deploy.sources.open_sources import open_sources
from netvlad_deploy.sources.source import Source
from netvlad_deploy.spec.images import ImageInput
from netvlad_deploy.spec.items import Item, Skipped, count_reasons
from netvlad_deploy.support.claims import claimed
from netvlad_deploy.support.files import read_bounded, write_text
from netvlad_deploy.support.formats import writing
from netvlad_deploy.support.journal import JOURNAL_NAME
from netvlad_deploy.support.locks import left_behind
from netvlad_deploy.support.records import from_record

LOG = logging.getLogger(__name__)

MANIFEST_NAME: Final = "manifest.json"
RUN_CLAIM, PLAN_CLAIM = "run.lock", "plan.lock"
COMPLETE_NAME: Final = "complete.json"
"""The record of a run in a folder of shards that stays."""

MAX_MANIFEST_BYTES: Final = 16 * 2**20
PARTS_SUFFIX: Final = ".parts"
RESULT_NAMES: Final = r"shard-\d{6,}\.(npz|json)|complete\.json|skipped\.jsonl"
WORK_NAMES: Final = (
    r"shard-\d{6,}\.(inputs\.jsonl|lock)|\.shard-joined\.\w+(\.jsonl)?|manifest\.json|run\.lock|plan\.lock"
)
OWN_NAMES: Final = re.compile(
    rf"{RESULT_NAMES}|{WORK_NAMES}|\.({RESULT_NAMES}|{WORK_NAMES})\.[0-9a-f]{{16}}\.tmp|\.shard-\d{{6,}}|\{JOURNAL_NAME}"
)
"""The names that a run of `embed` writes into the folder of its plan: nothing else is ever removed there."""

SHARD_ITEMS: Final = 1024
SHARD_BYTES: Final = 64 << 20
"""A shard has at most so many items, and so many bytes of descriptors in float32; two of them stand in memory."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A run that was listed: its folder and its manifest.

    >>> plan = load_plan(Path("y.npz.parts"))  # doctest: +SKIP
    >>> plan.shards, plan.target  # doctest: +SKIP
    (5, PosixPath('y.npz'))
    """

    folder: Path
    manifest: Manifest

    @property
    def shards(self) -> int:
        """Return the number of shards."""
        return self.manifest.shards

    @property
    def target(self) -> Path:
        """Return the path of the file that the shards are joined into, or of the folder if they stay apart."""
        return self.folder.parent / self.manifest.target if self.manifest.target else self.folder

    @property
    def images(self) -> ImageInput | None:
        """Return how images are prepared, None where local descriptors come in."""
        record = self.manifest.header.images
        return None if record is None else from_record(ImageInput, record)

    def items_of(self, shard: int) -> int:
        """Return how many items a shard has."""
        return min(self.manifest.shard_size, self.manifest.items - shard * self.manifest.shard_size)

    def source(self) -> Source:
        """Return the source of the items, opened by what was typed."""
        return source_of(self.manifest)


def source_of(manifest: Manifest) -> Source:
    """Return the source of the items of a run, opened by what was typed."""
    given = manifest.given
    return open_sources(
        given.inputs,
        listing=given.listing,
        column=given.column,
        topic=given.topic,
        features=manifest.header.images is None,
        feature_size=manifest.header.spec.get("feature_size"),
    )


def shard_size_for(descriptor_size: int) -> int:
    """Return how many items a shard has where the user does not say it.

    >>> shard_size_for(4096), shard_size_for(32_768)
    (1024, 512)
    """
    return max(1, min(SHARD_ITEMS, SHARD_BYTES // (4 * descriptor_size)))


def plan_folder(target: Path) -> Path:
    """Return the folder of the plan for a target: beside a file, or the target itself where its name has no suffix."""
    return target.with_name(target.name + PARTS_SUFFIX) if target.suffix else target


def load_plan(folder: Path) -> Plan:
    """Return the plan in a folder.

    Raises: ArtifactError if there is none, or it is damaged or of another version of this package.
    """
    path = folder / MANIFEST_NAME
    content = read_bounded(path, MAX_MANIFEST_BYTES, missing="no plan was made there")
    return Plan(folder=folder, manifest=read_manifest(content, str(path)))


def make_plan(folder: Path, wanted: Manifest, entries: Iterable[Item | Skipped]) -> Plan:
    """List all inputs into a folder, then write its manifest; a folder without one is not planned yet.

    Raises: InputError if there is no item; UsageError if two items have one name, or one is the target itself;
        OutputError if the disk refuses.
    """
    target = Plan(folder=folder, manifest=wanted).target
    with contextlib.ExitStack() as undo:
        undo.callback(remove_plan, folder)
        items, shards, sha256 = write_listings(folder, _apart_from(target, entries), wanted.shard_size)
        if not items:
            skipped = [one for one in read_listing(folder, 0) if isinstance(one, Skipped)] if shards else []
            raise InputError(f"nothing to embed: {count_reasons(skipped) or 'none was found'}")
        manifest = replace(wanted, items=items, shards=shards, listing_sha256=sha256)
        write_text(folder / MANIFEST_NAME, manifest.content().decode())
        undo.pop_all()
    return Plan(folder=folder, manifest=manifest)


def _apart_from(target: Path, entries: Iterable[Item | Skipped]) -> Iterator[Item | Skipped]:
    """Yield what was found; a target that is among it would be read, and then written over.

    Raises: UsageError if it is.
    """
    for entry in entries:
        if isinstance(entry, Item) and is_one_of(entry, (target,)):
            raise UsageError(f"{target} is one of the inputs, it cannot be the target too: name another file")
        yield entry


def is_one_of(entry: Item | Skipped, files: Sequence[Path]) -> bool:
    """Return True for what was found in one of these files."""
    found = Path(entry.path)
    return any(found.name == path.name and found.resolve() == path.resolve() for path in files)


def make_folder(folder: Path) -> None:
    """Make the folder of a plan.

    Raises: UsageError if there is one with files of others, hidden ones aside; OutputError if it cannot be made.
    """
    with writing(folder):
        folder.mkdir(exist_ok=True)
        names = sorted(path.name for path in folder.iterdir())
    others = [name for name in names if not name.startswith(".") and not OWN_NAMES.fullmatch(name)]
    if MANIFEST_NAME in names and not _is_ours(folder / MANIFEST_NAME):
        others.append(MANIFEST_NAME)
    if others:
        raise UsageError(f"{folder} holds {others[0]}, which no run of embed writes: name another folder")


def _is_ours(manifest: Path) -> bool:
    """Return False for a file of that name which is of something else; a damaged one is ours, and one that is gone."""
    try:
        content = read_bounded(manifest, MAX_MANIFEST_BYTES)
    except ArtifactError:
        return not manifest.exists()
    return MANIFEST.schema.rpartition("/")[0].encode() in content


def remove_plan(folder: Path) -> None:
    """Remove what runs of `embed` have written into a folder, all but the claims that are held.

    First go the shards, then the manifest, then the inputs: so a process that is killed meanwhile leaves a plan with
    fewer shards, or none at all.

    Raises: UsageError if there are shards without a manifest, which may be of others; OutputError if the disk refuses.
    """
    try:
        ours = [path for path in folder.iterdir() if OWN_NAMES.fullmatch(path.name)]
        results = sorted(path for path in ours if re.fullmatch(RESULT_NAMES, path.name))
        manifest = folder / MANIFEST_NAME
        if results and not manifest.exists():
            raise UsageError(
                f"{folder} holds {results[0].name} and no {MANIFEST_NAME} of a run: name another folder, or remove it"
            )
        for path in (*results, manifest, *ours):  # sorted, a record goes before its shard
            if path.suffix == ".lock":
                with contextlib.suppress(OSError), left_behind(path):  # it is held, by this process or another
                    path.unlink()
            elif path.is_dir() and not path.is_symlink():  # of a process that was killed at a shard
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"{folder} cannot be removed: {error.strerror or error}") from error


@contextlib.contextmanager
def at_work(folder: Path, *, shared: bool) -> Iterator[None]:
    """Hold the folder of a plan, which is made if it is not there, and goes if nothing is left in it.

    Raises: UsageError if another run holds it, or it has files of others; OutputError if it cannot be written.
    """
    make_folder(folder)
    try:
        with claimed(folder / RUN_CLAIM, shared=shared):
            yield
    finally:
        with contextlib.suppress(OSError):  # it is not empty
            folder.rmdir()


def find_or_make_plan(folder: Path, wanted: Manifest, *, trusted: bool, force: bool) -> Plan:
    """Return the plan in a folder if it is the wanted one; make it where there is none.

    Args:
        folder: the folder, which this process holds.
        wanted: what the plan is for.
        trusted: do not list the inputs again, to compare them with those of a plan that is there.
        force: remove a plan that is another one or damaged, or a folder of shards that is complete, and begin again.

    Raises: UsageError naming what has changed; ArtifactError if the plan is damaged; and as `make_plan`.
    """
    with claimed(folder / PLAN_CLAIM, wait=True):
        if (folder / MANIFEST_NAME).exists() and not (force and (folder / COMPLETE_NAME).exists()):
            try:
                check_same(plan := load_plan(folder), wanted)
                if not trusted:
                    check_listing(plan, plan.source().items())
            except (ArtifactError, UsageError) as error:
                if not force:
                    raise
                LOG.warning("begun again: %s", error)
            else:
                return plan
        remove_plan(folder)
        return make_plan(folder, wanted, source_of(wanted).items())


def check_same(plan: Plan, wanted: Manifest) -> None:
    """Refuse to go on with a plan that was made for something else than is wanted now.

    Raises: UsageError naming each field with both values.
    """
    if changed := differences(plan.manifest, wanted):
        raise UsageError(
            f"{plan.folder} was begun with something else: {'; '.join(changed)}: repeat the first command, or begin "
            "again with --force"
        )


def check_listing(plan: Plan, entries: Iterable[Item | Skipped]) -> None:
    """Refuse to go on with a plan whose inputs are others now.

    Raises: UsageError naming the first input that differs.
    """
    for before, after in zip_longest(_planned(plan), entries):
        if before is None or after is None or line_of(before) != line_of(after):
            raise UsageError(
                f"the inputs have changed since {plan.folder} was begun: {_change(before, after)}: put them back, or "
                "begin again with --force"
            )


def _planned(plan: Plan) -> Iterator[Item | Skipped]:
    for shard in range(plan.shards):
        yield from read_listing(plan.folder, shard)


def _change(before: Item | Skipped | None, after: Item | Skipped | None) -> str:
    """Return in words what differs between an entry of the plan and the one that is in its place now."""
    if isinstance(before, Item) and isinstance(after, Item) and before.name == after.name:
        for what, old, new in (
            ("bytes", before.size_bytes, after.size_bytes),
            ("as time of its last change, in nanoseconds", before.modified_ns, after.modified_ns),
        ):
            if old != new:
                return f"{after.name} had {old} {what}, has {new}"
    names = [_name(entry) for entry in (before, after)]
    return f"{names[0]} was next, now it is {names[1]}"


def _name(entry: Item | Skipped | None) -> str:
    if entry is None:
        return "the end"
    return entry.name if isinstance(entry, Item) else str(entry)
