"""The points of a sweep, and the file that keeps them: a line of JSON for each, appended when it is measured.

A sweep that was killed goes on where it ended. The half line that it may have left at the end is dropped.
"""

import contextlib
import errno
import fcntl
import json
import logging
import math
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

from netvlad_deploy.errors import ArtifactError, OutputError
from netvlad_deploy.latency.results import Estimate
from netvlad_deploy.support.formats import writing
from netvlad_deploy.support.locks import lock
from netvlad_deploy.support.records import from_record

LOG = logging.getLogger(__name__)

POINT_SCHEMA: Final = "netvlad-deploy/sweep-point/1"
MAX_SWEEP_BYTES: Final = 64 * 2**20
"""Largest file of a sweep that is read: a point takes about a kilobyte for each candidate."""

START: Final = f'{{"schema": "{POINT_SCHEMA}"'.encode()
"""First bytes of each line."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a point stands on all axes; None is no axis of what is measured.

    `image_size` is height and width; `clusters` and `feature_size` are of a layer that was made from a seed.
    """

    batch: int
    num_features: int | None = None
    image_size: tuple[int, int] | None = None
    threads: int
    concurrency: int = 1
    clusters: int | None = None
    feature_size: int | None = None


@dataclass(frozen=True, kw_only=True)
class PointLatency:
    """Latency of one candidate at one point; `reason` says why it did not run."""

    name: str
    reason: str = ""
    percentiles_ms: Mapping[str, Estimate] = field(default_factory=dict)
    throughput: Estimate | None = None

    def __post_init__(self) -> None:
        if not all(0 < each.value < math.inf for each in self.percentiles_ms.values()):
            raise ArtifactError("a run took no finite time above 0")


@dataclass(frozen=True, kw_only=True)
class SweepPoint:
    """The latency of all candidates at one point.

    Args:
        subjects: SHA-256 of each file, or the seed of untrained weights, in words.
        backends: the backends that were asked for; empty for each file's own.
        machine: facts that stay, by name: the processor, versions.
    """

    subjects: tuple[str, ...]
    backends: tuple[str, ...]
    machine: Mapping[str, str]
    place: Place
    candidates: tuple[PointLatency, ...]

    @property
    def key(self) -> str:
        """Return the text that two points have in common if one of them need not be measured again."""
        record = asdict(self)
        del record["candidates"]
        return json.dumps(record, sort_keys=True)


class SweepFile:
    """An open file of a sweep, which no other sweep can write meanwhile; `points` are those that it held before."""

    def __init__(self, path: Path, handle: int) -> None:
        self.path, self._handle = path, handle
        self.points = self._read()

    def append(self, point: SweepPoint) -> None:
        """Write a point to the disk."""
        line = json.dumps({"schema": POINT_SCHEMA, **asdict(point)}).encode() + b"\n"
        with writing(self.path):
            if os.write(self._handle, line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self._handle)

    def _read(self) -> list[SweepPoint]:
        """Return the points of all whole lines, and cut the file after them.

        Raises: ArtifactError if it is too large, or a line is no point.
        """
        with open(self._handle, "rb", closefd=False) as stream:
            content = stream.read(MAX_SWEEP_BYTES + 1)
        if len(content) > MAX_SWEEP_BYTES:
            raise ArtifactError(f"{self.path} has more than {MAX_SWEEP_BYTES} bytes: name another file")
        *lines, rest = content.split(b"\n")
        points = [_point(line, f"line {number} of {self.path}") for number, line in enumerate(lines, 1)]
        if rest:
            if rest[: len(START)] != START[: len(rest)]:
                raise ArtifactError(f"line {len(points) + 1} of {self.path} is no point of a sweep: name another file")
            LOG.warning("%s ends in half a line of a sweep that was killed: dropped", self.path)
            with writing(self.path):
                os.ftruncate(self._handle, len(content) - len(rest))
        return points


@contextlib.contextmanager
def open_sweep(path: Path) -> Iterator[SweepFile]:
    """Open the file of a sweep, or make it; it is removed again if it holds no point in the end.

    Raises: OutputError if it cannot be written, or another sweep writes it; ArtifactError if it is another file.
    """
    with writing(path):
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK
        handle = os.open(path, flags, 0o666)
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OutputError(f"{path} cannot be written: it is no regular file, name another")
        try:
            lock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OutputError(f"{path} is written by another sweep: wait for its end, or name another file") from error
        try:
            yield SweepFile(path, handle)
        finally:
            if os.fstat(handle).st_size == 0:
                path.unlink(missing_ok=True)
    finally:
        os.close(handle)


def _point(line: bytes, where: str) -> SweepPoint:
    try:
        record = json.loads(line)
        schema = record.pop("schema")
        if schema == POINT_SCHEMA:
            return from_record(SweepPoint, record)
        reason = f"its schema is {str(schema)[:80]}, expected {POINT_SCHEMA}"
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = str(error)[:300]
    raise ArtifactError(f"{where} is no point of a sweep ({reason}): name another file")
