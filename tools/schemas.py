"""Write the JSON Schemas of what the verbs print, from the dataclasses of their results: `python -m tools.schemas`."""

import inspect
import json
import re
import types
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Final, Literal, Union, get_args, get_origin, get_type_hints

from netvlad_deploy.artifact import EngineArtifact, OnnxArtifact
from netvlad_deploy.index.place_index import PlaceIndex
from netvlad_deploy.latency.results import LatencyReport
from netvlad_deploy.parity.heads import ParityReport
from netvlad_deploy.report.adopt import Adoption
from netvlad_deploy.report.deploy import Deployment
from netvlad_deploy.report.doctor import Diagnosis
from netvlad_deploy.report.evaluate import EvaluationReport
from netvlad_deploy.report.inspect import CheckpointInspection, Inspection
from netvlad_deploy.report.precision import PrecisionReport
from netvlad_deploy.report.search import SearchReport
from netvlad_deploy.report.serialize import DERIVED, SCHEMAS, schema_name
from netvlad_deploy.report.sweep import SweepReport
from netvlad_deploy.serving.repository import TritonModel
from netvlad_deploy.workflow.embed import EmbedResult
from netvlad_deploy.workflow.fit import Vocabulary

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"

PRINTED: Final[dict[str, type]] = {
    "export": OnnxArtifact,
    "build": EngineArtifact,
    "validate": ParityReport,
    "bench": LatencyReport,
    "sweep": SweepReport,
    "precision": PrecisionReport,
    "embed": EmbedResult,
    "package": TritonModel,
    "index": PlaceIndex,
    "search": SearchReport,
    "evaluate": EvaluationReport,
    "fit": Vocabulary,
    "inspect of an artifact": Inspection,
    "inspect of a checkpoint": CheckpointInspection,
    "doctor": Diagnosis,
    "deploy": Deployment,
    "adopt": Adoption,
}
"""The class of the result that each verb prints."""

SCALARS: Final[dict[Any, dict[str, Any]]] = {
    Any: {},
    bool: {"type": "boolean"},
    int: {"type": "integer"},
    float: {"type": ["number", "null"]},  # JSON has no NaN and no infinity: `plain` prints null
    str: {"type": "string"},
    Path: {"type": "string"},
    type(None): {"type": "null"},
}

_named: dict[str, type] = {}


def hints(kind: Any) -> dict[str, Any]:
    """Return the types of the fields of a dataclass, by name."""
    from netvlad_deploy.models.vocabulary import VocabularyRecord

    return get_type_hints(kind, localns={"VocabularyRecord": VocabularyRecord})


def schema_of(annotation: Any, objects: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a type; those of dataclasses join `objects`, by name."""
    if annotation in SCALARS:
        return SCALARS[annotation]
    if not isinstance(annotation, type) or get_origin(annotation):
        return schema_of_several(get_origin(annotation), get_args(annotation), objects)
    if is_dataclass(annotation):
        if _named.setdefault(annotation.__name__, annotation) is not annotation:
            raise TypeError(f"two classes are called {annotation.__name__}: their schemas would be one")
        if annotation.__name__ not in objects:
            objects[annotation.__name__] = {}  # it may hold itself
            objects[annotation.__name__] = object_of(annotation, objects)
        return {"$ref": f"#/$defs/{annotation.__name__}"}
    if issubclass(annotation, Enum):
        return {"enum": [each.value for each in annotation]}
    raise TypeError(f"no JSON is known for {annotation}")


def schema_of_several(origin: Any, parts: tuple[Any, ...], objects: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a type with parts in brackets, such as `dict[str, int]` or `int | None`."""
    if origin is Literal:
        return {"enum": list(parts)}
    if origin in (Union, types.UnionType):
        return union_of([schema_of(part, objects) for part in parts])
    if issubclass(origin, Mapping):
        return {"type": "object", "additionalProperties": schema_of(parts[1], objects)}
    if origin is tuple and Ellipsis not in parts:
        items = [schema_of(part, objects) for part in parts]
        return {"type": "array", "prefixItems": items, "minItems": len(items), "items": False}
    if issubclass(origin, Sequence):
        return {"type": "array", "items": schema_of(parts[0], objects)}
    raise TypeError(f"no JSON is known for {origin}")


def union_of(schemas: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the schema of one of several: a list of types where no more is said of them."""
    if all(set(each) == {"type"} for each in schemas):
        types = [each["type"] if isinstance(each["type"], list) else [each["type"]] for each in schemas]
        return {"type": list(dict.fromkeys(name for names in types for name in names))}
    return {"anyOf": list(schemas)}


def object_of(kind: type, objects: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a dataclass: all of its fields and DERIVED properties, and no other."""
    said = argument_texts(kind)
    annotations = hints(kind)
    known = {field.name: annotations[field.name] for field in fields(kind)}
    known |= {
        name: get_type_hints(getattr(kind, name).fget)["return"]
        for name in DERIVED
        if isinstance(getattr(kind, name, None), property)
    }
    properties = {name: schema_of(annotation, objects) for name, annotation in known.items()}
    return {
        "description": (inspect.getdoc(kind) or "").partition("\n")[0],
        "type": "object",
        "properties": {
            name: {**schema, "description": said[name]} if name in said else schema
            for name, schema in properties.items()
        },
        "required": list(properties),
        "additionalProperties": False,
    }


def argument_texts(kind: type) -> dict[str, str]:
    """Return what the docstring of a dataclass says of its fields, by name."""
    listed = re.split(r"\n\n|\Z", (inspect.getdoc(kind) or "").partition("\nArgs:\n")[2])[0]
    found = re.findall(r"^ {4}(\w+): (.*?)(?=^ {4}\w+: |\Z)", listed, re.DOTALL | re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in found}


def schema(verb: str) -> dict[str, Any]:
    """Return the JSON Schema of what a verb prints."""
    objects: dict[str, Any] = {}
    name = schema_name(verb)
    alternatives = [object_of(kind, objects) for label, kind in PRINTED.items() if label.split()[0] == verb]
    for each in alternatives:
        each["properties"] = {"schema": {"const": name}, **each["properties"]}
        each["required"] = ["schema", *each["required"]]
    content = alternatives[0] if len(alternatives) == 1 else {"anyOf": alternatives}
    return {
        "$schema": DIALECT,
        "$id": f"urn:{name.replace('/', ':')}",
        "title": f"What `netvlad-deploy {verb} --json` prints",
        **content,
        "$defs": dict(sorted(objects.items())),
    }


def files() -> dict[str, str]:
    """Return the content of every schema file by its name."""
    verbs = dict.fromkeys(label.split()[0] for label in PRINTED)
    return {
        SCHEMAS.joinpath(f"{verb}-{schema_name(verb).rpartition('/')[2]}.json").name: text_of(verb) for verb in verbs
    }


def text_of(verb: str) -> str:
    return json.dumps(schema(verb), indent=1) + "\n"


def main() -> None:
    """Write all schemas, and remove those of layouts that no verb prints any more."""
    written = files()
    SCHEMAS.mkdir(exist_ok=True)
    for path in SCHEMAS.glob("*.json"):
        if path.name not in written:
            path.unlink()
    for name, text in written.items():
        (SCHEMAS / name).write_text(text)
    print(f"{len(written)} schemas in {SCHEMAS}")


if __name__ == "__main__":
    main()
