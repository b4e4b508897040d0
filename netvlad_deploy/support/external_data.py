"""The names of the external data files of an ONNX graph, read from its bytes without the package onnx.

A parser of ONNX opens every file that the graph names, at any path: so the names are checked before a graph is parsed.
Only the few protobuf messages that lead to a tensor are followed; all others are skipped, weights too.

Source: onnx/onnx.proto (field numbers).
"""

import json
from collections.abc import Mapping
from typing import Final

from netvlad_deploy.support.protobuf import fields

EXTERNAL_DATA_PROPERTY: Final = "netvlad_deploy.external_data"
"""Metadata property in which an exported file has the name and hash of its external data: one hash then covers both."""

MAX_MESSAGE_DEPTH: Final = 100
"""Depth of nested messages at which protobuf itself stops reading."""

_MESSAGES: Final[Mapping[str, Mapping[int, str]]] = {
    "model": {7: "graph", 14: "property", 20: "training", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "function": {7: "node", 11: "attribute"},
    "training": {1: "graph", 2: "graph"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "external"},
    "property": {},
    "external": {},
}
"""By message, the fields that lead to the name of a file or to a metadata property, and the message in each."""


def read_names(content: bytes) -> tuple[set[str], dict[str, str]]:
    """Return the names of external data files and the metadata properties in the bytes of an ONNX file.

    Raises: ValueError if they are no protobuf.
    """
    files: set[str] = set()
    properties: dict[str, str] = {}
    pending = [("model", memoryview(content), 0)]
    while pending:
        kind, message, depth = pending.pop()
        if depth > MAX_MESSAGE_DEPTH:
            raise ValueError(f"messages are more than {MAX_MESSAGE_DEPTH} deep")
        if kind in ("external", "property"):
            keys, values = _entry(message)
            if kind == "property" and keys:
                properties[keys[-1]] = values[-1]
            elif "location" in keys:
                files.update(values)
            continue
        within = _MESSAGES[kind]
        for number, part in fields(message):
            if number in within and isinstance(part, memoryview):
                pending.append((within[number], part, depth + 1))
    return files, properties


def check_names(content: bytes, listed: Mapping[str, str] | None) -> None:
    """Raise ValueError unless an ONNX file's bytes name the external data `listed`, by name and hash, and no other."""
    files, properties = read_names(content)
    if others := files - {listed and listed["name"]}:
        raise ValueError(f"it names the external data {', '.join(sorted(others))[:200]}")
    if properties.get(EXTERNAL_DATA_PROPERTY, "null") != json.dumps(listed, sort_keys=True):
        raise ValueError("its external data is of another name or content")


def _entry(message: memoryview) -> tuple[list[str], list[str]]:
    """Return all keys and all values of an entry of text; protobuf takes the last of each."""
    found: dict[int, list[str]] = {1: [], 2: []}
    for number, part in fields(message):
        if number in found and isinstance(part, memoryview):
            found[number].append(bytes(part).decode(errors="replace"))
    return found[1], found[2] or [""]
