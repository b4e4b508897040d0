"""The matches of an evaluation: queries with their best matches, misses first, for a page and as a picture beside it.

The picture frames right matches green and wrong ones red. It is laid out with Pillow, which `evaluate` needs for the
photos anyway (docs/adr/0018-own-writer-and-own-picture.md).
"""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from netvlad_deploy.errors import InputError
from netvlad_deploy.report.escape import printable
from netvlad_deploy.report.evaluate import CandidateRecall, EvaluationReport
from netvlad_deploy.report.page import Paragraph, Photo, Photos
from netvlad_deploy.retrieval.decoding import decode_image, without_warnings
from netvlad_deploy.retrieval.recall import SHOWN, QueryResult
from netvlad_deploy.sources.source import read_image_file
from netvlad_deploy.spec.images import ImageInput
from netvlad_deploy.support.require import require

MOST_ROWS: Final = 8
"""Most rows in the section of an artifact."""

MOST_MISSES: Final = 6
"""Most of those rows that show misses, if there are hits for the others."""

PHOTO_WIDTH, PHOTO_HEIGHT, FRAME, GAP, MARGIN = 176, 132, 4, 12, 24
CAPTION, TITLE = 14, 22
"""Lengths in pixels: a photo, its frame, the gaps between photos, the page's margin, and the two sizes of letters."""

JPEG_QUALITY: Final = 75
"""Quality of a small photo on a page: noise then has 32 kB, usual photos a quarter. A row has six of them, an artifact
MOST_ROWS rows, so a page takes at most 2.1 MB for each artifact, and usually half a megabyte."""

PAPER, INK, PALE, RIGHT, WRONG = "#ffffff", "#222222", "#767676", "#228833", "#cc3311"
"""Colours of the page, of text, of captions and queries, and of the frames of right and wrong matches."""


class Cell(NamedTuple):
    """A photo in a row: its file, the two lines below it, and whether it is right, None where nothing says so."""

    path: Path
    name: str
    caption: str
    right: bool | None = None


class Album:
    """The photos of an evaluation, small, each loaded once.

    `queries` and `database` are the paths of images by their names. Of files of 16 or 32 bits `depth` bits of the grey
    values are shown, None for all 16.
    """

    def __init__(self, queries: Mapping[str, Path], database: Mapping[str, Path], depth: int | None) -> None:
        self.queries, self.database = queries, database
        self._prepared = ImageInput(depth=depth or 16)
        self._small: dict[Path, Any] = {}

    def small(self, path: Path) -> Any:
        """Return an image of Pillow of PHOTO_WIDTH x PHOTO_HEIGHT, the photo whole; None if it cannot be read any more.

        Raises: MissingDependencyError without Pillow.
        """
        if path not in self._small:
            ops, pillow = require("PIL.ImageOps", extra="images"), require("PIL.Image", extra="images")
            try:
                with without_warnings():
                    pixels = decode_image(read_image_file(path), self._prepared, name=printable(str(path)))
            except (OSError, InputError):
                self._small[path] = None
            else:
                self._small[path] = ops.pad(pillow.fromarray(pixels), (PHOTO_WIDTH, PHOTO_HEIGHT), color=PAPER)
        return self._small[path]

    def photos(self, rows: Sequence[Sequence[Cell]], alt: str, picture: str) -> Photos:
        """Return rows of photos for a page; `picture` is the name of the file beside it that shows the same."""
        shown = [[Photo(self._jpeg(cell.path), cell.name, cell.caption, cell.right) for cell in row] for row in rows]
        return Photos(shown, alt, picture)

    def _jpeg(self, path: Path) -> bytes:
        """Return a small photo as JPEG, a grey area if it cannot be read any more."""
        stream = io.BytesIO()
        pillow = require("PIL.Image", extra="images")
        photo = self.small(path) or pillow.new("RGB", (PHOTO_WIDTH, PHOTO_HEIGHT), PALE)
        photo.convert("RGB").save(stream, "JPEG", quality=JPEG_QUALITY, optimize=True)
        return stream.getvalue()


def match_blocks(report: EvaluationReport, album: Album, *, picture: str) -> list[Paragraph | Photos]:
    """Return the chosen matches of each artifact for a page; `picture` is the name of the file beside it.

    Raises: MissingDependencyError without Pillow.
    """
    blocks: list[Paragraph | Photos] = []
    for number, (name, caption, rows) in enumerate(_sections(report, album)):
        alt = f"Queries with their best matches by {name}, misses first"
        blocks += [Paragraph(f"{name}: {caption}."), album.photos(rows, alt, "" if number else picture)]
    return blocks


def draw_matches(report: EvaluationReport, album: Album) -> bytes:
    """Return the picture as PNG: a section for each artifact, a row for each of its chosen queries.

    Raises: MissingDependencyError without Pillow.
    """
    return draw(_sections(report, album), album)


def _sections(report: EvaluationReport, album: Album) -> list[tuple[str, str, list[list[Cell]]]]:
    """Return for each artifact its name, the line under it, and a row for each of its chosen queries."""
    chosen = [(one, choose(one.found.queries)) for one in report.candidates]
    return [(one.name, section_caption(one, rows), [_cells(row, album) for row in rows]) for one, rows in chosen]


def draw(sections: Sequence[tuple[str, str, Sequence[Sequence[Cell]]]], album: Album) -> bytes:
    """Return a picture as PNG: sections, each with a title, a line below it, and rows of at most SHOWN + 1 photos.

    Raises: MissingDependencyError without Pillow.
    """
    row_height = PHOTO_HEIGHT + 2 * FRAME + CAPTION * 3 + GAP
    height = MARGIN + sum(TITLE + CAPTION + 2 * GAP + len(rows) * row_height + MARGIN for _, _, rows in sections)
    width = 2 * MARGIN + (SHOWN + 1) * (PHOTO_WIDTH + 2 * FRAME + GAP) + GAP
    sheet = require("PIL.Image", extra="images").new("RGB", (width, height), PAPER)
    page = _Sheet(sheet, album)
    top = MARGIN
    for title, caption, rows in sections:
        page.text(MARGIN, top, title, TITLE, INK)
        page.text(MARGIN, top + TITLE + GAP // 2, caption, CAPTION, PALE)
        top += TITLE + CAPTION + 2 * GAP
        for row in rows:
            page.row(top, row)
            top += row_height
        top += MARGIN
    stream = io.BytesIO()
    sheet.save(stream, "PNG")
    return stream.getvalue()


def _cells(row: QueryResult, album: Album) -> list[Cell]:
    """Return a query and its best matches, the last replaced by the first right one if that ranks below them."""
    first = "right image first" if row.first_right == 1 else f"right image at rank {row.first_right}"
    matches = [*row.matches[: SHOWN - 1], *row.matches[SHOWN - 1 :][-1:]]
    return [Cell(album.queries[row.query], f"query {row.query}", first)] + [
        Cell(album.database[match.name], match.name, f"{match.rank}, cosine {match.similarity:.4f}", match.right)
        for match in matches
    ]


def choose(results: Sequence[QueryResult]) -> list[QueryResult]:
    """Return at most MOST_ROWS queries: misses first, then hits, each kind spread evenly over the walk."""
    misses = [one for one in results if one.first_right > 1]
    hits = [one for one in results if one.first_right == 1]
    shown = _spread(misses, max(MOST_MISSES, MOST_ROWS - len(hits)))
    return shown + _spread(hits, MOST_ROWS - len(shown))


def section_caption(one: CandidateRecall, rows: Sequence[QueryResult]) -> str:
    """Return the line under an artifact's name: its recall@1, and how many misses and hits are shown of how many."""
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


class _Sheet:
    """A Pillow image to draw photos and captions on."""

    def __init__(self, sheet: Any, album: Album) -> None:
        self._sheet, self._album = sheet, album
        self._draw = require("PIL.ImageDraw", extra="images").Draw(sheet)
        self._font = require("PIL.ImageFont", extra="images").load_default

    def text(self, left: int, top: int, text: str, size: int, colour: str, *, width: int | None = None) -> None:
        """Write a line of text; if it is wider than `width` pixels, replace its start by an ellipsis."""
        font = self._font(size)
        short = text = printable(text)
        while width is not None and short and font.getlength("…" + short) > width:
            short = short[1:]
        self._draw.text((left, top), text if short == text else "…" + short, font=font, fill=colour)

    def row(self, top: int, row: Sequence[Cell]) -> None:
        """Draw a query, and with a gap after it its best matches."""
        step = PHOTO_WIDTH + 2 * FRAME + GAP
        for place, cell in enumerate(row):
            self._photo(MARGIN + place * step + (GAP if place else 0), top, cell)

    def _photo(self, left: int, top: int, cell: Cell) -> None:
        """Draw a framed photo and its captions, or an area in the frame's colour if the file cannot be read."""
        ops, pillow = require("PIL.ImageOps", extra="images"), require("PIL.Image", extra="images")
        word, colour = {None: ("", PALE), True: ("right ", RIGHT), False: ("wrong ", WRONG)}[cell.right]
        photo = self._album.small(cell.path) or pillow.new("RGB", (PHOTO_WIDTH, PHOTO_HEIGHT), colour)
        framed = ops.expand(photo, FRAME, fill=colour)
        self._sheet.paste(framed, (left, top))
        for line, (text, ink) in enumerate(((cell.name, INK), (word + cell.caption, PALE))):
            below = top + framed.height + 4 + line * (CAPTION + 3)
            self.text(left, below, text, CAPTION, ink, width=framed.width)
