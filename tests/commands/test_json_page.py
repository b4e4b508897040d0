"""docs/json.md lists every field of every object that `--json` prints, and no other."""

import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Final, get_args

import pytest

from netvlad_deploy.artifact import OnnxArtifact
from netvlad_deploy.report.serialize import DERIVED
from tools.schemas import PRINTED, hints

OF_SEVERAL: Final = {
    "Profile": " for features",
    "ImageProfile": " for images",
    "AggregatorSpec": " of another aggregator than NetVLAD",
    "HeadsSpec": " of several heads",
    "HeadsRange": " of several heads",
}
"""What tells the row of a class from those of others that stand in the same place."""


def rows() -> dict[str, set[str]]:
    """Return the fields that the page lists, by the first cell of their row; words in brackets are explanations."""
    page = (Path(__file__).parents[2] / "docs" / "json.md").read_text()
    cells = [re.split(r" ?\| ?", line)[1:3] for line in page.splitlines() if line.startswith("| `")]
    named = {re.sub(r"netvlad-deploy/(\w+)/\d", r"\1", name).replace("`", ""): text for name, text in cells}
    assert len(named) == len(cells), "no row stands twice"
    return {name: set(re.findall(r"`(\w+)`", text)) for name, text in named.items()}


def kinds(annotation: Any) -> Iterator[type]:
    if is_dataclass(annotation) and isinstance(annotation, type):
        yield annotation
    for part in get_args(annotation):
        yield from kinds(part)


def objects() -> dict[str, type]:
    """Return every object of the JSON, by its row: those inside by where they first stand."""
    found = dict(PRINTED)

    def walk(kind: type, where: str) -> None:
        for name, annotation in hints(kind).items():
            inside = [each for each in kinds(annotation) if not issubclass(OnnxArtifact, each)]
            for each in inside:
                if each not in found.values():
                    found[f"{where}.{name}{OF_SEVERAL.get(each.__name__, '')}"] = each
                    walk(each, f"{where}.{name}")

    for verb, kind in PRINTED.items():
        walk(kind, verb.split()[0])
    return found


@pytest.mark.parametrize("name", objects())
def test_the_fields_of_an_object_are_the_documented_ones(name: str) -> None:
    kind = objects()[name]
    printed = {field.name for field in fields(kind)} | {each for each in DERIVED if hasattr(kind, each)}
    (listed,) = (given for row, given in rows().items() if row.split(",")[0] == name)
    assert listed == printed


def test_no_row_is_of_an_object_that_is_gone() -> None:
    assert {row.split(",")[0] for row in rows()} == set(objects())
