"""Files, folders, modules and names that the pages speak of are there."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import typer

from netvlad_deploy.cli import VERBS, app
from netvlad_deploy.support.require import optional_packages

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "netvlad_deploy"
PAGES = sorted((ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *ROOT.glob("docs/**/*.md")))
SOURCES = [
    path
    for top in ("netvlad_deploy", "tests", "examples", "tools")
    for path in (ROOT / top).rglob("*.py")
    if path.parent != Path(__file__).parent  # these tests quote what is gone
]
FILES = (".py", ".md", ".html", ".json", ".onnx", ".npz", ".npy", ".engine", ".xml", ".svg", ".png", ".safetensors")
OTHERS = {
    "INTER_LINEAR",
    "ReadWriteMany",
    "forward_features",
    "imread",
    "single_query",
    "_ms",
    "_s",
    "epsilon_add",
    "epsilon_rsqrt",
}
"""Names of other projects, endings of names, and two keys that are put together from their mode."""
NAMES = r"((?:`\w+`(?:, | and | or )?)+)"
PLACED = re.compile(NAMES + r" in `([\w/]+\.py)`|" + NAMES + r" \(`([\w/]+\.py)`")
"""Names, and the file that a page says they stand in."""


def text(page: Path) -> str:
    return re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL).replace("\n", " ")


def cells(line: str) -> list[str]:
    """Return the cells of a row of a table; a bar behind a backslash is part of a cell."""
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def resolved(name: str) -> Path | None:
    """Return the file or folder that a page names, from the package on or from the repository on; None if none is."""
    return next((top / name for top in (PACKAGE, ROOT, ROOT / "docs") if (top / name).exists()), None)


@cache
def words() -> set[str]:
    """Return every word of the code, its tests, its tools and what builds it."""
    native = (path for path in (ROOT / "examples" / "cpp").rglob("*") if path.is_file())
    files = (*SOURCES, *native, ROOT / "Makefile", ROOT / "pyproject.toml")
    return {word for path in files for word in re.findall(r"\w+", path.read_text())}


@cache
def classes() -> dict[str, ast.ClassDef]:
    """Return every class of the package, by its name."""
    trees = (ast.parse(path.read_text()) for path in PACKAGE.rglob("*.py"))
    return {node.name: node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}


def class_text(name: str) -> str:
    """Return the text of a class and of the classes of the package that it inherits from."""
    node = classes().get(name)
    return "" if node is None else "".join((ast.unparse(node), *(class_text(ast.unparse(base)) for base in node.bases)))


def is_there(dotted: str) -> bool:
    """Return False for `room.module.name`, `module.name` or `Class.member` of this package that leads nowhere."""
    first, *rest = dotted.removeprefix("netvlad_deploy.").split(".")
    if first in classes():
        return re.search(rf"\b{rest[0]}\b", class_text(first)) is not None
    place = PACKAGE / first
    if not place.is_dir() and not place.with_suffix(".py").is_file():
        return not dotted.startswith("netvlad_deploy.")
    while rest and place.is_dir():
        place /= rest.pop(0)
    if place.is_dir() or (not rest and place.with_suffix(".py").is_file()):
        return True
    file, name = (place.with_suffix(".py"), rest[0]) if rest else (place.parent / "__init__.py", place.name)
    return file.is_file() and re.search(rf"\b{name}\b", file.read_text()) is not None


def placed(page: Path) -> Iterator[tuple[str, Path]]:
    for first, file, second, other in PLACED.findall(text(page)):
        path = resolved(file or other)
        assert path is not None, f"{page.name}: there is no {file or other}"
        yield from ((name, path) for name in re.findall(r"`(\w+)`", first or second))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_files_and_folders_that_a_page_names_exist(page: Path) -> None:
    names = set(re.findall(r"`([\w/-]+(?:\.py|/))`", text(page)))
    assert [name for name in names if resolved(name) is None] == []


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "json.md"], ids=lambda page: page.name)
def test_the_modules_and_members_that_a_page_names_exist(page: Path) -> None:
    """Names of others' modules, such as `torch.load`, are not looked for; those of json.md are fields, with a test."""
    names = set(re.findall(r"(?<![\w./-])([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+)(?![\w/-])", text(page)))
    names = {name for name in names if not name.endswith(FILES)}
    assert [name for name in names if not is_there(name)] == []


@pytest.mark.parametrize("page", [page for page in PAGES if page.parent.name != "adr"], ids=lambda page: page.name)
def test_the_names_that_a_page_quotes_exist(page: Path) -> None:
    """Decisions are left out: they quote what was not taken, too."""
    names = set(re.findall(r"`([A-Za-z_]\w+)(?:\(\))?`", text(page))) - OTHERS
    assert names - words() == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_options_that_a_page_names_are_of_a_verb(page: Path) -> None:
    group = typer.main.get_command(app)
    commands = (group, *group.commands.values())  # type: ignore[attr-defined]
    known = {name for each in commands for option in each.params for name in (*option.opts, *option.secondary_opts)}
    others = {"--help", "--strict", "--timingCacheFile"}  # click's, mypy's, and trtexec's own
    others |= {"--http-address", "--grpc-address", "--model-control-mode", "--exit-timeout-secs"}  # tritonserver's
    others |= {"--shm-size"}  # docker's
    others |= {"--array", "--dependency", "--num-cpus"}  # of sbatch and ray
    others |= {"--seconds", "--target"}  # of tools.fuzz
    assert set(re.findall(r"(?<![\w-])--[a-z][\w-]+", text(page))) - known - others == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_name_that_a_page_places_in_a_file_stands_there(page: Path) -> None:
    gone = [f"{name} in {path.name}" for name, path in placed(page) if not re.search(rf"\b{name}\b", path.read_text())]
    assert gone == []


def test_a_name_that_is_gone_is_noticed() -> None:
    for name in (
        "models.checkpoints.load_checkpoint",
        "cli.main",
        "OracleRunner.tapped",
        "torch.load",
        "models.backbones",
    ):
        assert is_there(name), name
    for name in ("models.checkpoints.zzz", "models.zzz", "cli.zzz", "Runner.zzz", "netvlad_deploy.zzz"):
        assert not is_there(name), name
    assert sum(1 for page in PAGES for _ in placed(page)) > 50


def test_the_page_on_verbs_has_every_verb_and_every_extra() -> None:
    page = (ROOT / "docs" / "verbs.md").read_text()
    verbs, extras = (
        {name for line in page.partition(f"| {header} |")[2].partition("\n\n")[0].splitlines()[2:]
         for name in re.findall(r"`([\w]+)`", cells(line)[0])}
        for header in ("verb", "extra")
    )  # fmt: skip
    assert verbs == {verb.__name__ for verb in VERBS}
    assert extras == set(optional_packages())


def test_the_targets_of_make_and_the_tools_are_on_the_page_for_contributors() -> None:
    page, makefile = ((ROOT / name).read_text() for name in ("CONTRIBUTING.md", "Makefile"))
    targets = set(re.findall(r"^([a-z][\w.-]*):", makefile, re.MULTILINE))
    assert targets - {"clean"} == set(re.findall(r"^\| `make ([\w.-]+)` \|", page, re.MULTILINE))
    tools = {path.name for path in (ROOT / "tools").glob("*.py") if "__main__" in path.read_text()}
    assert tools - {"__init__.py"} <= set(re.findall(r"`tools/(\w+\.py)`", page))
