"""The verb `index`: an index of descriptors, with what it finds measured and written down."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from netvlad_deploy.artifact import sidecar_path
from netvlad_deploy.descriptors.open_files import read_descriptors
from netvlad_deploy.descriptors.reader import DescriptorReader
from netvlad_deploy.errors import InputError
from netvlad_deploy.index.build import LEAST_RECALL, build_index
from netvlad_deploy.index.kinds import AUTO, Choice, choose
from netvlad_deploy.index.place_index import COSINE, DISTANCE, PlaceIndex, maker_of, names_path, write_index
from netvlad_deploy.support.files import Staging, check_apart, check_suffix, stage_files
from netvlad_deploy.support.machine import memory_bytes
from netvlad_deploy.support.require import installed_version, require

LOG = logging.getLogger(__name__)

FAISS_SUFFIX: Final = ".faiss"
INDEX_PACKAGES: Final = ("netvlad-deploy", "numpy", "faiss-cpu")


def index(
    source: Path, target: Path, *, kind: str = AUTO, memory_mib: int | None = None, force: bool = False
) -> PlaceIndex:
    """Write an index of the descriptors in a file or a folder of shards, the names of these, and a sidecar.

    `memory_mib` is what the index may take in memory, by default half of the machine's. The descriptors are read twice,
    block by block.

    >>> import numpy as np
    >>> rows = np.random.default_rng(0).standard_normal((50, 8)).astype(np.float32)
    >>> np.savez("places.npz", names=[f"{n}.jpg" for n in range(50)], descriptors=rows)
    >>> made = index(Path("places.npz"), Path("places.faiss"))
    >>> made.kind, made.metric, made.count
    ('flat', 'distance', 50)

    Raises: UsageError if the index would take more memory, or a target exists; InputError if a descriptor is not
        finite or has length 0, or a name stands twice; MissingDependencyError without FAISS.
    """
    check_suffix(target, FAISS_SUFFIX)
    check_apart(target, [source], "index")
    require("faiss", extra="index")
    with stage_files(force=force) as staging:
        for file in (target, names_path(target), sidecar_path(target)):
            staging.check(file)
        reader = read_descriptors(source)
        if not reader.count:
            raise InputError(f"{source} holds no descriptors: nothing to index")
        allowed = memory_bytes() // 2 if memory_mib is None else memory_mib * 2**20
        record = _stage(staging, target, reader, choose(kind, reader.count, reader.descriptor_size, allowed))
    _say(record)
    return record


def _stage(staging: Staging, target: Path, reader: DescriptorReader, choice: Choice) -> PlaceIndex:
    """Stage the three files of an index; return its record."""
    with staging.open(names_path(target)) as stream:

        def write_names(names: Sequence[str]) -> None:
            stream.write("".join(f"{name}\n" for name in names).encode())

        built = build_index(reader, choice, write_names)
        names_bytes = stream.tell()
    with staging.open(target) as stream:
        write_index(stream, built.index)
        size_bytes = stream.tell()
    record = PlaceIndex(
        path=target,
        sha256=staging.sha256(target),
        size_bytes=size_bytes,
        names_sha256=staging.sha256(names_path(target)),
        names_bytes=names_bytes,
        kind=choice.kind,
        reason=choice.reason,
        metric=COSINE if built.unit else DISTANCE,
        count=reader.count,
        descriptor_size=reader.descriptor_size,
        lists=choice.lists,
        visited=built.visited,
        recall_at_10=built.recall,
        queries=built.queries,
        least_recall=LEAST_RECALL,
        artifact=maker_of(reader.header),
        versions={name: installed_version(name) or "" for name in INDEX_PACKAGES},
    )
    staging.write(sidecar_path(target), record.sidecar())
    return record


def _say(record: PlaceIndex) -> None:
    """Say in the log what somebody would not expect of an index."""
    if record.metric == DISTANCE:
        LOG.warning("the descriptors are not all of length 1: they are compared by Euclidean distance, not by cosine")
    if record.artifact is None:
        LOG.warning("nothing says which artifact made the descriptors: search cannot tell whether another one asks")
    if record.recall_at_10 is None:
        LOG.warning("recall@10 cannot be measured with %d descriptors: the kind flat is exact", record.count)
    elif not record.has_recall:
        LOG.warning(
            "recall@10 is %.4f, below %g: choose another kind, or allow a flat index its memory",
            record.recall_at_10,
            record.least_recall,
        )
