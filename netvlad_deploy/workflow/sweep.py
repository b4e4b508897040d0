"""Sweeps: `bench` at each point of a grid, and how the time grows along its axes."""

import contextlib
import itertools
import logging
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from netvlad_deploy.errors import ArtifactError, UsageError
from netvlad_deploy.latency.baseline import fingerprint
from netvlad_deploy.latency.feeds import USUAL_FEATURES
from netvlad_deploy.latency.scaling import Exponent, fit_exponents
from netvlad_deploy.latency.sweep import Place, PointLatency, SweepFile, SweepPoint, open_sweep
from netvlad_deploy.oracle.goldens import USUAL_PHOTO
from netvlad_deploy.report.sweep import SweepReport, axis_value, place_words
from netvlad_deploy.runtime.open_runner import Candidate, candidates_of
from netvlad_deploy.spec.graph_options import GraphOptions
from netvlad_deploy.spec.images import parse_size
from netvlad_deploy.support.files import check_suffix
from netvlad_deploy.support.limits import check_limit, whole_number
from netvlad_deploy.support.machine import available_cores
from netvlad_deploy.support.scratch import scratch_folder
from netvlad_deploy.workflow.bench import bench
from netvlad_deploy.workflow.export import export
from netvlad_deploy.workflow.source import DEFAULT_SPEC, Source

LOG = logging.getLogger(__name__)

LAYER_AXES: Final = ("clusters", "feature-size")
"""Axes of a layer that is made from a seed; they stand first, so that each layer is exported once."""

SWEEP_AXES: Final = (*LAYER_AXES, "batch", "num-features", "image-size", "threads", "concurrency")
SWEEP_SUFFIX: Final = ".jsonl"
SEED: Final = 0


@dataclass(frozen=True, kw_only=True)
class SweepOptions:
    """What is swept, and what stays the same.

    Args:
        axes: the values on each axis, by its name in SWEEP_AXES.
        backends: the backends of each file, none for its own.
        batch, num_features, image_size, threads, concurrency: where they are not swept, by default as of `bench`.
        duration_s: seconds to measure each candidate at each point.
        file: the file that keeps the points, None for none.
    """

    axes: Mapping[str, Sequence[Any]]
    backends: Sequence[str] = ()
    batch: int = 1
    num_features: int | None = None
    image_size: tuple[int, int] | None = None
    threads: int | None = None
    concurrency: int = 1
    duration_s: float = 3.0
    file: Path | None = None
    expect_sha256: str | None = None

    def __post_init__(self) -> None:
        given = {"batch": self.batch != 1, "num-features": self.num_features, "image-size": self.image_size,
                 "threads": self.threads, "concurrency": self.concurrency != 1}  # fmt: skip
        if twice := [name for name in self.axes if given.get(name)]:
            raise UsageError(f"--{twice[0]} is swept and fixed: leave one of them out")


def parse_axes(texts: Sequence[str]) -> dict[str, list[Any]]:
    """Read axes such as `batch=1,8,32` and `image-size=240x320,480x640`.

    Raises: UsageError if a text has another form, an axis stands twice or is unknown, or a value is out of range.

    >>> parse_axes(["batch=1,8", "image-size=240x320"])
    {'batch': [1, 8], 'image-size': [(240, 320)]}
    """
    axes: dict[str, list[Any]] = {}
    for text in texts:
        name, equals, listed = text.partition("=")
        if name not in SWEEP_AXES or not equals:
            known = ", ".join(SWEEP_AXES)
            raise UsageError(f"sweep {text[:40]!r} is not AXIS=VALUE,..., such as batch=1,8,32; axes are {known}")
        values = [_value(name, part) for part in listed.split(",")]
        if name in axes or len(set(values)) < len(values):
            raise UsageError(f"sweep {text[:40]!r} has an axis or a value twice: leave one out")
        axes[name] = values
    check_limit("points of a sweep", math.prod(map(len, axes.values())))
    return {name: axes[name] for name in SWEEP_AXES if name in axes}


def _value(name: str, text: str) -> int | tuple[int, int]:
    if name == "image-size":
        return parse_size(text)
    if not re.fullmatch(r"[0-9]+", text):
        raise UsageError(f"sweep {name} has the value {text[:40]!r}, expected a whole number")
    number = whole_number(text)
    check_limit(name.replace("-", "_"), number)
    return number


def sweep(paths: Sequence[Path], options: SweepOptions) -> SweepReport:
    """Measure latency at each point of a grid, of artifacts, or without any of untrained heads of each size.

    A point that stands in the file already is not measured again, if it is of the same files, backends and machine.

    >>> options = SweepOptions(axes={"clusters": [2, 4], "batch": [1]}, num_features=5, threads=1, duration_s=0.1)
    >>> report = sweep([], options)
    >>> [(point.place.clusters, point.place.batch) for point in report.points], report.verdict.value
    ([(2, 1), (4, 1)], 'PASS')

    Raises: UsageError if an axis is not one of what is measured; ArtifactError if the file has points of other
        artifacts; and as `bench` and `export`.
    """
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(scratch_folder())
        subjects = _Files(paths, options) if paths else _Layers(folder, options)
        empty = SweepPoint(
            subjects=subjects.hashes,
            backends=tuple(options.backends),
            machine=fingerprint(),
            place=subjects.base,
            candidates=(),
        )
        file = None
        if options.file is not None:
            file = stack.enter_context(open_sweep(check_suffix(options.file, SWEEP_SUFFIX)))
            _check_subjects(file, subjects.hashes)
        points, kept = _measure_points(subjects, empty, options, file)
    return SweepReport(
        subject=subjects.words,
        axes=tuple(options.axes),
        file=options.file,
        kept=kept,
        points=tuple(points),
        exponents=tuple(_exponents(points, options.axes)),
    )


def _measure_points(
    subjects: "_Files | _Layers", empty: SweepPoint, options: SweepOptions, file: SweepFile | None
) -> tuple[list[SweepPoint], int]:
    """Return all points, and how many of them the file had already."""
    known = {point.key: point for point in file.points} if file else {}
    points, kept = [], 0
    grid = list(itertools.product(*options.axes.values()))
    for number, values in enumerate(grid, 1):
        changes = {name.replace("-", "_"): value for name, value in zip(options.axes, values, strict=True)}
        point = replace(empty, place=replace(empty.place, **changes))
        if point.key in known:
            points.append(known[point.key])
            kept += 1
            continue
        words = place_words(point.place, tuple(options.axes))
        where = ", ".join(f"{name} {word}" for name, word in zip(options.axes, words, strict=True))
        LOG.info("point %d of %d: %s", number, len(grid), where)
        points.append(replace(point, candidates=_measured(subjects.at(point.place), point.place, options.duration_s)))
        if file and not any(each.reason for each in points[-1].candidates):  # what did not run may run next time
            file.append(points[-1])
    return points, kept


def _measured(candidates: Sequence[Candidate], place: Place, duration_s: float) -> tuple[PointLatency, ...]:
    report = bench(
        candidates,
        batch=place.batch,
        num_features=place.num_features,
        image_size=place.image_size,
        threads=place.threads,
        concurrency=place.concurrency,
        duration_s=duration_s,
    )
    return tuple(
        PointLatency(name=one.name, reason=one.reason, percentiles_ms=one.percentiles_ms, throughput=one.throughput)
        for one in report.candidates
    )


def _check_subjects(file: SweepFile, hashes: tuple[str, ...]) -> None:
    """Raise ArtifactError if the file has a point of others than these."""
    for point in file.points:
        if point.subjects != hashes:
            theirs, ours = (", ".join(each[:12] for each in names) for names in (point.subjects, hashes))
            raise ArtifactError(f"{file.path} is a sweep of {theirs}, this is one of {ours}: name another file")


class _Files:
    """Artifacts that are swept: their hashes, and the place of all that is not swept."""

    def __init__(self, paths: Sequence[Path], options: SweepOptions) -> None:
        if layer := [name for name in LAYER_AXES if name in options.axes]:
            raise UsageError(f"{paths[0]} has its {layer[0]}: leave the file out to sweep untrained layers")
        self._candidates = candidates_of(paths, options.backends, expect_sha256=options.expect_sha256, hold=False)
        self.words = ", ".join(dict.fromkeys(path.name for path in paths))
        artifacts = [candidate.artifact for candidate in self._candidates]
        if None in artifacts:
            raise UsageError(f"{self.words}: a sweep is of ONNX files and engines, a checkpoint has no hash of its own")
        self.hashes = tuple(dict.fromkeys(artifact.sha256 for artifact in artifacts if artifact))
        images = artifacts[0] and artifacts[0].images
        wrong = "num-features" if images else "image-size"
        if wrong in options.axes:
            raise UsageError(f"{paths[0]} takes {'images' if images else 'features'}: leave the axis {wrong} out")
        size = options.image_size or (images.target(*USUAL_PHOTO) if images else None)
        self.base = Place(
            batch=options.batch,
            num_features=options.num_features if images else options.num_features or USUAL_FEATURES,
            image_size=size,
            threads=options.threads or available_cores(),
            concurrency=options.concurrency,
        )

    def at(self, _: Place) -> Sequence[Candidate]:
        """Return the candidates, which are the same at each point."""
        return self._candidates


class _Layers:
    """Untrained layers that are swept: each is exported into a folder when it is asked for."""

    def __init__(self, folder: Path, options: SweepOptions) -> None:
        if "image-size" in options.axes or options.image_size is not None:
            raise UsageError("an untrained layer takes features: leave the image size out, or name a file")
        if options.expect_sha256 is not None:
            raise UsageError("a hash is expected of a file: name one")
        self._path, self._backends = folder / "untrained.onnx", options.backends
        self._sizes: tuple[int | None, int | None] | None = None
        self.words = f"untrained layers, seed {SEED}"
        self.hashes = (self.words,)
        self.base = Place(
            batch=options.batch,
            num_features=options.num_features or USUAL_FEATURES,
            threads=options.threads or available_cores(),
            concurrency=options.concurrency,
            clusters=DEFAULT_SPEC.num_clusters,
            feature_size=DEFAULT_SPEC.feature_size,
        )
        largest = [max(options.axes.get(name, [0])) for name in LAYER_AXES]
        clusters, feature_size = largest[0] or self.base.clusters or 0, largest[1] or self.base.feature_size or 0
        check_limit("values of a layer", clusters * feature_size)

    def at(self, place: Place) -> Sequence[Candidate]:
        """Return the candidates of a point's layer."""
        sizes = place.clusters, place.feature_size
        if sizes != self._sizes:
            source = Source(num_clusters=place.clusters, feature_size=place.feature_size, seed=SEED)
            export(source, self._path, GraphOptions(), force=True)
            self._sizes = sizes
        return candidates_of([self._path], self._backends, hold=False)


def _exponents(points: Sequence[SweepPoint], names: Iterable[str]) -> Iterator[Exponent]:
    """Yield the exponents of each candidate, over the points at which it ran."""
    for number, first in enumerate(points[0].candidates):
        ran = [point for point in points if point.candidates[number].percentiles_ms]
        axes = {name: [axis_value(point.place, name) for point in ran] for name in names}
        times = [point.candidates[number].percentiles_ms["p50"].value for point in ran]
        yield from fit_exponents(first.name, axes, times)
