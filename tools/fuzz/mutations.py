"""Damage to files: of their bytes, of the members of a zip archive, and of the opcodes of a pickle."""

import contextlib
import io
import pickletools
import random
import struct
import zipfile
from collections.abc import Callable, Sequence

from netvlad_deploy.support.formats import READER_ERRORS

NUMBERS = (0, 1, 127, 255, 1 << 15, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, (1 << 63) - 1, (1 << 64) - 1)
LAYOUTS = ("<B", "<H", ">H", "<I", ">I", "<Q", ">Q")
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
    *(flip, number, truncate, splice, repeat, insert, opcodes),
)


def mutated(rng: random.Random, seeds: Sequence[bytes]) -> bytes:
    """Return a damaged file: of a zip archive every other time a member, which is packed again with its checksum."""
    content = rng.choice(seeds)
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
