"""What README, CONTRIBUTING and the pages on architecture say of the code is there: files, and names in them."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "CONTRIBUTING.md", "docs/architecture.md", "docs/glossary.md", "docs/dialects.md")
NAMES = r"((?:`\w+`(?:, | and | or )?)+)"
PLACED = re.compile(NAMES + r" in `([\w/]+\.py)`|" + NAMES + r" \(`([\w/]+\.py)`")
"""Names, and the file that a page says they stand in."""


def text(page: str) -> str:
    return re.sub(r"```.*?```", "", (ROOT / page).read_text(), flags=re.DOTALL).replace("\n", " ")


def found(name: str) -> list[Path]:
    """Return the files that a page may mean by a name: of the package, or of the repository."""
    return [
        path for top in ("netvlad_deploy", "tests", "examples") for path in (ROOT / top).rglob(f"*{Path(name).name}")
    ]


def placed(page: str) -> Iterator[tuple[str, Path]]:
    for first, file, second, other in PLACED.findall(text(page)):
        named = file or other
        path = next((ROOT / top / named for top in ("netvlad_deploy", "") if (ROOT / top / named).exists()), None)
        assert path is not None, f"{page}: there is no {named}"
        yield from ((name, path) for name in re.findall(r"`(\w+)`", first or second))


@pytest.mark.parametrize("page", PAGES)
def test_the_files_that_a_page_names_exist(page: str) -> None:
    names = set(re.findall(r"`([\w/]+\.py)`", text(page)))
    assert [name for name in names if not any(str(path).endswith(f"/{name}") for path in found(name))] == []


def test_what_the_page_on_architecture_places_in_a_file_stands_there() -> None:
    names = list(placed("docs/architecture.md"))
    assert len(names) > 50
    gone = [f"{name} in {path.name}" for name, path in names if not re.search(rf"\b{name}\b", path.read_text())]
    assert gone == []
