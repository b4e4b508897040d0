"""One page as HTML and as Markdown: all of it, for every reader, from one file, and nothing that a name could add."""

import math
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree as ET

import pytest

from netvlad_deploy.errors import MissingDependencyError
from netvlad_deploy.report.html_page import SIGNS, html_page
from netvlad_deploy.report.markdown_page import markdown_page
from netvlad_deploy.report.page import Code, Figure, Grid, Page, Paragraph, Photo, Photos, Section
from netvlad_deploy.report.plots import OVER, Boxes, Curves, Dots, Heat, Intervals, Plot, draw
from netvlad_deploy.spec.verdict import Verdict

EVIL = "e\x1b[1m\"'<img src=x onerror=alert(1)>{{ 7 }}|`*\u202e\udcff&\n$x_1$"
SHOWN = "e\\x1b[1m\"'<img src=x onerror=alert(1)>{{ 7 }}|`*\\u202e\\udcff&\\n$x_1$"
DOTS = Dots(rows=("one", EVIL), series={"fp32": (0.1, 2.0), EVIL: (math.inf, None)}, label="error", line=1)
PLOTS: tuple[Plot, ...] = (
    DOTS,
    DOTS,
    Heat(rows=("one", "two"), ratios=([0.0] * 100, [*[1e-3] * 99, math.inf]), label="cluster"),
    Intervals(rows=(("one", 2.0, 1.9, 2.2), ("two", 90.0, 80.0, 95.0)), label="ratio"),
    Boxes(rows=(("one", (1.0, 2.0, 3.0)), ("two", (30.0, 40.0, 90.0))), label="ms"),
    Curves(series={EVIL: ((1.0, 0.3), (8.0, 2.5)), "one": ((1.0, 1.0),)}, label="batch"),
)
PAGE = Page(
    title=EVIL,
    verdict=Verdict.FAIL,
    headline=EVIL,
    facts=((EVIL, EVIL),),
    sections=(
        Section(
            EVIL,
            (
                Paragraph(EVIL),
                Grid(("verdict", EVIL, "p50"), ((Verdict.PASS.value, EVIL, "1.2 ms"), ("no", "x", "-"))),
                Code((EVIL, "second")),
            ),
        ),
        Section("Figures", tuple(Figure(plot, f"alt of {place}", "how to read") for place, plot in enumerate(PLOTS))),
        Section(
            "Matches", (Photos((((Photo(b"q", EVIL, "query"), Photo(b"d", "d", "0.9", right=True)),)), EVIL, "m.png"),)
        ),
    ),
)


class Reader(HTMLParser):
    """What a browser sees: tags with their attributes, and the text outside the style."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data: str) -> None:
        self.texts.append(data.strip())

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def html() -> str:
    return html_page(PAGE)


@pytest.fixture(scope="module")
def read(html: str) -> Reader:
    return Reader(html)


def test_a_name_is_text_wherever_it_stands(html: str, read: Reader) -> None:
    assert html.encode().decode().replace("\n", "").isprintable()
    assert len(read.all("img")) == 2, "the two photos"
    assert [text for text in read.texts if "alert" in text and SHOWN not in text and "…" not in text] == []
    assert sum(SHOWN in text for text in read.texts) >= 8, "the title twice, headline, fact, heading, text, cells"
    page = markdown_page(PAGE)
    assert "<img" not in page.partition("```")[0].replace("\\<img", "")
    assert page.count("\n```\n") == 2, "a name does not end the code"


def test_the_page_needs_nothing_but_itself(html: str, read: Reader) -> None:
    assert not {"script", "link", "iframe", "object", "base"} & {tag for tag, _ in read.tags}
    addresses = [
        value
        for _, attributes in read.tags
        for name, value in attributes.items()
        if name in ("src", "href", "xlink:href")
    ]
    assert addresses
    assert [value[:20] for value in addresses if not value.startswith(("data:image/", "#"))] == []
    assert re.findall(r"url\((?!#)|@import", html) == []


def test_a_reader_without_eyes_gets_all_of_it(html: str, read: Reader) -> None:
    assert read.all("html") == [{"lang": "en"}]
    assert [tag for tag, _ in read.tags if re.fullmatch(r"h\d", tag)] == ["h1", "h2", "h2", "h2"]
    assert all(attributes.get("scope") == "col" for attributes in read.all("th"))
    assert all(attributes.get("alt") for attributes in read.all("img"))
    figures = [attributes["aria-label"] for attributes in read.all("div") if attributes.get("role") == "img"]
    assert figures == [f"alt of {place}" for place in range(len(PLOTS))]
    assert len(set(SIGNS.values())) == len(Verdict)
    for verdict in (Verdict.FAIL, Verdict.PASS):
        assert f'<span aria-hidden="true">{SIGNS[verdict]}</span> {verdict.value}' in html, "never by colour alone"
    assert "<b>✓ right</b>" in html


def test_figures_of_one_page_share_no_id_and_take_the_colours_of_the_page(html: str, read: Reader) -> None:
    ids = [attributes["id"] for _, attributes in read.tags if "id" in attributes]
    assert len(ids) == len(set(ids)) > 20
    targets = {
        value[1:] for _, each in read.tags for name, value in each.items() if name == "xlink:href" and value[0] == "#"
    }
    assert targets <= set(ids)
    body = html.partition("</style>")[2]
    assert "var(--first)" in body
    assert set(re.findall(r"#[0-9a-f]{6}\b", body)) == {OVER}


def test_equal_pages_are_equal_texts(html: str) -> None:
    assert html_page(PAGE) == html


def luminance(colour: str) -> float:
    """Return the relative luminance of `#rrggbb`. Source: WCAG 2.1, definition of relative luminance."""
    shares = (int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5))
    red, green, blue = (share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_text_stands_out(html: str, scheme: int) -> None:
    """Source of 4.5: WCAG 2.1, success criterion 1.4.3."""
    colours = dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", re.findall(r":root \{(.*?)\}", html)[scheme]))
    for paper in ("paper", "card"):
        for ink in set(colours) - {"paper", "card", "line"}:
            dark, light = sorted((luminance(colours[paper]), luminance(colours[ink])))
            assert (light + 0.05) / (dark + 0.05) >= 4.5, f"{ink} on {paper}"


def test_markdown_has_the_words_and_names_the_pictures_beside_it() -> None:
    figures = PAGE.sections[1].blocks
    page = markdown_page(replace(PAGE, title="m.onnx", sections=(Section("Figures", figures[:1]), PAGE.sections[2])))
    assert page.startswith("# FAIL: m.onnx\n")
    assert "\n## Figures\n\n*alt of 0.*\n\n## Matches\n" in page
    assert page.endswith("](m.png)\n")
    shown = markdown_page(replace(PAGE, sections=(Section("Figures", (Figure(DOTS, "alt", "caption", "f.svg"),)),)))
    assert "![alt](f.svg)\n\ncaption\n" in shown


def test_a_value_that_is_not_finite_has_a_place_of_its_own() -> None:
    texts = [text.text for text in ET.fromstring(draw(DOTS)).iter("{http://www.w3.org/2000/svg}text")]
    assert "NaN" in texts
    calm = replace(DOTS, series={"fp32": (0.1, 2.0)})
    assert "NaN" not in draw(calm)
    assert draw(calm) != draw(replace(calm, line=None)), "the line at 1"
    small = Dots(rows=("one",), series={"fp32": (0.0,)}, label="error", least=1e-9)
    assert "1e-9" in draw(small), "0 has no place on a logarithmic axis"


@pytest.mark.parametrize("package", ["jinja2", "matplotlib"])
def test_without_its_packages_html_is_refused_and_markdown_is_not(
    monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingDependencyError, match=rf"{package} cannot be imported .*pip install"):
        html_page(PAGE)
    assert markdown_page(PAGE)
