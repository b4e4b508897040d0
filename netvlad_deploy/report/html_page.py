"""A page as one HTML file that needs nothing else: no script, no font, no request."""

import base64
import re
from pathlib import Path
from typing import Final

from netvlad_deploy.report.escape import html_value
from netvlad_deploy.report.page import Block, Figure, Grid, Page, Photo
from netvlad_deploy.report.plots import PALETTE, draw, inline
from netvlad_deploy.spec.verdict import Verdict
from netvlad_deploy.support.require import require

TEMPLATE: Final = Path(__file__).with_name("page.html")

SIGNS: Final = {Verdict.PASS: "✓", Verdict.FAIL: "✗", Verdict.NOT_RUN: "○", Verdict.NOT_JUDGED: "?"}
"""Signs of the verdicts, beside their words: colour alone says nothing to many readers."""

TONES: Final = {Verdict.PASS: "pass", Verdict.FAIL: "fail", Verdict.NOT_RUN: "doubt", Verdict.NOT_JUDGED: "doubt"}
"""Colours of the verdicts, by their names in PALETTE."""

LONGEST_CELL: Final = 30
"""Most characters of a cell that stays on one line; a table that is too wide then scrolls in its own box."""

_NUMBER: Final = re.compile(r"(over )?[-+]?\d[\d.,e+-]*( ?(%|ms|MiB))?( coarse| \[.*\])?|-( \(.*\))?")
"""A number with its unit and its interval: its column stands at the right."""


def check_packages() -> None:
    """Raise MissingDependencyError unless all is there that writes a page as HTML."""
    for package in ("jinja2", "matplotlib"):
        require(package, extra="report")


def html_page(page: Page) -> str:
    """Return a page as HTML; the same page always gives the same text.

    Raises: MissingDependencyError without jinja2 or matplotlib.
    """
    check_packages()
    jinja2 = require("jinja2", extra="report")
    drawn: list[Figure] = [block for section in page.sections for block in section.blocks if isinstance(block, Figure)]
    svgs = {id(figure): inline(draw(figure.plot), f"f{number}") for number, figure in enumerate(drawn, 1)}
    environment = jinja2.Environment(
        autoescape=True, finalize=html_value, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "kind": _kind,
        "numbers": _columns_of_numbers,
        "svg": lambda figure: svgs[id(figure)],
        "data_uri": _data_uri,
    }
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    verdicts = {verdict.value: (SIGNS[verdict], TONES[verdict]) for verdict in Verdict}
    text: str = template.render(page=page, palette=PALETTE, verdicts=verdicts, longest=LONGEST_CELL)
    return text


def _kind(block: Block) -> str:
    return type(block).__name__


def _columns_of_numbers(grid: Grid) -> set[int]:
    """Return the places of the columns, from 0, in which each cell is a number, or a dash where there is none."""
    return {place for place in range(len(grid.header)) if all(_NUMBER.fullmatch(row[place]) for row in grid.rows)}


def _data_uri(photo: Photo) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(photo.jpeg).decode()
