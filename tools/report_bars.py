"""The page of a deployment: its size, and the time it takes to write it, with the imports of what draws it."""

from collections.abc import Iterator
from pathlib import Path

from tools.bar import Bar, printed, steady

MOST_BYTES, MOST_SECONDS = 1_000_000, 2.0
WRITE = """
import time
from tests.report.results import pages
page = pages()["deploy"]
started = time.perf_counter()
from netvlad_deploy.report.html_page import html_page
text = html_page(page)
print(len(text.encode()), time.perf_counter() - started)
"""


def page(folder: Path) -> Iterator[Bar]:
    """The page of 18 cases, 300 clusters and three candidates, made up, in a process of its own."""
    yield steady(written)


def written() -> Bar:
    size_bytes, seconds = printed(WRITE)
    return Bar(
        f"page of a deployment: under {MOST_BYTES / 1e6:g} MB, and written in {MOST_SECONDS:g} s",
        f"{size_bytes / 1e3:.0f} kB, {seconds:.2f} s",
        size_bytes < MOST_BYTES and seconds <= MOST_SECONDS,
    )


TIMES = (page,)
