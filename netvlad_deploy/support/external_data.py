"""Which files an ONNX graph would have opened beside itself, read from its bytes without the package onnx.

Whoever parses a graph opens the files it names, wherever it stands: so the names are read first. Only the few messages
of protobuf that lead to a tensor are followed, and the rest is skipped, weights too.

Source: onnx/onnx.proto (field numbers), and protobuf's encoding (tags, varints, lengths).
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

PROPERTY: Final = "netvlad_deploy.external_data"
"""Where an ONNX file of ours has name and hash of its external data, so that its own hash is that of both."""

DEEPEST_MESSAGE: Final = 100
"""Messages within messages that protobuf itself reads."""

VARINT, FIXED64, LENGTH_DELIMITED, FIXED32 = 0, 1, 2, 5

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
"""The fields of each message that lead to the name of a file, or to what a file says of itself."""


@dataclass(frozen=True, kw_only=True)
class Names:
    """What a graph names: files with weights, in any tensor of it, and its own properties."""

    files: frozenset[str]
    properties: Mapping[str, str]


def read_names(content: bytes) -> Names:
    """Return what the bytes of an ONNX file name.

    Raises: ValueError if they are no protobuf.
    """
    files: set[str] = set()
    properties: dict[str, str] = {}
    pending = [("model", memoryview(content), 0)]
    while pending:
        kind, message, depth = pending.pop()
        if depth > DEEPEST_MESSAGE:
            raise ValueError(f"messages are more than {DEEPEST_MESSAGE} deep")
        if kind in ("external", "property"):
            keys, values = _entry(message)
            if kind == "property" and keys:
                properties[keys[-1]] = values[-1]
            elif "location" in keys:
                files.update(values)
            continue
        within = _MESSAGES[kind]
        pending += [(within[number], part, depth + 1) for number, part in _fields(message) if number in within]
    return Names(files=frozenset(files), properties=properties)


def check_names(content: bytes, listed: Mapping[str, str] | None) -> None:
    """Raise ValueError unless an ONNX file's bytes name the external data `listed`, by name and hash, and no other."""
    names = read_names(content)
    if others := names.files - {listed and listed["name"]}:
        raise ValueError(f"it names the external data {', '.join(sorted(others))[:200]}")
    if names.properties.get(PROPERTY, "null") != json.dumps(listed, sort_keys=True):
        raise ValueError("its external data is of another name or content")


def _entry(message: memoryview) -> tuple[list[str], list[str]]:
    """Return all that an entry says of its key, and of its value; protobuf takes the last of each."""
    found: dict[int, list[str]] = {1: [], 2: []}
    for number, part in _fields(message):
        if number in found:
            found[number].append(bytes(part).decode(errors="replace"))
    return found[1], found[2] or [""]


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Yield number and content of every field that has a length."""
    position = 0
    while position < len(message):
        tag, position = _varint(message, position)
        if tag > 0xFFFF_FFFF:  # protobuf would cut it, and see another field
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
    """Return a number in groups of seven bits, the lowest first, and where it ends."""
    value = shift = 0
    while True:
        if position >= len(message) or shift > 63:
            raise ValueError("a number is cut off")
        byte = message[position]
        value |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if byte < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF, position
