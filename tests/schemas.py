"""Every JSON that a test makes fits the schema of its verb."""

import json
from collections.abc import Callable
from functools import cache
from typing import Any

from jsonschema import Draft202012Validator

from netvlad_deploy.report.serialize import SCHEMAS


@cache
def validator(name: str) -> Draft202012Validator:
    """Return the validator of a layout, such as `netvlad-deploy/bench/2`."""
    _, verb, version = name.split("/")
    return Draft202012Validator(json.loads((SCHEMAS / f"{verb}-{version}.json").read_text()))


def check(record: Any) -> None:
    """Raise ValidationError if a printed JSON does not fit the schema that it names."""
    validator(record["schema"]).validate(record)


def checked(make: Callable[[str, Any], dict[str, Any]]) -> Callable[[str, Any], dict[str, Any]]:
    """Return `to_record` of `report/serialize.py` with a check of what it returns."""

    def to_record(verb: str, result: Any) -> dict[str, Any]:
        record = make(verb, result)
        check(record)
        return record

    return to_record
