"""Tables in Markdown."""

from collections.abc import Iterable, Sequence

from netvlad_deploy.report.escape import markdown_text


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return a table's lines."""
    return [_row(header), "| " + " | ".join("---" for _ in header) + " |", *(_row(row) for row in rows)]


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(markdown_text(cell) for cell in cells) + " |"
