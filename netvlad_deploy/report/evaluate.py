"""The result of `evaluate`: how well each artifact finds the right images, and how far the artifacts agree."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from netvlad_deploy.artifact import AnyArtifact
from netvlad_deploy.report.artifacts import repeat_section
from netvlad_deploy.report.page import Block, Grid, Page, Paragraph, Section
from netvlad_deploy.report.text import Table, distance_text, listed, table
from netvlad_deploy.retrieval.recall import DEPTHS, Agreement, Recall
from netvlad_deploy.spec.items import Skipped, count_reasons
from netvlad_deploy.spec.verdict import Verdict

MOST_NAMES = 10
"""Most names of images that a line lists."""

COUNTED = (
    "recall@N is the share of all queries with a right image among the first N, as published figures have it: a query "
    "without a right image is a miss. mAP is the mean average precision over the whole ranking, of the queries with a "
    "right image. Images are ranked by the Euclidean distance of their descriptors, exactly."
)


@dataclass(frozen=True, kw_only=True)
class CandidateRecall:
    """The recall and the speed of one artifact; `backend` is None for the file's usual one."""

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
        ground_truth: origin of the right images, in words.
        alone: the queries are the database, and each is looked for among the others.
        num_queries: number of queries, those without a right image included.
        without_right: names of the queries without a right image: misses in `recall`, left out of all other figures.
        agreements: agreement of each further artifact with the first.
        min_recall: the least recall@1 that is asked for, None for any.
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
    min_recall: float | None = None

    @property
    def missed(self) -> list[CandidateRecall]:
        """Return the artifacts whose recall@1, of all queries, is below what is asked for."""
        least = 0.0 if self.min_recall is None else self.min_recall
        return [one for one in self.candidates if one.found.recall[1] < least]

    @property
    def verdict(self) -> Verdict:
        """Return FAIL if an artifact misses the recall that is asked for."""
        return Verdict.FAIL if self.missed else Verdict.PASS

    @property
    def num_answerable(self) -> int:
        """Return the number of queries that have a right image."""
        return self.num_queries - len(self.without_right)


def recall_table(report: EvaluationReport) -> Table:
    """Return a row for each artifact: recall of all queries and, if it differs, of those with a right image."""
    recalls = [f"recall@{depth}" for depth in DEPTHS]
    if report.without_right:
        recalls += [f"@{depth} of {report.num_answerable}" for depth in DEPTHS]
    rows = []
    for one in report.candidates:
        shares = [one.found.recall, *([one.found.recall_answerable] if report.without_right else [])]
        cells = [f"{share[depth]:.1%}" for share in shares for depth in DEPTHS]
        cells += [f"{one.found.mean_average_precision:.3f}", f"{one.images_per_s:.1f}"]
        rows.append((one.name, one.precision, str(one.descriptor_size), *cells))
    return ("artifact", "precision", "descriptor", *recalls, "mAP", "images/s"), rows


def agreement_table(report: EvaluationReport) -> Table:
    """Return a row for each artifact but the first."""
    return ("artifact", "against", "same top-1", "worst 1-cos", "of image"), [
        (one.candidate, one.reference, f"{one.top1:.1%}", distance_text(one.distance), one.image or "of another length")
        for one in report.agreements
    ]


def evaluation_lines(report: EvaluationReport) -> list[str]:
    """Return the lines that `evaluate` prints."""
    lines = [*_facts(report), *table(*recall_table(report))]
    return lines + (table(*agreement_table(report)) if report.agreements else [])


def evaluation_page(
    report: EvaluationReport, artifacts: Sequence[AnyArtifact], matches: Sequence[Block], *, command: str = ""
) -> Page:
    """Return the page of an evaluation.

    Args:
        report: what was found.
        artifacts: the files that were evaluated.
        matches: the photos of the matches with their headings.
        command: the line that made it.
    """
    facts = [Paragraph(f"{fact}.") for fact in _facts(report)]
    lost = [(one.path, one.reason, one.detail) for one in report.skipped]
    return Page(
        title=f"Retrieval of {', '.join(one.name for one in report.candidates)}",
        verdict=None if report.min_recall is None else report.verdict,
        headline=_headline(report),
        facts=[
            (f"{name} of {one.name}", value)
            for one in report.candidates
            for name, value in (
                ("recall@1", f"{one.found.recall[1]:.1%}"),
                ("mAP", f"{one.found.mean_average_precision:.3f}"),
            )
        ],
        sections=(
            Section("Recall", (*facts, Grid(*recall_table(report)), Paragraph(COUNTED))),
            *([Section("Agreement", _agreement_blocks(report))] if report.agreements else []),
            Section("Best matches", matches),
            *([Section("Skipped files", [Grid(("file", "reason", "detail"), lost)])] if report.skipped else []),
            repeat_section(artifacts, command=command),
        ),
    )


def _headline(report: EvaluationReport) -> str:
    shares = ", ".join(f"{one.name} for {one.found.recall[1]:.1%}" for one in report.candidates)
    return f"A right image comes first: {shares} of {report.num_queries} queries."


def _agreement_blocks(report: EvaluationReport) -> list[Block]:
    return [
        Grid(*agreement_table(report)),
        *(
            Paragraph(
                f"Another best match than {one.reference} in {one.candidate}: {listed(one.differing, MOST_NAMES)}."
            )
            for one in report.agreements
            if one.differing
        ),
    ]


def _facts(report: EvaluationReport) -> list[str]:
    """Return the conditions of the evaluation in sentences: folders, emulation, unanswerable queries, skipped files."""
    where = "each image among the others" if report.alone else f"in the {report.num_images} images of {report.database}"
    facts = [f"{report.num_queries} queries of {report.queries}, {where}; right images {report.ground_truth}"]
    if report.min_recall is not None:
        missed = ", ".join(f"{one.name} has {one.found.recall[1]:.6g}" for one in report.missed)
        asked = f"recall@1 of at least {report.min_recall:.6g} is asked for"
        facts.insert(0, f"{report.verdict.value}: {asked}, {missed or 'every artifact has it'}")
    if any(one.backend == "strict" for one in report.candidates):
        facts.append("FP16 by strict emulation on a CPU: every tensor rounded to its type; no GPU took part")
    if report.without_right:
        names = listed(report.without_right, MOST_NAMES)
        facts.append(
            f"{len(report.without_right)} queries without a right image: {names}; recall@N counts them as misses, as "
            f"published figures do, @N of {report.num_answerable} and mAP leave them out"
        )
    if report.skipped:
        facts.append(f"{len(report.skipped)} files skipped: {count_reasons(report.skipped)}")
    return facts
