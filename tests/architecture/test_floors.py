"""Imports go down only, siblings never import each other, and heavy packages stay in their rooms."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import netvlad_deploy

ROOT = Path(netvlad_deploy.__file__).parent
FLOORS = [
    {"errors"},
    {"support"},
    {"spec"},
    {"artifact", "descriptors", "oracle", "runner", "sources"},
    {"models"},
    {"export"},
    {"tensorrt"},
    {"runtime"},
    {"latency", "retrieval"},
    {"bulk", "index", "parity", "serving"},
    {"fleet", "report"},
    {"workflow"},
    {"commands"},
    {"cli"},
    {"__main__", "__init__"},
]
ALLOWED = {
    "torch": {
        "models",
        "export",
        "runtime/torch_runner.py",
    },
    "onnx": set(),
    "onnxruntime": set(),
    "tensorrt": set(),
    "tensorrt_rtx": set(),
    "safetensors": set(),
    "typer": {"cli.py", "commands/flags.py", "commands"},
}
"""Who may import a package by name; the rest go through `require`, inside a function."""

SOURCES = sorted(ROOT.rglob("*.py"))


def room(path: Path) -> str:
    parts = path.relative_to(ROOT).parts
    return parts[0] if len(parts) > 1 else path.stem


def floor(name: str) -> int:
    return next(number for number, rooms in enumerate(FLOORS) if name in rooms)


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def imports(path: Path) -> Iterator[str]:
    """Yield every module a file imports, at any depth."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            yield from (f"{module}.{alias.name}" for alias in node.names)


def inner(path: Path) -> Iterator[str]:
    """Yield the rooms of this package that a file imports."""
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "netvlad_deploy" and len(parts) > 1:
            yield parts[1]


def test_every_room_has_a_floor() -> None:
    assert {room(path) for path in SOURCES} == {name for rooms in FLOORS for name in rooms}


def test_imports_go_down_and_never_sideways() -> None:
    for path in SOURCES:
        own = room(path)
        for other in inner(path):
            if other != own and own != "__init__":
                assert floor(other) < floor(own), f"{path.relative_to(ROOT)} imports {other}"


def test_heavy_packages_stay_in_their_rooms() -> None:
    for path in SOURCES:
        where = {room(path), str(path.relative_to(ROOT))}
        for name in imports(path):
            top = name.split(".")[0]
            assert top not in ALLOWED or where & ALLOWED[top], f"{path.relative_to(ROOT)} imports {name}"


def test_tensorrt_has_one_door() -> None:
    named = [path.name for path in SOURCES if '"tensorrt_rtx"' in path.read_text()]
    assert named == ["api.py"]


def test_files_and_functions_stay_small() -> None:
    for path in (*ROOT.parent.glob("tests/**/*.py"), *SOURCES):
        assert path.read_text().count("\n") < 350, path
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.FunctionDef):
                assert (node.end_lineno or 0) - node.lineno < 50, f"{path}:{node.name}"


def test_few_catch_everything_and_only_the_command_line_prints() -> None:
    for path in SOURCES:
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.ExceptHandler) and path.name not in ("cli.py", "in_order.py", "cluster.py"):
                caught = ast.unparse(node.type) if node.type else "everything"
                assert caught not in ("Exception", "BaseException", "everything"), path.name
            if isinstance(node, ast.Tuple) and str(path.relative_to(ROOT)) != "models/backbones/__init__.py":
                assert not {"Exception", "BaseException"} & {ast.unparse(each) for each in node.elts}, path.name
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "print":
                assert path.name == "cli.py"


def test_the_errors_are_the_tree_in_their_docstring() -> None:
    from netvlad_deploy import errors

    documented = {
        line.split("─ ")[1].split()[0].rstrip(",") for line in (errors.__doc__ or "").splitlines() if "─ " in line
    }
    classes = {name: value for name, value in vars(errors).items() if isinstance(value, type)}
    assert documented == set(classes) - {"NetVLADDeployError"}
    for name, value in classes.items():
        assert issubclass(value, errors.NetVLADDeployError)
        assert name == "NetVLADDeployError" or f"{value.exit_code}" in (errors.__doc__ or "")
