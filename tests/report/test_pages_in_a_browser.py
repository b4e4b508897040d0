"""The page of each verb in Chromium, on a phone and on a desk, light and dark."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from netvlad_deploy.artifact import OnnxArtifact
from netvlad_deploy.report.graph_figure import graph_block
from netvlad_deploy.report.html_page import html_page
from tests.report.results import pages

pytestmark = [pytest.mark.browser, pytest.mark.export]

WIDTHS, SCHEMES = (390, 1440), ("light", "dark")

LOOK = """() => {
    const shown = [...document.querySelectorAll('figure svg, figure img')].map(each => each.getBoundingClientRect());
    const letters = [...document.querySelectorAll('main *')].filter(
        each => [...each.childNodes].some(node => node.nodeType === 3 && node.data.trim()));
    const scale = each => each.ownerSVGElement ? each.ownerSVGElement.getScreenCTM().a : 1;
    return {
        overflow: document.documentElement.scrollWidth - innerWidth,
        figures: shown.length,
        hidden: shown.filter(box => box.width < 80 || box.height < 40 || box.right > innerWidth + 1).length,
        smallest: Math.min(...letters.map(each => parseFloat(getComputedStyle(each).fontSize) * scale(each))),
        paper: getComputedStyle(document.body).backgroundColor,
        ink: getComputedStyle(document.querySelector('h1')).color,
        lines: [...document.querySelectorAll('figure svg text')].map(each => getComputedStyle(each).fill)[0],
    };
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        yield chromium
        chromium.close()


def test_every_page_is_readable_everywhere_and_asks_for_nothing(
    browser: Any, tmp_path: Path, tiny: OnnxArtifact
) -> None:
    """One page of the browser for all: starting one is most of the time."""
    tab = browser.new_page()
    asked: list[str] = []
    said: list[str] = []
    tab.on("request", lambda request: asked.append(request.url))
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    for verb, page in pages(graph_block(tiny)).items():
        file = tmp_path / f"{verb}.html"
        file.write_text(html_page(page))
        asked.clear()
        tab.goto(file.as_uri())
        papers = set()
        for width in WIDTHS:
            for scheme in SCHEMES:
                tab.set_viewport_size({"width": width, "height": 900})
                tab.emulate_media(color_scheme=scheme)
                look = tab.evaluate(LOOK)
                where = f"{verb} at {width} px, {scheme}: {look}"
                assert look["overflow"] <= 0, where
                assert look["hidden"] == 0, where
                assert look["smallest"] >= 9.5, where
                assert look["lines"] in (look["ink"], None), where
                papers.add((look["paper"], look["ink"]))
        assert look["figures"] > 0, verb
        assert len(papers) == len(SCHEMES), "light and dark differ"
        assert [url for url in asked if url != file.as_uri() and not url.startswith("data:")] == []
    assert said == []
