"""One name means one thing: no two modules give a constant of one name two values."""

import ast
import importlib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

import netvlad_deploy

ROOT = Path(netvlad_deploy.__file__).parent
OWN = frozenset(("LOG", "__all__"))
"""What every module has of its own: its logger, named after it, and its public names."""


def constants(path: Path) -> Iterator[str]:
    """Yield every name that a module gives a value on its top level."""
    for node in ast.parse(path.read_text()).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        for target in targets:
            parts = target.elts if isinstance(target, ast.Tuple) else [target]
            yield from (part.id for part in parts if isinstance(part, ast.Name))


def several(values: dict[str, dict[str, object]]) -> dict[str, dict[str, object]]:
    """Return the names with more than one value, by the module that gives it."""
    return {name: given for name, given in values.items() if len(set(map(repr, given.values()))) > 1}


@pytest.mark.export
def test_one_name_has_one_value() -> None:
    values: dict[str, dict[str, object]] = defaultdict(dict)
    for path in sorted(ROOT.rglob("*.py")):
        module = ".".join(path.relative_to(ROOT.parent).with_suffix("").parts)
        for name in set(constants(path)) - OWN:
            values[name][module] = getattr(importlib.import_module(module), name)
    assert len(values) > 300
    assert several(values) == {}


def test_another_value_is_found() -> None:
    assert several({"A": {"x": 1, "y": 1}, "B": {"x": 1, "y": 2}}) == {"B": {"x": 1, "y": 2}}
