"""The verb `embed`: descriptors of images or of local descriptors, in shards, so that a run can go on."""

import contextlib
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import get_args

from netvlad_deploy.bulk.flow import embed_shards
from netvlad_deploy.bulk.manifest import Given, Manifest
from netvlad_deploy.bulk.merge import (
    Finished,
    check_finished,
    lost_shard,
    merge,
    read_finished,
    remove_parts,
    result_files,
    summed,
)
from netvlad_deploy.bulk.open_plan import header_for, open_plan_runner
from netvlad_deploy.bulk.plan import (
    Plan,
    at_work,
    check_same,
    find_or_make_plan,
    load_plan,
    plan_folder,
    remove_plan,
    shard_size_for,
    source_of,
)
from netvlad_deploy.bulk.shards import find_shard, record_path
from netvlad_deploy.descriptors.header import StoredDtype
from netvlad_deploy.descriptors.open_files import DESCRIPTOR_WRITERS, check_target
from netvlad_deploy.errors import UsageError
from netvlad_deploy.fleet.embed_on_ray import embed_on_ray
from netvlad_deploy.runtime.open_runner import Candidate
from netvlad_deploy.spec.items import Skipped
from netvlad_deploy.support.files import check_apart, check_targets, finish_writing
from netvlad_deploy.support.limits import check_choice
from netvlad_deploy.support.progress import Progress
from netvlad_deploy.support.require import DISTRIBUTION, installed_version

LOG = logging.getLogger(__name__)

IMAGE_BATCH, FEATURE_BATCH = 8, 32
"""Items that run at once where the user does not say it."""


@dataclass(frozen=True, kw_only=True)
class EmbedOptions:
    """What changes the result of `embed`, beside the artifact and its inputs.

    Args:
        listing: a file with one input a line, `-` for standard input.
        column: the column of a Parquet file that has the images.
        topic: the topic of a bag that has the images.
        batch: items that run at once, by default 8 images or 32 items of local descriptors.
        head: which head, of several.
        dtype: `float32` or `float16`, in which descriptors are kept.
        shard_size: items of a shard, by default 1,024, or fewer where their descriptors would take over 64 MiB.

    >>> EmbedOptions(batch=16, dtype="float16").head is None  # an artifact of one head has no other
    True
    """

    listing: str | None = None
    column: str | None = None
    topic: str | None = None
    batch: int | None = None
    head: str | None = None
    dtype: StoredDtype = "float32"
    shard_size: int | None = None


@dataclass(frozen=True, kw_only=True)
class Part:
    """Which part of how many of a run: every `count`-th shard, from number `index` on, counted from 0."""

    index: int
    count: int

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


@dataclass(frozen=True, kw_only=True)
class EmbedResult:
    """What `embed` has written: all of it, or one part of it.

    Args:
        output: the target, or the folder of the plan for a part.
        descriptors: how many there are.
        descriptor_size: values of one.
        duration_ms: of this call.
        shards: how many the run, or the part, has.
        kept: how many of these were there already.
        complete: the target was there already, and nothing was done.
        part: `I/N`, None for all.
        reasons: how many inputs were skipped, by reason.
        skipped: the first of them, 100 at most.
    """

    output: Path
    descriptors: int
    descriptor_size: int
    duration_ms: float
    shards: int
    kept: int = 0
    complete: bool = False
    part: str | None = None
    reasons: Mapping[str, int] = field(default_factory=dict)
    skipped: tuple[Skipped, ...] = ()


def embed(
    candidate: Candidate,
    inputs: Sequence[Path | str],
    target: Path,
    options: EmbedOptions = EmbedOptions(),
    *,
    part: Part | None = None,
    merging: bool = False,
    ray: str | None = None,
    decoders: int | None = None,
    runtime_cache: Path | None = None,
    force: bool = False,
) -> EmbedResult:
    """Write the descriptors of images, or of local descriptors for a head alone, with their names.

    The work is done in shards, in the folder `TARGET.parts` while it lasts. Whatever ends it, the same call goes on
    where it was, and the target becomes the same in every byte. If that is complete, a call does nothing.
    `part` computes some shards alone, `merging` only joins them, `ray` is a cluster's address, `force` begins anew.

    >>> import numpy as np
    >>> from netvlad_deploy.spec.graph_options import GraphOptions
    >>> from netvlad_deploy.workflow.export import export
    >>> from netvlad_deploy.workflow.source import Source
    >>> artifact = export(Source(num_clusters=2, feature_size=4), Path("m.onnx"), GraphOptions())
    >>> np.save("x.npy", np.ones((3, 5, 4), np.float32))
    >>> embed(Candidate(path=artifact.path), ["x.npy"], Path("y.npy")).descriptors, np.load("y.npy").shape  # (B, D*K)
    (3, (3, 8))

    Raises: UsageError if artifact, inputs, target and plan do not fit; InputError if nothing could be embedded.
    """
    started = time.perf_counter()
    texts = [str(each) for each in inputs]
    _check_target(target, [*texts, *([options.listing] if options.listing else [])], runtime_cache)
    wanted = _wanted(candidate, texts, target, options)
    folder = plan_folder(target)
    if (result := _ready(target, wanted, started, force=force)) is not None and not (target.suffix and folder.exists()):
        return result
    with at_work(folder, shared=part is not None):
        if (result := _ready(target, wanted, started, force=force)) is not None:  # of a run that ended just now
            remove_parts(target)
            return result
        if merging:
            check_same(plan := load_plan(folder), wanted)
            return _result(merge(plan), target, started, kept=plan.shards)
        plan = find_or_make_plan(folder, wanted, trusted=part is not None, force=force)
        numbers = range(plan.shards) if part is None else range(part.index, plan.shards, part.count)
        with _what_stays(plan, part):
            kept = _embed_shards(plan, candidate, numbers, decoders, runtime_cache, ray)
            done = merge(plan) if part is None else summed(plan, numbers, proven=False)
        return _result(done, plan.folder if part else target, started, kept=kept, shards=len(numbers), part=part)


def _check_target(target: Path, texts: Sequence[str], runtime_cache: Path | None) -> None:
    """Refuse a target of another format, or one that the same command reads."""
    if target.name in ("-", *DESCRIPTOR_WRITERS):  # which would be folders of shards of these names
        raise UsageError(f"{target} is not the name of a file: name one such as places.npz")
    if target.suffix:
        check_target(target)
    there = os.path.exists  # Path.exists raises for a name that is too long: whoever opens that file says so
    written = [each for each in (target, *result_files(target)) if there(each)]
    for text in texts:
        if there(text) and any(map(Path(text).samefile, written)):
            raise UsageError(f"{text} holds what is embedded, it cannot be the target too: name another file")
    if runtime_cache is not None:
        check_apart(runtime_cache, (*map(Path, texts), target), "runtime cache")


def _wanted(candidate: Candidate, texts: Sequence[str], target: Path, options: EmbedOptions) -> Manifest:
    """Return what a run is for, before anything is listed."""
    check_choice("dtype", options.dtype, get_args(StoredDtype))
    header = header_for(candidate, head=options.head, dtype=options.dtype)
    return Manifest(
        version=installed_version(DISTRIBUTION) or "",
        target=target.name if target.suffix else "",
        header=header,
        backend=candidate.backend,
        head=options.head,
        batch=options.batch or (FEATURE_BATCH if header.images is None else IMAGE_BATCH),
        given=Given(inputs=tuple(texts), listing=options.listing, column=options.column, topic=options.topic),
        shard_size=options.shard_size or shard_size_for(header.descriptor_size),
    )


def _ready(target: Path, wanted: Manifest, started_s: float, *, force: bool) -> EmbedResult | None:
    """Return the result of a target that is complete and just what is wanted, None if it is still to be made.

    A folder that has lost a shard since is not complete: it is to be made again.

    Raises: UsageError if another target stands there; OutputError if it cannot be written.
    """
    finish_writing(target.parent)
    finished = None if force else read_finished(target)
    if finished is None:
        check_targets(*result_files(target), force=force)
        return None
    check_finished(finished, target, wanted, source_of(wanted).items())
    if not target.suffix and (lost := lost_shard(finished, target)):
        LOG.warning("%s is not complete any more: %s", target, lost)
        return None
    return replace(_result(finished, target, started_s, kept=finished.manifest.shards), complete=True)


def _embed_shards(
    plan: Plan,
    candidate: Candidate,
    numbers: Sequence[int],
    decoders: int | None,
    runtime_cache: Path | None,
    ray: str | None,
) -> int:
    """Compute the shards of these numbers that are not there; return how many were."""
    progress = Progress("embedding", sum(map(plan.items_of, numbers)), "items" if plan.images is None else "images")
    if ray is not None:  # its workers look at the shards that are there
        if runtime_cache is not None:
            raise UsageError("--runtime-cache is a file of one machine's kernels: leave it out with --ray")
        kept = sum(record_path(plan.folder, number).exists() for number in numbers)
        done = lambda number: progress.advance(plan.items_of(number))  # noqa: E731 - one line, said here
        embed_on_ray(ray, plan, candidate, numbers, decoders=decoders, done=done)
        return kept
    missing = [number for number in numbers if find_shard(plan, number) is None]
    progress.reach(progress.total - sum(map(plan.items_of, missing)))
    if missing:
        with open_plan_runner(plan, candidate, runtime_cache=runtime_cache) as runner:
            shards = embed_shards(plan, missing, runner, decoders=decoders, progress=progress)
            with contextlib.closing(shards):
                for _ in shards:  # each stands in its files
                    pass
    progress.finish()
    return len(numbers) - len(missing)


@contextlib.contextmanager
def _what_stays(plan: Plan, part: Part | None) -> Iterator[None]:
    """On whatever ends the work too early, say how far it is; a plan of which no shard is done goes."""
    with contextlib.ExitStack() as early:
        early.callback(_say_what_stays, plan, part)
        yield
        early.pop_all()


def _say_what_stays(plan: Plan, part: Part | None) -> None:
    done = sum(record_path(plan.folder, number).exists() for number in range(plan.shards))
    if done:
        LOG.warning("%d of %d shards stay in %s: the same command goes on there", done, plan.shards, plan.folder)
    elif part is None:
        remove_plan(plan.folder)


def _result(
    done: Finished, output: Path, started_s: float, *, kept: int, shards: int | None = None, part: Part | None = None
) -> EmbedResult:
    return EmbedResult(
        output=output,
        descriptors=done.descriptors,
        descriptor_size=done.manifest.header.descriptor_size,
        duration_ms=(time.perf_counter() - started_s) * 1e3,
        shards=done.manifest.shards if shards is None else shards,
        kept=kept,
        part=None if part is None else str(part),
        reasons=done.reasons,
        skipped=done.skipped,
    )
