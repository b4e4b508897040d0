"""An evaluation: how well each artifact finds the right place again, and how far the artifacts agree."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from netvlad_deploy.report.escape import markdown_text
from netvlad_deploy.report.text import markdown_table, table
from netvlad_deploy.retrieval.image_files import Skipped, count_reasons
from netvlad_deploy.retrieval.recall import DEPTHS, Agreement, Recall

AGREEMENT_HEADER = ("artifact", "against", "same top-1", "worst 1-cos", "of image")
LISTED_NAMES = 10
"""How many names a line lists."""


@dataclass(frozen=True, kw_only=True)
class CandidateRecall:
    """What one artifact finds; `backend` is None for the file's own."""

    name: str
    backend: str | None
    precision: str
    descriptor_size: int
    images_per_s: float
    found: Recall


@dataclass(frozen=True, kw_only=True)
class EvaluationReport:
    """Artifacts side by side, on the images that all of them could embed.

    Args:
        ground_truth: where the right images come from, in words.
        alone: the queries are the database: each is looked for among the others.
        num_queries: how many were asked, those without a right image as well.
        without_right: queries that have none: misses of `recall`, and left out of all other figures.
        agreements: of each artifact with the first.
    """

    queries: Path
    database: Path
    ground_truth: str
    alone: bool
    num_queries: int
    num_images: int
    without_right: tuple[str, ...]
    candidates: tuple[CandidateRecall, ...]
    agreements: tuple[Agreement, ...]
    skipped: tuple[Skipped, ...]

    @property
    def num_answerable(self) -> int:
        """Return how many queries have a right image."""
        return self.num_queries - len(self.without_right)


def recall_header(report: EvaluationReport) -> tuple[str, ...]:
    """Return the columns of `recall_rows`: recall of all queries and, if it differs, of those with a right image."""
    recalls = [f"recall@{depth}" for depth in DEPTHS]
    if report.without_right:
        recalls += [f"@{depth} of {report.num_answerable}" for depth in DEPTHS]
    return ("artifact", "precision", "descriptor", *recalls, "mAP", "images/s")


def recall_rows(report: EvaluationReport) -> Iterator[tuple[str, ...]]:
    """Yield a row for each artifact, under `recall_header`."""
    for one in report.candidates:
        shares = [one.found.recall, *([one.found.recall_answerable] if report.without_right else [])]
        yield (
            one.name,
            one.precision,
            str(one.descriptor_size),
            *(f"{share[depth]:.1%}" for share in shares for depth in DEPTHS),
            f"{one.found.mean_average_precision:.3f}",
            f"{one.images_per_s:.1f}",
        )


def agreement_rows(report: EvaluationReport) -> Iterator[tuple[str, ...]]:
    """Yield a row for each artifact but the first, under AGREEMENT_HEADER."""
    for one in report.agreements:
        distance = "-" if one.distance is None else f"{max(0.0, one.distance):.1e}"
        yield one.candidate, one.reference, f"{one.top1:.1%}", distance, one.image or "of another length"


def evaluation_lines(report: EvaluationReport) -> list[str]:
    """Return what `evaluate` prints."""
    lines = [*_facts(report), *table(recall_header(report), list(recall_rows(report)))]
    return lines + (table(AGREEMENT_HEADER, list(agreement_rows(report))) if report.agreements else [])


def evaluation_markdown(report: EvaluationReport, picture: str) -> str:
    """Return the report page."""
    lines = [
        f"# Retrieval of {markdown_text(', '.join(one.name for one in report.candidates))}",
        "",
        *(f"- {markdown_text(fact)}" for fact in _facts(report)),
        "",
        *markdown_table(recall_header(report), recall_rows(report)),
        "",
        "recall@N is the share of all queries with a right image among the first N, as published figures have it: a",
        "query without a right image is a miss. mAP is the mean average precision over the whole ranking, of the",
        "queries with a right image. Images are ranked by the Euclidean distance of their descriptors, exactly.",
    ]
    if report.agreements:
        lines += ["", "## Agreement", "", *markdown_table(AGREEMENT_HEADER, agreement_rows(report))]
        lines += [
            "\n" + markdown_text(f"Another best match than {one.reference} in {one.candidate}: {_some(one.differing)}.")
            for one in report.agreements
            if one.differing
        ]
    lines += ["", "## Best matches", "", f"![Queries with their best matches, misses first]({picture})", ""]
    if report.skipped:
        lines += ["## Skipped files", "", *(f"- {markdown_text(str(one))}" for one in report.skipped), ""]
    return "\n".join(lines)


def _facts(report: EvaluationReport) -> list[str]:
    """Return what was evaluated, and what was not."""
    where = "each image among the others" if report.alone else f"in the {report.num_images} images of {report.database}"
    facts = [f"{report.num_queries} queries of {report.queries}, {where}; right images {report.ground_truth}"]
    if any(one.backend == "strict" for one in report.candidates):
        facts.append("FP16 by strict emulation on a CPU: every tensor rounded to its type; no GPU took part")
    if report.without_right:
        names = _some(report.without_right)
        facts.append(
            f"{len(report.without_right)} queries without a right image: {names}; recall@N counts them as misses, as "
            f"published figures do, @N of {report.num_answerable} and mAP leave them out"
        )
    if report.skipped:
        facts.append(f"{len(report.skipped)} files skipped: {count_reasons(report.skipped)}")
    return facts


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:LISTED_NAMES]) + (" ..." if len(names) > LISTED_NAMES else "")
