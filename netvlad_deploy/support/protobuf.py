"""Fields of protobuf messages, read from their bytes without a parser of their own kind.

Source: protobuf's encoding (tags, varints, wire types).
"""

from collections.abc import Iterator
from typing import Final

VARINT, LENGTH_DELIMITED = 0, 2
FIXED_BYTES: Final = {1: 8, 5: 4}
"""By wire type, the size of a number that is always as long."""


def fields(message: bytes | memoryview) -> Iterator[tuple[int, int | memoryview]]:
    r"""Yield number and value of each field: a memoryview of a message, text or bytes, or else a number without a sign.

    >>> [(number, bytes(value)) for number, value in fields(b"\x12\x02ab")]
    [(2, b'ab')]

    Raises: ValueError if the message is damaged.
    """
    message, position = memoryview(message), 0
    while position < len(message):
        tag, position = read_varint(message, position)
        if tag > 0xFFFF_FFFF:  # protobuf would cut it to 32 bits, and see another field
            raise ValueError(f"a tag is {tag}")
        number, wire = tag >> 3, tag & 7
        if wire == VARINT:
            value, position = read_varint(message, position)
            yield number, value
            continue
        if wire == LENGTH_DELIMITED:
            length, position = read_varint(message, position)
        elif wire in FIXED_BYTES:
            length = FIXED_BYTES[wire]
        else:
            raise ValueError(f"field {number} has the wire type {wire}")
        part = message[position : position + length]
        if len(part) < length:
            raise ValueError(f"field {number} ends beyond its message")
        yield number, part if wire == LENGTH_DELIMITED else int.from_bytes(part, "little")
        position += length


def read_varint(content: bytes | memoryview, position: int) -> tuple[int, int]:
    r"""Return the number whose groups of seven bits start at a position, lowest first, and the position after it.

    >>> read_varint(b"\xac\x02", 0)
    (300, 2)

    Raises: ValueError if it goes on after the end, or has more than 64 bits.
    """
    value = shift = 0
    while True:
        if position >= len(content) or shift > 63:
            raise ValueError("a number is cut off")
        byte = content[position]
        value |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if byte < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF, position
