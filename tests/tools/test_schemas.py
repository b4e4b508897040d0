"""The schemas of what the verbs print are those of the results' classes, and refuse what no verb prints."""

import copy
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
from jsonschema import Draft202012Validator, ValidationError

from netvlad_deploy.latency.results import CandidateLatency, Estimate, LatencyReport
from netvlad_deploy.report import serialize
from netvlad_deploy.report.serialize import SCHEMAS, to_json
from netvlad_deploy.spec.verdict import Verdict
from tests.schemas import check
from tools import schemas

TIMES = {"p50": Estimate(value=1.0, low=0.5, high=math.inf)}
REPORT = LatencyReport(
    batch=1, num_features=None, image_size=(240, 320), threads=1, rounds=1, block_ms=1.0, warmup_ms=math.nan,
    machine={"processor": "one"}, candidates=(CandidateLatency(name="a", verdict=Verdict.PASS, percentiles_ms=TIMES),),
)  # fmt: skip


def test_the_files_are_what_the_classes_say() -> None:
    """On a failure: `make schemas`; and a version of the layout in `report/serialize.py` if it was published."""
    assert {path.name: path.read_text() for path in SCHEMAS.glob("*.json")} == schemas.files()


@pytest.mark.parametrize("path", sorted(SCHEMAS.glob("*.json")), ids=lambda path: path.stem)
def test_a_file_is_a_schema_that_names_no_host(path: Path) -> None:
    schema = json.loads(path.read_text())
    Draft202012Validator.check_schema(schema)
    verb, version = path.stem.split("-")
    assert schema["$id"] == f"urn:netvlad-deploy:{verb}:{version}"
    assert schema["$schema"] == schemas.DIALECT


def test_numbers_that_json_cannot_say_are_null() -> None:
    record = json.loads(to_json("bench", REPORT), parse_constant=pytest.fail)
    assert record["warmup_ms"] is None
    assert record["candidates"][0]["percentiles_ms"]["p50"]["high"] is None
    check(record)


@pytest.mark.parametrize(
    "fault",
    [
        lambda record: record.update(extra=1),
        lambda record: record.pop("verdict"),
        lambda record: record.update(schema="netvlad-deploy/bench/2", batch="1"),
        lambda record: record.update(image_size=[240]),
        lambda record: record.update(image_size=[240, 320, 3]),
        lambda record: record.update(verdict="MAYBE"),
        lambda record: record["machine"].update(cores=2),
        lambda record: record["candidates"][0].update(faster=True),
        lambda record: record["candidates"][0]["percentiles_ms"]["p50"].pop("low"),
    ],
)
def test_what_no_verb_prints_is_refused(fault: Any) -> None:
    record = json.loads(to_json("bench", REPORT))
    spoiled = copy.deepcopy(record)
    fault(spoiled)
    check(record)
    with pytest.raises(ValidationError):
        check(spoiled)


def test_every_json_of_a_test_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fixture of all tests has put the check into `to_record`, whatever calls it."""
    monkeypatch.setattr(serialize, "plain", lambda _: {"nothing": "of a report"})
    with pytest.raises(ValidationError):
        serialize.to_json("bench", REPORT)


def test_the_page_says_how_to_read_one() -> None:
    page = (Path(__file__).parents[2] / "docs" / "json.md").read_text()
    names: dict[str, Any] = {}
    exec(page.partition("```python\n")[2].partition("```")[0], names)
    assert names["schema"] == schemas.schema("bench")


def test_fields_are_described_in_the_words_of_their_class() -> None:
    candidate = schemas.schema("bench")["$defs"]["CandidateLatency"]
    assert candidate["properties"]["conditions"]["description"] == "the runner's means of being fast, in words."
    assert candidate["description"].startswith("Latency of one candidate")


@pytest.mark.parametrize(
    ("annotation", "expected"),
    [
        (float, {"type": ["number", "null"]}),
        (int | None, {"type": ["integer", "null"]}),
        (dict[str, float], {"type": "object", "additionalProperties": {"type": ["number", "null"]}}),
        (Literal["a", "b"], {"enum": ["a", "b"]}),
        (tuple[int, ...], {"type": "array", "items": {"type": "integer"}}),
        (Verdict | None, {"anyOf": [{"enum": [each.value for each in Verdict]}, {"type": "null"}]}),
    ],
)
def test_the_schema_of_a_type(annotation: Any, expected: dict[str, Any]) -> None:
    assert schemas.schema_of(annotation, {}) == expected


def test_a_type_without_json_and_two_classes_of_one_name_are_refused() -> None:
    @dataclass
    class Estimate:
        one: int

    with pytest.raises(TypeError, match="no JSON is known"):
        schemas.schema_of(complex, {})
    objects: dict[str, Any] = {}
    schemas.schema_of(TIMES["p50"].__class__, objects)
    with pytest.raises(TypeError, match="two classes are called Estimate"):
        schemas.schema_of(Estimate, objects)
