"""Images in the messages of ROS: `sensor_msgs/Image` and `sensor_msgs/CompressedImage`, as ROS 1 and ROS 2 write them.

The bytes are read here, by the fixed layout of these two types: no definition that a bag brings is looked at.

Source: ros/common_msgs, sensor_msgs/msg/Image.msg and CompressedImage.msg, and sensor_msgs/image_encodings.h; ROS 1
serialisation: roscpp, serialization.h; ROS 2: OMG DDS-XTypes, CDR.
"""

import struct
from dataclasses import dataclass
from typing import Final

import numpy as np

from netvlad_deploy.errors import InputError
from netvlad_deploy.spec.items import Content
from netvlad_deploy.support.formats import shown

RAW, COMPRESSED = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"
IMAGE_TYPES: Final = (RAW, COMPRESSED)

CHANNELS_OF: Final = {"rgb8": (0, 1, 2), "bgr8": (2, 1, 0), "rgba8": (0, 1, 2), "bgra8": (2, 1, 0), "mono8": (0, 0, 0)}
"""By encoding of 8 bits, which of a pixel's bytes are red, green and blue."""

DEEP: Final = ("mono16", "16UC1")
"""Encodings of 16 bits of grey."""

ALIASES: Final = {"8UC1": "mono8"}
PIXEL_BYTES: Final = {"rgb8": 3, "bgr8": 3, "rgba8": 4, "bgra8": 4, "mono8": 1, "mono16": 2, "16UC1": 2}
SECOND_NS: Final = 10**9


@dataclass
class _Cursor:
    """Reads the fields of one message in their order; ROS 2 aligns numbers, ROS 1 does not."""

    data: bytes
    ros2: bool
    place: int = 0
    order: str = "<"

    def __post_init__(self) -> None:
        if self.ros2:  # four bytes say the byte order, and alignment counts from behind them
            if len(self.data) < 4 or self.data[0] != 0 or self.data[1] > 1:
                raise InputError("its encapsulation is not plain CDR: name a compressed bag by its folder")
            self.order = "<" if self.data[1] else ">"
            self.data = self.data[4:]

    def number(self, kind: str) -> int:
        size = struct.calcsize(kind)
        if self.ros2:
            self.place += -self.place % size
        values = struct.unpack_from(self.order + kind, self.data, self.place)
        self.place += size
        return int(values[0])

    def blob(self) -> memoryview:
        """Return the bytes of an array of bytes."""
        count = self.number("I")
        if count > len(self.data) - self.place:
            raise InputError(f"it claims {count} bytes, and {len(self.data) - self.place} are left")
        self.place += count
        return memoryview(self.data)[self.place - count : self.place]

    def text(self) -> str:
        """Return a text; in ROS 2 a NUL ends it."""
        return bytes(self.blob()).decode(errors="replace").rstrip("\0")


def header_time(data: bytes, *, ros2: bool) -> int:
    """Return the time stamp in the header of a message in nanoseconds, 0 if its sender set none.

    Raises: InputError if the message is cut short.
    """
    try:
        return _stamp(_Cursor(data, ros2))
    except struct.error as error:
        raise InputError("its message is cut short") from error


def image_of(data: bytes, kind: str, *, ros2: bool) -> Content:
    """Return the image of a message: encoded bytes of a CompressedImage, pixels (H,W,3) RGB of an Image.

    Raises: InputError if it is cut short, or has an encoding that is not taken.
    """
    try:
        cursor = _Cursor(data, ros2)
        _stamp(cursor)
        cursor.text()  # frame_id
        return _compressed(cursor) if kind == COMPRESSED else _raw(cursor)
    except struct.error as error:
        raise InputError("its message is cut short") from error


def _stamp(cursor: _Cursor) -> int:
    if not cursor.ros2:
        cursor.number("I")  # the counter `seq`
    seconds = cursor.number("i" if cursor.ros2 else "I")
    return max(0, seconds * SECOND_NS + cursor.number("I"))


def _compressed(cursor: _Cursor) -> bytes:
    kind = cursor.text()
    if "compressedDepth" in kind:
        raise InputError(f"its format is {shown(kind)}, which is no picture but distances")
    return bytes(cursor.blob())


def _raw(cursor: _Cursor) -> Content:
    """Return pixels, or of 16 bits of grey a PGM file, which is prepared as every image of this depth is."""
    height, width = cursor.number("I"), cursor.number("I")
    encoding = cursor.text()
    big_endian, step = cursor.number("B"), cursor.number("I")
    values = cursor.blob()
    encoding = ALIASES.get(encoding, encoding)
    if encoding not in PIXEL_BYTES:
        known = ", ".join(PIXEL_BYTES)
        raise InputError(f"its encoding is {encoding[:40]!r}, expected {known}: convert it with image_proc")
    row_bytes = width * PIXEL_BYTES[encoding]
    if not height or not width or step < row_bytes or height * step > len(values):
        raise InputError(
            f"it claims height {height}, width {width} and {step} bytes a row, and holds {len(values)} bytes"
        )
    rows = np.frombuffer(values, np.uint8, height * step).reshape(height, step)[:, :row_bytes]
    pixels = rows.reshape(height, width, PIXEL_BYTES[encoding])
    if encoding in DEEP:
        grey = pixels if big_endian else pixels[:, :, ::-1]
        return b"P5 %d %d 65535\n%b" % (width, height, grey.tobytes())
    return np.ascontiguousarray(pixels[:, :, list(CHANNELS_OF[encoding])])
