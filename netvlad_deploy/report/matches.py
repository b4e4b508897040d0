"""A picture of queries and their best matches, right ones framed green and wrong ones red, misses first."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from netvlad_deploy.report.escape import printable
from netvlad_deploy.report.evaluate import CandidateRecall, EvaluationReport
from netvlad_deploy.retrieval.image_files import ImageFile, load_images
from netvlad_deploy.retrieval.recall import SHOWN, Match, QueryResult
from netvlad_deploy.spec.images import ImageInput
from netvlad_deploy.support.require import require

ROWS_SHOWN: Final = 8
MISSES: Final = 6
"""Rows of an artifact, and how many of them misses may take while there are hits."""

WIDTH, HEIGHT, FRAME, GAP, MARGIN = 176, 132, 4, 12, 24
CAPTION, TITLE = 14, 22
"""Lengths in pixels: a photo, its frame, the gaps between photos, and the two sizes of letters."""

PAPER, INK, PALE, RIGHT, WRONG = "#ffffff", "#222222", "#767676", "#228833", "#cc3311"


def draw_matches(
    report: EvaluationReport, queries: Mapping[str, Path], database: Mapping[str, Path], *, depth: int | None
) -> bytes:
    """Return the picture as PNG: a section for each artifact, a row for each of its chosen queries.

    Args:
        report: what was found.
        queries: where the images of the queries stand, by name.
        database: where those of the database stand.
        depth: how many bits of grey values in files of 16 or 32 bits are shown, None for all 16.
    """
    pillow, draw = require("PIL.Image", extra="images"), require("PIL.ImageDraw", extra="images")
    chosen = [(one, choose(one.found.queries)) for one in report.candidates]
    row_height = HEIGHT + 2 * FRAME + CAPTION * 3 + GAP
    height = MARGIN + sum(TITLE + CAPTION + 2 * GAP + len(rows) * row_height + MARGIN for _, rows in chosen)
    width = 2 * MARGIN + (SHOWN + 1) * (WIDTH + 2 * FRAME + GAP) + GAP
    sheet = pillow.new("RGB", (width, height), PAPER)
    page = _Page(sheet, draw.Draw(sheet), ImageInput(depth=depth or 16))
    top = MARGIN
    for one, rows in chosen:
        page.text(MARGIN, top, one.name, TITLE, INK)
        page.text(MARGIN, top + TITLE + GAP // 2, section_caption(one, rows), CAPTION, PALE)
        top += TITLE + CAPTION + 2 * GAP
        for row in rows:
            page.row(top, row, queries, database)
            top += row_height
        top += MARGIN
    stream = io.BytesIO()
    sheet.save(stream, "PNG")
    return stream.getvalue()


def choose(results: Sequence[QueryResult]) -> list[QueryResult]:
    """Return the queries to show: misses first, then hits, each kind spread over the walk."""
    misses = [one for one in results if one.first_right > 1]
    hits = [one for one in results if one.first_right == 1]
    shown = _spread(misses, max(MISSES, ROWS_SHOWN - len(hits)))
    return shown + _spread(hits, ROWS_SHOWN - len(shown))


def section_caption(one: CandidateRecall, rows: Sequence[QueryResult]) -> str:
    """Return what stands under an artifact's name."""
    misses = sum(result.first_right > 1 for result in one.found.queries)
    shown = sum(result.first_right > 1 for result in rows)
    hits = len(one.found.queries) - misses
    return (
        f"recall@1 {one.found.recall[1]:.1%}: {hits} of {one.found.num_queries} queries have a right image first. "
        f"Shown: {shown} of {misses} misses, {len(rows) - shown} of {hits} hits"
    )


def _spread(results: Sequence[QueryResult], most: int) -> list[QueryResult]:
    if len(results) <= most:
        return list(results)
    return [results[round(place)] for place in np.linspace(0, len(results) - 1, most)]


class _Page:
    """A sheet to draw photos and captions on."""

    def __init__(self, sheet: Any, draw: Any, prepared: ImageInput) -> None:
        self._sheet, self._draw, self._prepared = sheet, draw, prepared
        self._font = require("PIL.ImageFont", extra="images").load_default
        self._contain = require("PIL.ImageOps", extra="images").contain
        self._fromarray = require("PIL.Image", extra="images").fromarray

    def text(self, left: int, top: int, text: str, size: int, colour: str, *, width: int | None = None) -> None:
        """Write a line; of one wider than `width` the start gives way."""
        font = self._font(size)
        short = text = printable(text)
        while width is not None and short and font.getlength("…" + short) > width:
            short = short[1:]
        self._draw.text((left, top), text if short == text else "…" + short, font=font, fill=colour)

    def row(self, top: int, row: QueryResult, queries: Mapping[str, Path], database: Mapping[str, Path]) -> None:
        """Draw a query and its best matches, the last of them the first right one if it comes later."""
        step = WIDTH + 2 * FRAME + GAP
        first = "right image first" if row.first_right == 1 else f"right image at rank {row.first_right}"
        self._photo(MARGIN, top, queries[row.query], PALE, (f"query {row.query}", first))
        for place, match in enumerate((*row.matches[: SHOWN - 1], *row.matches[SHOWN - 1 :][-1:])):
            left = MARGIN + GAP + (place + 1) * step
            self._photo(left, top, database[match.name], RIGHT if match.right else WRONG, _captions(match))

    def _photo(self, left: int, top: int, path: Path, colour: str, captions: tuple[str, str]) -> None:
        right, bottom = left + WIDTH + 2 * FRAME, top + HEIGHT + 2 * FRAME
        with load_images([ImageFile(path=path, name=path.name)], self._prepared) as loaded:
            ((_, pixels),) = loaded
        self._draw.rectangle((left, top, right - 1, bottom - 1), fill=colour)
        if isinstance(pixels, np.ndarray):
            photo = self._contain(self._fromarray(pixels), (WIDTH, HEIGHT))
            self._draw.rectangle((left + FRAME, top + FRAME, right - FRAME - 1, bottom - FRAME - 1), fill=PAPER)
            self._sheet.paste(photo, ((left + right - photo.width) // 2, (top + bottom - photo.height) // 2))
        for line, (text, ink) in enumerate(zip(captions, (INK, PALE), strict=True)):
            self.text(left, bottom + 4 + line * (CAPTION + 3), text, CAPTION, ink, width=WIDTH + 2 * FRAME)


def _captions(match: Match) -> tuple[str, str]:
    return match.name, f"{match.rank}: {'right' if match.right else 'wrong'}, cosine {match.similarity:.3f}"
