"""The names of the external data files of an ONNX graph, read from its bytes without the package onnx.

A parser of ONNX opens every file that the graph names, at any path: so the names are checked before a graph is parsed.
Only the few protobuf messages that lead to a tensor are followed; all others are skipped, weights too.

Source: onnx/onnx.proto (field numbers), and protobuf's encoding (tags, varints, lengths).
"""

import json
from collections.abc import Iterator, Mapping
from typing import Final

EXTERNAL_DATA_PROPERTY: Final = "netvlad_deploy.external_data"
"""Metadata property in which an exported file has the name and hash of its external data: one hash then covers both."""

MAX_MESSAGE_DEPTH: Final = 100
"""Depth of nested messages at which protobuf itself stops reading."""

VARINT, FIXED64, LENGTH_DELIMITED, FIXED32 = 0, 1, 2, 5
"""Wire types of protobuf."""

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
        pending += [(within[number], part, depth + 1) for number, part in _fields(message) if number in within]
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
    for number, part in _fields(message):
        if number in found:
            found[number].append(bytes(part).decode(errors="replace"))
    return found[1], found[2] or [""]


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Yield the number and the content of every length-delimited field of a message."""
    position = 0
    while position < len(message):
        tag, position = _varint(message, position)
        if tag > 0xFFFF_FFFF:  # protobuf would cut it to 32 bits, and see another field
            raise ValueError(f"a tag is {tag}")
        number, wire = tag >> 3, tag & 7
        if wire == VARINT:
            _, position = _varint(message, position)
            continue
        if wire == LENGTH_DELIMITED:
            length, position = _varint(message, position)
        elif wire in (FIXED32, FIXED64):
            length = 4 if wire == FIXED32 else 8
        else:
            raise ValueError(f"field {number} has the wire type {wire}")
        end = position + length
        if end > len(message):
            raise ValueError(f"field {number} ends beyond its message")
        if wire == LENGTH_DELIMITED:
            yield number, message[position:end]
        position = end


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    """Return the number whose groups of seven bits start at a position, lowest first, and the position after it."""
    value = shift = 0
    while True:
        if position >= len(message) or shift > 63:
            raise ValueError("a number is cut off")
        byte = message[position]
        value |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if byte < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF, position
