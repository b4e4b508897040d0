"""Write checkpoints as TensorFlow 1 does, from the description of the format; nothing here knows the reader.

An index is a table of LevelDB: blocks, an index of them, and a footer. Keys share prefixes, and every sixteenth begins
anew, as TensorFlow writes them.
"""

import struct
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np

from netvlad_deploy.support.arrays import Array

NUMBERS = {
    "float32": 1, "float64": 2, "int32": 3, "uint8": 4, "int16": 5, "int8": 6, "int64": 9, "bool": 10, "uint16": 17,
    "float16": 19, "uint32": 22, "uint64": 23,
}  # fmt: skip
Entry = tuple[bytes, bytes]


def crc32c(content: bytes) -> int:
    """Return the checksum bit by bit, as RFC 3720 defines it."""
    state = 0xFFFFFFFF
    for byte in content:
        state ^= byte
        for _ in range(8):
            state = state >> 1 ^ (0x82F63B78 if state & 1 else 0)
    return state ^ 0xFFFFFFFF


def masked(content: bytes) -> int:
    checksum = crc32c(content)
    return ((checksum >> 15 | checksum << 17) + 0xA282EAD8) & 0xFFFFFFFF


def varint(number: int) -> bytes:
    number &= (1 << 64) - 1
    digits = []
    while number >= 128:
        digits.append(number & 127 | 128)
        number >>= 7
    return bytes([*digits, number])


def text(field: int, content: bytes) -> bytes:
    return varint(field << 3 | 2) + varint(len(content)) + content


def whole(field: int, number: int) -> bytes:
    return varint(field << 3) + varint(number) if number else b""


def header(shards: int, endianness: int = 0) -> bytes:
    return whole(1, shards) + whole(2, endianness) + text(3, whole(1, 1))


def entry(
    dtype: int,
    shape: Iterable[int],
    *,
    size: int,
    offset: int = 0,
    shard: int = 0,
    checksum: int = 0,
    more: bytes = b"",
) -> bytes:
    dimensions = b"".join(text(2, whole(1, length)) for length in shape)
    start = whole(1, dtype) + text(2, dimensions) + whole(3, shard) + whole(4, offset) + whole(5, size)
    return start + varint(6 << 3 | 5) + struct.pack("<I", checksum) + more


def block(entries: Iterable[Entry]) -> bytes:
    content, restarts, last = b"", [], b""
    for number, (key, value) in enumerate(entries):
        shared = 0
        if number % 16:
            while shared < min(len(key), len(last)) and key[shared] == last[shared]:
                shared += 1
        else:
            restarts.append(len(content))
        content += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        last = key
    restarts = restarts or [0]
    return content + struct.pack(f"<{len(restarts) + 1}I", *restarts, len(restarts))


def trailed(content: bytes, kind: int = 0) -> bytes:
    return content + bytes([kind]) + struct.pack("<I", masked(content + bytes([kind])))


def table(blocks: Iterable[bytes], *, kind: int = 0) -> bytes:
    """Return a table of these blocks, whose contents are as they come; the keys of their index are theirs."""
    content, places = b"", []
    for number, each in enumerate(blocks):
        places.append((f"{number:09d}".encode(), varint(len(content)) + varint(len(each))))
        content += trailed(each, kind)
    meta = len(content)
    content += trailed(block([]))
    index, start = block(places), len(content)
    content += trailed(index)
    handles = varint(meta) + varint(len(block([]))) + varint(start) + varint(len(index))
    return content + handles.ljust(40, b"\0") + struct.pack("<Q", 0xDB4775248B80FB57)


def write_bundle(
    folder: Path,
    name: str,
    variables: Mapping[str, Array],
    *,
    shards: int = 1,
    block_entries: int = 7,
    checksum: Callable[[bytes], int] = masked,
) -> Path:
    """Write variables, in turn into the shards, and return the path of the index; `checksum` is the masked one."""
    contents = [b""] * shards
    entries: list[Entry] = [(b"", header(shards))]
    for number, key in enumerate(sorted(variables)):
        array, shard = np.asarray(variables[key]), number % shards
        data = array.tobytes()
        value = entry(
            NUMBERS[array.dtype.name],
            array.shape,
            size=len(data),
            offset=len(contents[shard]),
            shard=shard,
            checksum=checksum(data),
        )
        entries.append((key.encode(), value))
        contents[shard] += data
    for shard, data in enumerate(contents):
        (folder / f"{name}.data-{shard:05d}-of-{shards:05d}").write_bytes(data)
    blocks = [block(entries[at : at + block_entries]) for at in range(0, len(entries), block_entries)]
    (folder / f"{name}.index").write_bytes(table(blocks))
    return folder / f"{name}.index"
