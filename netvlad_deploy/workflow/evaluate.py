"""The verb `evaluate`: how well artifacts find the right place again."""

import contextlib
import logging
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from netvlad_deploy.artifact import load_artifact
from netvlad_deploy.errors import UsageError
from netvlad_deploy.report.evaluate import CandidateRecall, EvaluationReport, evaluation_markdown
from netvlad_deploy.report.matches import draw_matches
from netvlad_deploy.report.serialize import REPORT_JSON, REPORT_PAGE, to_json
from netvlad_deploy.retrieval.embed_images import BATCH, embed_images
from netvlad_deploy.retrieval.ground_truth import Positives, load_positives, positives_within
from netvlad_deploy.retrieval.image_files import ImageFile, Skipped, find_images
from netvlad_deploy.retrieval.recall import Agreement, Described, Recall, agree, check_answerable, measure_recall
from netvlad_deploy.runtime.open_runner import Candidate, parity_backend
from netvlad_deploy.spec.images import ImageInput
from netvlad_deploy.support.files import make_folder, stage_files
from netvlad_deploy.support.streams import stdout_to_stderr

LOG = logging.getLogger(__name__)


MATCHES_PICTURE = "matches.png"


@dataclass(frozen=True)
class _Side:
    """The descriptors that one artifact gave for the images of both folders."""

    candidate: Candidate
    name: str
    precision: str
    images_per_s: float
    queries: Described
    database: Described
    skipped: tuple[Skipped, ...]

    def finds(self, found: Recall) -> CandidateRecall:
        """Return the entry of the report for this artifact."""
        return CandidateRecall(
            name=self.name,
            backend=self.candidate.backend,
            precision=self.precision,
            descriptor_size=self.database.descriptors.shape[1],
            images_per_s=self.images_per_s,
            found=found,
        )

    def agrees(self, first: "_Side", *, alone: bool) -> Agreement:
        """Return the agreement with the first artifact."""
        pairs = (self.queries, first.queries), (self.database, first.database)
        return agree((self.name, first.name), *pairs, alone=alone)


def evaluate(
    candidates: Sequence[Candidate],
    folder: Path,
    *,
    queries: Path,
    database: Path,
    ground_truth: Path | None = None,
    within: int | None = None,
    batch: int | None = None,
    force: bool = False,
) -> EvaluationReport:
    """Measure how well artifacts find the right place again, into a folder with a report and a picture.

    An FP16 ONNX file is emulated strictly unless its backend was chosen. If the queries are the database, each image is
    looked for among the others. Right images are those of the file `ground_truth`, see `load_positives`, or those at
    most `within` places away in the sorted folder.

    >>> from PIL import Image
    >>> from netvlad_deploy import GraphOptions
    >>> from netvlad_deploy.workflow import export, source
    >>> (photos := Path("photos")).mkdir()
    >>> for number in range(3):
    ...     Image.new("RGB", (24, 16), (80 * number, 90, 40)).save(photos / f"{number}.png")
    >>> pixels = source.Source(backbone="torch.nn:Identity", num_clusters=2)  # as local descriptors
    >>> candidate = Candidate.of(export.export(pixels, Path("m.onnx"), GraphOptions()))
    >>> report = evaluate([candidate], Path("report"), queries=photos, database=photos, within=1)
    >>> report.num_queries, report.candidates[0].found.recall[5]
    (3, 1.0)

    Raises: UsageError if an artifact takes no images; InputError if nothing can be evaluated.
    """
    if (ground_truth is None) == (within is None):
        raise UsageError("the right images come from --ground-truth or from --within: give one of them")
    inputs = [_require_images(candidate) for candidate in candidates]
    make_folder(folder, (folder / name for name in (REPORT_JSON, REPORT_PAGE, MATCHES_PICTURE)), force=force)
    alone = queries.resolve() == database.resolve()
    images, skipped = find_images([database])
    asked, others = (images, []) if alone else find_images([queries])
    positives = _positives(ground_truth, within, asked, images, alone=alone)
    sides = _common(_embed_all(candidates, inputs, images, None if alone else asked, batch or BATCH))
    report = EvaluationReport(
        queries=queries,
        database=database,
        ground_truth=f"by {ground_truth}" if ground_truth else f"at most {within} away in order",
        alone=alone,
        skipped=tuple(dict.fromkeys((*skipped, *others, *(one for side in sides for one in side.skipped)))),
        **_figures(sides, positives, alone=alone),
    )
    _write(folder, report, draw_matches(report, _paths(asked), _paths(images), depth=inputs[0].depth), force=force)
    return report


def _figures(sides: Sequence[_Side], positives: Positives, *, alone: bool) -> dict[str, Any]:
    """Return the fields of the report that come from the descriptors."""
    found = [measure_recall(side.queries, side.database, positives, alone=alone) for side in sides]
    return {
        "num_queries": found[0].num_queries,
        "num_images": len(sides[0].database.names),
        "without_right": _without_right(sides[0], found[0]),
        "candidates": tuple(side.finds(recall) for side, recall in zip(sides, found, strict=True)),
        "agreements": tuple(side.agrees(sides[0], alone=alone) for side in sides[1:]),
    }


def _positives(
    ground_truth: Path | None,
    within: int | None,
    asked: Sequence[ImageFile],
    images: Sequence[ImageFile],
    *,
    alone: bool,
) -> Positives:
    """Return the right images, and refuse those that can answer no query before minutes go into images."""
    queries, database = [image.name for image in asked], [image.name for image in images]
    if ground_truth is not None:
        positives = load_positives(ground_truth, queries, database)
    else:
        positives = positives_within(within or 0, queries, database)
    check_answerable(queries, database, positives, alone=alone)
    return positives


def _write(folder: Path, report: EvaluationReport, picture: bytes, *, force: bool) -> None:
    with stage_files(force=force) as staging:
        staging.write(folder / MATCHES_PICTURE, picture)
        staging.write(folder / REPORT_PAGE, evaluation_markdown(report, MATCHES_PICTURE).encode())
        staging.write(folder / REPORT_JSON, to_json("evaluate", report).encode())


def _embed_all(
    candidates: Sequence[Candidate],
    inputs: Sequence[ImageInput],
    database: Sequence[ImageFile],
    queries: Sequence[ImageFile] | None,
    batch: int,
) -> list[_Side]:
    """Return the descriptors of each candidate, one after the other."""
    artifacts = {id(candidate.artifact): candidate.artifact for candidate in candidates}
    counts = Counter(id(candidate.artifact) for candidate in candidates)
    with contextlib.ExitStack() as stack:
        for key, artifact in artifacts.items():
            if artifact is not None and counts[key] > 1:  # one file on several backends is opened for each of them
                stack.enter_context(artifact.keep())
        return [
            _embed_sides(candidate, name, images, database, queries, batch)
            for candidate, name, images in zip(candidates, _names(candidates), inputs, strict=True)
        ]


def _require_images(candidate: Candidate) -> ImageInput:
    images = (candidate.artifact or load_artifact(candidate.path)).images
    if images is None:
        raise UsageError(f"{candidate.name} takes local descriptors: for images export with --input images")
    return images


def _names(candidates: Sequence[Candidate]) -> list[str]:
    """Return the name of each artifact in the report: its file's name, or its path where two have the same."""
    names = [candidate.name for candidate in candidates]
    return [
        name.replace(candidate.path.name, str(candidate.path), 1) if names.count(name) > 1 else name
        for candidate, name in zip(candidates, names, strict=True)
    ]


def _embed_sides(
    candidate: Candidate,
    name: str,
    images: ImageInput,
    database: Sequence[ImageFile],
    queries: Sequence[ImageFile] | None,
    batch: int,
) -> _Side:
    """Embed the database and, if they are others, the queries."""
    backend = candidate.backend or parity_backend(candidate.artifact)
    candidate = candidate.on(backend)
    with stdout_to_stderr(), candidate.open() as runner:
        LOG.info("embed with %s%s", name, "" if backend is None else f" on {backend}")
        started = time.perf_counter()
        folders = [database] if queries is None else [database, queries]
        parts = [embed_images(runner, images, files, batch=batch) for files in folders]
        duration_s = time.perf_counter() - started
        precision = runner.precision
    described = [Described(names=part.names, descriptors=part.descriptors) for part in parts]
    return _Side(
        candidate=candidate,
        name=name,
        precision=precision,
        images_per_s=sum(len(part.names) for part in parts) / duration_s,
        queries=described[-1],
        database=described[0],
        skipped=tuple(one for part in parts for one in part.skipped),
    )


def _common(sides: Sequence[_Side]) -> list[_Side]:
    """Return the sides without the images that some artifact could not embed: a comparison is of the same images."""
    queries, database = (
        frozenset.intersection(*(frozenset(described.names) for described in column))
        for column in ([side.queries for side in sides], [side.database for side in sides])
    )
    return [replace(side, queries=side.queries.only(queries), database=side.database.only(database)) for side in sides]


def _without_right(side: _Side, found: Recall) -> tuple[str, ...]:
    evaluated = {result.query for result in found.queries}
    return tuple(name for name in side.queries.names if name not in evaluated)


def _paths(files: Sequence[ImageFile]) -> dict[str, Path]:
    return {file.name: file.path for file in files}
