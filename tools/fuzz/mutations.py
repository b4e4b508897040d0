"""Damage to files: of their bytes and numbers in text, of zip members, of opcodes of a pickle, of values of JSON."""

import contextlib
import io
import json
import pickletools
import random
import re
import struct
import zipfile
from collections.abc import Callable, Sequence
from typing import Any

from netvlad_deploy.support.formats import READER_ERRORS

NUMBERS = (0, 1, 127, 255, 1 << 15, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, (1 << 63) - 1, (1 << 64) - 1)
LONGEST_TEXT = 1 << 16
LAYOUTS = ("<B", "<H", ">H", "<I", ">I", "<Q", ">Q")
WORDS = (*(b"%d" % value for value in NUMBERS), b"-1", b"1.5", b"1e999", b"NaN", b"9" * 400)
VALUES: tuple[object, ...] = (
    None,
    True,
    -1,
    0,
    2,
    1 << 64,
    10**400,
    0.5,
    1e300,
    float("inf"),
    float("nan"),
    "",
    "a",
    "\ud800",
    [],
    {},
    [[]],
)
OPCODES = tuple(opcode.code.encode("latin1") for opcode in pickletools.opcodes)


def flip(rng: random.Random, content: bytes, _: Sequence[bytes]) -> bytes:
    """Change single bits."""
    changed = bytearray(content)
    for _index in range(rng.choice((1, 1, 2, 8, 64))):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def number(rng: random.Random, content: bytes, _: Sequence[bytes]) -> bytes:
    """Write a number of an edge over what is there."""
    layout = rng.choice(LAYOUTS)
    size = struct.calcsize(layout)
    value = struct.pack(layout, rng.choice(NUMBERS) % (1 << 8 * size))
    at = rng.randrange(max(1, len(content) - size))
    return content[:at] + value + content[at + size :]


def truncate(rng: random.Random, content: bytes, _: Sequence[bytes]) -> bytes:
    """Cut the end off."""
    return content[: rng.randrange(len(content))]


def splice(rng: random.Random, content: bytes, seeds: Sequence[bytes]) -> bytes:
    """Go on as another file, or as this one from elsewhere."""
    other = rng.choice([seed for seed in seeds if seed])
    return content[: rng.randrange(len(content))] + other[rng.randrange(len(other)) :]


def repeat(rng: random.Random, content: bytes, _: Sequence[bytes]) -> bytes:
    """Write a part twice, or leave it out."""
    start = rng.randrange(len(content))
    end = min(len(content), start + rng.choice((1, 4, 16, 64, 1024)))
    return content[:start] + content[start:end] * rng.choice((0, 2, 9)) + content[end:]


def insert(rng: random.Random, content: bytes, _: Sequence[bytes]) -> bytes:
    """Put random bytes in between."""
    at = rng.randrange(len(content))
    return content[:at] + rng.randbytes(rng.choice((1, 2, 4, 8, 100))) + content[at:]


def word(rng: random.Random, content: bytes, _: Sequence[bytes]) -> bytes:
    """Write another number over one that is written in digits."""
    found = list(re.finditer(rb"\d+", content[:LONGEST_TEXT]))
    if not found:
        return content
    start, end = rng.choice(found).span()
    return content[:start] + rng.choice(WORDS) + content[end:]


def value(rng: random.Random, content: bytes, seeds: Sequence[bytes]) -> bytes:
    """Give a member of JSON another value, or that of another member, or none; of several lines in one of them.

    JSON is also looked for behind a length of eight bytes, which is then made right, as safetensors has it.
    """
    if len(content) > 8 and content[8:9] == b"{" and (size := int.from_bytes(content[:8], "little")) < len(content):
        changed = value(rng, content[8 : 8 + size], seeds)
        return len(changed).to_bytes(8, "little") + changed + content[8 + size :]
    if content[:1] not in (b"{", b"[") or len(content) > LONGEST_TEXT:
        return content
    with contextlib.suppress(ValueError, RecursionError):
        return _changed(rng, content, indent=2) + b"\n"
    lines = content.split(b"\n")
    at = rng.randrange(len(lines))
    with contextlib.suppress(ValueError, RecursionError):
        lines[at] = _changed(rng, lines[at], indent=None)
    return b"\n".join(lines)


def _changed(rng: random.Random, content: bytes, *, indent: int | None) -> bytes:
    record = json.loads(content)
    _change(rng, record)
    return json.dumps(record, indent=indent, sort_keys=indent is not None).encode()


def _change(rng: random.Random, record: object) -> None:
    """Change one value in a list or an object, at any depth."""
    places: list[tuple[Any, Any]] = []
    left = [record]
    while left:
        each = left.pop()
        if isinstance(each, dict | list):
            keys = list(each) if isinstance(each, dict) else range(len(each))
            places.extend((each, key) for key in keys)
            left.extend(each[key] for key in keys)
    if not places:
        return
    holder, key = rng.choice(places)
    what = rng.random()
    if what < 0.1:
        del holder[key]
    elif what < 0.2 and isinstance(holder, dict):
        holder[rng.choice(("", "x", "schema"))] = holder[key]
    else:
        donor, other = rng.choice(places)
        holder[key] = json.loads(json.dumps(donor[other])) if what < 0.5 else rng.choice(VALUES)


def opcodes(rng: random.Random, content: bytes, _: Sequence[bytes]) -> bytes:
    """Take an opcode of a pickle out, write it twice, or write others over it or before it."""
    places = _places(content)
    if len(places) < 3:
        return content
    at = rng.randrange(len(places) - 1)
    before, own, after = content[: places[at]], content[places[at] : places[at + 1]], content[places[at + 1] :]
    other = rng.randrange(len(places) - 1)
    taken = content[places[other] : places[other + 1]]
    written = rng.choice((b"", own * 2, taken, own + taken, rng.choice(OPCODES), rng.choice(OPCODES) + own))
    return before + written + after


def _places(content: bytes) -> list[int]:
    places: list[int] = []
    with contextlib.suppress(ValueError, IndexError, KeyError, EOFError, OverflowError, struct.error):
        places.extend(place or 0 for _, _, place in pickletools.genops(content))  # up to the damage
    return places


MUTATIONS: tuple[Callable[[random.Random, bytes, Sequence[bytes]], bytes], ...] = (
    *(flip, number, truncate, splice, repeat, insert, opcodes, word, value),
)


def mutated(rng: random.Random, content: bytes, seeds: Sequence[bytes]) -> bytes:
    """Return a damaged file: of a zip archive every other time a member, which is packed again with its checksum."""
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        if content.startswith(b"PK") and rng.random() < 0.6:
            content = _with_damaged_member(rng, content, seeds)
        elif content:
            content = rng.choice(MUTATIONS)(rng, content, seeds)
    return content


def _with_damaged_member(rng: random.Random, content: bytes, seeds: Sequence[bytes]) -> bytes:
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
    except READER_ERRORS:
        return content
    if not members:
        return content
    pickles = [name for name in members if name.endswith(".pkl")]
    name = rng.choice(pickles if pickles and rng.random() < 0.7 else list(members))
    what = rng.random()
    if what < 0.05:
        del members[name]
    elif what < 0.1:
        members[rng.choice(list(members))] = members[name]
    elif members[name]:
        mutations = (opcodes,) if name in pickles and rng.random() < 0.6 else MUTATIONS
        members[name] = rng.choice(mutations)(rng, members[name], [*members.values(), *seeds])
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for each, value in members.items():
            archive.writestr(zipfile.ZipInfo(each), value)
    return packed.getvalue()
