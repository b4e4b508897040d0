"""docs/architecture.md has the code's own floors and packages, and its table of changes names what is there."""

import ast
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.architecture.test_floors import FLOORS, ROOT, SOURCES, imports, room
from tests.docs.test_docs import cells, resolved

PAGE = (ROOT.parent / "docs" / "architecture.md").read_text()
CHANGES = (
    "a resize rule", "a filter", "a tolerance", "an option of the engine builder", "a dialect", "a backbone",
    "another output format of `embed`", "the text of an error", "a verb", "an option of a verb", "a backend",
    "the limit of an option", "a column of a report", "a parity case", "the JSON of a verb", "the exported graph",
)  # fmt: skip
"""What somebody who has never seen the repository must be able to find from the page."""


def table(header: str) -> list[list[str]]:
    """Return the cells of each row of the page's table that starts with a header."""
    return [cells(line) for line in PAGE.partition(f"\n| {header} |")[2].partition("\n\n")[0].splitlines()[2:]]


def assigned(tree: ast.Module, name: str) -> Iterator[str]:
    """Yield the text, or the values of the dictionary, that a module gives a name."""
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            value = getattr(node, "value", None)
            values = value.values if isinstance(value, ast.Dict) else [value]
            yield from (str(each.value) for each in values if isinstance(each, ast.Constant))


def required(tree: ast.Module) -> Iterator[str]:
    """Yield the packages that a module imports by name at run time: a text, a constant, or each of a loop."""
    for node in ast.walk(tree):
        if isinstance(node, ast.For) and isinstance(node.iter, ast.Tuple) and "require(" in ast.unparse(node):
            first = (each.elts[0] if isinstance(each, ast.Tuple) else each for each in node.iter.elts)
            yield from (str(each.value) for each in first if isinstance(each, ast.Constant))
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("require", "import_module"):
            for part in () if isinstance(node.args[0], ast.JoinedStr) else ast.walk(node.args[0]):
                if isinstance(part, ast.Name):
                    yield from assigned(tree, part.id)
            if isinstance(node.args[0], ast.Constant):
                yield str(node.args[0].value)


def packages() -> dict[str, str]:
    """Return the files that import each third-party package: a room, or the one file of it that does."""
    found: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for path in SOURCES:
        for name in (*imports(path), *required(ast.parse(path.read_text()))):
            top = name.split(".")[0].replace("-", "_")
            if top not in sys.stdlib_module_names and top != "netvlad_deploy":
                found[top][room(path)].add(path.relative_to(ROOT).as_posix())
    return {
        name: ", ".join(
            f"`{next(iter(files))}`" if len(files) == 1 else f"`{where}/`" for where, files in sorted(rooms.items())
        )
        for name, rooms in found.items()
    }


def test_the_floors() -> None:
    expected = [
        [str(floor), *sorted(f"`{name}/`" if (ROOT / name).is_dir() else f"`{name}.py`" for name in names)]
        for floor, names in reversed(list(enumerate(FLOORS)))
    ]
    assert [[row[0], *sorted(re.findall(r"`[\w/.]+`", row[1]))] for row in table("floor")] == expected


def test_the_third_party_packages() -> None:
    """On a failure, the left side is what the page must say."""
    assert packages() == {row[0]: row[1] for row in table("package")}


@pytest.mark.parametrize("row", table("verb"), ids=lambda row: row[0])
def test_the_way_of_a_verb_follows_the_imports(row: list[str]) -> None:
    first, *files = [ROOT / name for name in re.findall(r"`([\w/.]+)`", row[1])]
    reached = {first}
    for path in files:
        module = ".".join(path.relative_to(ROOT.parent).with_suffix("").parts)
        importers = [each for each in reached if any(f"{name}.".startswith(f"{module}.") for name in imports(each))]
        assert importers, f"nothing before {path.name} imports it"
        reached.add(path)


def test_the_table_of_changes_answers_a_newcomer_s_questions() -> None:
    rows = {row[0] for row in table("to change")}
    assert [change for change in CHANGES if change not in rows] == []


@pytest.mark.parametrize("row", table("to change"), ids=lambda row: row[0])
def test_a_row_of_changes_names_files_and_names_that_stand_in_them(row: list[str]) -> None:
    """A row reads "`name`, `name` in `file`; ...": each name is a word of its file, or without one of the package."""
    assert len(row) == 2
    assert ".py`" in row[1]
    for part in row[1].split(";"):
        quoted = re.findall(r"`([^`]+)`", part)
        files = [name for name in quoted if re.search(r"/$|\.(py|md|toml|txt|html)$", name)]
        assert [name for name in files if resolved(name) is None] == []
        places = [path for name in files if (path := resolved(name)) is not None] or [ROOT]
        text = "".join(
            each.read_text() for path in places for each in (path.rglob("*.py") if path.is_dir() else [path])
        )
        words = set(quoted) - set(files)
        assert [word for word in words if not re.search(rf"\b{re.escape(word)}\b", text)] == [], part


def test_a_file_that_is_not_there_is_noticed(tmp_path: Path) -> None:
    assert resolved("commands/nothing.py") is None
    assert resolved("commands/flags.py") == ROOT / "commands" / "flags.py"
    module = ast.parse(
        "A = {'x': 'one'}\nfor p, e in (('two', 'e'),):\n    require(p)\nrequire(A[b])\nrequire('three')"
    )
    assert sorted(required(module)) == ["one", "three", "two"]
    assert list(assigned(module, "B")) == []
