"""The page of a deployment: its size, and the time it takes to write it, with the imports of what draws it."""

from collections.abc import Iterator
from pathlib import Path

from tools.bar import Bar, printed

MOST_BYTES, MOST_SECONDS = 1_000_000, 2.0
TRIES = 3
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
    """The page of 18 cases, 300 clusters and three candidates, made up, in processes of their own."""
    (size_bytes, *_), times = zip(*(printed(WRITE) for _ in range(TRIES)), strict=True)
    seconds = min(times)
    yield Bar("page of a deployment: under 1 MB", f"{size_bytes / 1e3:.0f} kB", size_bytes < MOST_BYTES)
    yield Bar(
        f"page of a deployment: written in {MOST_SECONDS:g} s, the fastest of {TRIES} processes",
        f"{seconds:.2f} s",
        seconds <= MOST_SECONDS,
    )


TIMES = (page,)
