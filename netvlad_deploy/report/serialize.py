"""Results for programs: JSON under a versioned schema."""

import json
import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from netvlad_deploy.report.escape import unicode_text

SCHEMA_VERSION = 1
CHANGED_SCHEMAS = {"bench": 2, "deploy": 2, "doctor": 2, "embed": 2}
"""Version of the layout of the JSON, which each result names in `schema`; and of the verbs whose layout has changed."""

DERIVED = ("verdict", "not_judged")
"""Properties of a result that stand in its JSON beside its fields."""


SCHEMAS = Path(__file__).parent / "schemas"
"""The folder of the JSON Schemas, `VERB-VERSION.json`, which `tools/schemas.py` makes of the results' classes."""


def schema_name(verb: str) -> str:
    """Return the name of the layout that a verb prints.

    >>> schema_name("embed")
    'netvlad-deploy/embed/2'
    """
    return f"netvlad-deploy/{verb}/{CHANGED_SCHEMAS.get(verb, SCHEMA_VERSION)}"


def to_json(verb: str, result: Any) -> str:
    """Return a result dataclass as JSON text; `schema` names the verb and the version of the layout."""
    return json.dumps(to_record(verb, result), indent=2)


def to_record(verb: str, result: Any) -> dict[str, Any]:
    """Return what `to_json` writes, as a dictionary."""
    return {"schema": schema_name(verb), **plain(result)}


def plain(value: Any) -> Any:
    """Return a value as JSON can hold it: dataclasses as dictionaries with DERIVED, NaN and infinity as None.

    >>> plain((Path("a.onnx"), float("nan"), 0.5))
    ['a.onnx', None, 0.5]
    """
    if is_dataclass(value) and not isinstance(value, type):
        record = {item.name: plain(getattr(value, item.name)) for item in fields(value)}
        return record | {name: plain(getattr(value, name)) for name in DERIVED if hasattr(value, name)}
    if isinstance(value, Mapping):
        return {unicode_text(str(key)): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, str | Path):
        return unicode_text(str(value))
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
