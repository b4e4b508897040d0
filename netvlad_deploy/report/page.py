"""A report as a page: what is said, and in which order. `html_page` and `markdown_page` write the same page.

A page is plain data. Nothing is drawn before a writer asks for it, so a page can be made, and written as Markdown,
where matplotlib and jinja2 are missing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from netvlad_deploy.report.plots import Plot
from netvlad_deploy.spec.verdict import Verdict


@dataclass(frozen=True)
class Paragraph:
    """Sentences."""

    text: str


@dataclass(frozen=True)
class Grid:
    """A table: its header, and rows of as many cells."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Code:
    """Lines of a terminal, which stay as they are."""

    lines: Sequence[str]


@dataclass(frozen=True)
class Figure:
    """A drawing.

    Args:
        plot: what is drawn.
        alt: what the drawing shows, in words, for those who cannot see it.
        caption: how it is read.
        file: the name of a picture beside the page that shows the same, for Markdown; empty if there is none.
    """

    plot: Plot
    alt: str
    caption: str
    file: str = ""


@dataclass(frozen=True)
class Photo:
    """A photo as JPEG, with the line below it; `right` says whether it is a right match, None for the query itself."""

    jpeg: bytes
    name: str
    caption: str
    right: bool | None = None


@dataclass(frozen=True)
class Photos:
    """Rows of photos.

    Args:
        rows: each a query and its best matches.
        alt: what all of them show, in words.
        file: the name of a picture beside the page that shows the same, for Markdown.
    """

    rows: Sequence[Sequence[Photo]]
    alt: str
    file: str


Block: TypeAlias = Paragraph | Grid | Code | Figure | Photos


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it."""

    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True, kw_only=True)
class Page:
    """A report.

    Args:
        title: what the report is about.
        verdict: the verdict of all of it, None where nothing is judged.
        headline: the outcome in one sentence, for somebody who reads nothing else.
        facts: the few figures that matter most, each a name and a value.
        sections: all the rest.
    """

    title: str
    verdict: Verdict | None = None
    headline: str
    facts: Sequence[tuple[str, str]] = ()
    sections: Sequence[Section] = ()
