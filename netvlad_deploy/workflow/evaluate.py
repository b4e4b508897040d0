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
from netvlad_deploy.report.evaluate import CandidateRecall, EvaluationReport, evaluation_page
from netvlad_deploy.report.matches import Album, draw_matches, match_blocks
from netvlad_deploy.report.write import REPORT_FILES, write_report
from netvlad_deploy.retrieval.embed_images import BATCH, Described, embed_images
from netvlad_deploy.retrieval.ground_truth import Positives, load_positives, positives_within
from netvlad_deploy.retrieval.recall import agree, check_answerable, measure_recall
from netvlad_deploy.runtime.open_runner import Candidate, parity_backend
from netvlad_deploy.sources.image_folders import find_images
from netvlad_deploy.spec.images import ImageInput
from netvlad_deploy.spec.items import Item, Skipped
from netvlad_deploy.support.files import make_folder
from netvlad_deploy.support.streams import stdout_to_stderr

LOG = logging.getLogger(__name__)

MATCHES_PICTURE = "matches.png"


@dataclass(frozen=True, kw_only=True)
class _Side:
    """The descriptors that one artifact gave for the images of both folders."""

    name: str
    backend: str | None
    precision: str
    images_per_s: float
    queries: Described
    database: Described


def evaluate(
    candidates: Sequence[Candidate],
    folder: Path,
    *,
    queries: Path,
    database: Path,
    ground_truth: Path | None = None,
    within: int | None = None,
    batch: int | None = None,
    min_recall: float | None = None,
    command: str = "",
    force: bool = False,
) -> EvaluationReport:
    """Measure recall@1, 5 and 10 and mAP of artifacts on images; write a report into `folder`, and return it.

    Where `queries` and `database` are one folder, each image is looked for among the others. Right is what the file
    `ground_truth` says, or what is at most `within` places away by name. Recall@1 below `min_recall` is a FAIL. An FP16
    ONNX file is emulated strictly, unless its backend was chosen. `command` is shown in the report.

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
    inputs = _checked(candidates, ground_truth, within)
    make_folder(folder, (folder / name for name in (*REPORT_FILES, MATCHES_PICTURE)), force=force)
    alone = queries.resolve() == database.resolve()
    images, skipped = find_images([database])
    asked, others = (images, []) if alone else find_images([queries])
    positives = _positives(ground_truth, within, list(_paths(asked)), list(_paths(images)), alone=alone)
    sides = _common(_embed_all(candidates, [images] if alone else [images, asked], batch or BATCH))
    report = EvaluationReport(
        queries=queries,
        database=database,
        ground_truth=f"by {ground_truth}" if ground_truth else f"at most {within} away in order",
        alone=alone,
        min_recall=min_recall,
        **_figures(sides, positives, (*skipped, *others), alone=alone),
    )
    _write(folder, report, candidates, Album(_paths(asked), _paths(images), inputs[0].depth), command, force=force)
    return report


def _checked(candidates: Sequence[Candidate], ground_truth: Path | None, within: int | None) -> list[ImageInput]:
    """Return how each artifact takes images; refuse right images that are said in two ways, or not at all."""
    if (ground_truth is None) == (within is None):
        raise UsageError("the right images come from --ground-truth or from --within: give one of them")
    return [_require_images(candidate) for candidate in candidates]


def _write(
    folder: Path, report: EvaluationReport, candidates: Sequence[Candidate], album: Album, command: str, *, force: bool
) -> None:
    artifacts = [candidate.artifact or load_artifact(candidate.path) for candidate in candidates]
    matches = match_blocks(report, album, picture=MATCHES_PICTURE)
    page = evaluation_page(report, artifacts, matches, command=command)
    pictures = {MATCHES_PICTURE: draw_matches(report, album)}
    write_report(folder, "evaluate", report, page, pictures=pictures, force=force)


def _figures(
    sides: Sequence[_Side], positives: Positives, skipped: Sequence[Skipped], *, alone: bool
) -> dict[str, Any]:
    """Return the fields of the report that come from the descriptors; `skipped` are files that were no image."""
    found = [measure_recall(side.queries, side.database, positives, alone=alone) for side in sides]
    lost = [one for side in sides for part in (side.database, side.queries) for one in part.skipped]
    first, evaluated = sides[0], {result.query for result in found[0].queries}
    return {
        "num_queries": found[0].num_queries,
        "num_images": len(first.database.names),
        "without_right": tuple(name for name in first.queries.names if name not in evaluated),
        "candidates": tuple(
            CandidateRecall(
                name=side.name,
                backend=side.backend,
                precision=side.precision,
                descriptor_size=side.database.descriptors.shape[1],
                images_per_s=side.images_per_s,
                found=recall,
            )
            for side, recall in zip(sides, found, strict=True)
        ),
        "agreements": tuple(
            agree((side.name, first.name), (side.queries, first.queries), (side.database, first.database), alone=alone)
            for side in sides[1:]
        ),
        "skipped": tuple(dict.fromkeys((*skipped, *lost))),
    }


def _positives(
    ground_truth: Path | None, within: int | None, queries: Sequence[str], database: Sequence[str], *, alone: bool
) -> Positives:
    """Return the right images, and refuse those that can answer no query before minutes go into images."""
    if ground_truth is not None:
        positives = load_positives(ground_truth, queries, database)
    else:
        positives = positives_within(within or 0, queries, database)
    check_answerable(queries, database, positives, alone=alone)
    return positives


def _require_images(candidate: Candidate) -> ImageInput:
    images = (candidate.artifact or load_artifact(candidate.path)).images
    if images is None:
        raise UsageError(f"{candidate.name} takes local descriptors: for images export with --input images")
    return images


def _embed_all(candidates: Sequence[Candidate], folders: Sequence[Sequence[Item]], batch: int) -> list[_Side]:
    """Return the descriptors of each candidate, one after the other."""
    artifacts = {id(candidate.artifact): candidate.artifact for candidate in candidates}
    counts = Counter(id(candidate.artifact) for candidate in candidates)
    with contextlib.ExitStack() as stack:
        for key, artifact in artifacts.items():
            if artifact is not None and counts[key] > 1:  # one file on several backends is opened for each of them
                stack.enter_context(artifact.keep())
        named = zip(candidates, _names(candidates), strict=True)
        return [_embed_folders(candidate, name, folders, batch) for candidate, name in named]


def _names(candidates: Sequence[Candidate]) -> list[str]:
    """Return the name of each artifact in the report: its file's name, or its path where two have the same."""
    names = [candidate.name for candidate in candidates]
    return [
        name.replace(candidate.path.name, str(candidate.path), 1) if names.count(name) > 1 else name
        for candidate, name in zip(candidates, names, strict=True)
    ]


def _embed_folders(candidate: Candidate, name: str, folders: Sequence[Sequence[Item]], batch: int) -> _Side:
    """Embed the database and, if they are others, the queries."""
    images = _require_images(candidate)
    backend = candidate.backend or parity_backend(candidate.artifact)
    with stdout_to_stderr(), candidate.on(backend).open(spin=False) as runner:
        LOG.info("embed with %s%s", name, "" if backend is None else f" on {backend}")
        started = time.perf_counter()
        parts = [embed_images(runner, images, files, batch=batch) for files in folders]
        duration_s = time.perf_counter() - started
        precision = runner.precision
    return _Side(
        name=name,
        backend=backend,
        precision=precision,
        images_per_s=sum(len(part.names) for part in parts) / duration_s,
        queries=parts[-1],
        database=parts[0],
    )


def _common(sides: Sequence[_Side]) -> list[_Side]:
    """Return the sides without the images that some artifact could not embed: a comparison is of the same images."""
    queries = frozenset.intersection(*(frozenset(side.queries.names) for side in sides))
    database = frozenset.intersection(*(frozenset(side.database.names) for side in sides))
    return [replace(side, queries=side.queries.only(queries), database=side.database.only(database)) for side in sides]


def _paths(files: Sequence[Item]) -> dict[str, Path]:
    return {file.name: file.path for file in files}
