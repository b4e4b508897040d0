"""Read the table of keys and values in the index of a TensorFlow checkpoint.

It is a table of LevelDB: blocks of entries, an index of the blocks, and a footer that says where the index is. Each key
leaves out what it has in common with the key before it. Every offset and size is compared with the bytes that are there
before it is used, and every block with its checksum.

Source: google/leveldb, doc/table_format.md; tensorflow/tensorflow, tensorflow/core/lib/io/format.cc.
"""

import struct
from collections.abc import Iterator
from typing import Final

from netvlad_deploy.errors import InputError
from netvlad_deploy.models.crc32c import masked_crc32c
from netvlad_deploy.support.protobuf import read_varint

MAGIC: Final = 0xDB4775248B80FB57
FOOTER_BYTES: Final = 48
TRAILER_BYTES: Final = 5
"""After a block: a byte that says how it is compressed, and the checksum of both."""

PLAIN, SNAPPY = 0, 1
MAX_KEY_BYTES: Final = 1024


def read_table(content: bytes) -> dict[bytes, bytes]:
    """Return the values of a table by their keys.

    Raises: InputError if a block is compressed; errors of `formats.READER_ERRORS` if the table is damaged.
    """
    body = len(content) - FOOTER_BYTES
    if body < 0 or struct.unpack("<Q", content[-8:]) != (MAGIC,):
        raise ValueError("it does not end as the index of a TensorFlow checkpoint does")
    _, _, at = _handle(content[body:], 0)  # of the metadata, which nobody writes
    blocks = _block(content[:body], *_handle(content[body:], at)[:2])
    values: dict[bytes, bytes] = {}
    last, end = b"", 0
    for _, place in _entries(blocks):
        offset, size, _ = _handle(place, 0)
        if offset < end:
            raise ValueError(f"a block begins at {offset}, inside the one before it")
        end = offset + size
        for key, value in _entries(_block(content[:body], offset, size)):
            if values and key <= last:
                raise ValueError(f"the key {key!r} follows {last!r}")
            values[key], last = value, key
    return values


def _handle(content: bytes, at: int) -> tuple[int, int, int]:
    """Return the offset and the size of a block, and the place after both."""
    offset, at = read_varint(content, at)
    size, at = read_varint(content, at)
    return offset, size, at


def _block(content: bytes, offset: int, size: int) -> bytes:
    """Return the block at a place, whose checksum is right."""
    if offset + size + TRAILER_BYTES > len(content):
        raise EOFError(f"a block of {size} bytes at {offset} is expected, {len(content)} are there")
    checked = content[offset : offset + size + 1]
    (checksum,) = struct.unpack_from("<I", content, offset + size + 1)
    if masked_crc32c(checked) != checksum:
        raise ValueError(f"the block at {offset} does not have its checksum")
    if checked[-1] == SNAPPY:
        raise InputError(
            "the index of the checkpoint is compressed by Snappy, which TensorFlow has not done since 1.2: restore it "
            "with TensorFlow and save it again"
        )
    if checked[-1] != PLAIN:
        raise ValueError(f"the block at {offset} is compressed in the unknown way {checked[-1]}")
    return checked[:-1]


def _entries(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the keys and values of a block, which ends with a list of places and its length."""
    (count,) = struct.unpack("<I", block[-4:])
    end, at, key = len(block) - 4 * (count + 1), 0, b""
    if end < 0:
        raise EOFError(f"{count} places are expected in a block of {len(block)} bytes")
    while at < end:
        shared, at = read_varint(block, at)
        own, at = read_varint(block, at)
        size, at = read_varint(block, at)
        if shared > len(key) or shared + own > MAX_KEY_BYTES or at + own + size > end:
            raise ValueError(f"an entry at {at} claims {shared} + {own} bytes of key and {size} of value")
        key = key[:shared] + block[at : at + own]
        yield key, block[at + own : at + own + size]
        at += own + size
