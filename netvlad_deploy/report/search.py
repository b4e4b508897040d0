"""The result of `search`: the nearest descriptors of each query, as lines, as a page and as a picture."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from netvlad_deploy.index.place_index import COSINE, Found, PlaceIndex
from netvlad_deploy.report.matches import MOST_ROWS, Album, Cell, draw
from netvlad_deploy.report.page import Block, Code, Grid, Page, Paragraph, Section
from netvlad_deploy.report.text import Table, table
from netvlad_deploy.retrieval.recall import SHOWN
from netvlad_deploy.spec.items import Skipped, count_reasons


@dataclass(frozen=True, kw_only=True)
class SearchAnswer:
    """A query and what an index holds near to it, the nearest first."""

    query: str
    matches: tuple[Found, ...]


@dataclass(frozen=True, kw_only=True)
class SearchReport:
    """The answers of an index.

    Args:
        index: the file of the index.
        count: how many descriptors it holds.
        metric: what a score is: cosine, the larger the nearer, or distance, the smaller the nearer.
        artifact: what described the queries, null where they came as descriptors.
        duration_ms: time of the search alone, of all queries.
        answers: one for each query that gave a descriptor.
        skipped: the files that gave none.
    """

    index: Path
    count: int
    metric: str
    artifact: str | None
    duration_ms: float
    answers: tuple[SearchAnswer, ...]
    skipped: tuple[Skipped, ...] = ()


def search_table(report: SearchReport) -> Table:
    """Return a row for each match."""
    rows = [
        (answer.query, str(match.rank), f"{match.score:.4f}", match.name)
        for answer in report.answers
        for match in answer.matches
    ]
    return ("query", "rank", report.metric, "name"), rows


def search_lines(report: SearchReport) -> list[str]:
    """Return the answers as lines."""
    lost = [f"{len(report.skipped)} skipped: {count_reasons(report.skipped)}"] if report.skipped else []
    return [*table(*search_table(report)), *lost]


def index_lines(record: PlaceIndex) -> list[str]:
    """Return what an index is as lines."""
    name = f"{record.kind}, {record.reason}"
    if record.lists:
        name += f"; {record.visited} of {record.lists} lists are read"
    elif record.visited:
        name += f"; {record.visited} candidates are kept"
    recall = "not measured: too few descriptors" if record.recall_at_10 is None else f"{record.recall_at_10:.4f}"
    proof = f" ({record.queries} queries)" if record.queries else " (exact)" if record.recall_at_10 == 1 else ""
    maker = "unknown" if record.artifact is None else f"{record.artifact.name}, SHA-256 {record.artifact.sha256[:16]}"
    return [
        f"{record.path}  {record.count} x {record.descriptor_size}, {record.metric}, {record.size_bytes} bytes",
        f"  {name}",
        f"  recall@10 {recall}{proof}, artifact {maker}",
    ]


def search_page(report: SearchReport, album: Album | None, *, picture: str, command: str) -> Page:
    """Return the page of a search; `picture` is the name of the file beside it that shows the photos of the album."""
    blocks: list[Block] = []
    if album is not None:
        photos = album.photos(_rows(report, album), "Queries with their nearest images", picture)
        blocks = [Paragraph(_caption(report)), photos]
    return Page(
        title=f"Search in {report.index.name}",
        headline=f"{len(report.answers)} queries, the nearest of {report.count} descriptors of each.",
        facts=[("queries", str(len(report.answers))), ("descriptors", str(report.count)), ("score", report.metric)],
        sections=[
            *([Section("Best matches", blocks)] if blocks else []),
            Section("All matches", [Grid(*search_table(report))]),
            Section("Repeat", [Code([command])]),
        ],
    )


def draw_answers(report: SearchReport, album: Album) -> bytes:
    """Return the picture as PNG: a row for each of the first queries, and its nearest images.

    Raises: MissingDependencyError without Pillow.
    """
    return draw([(report.index.name, _caption(report), _rows(report, album))], album)


def _caption(report: SearchReport) -> str:
    return (
        f"The first {min(len(report.answers), MOST_ROWS)} of {len(report.answers)} queries, and what is near to them."
    )


def _rows(report: SearchReport, album: Album) -> list[Sequence[Cell]]:
    word = "cosine" if report.metric == COSINE else "distance"
    return [
        [
            Cell(album.queries[answer.query], f"query {answer.query}", ""),
            *(
                Cell(album.database[match.name], match.name, f"{match.rank}: {word} {match.score:.4f}")
                for match in answer.matches[:SHOWN]
            ),
        ]
        for answer in report.answers[:MOST_ROWS]
    ]
