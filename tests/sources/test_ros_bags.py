"""Images in bags that rosbags wrote, of ROS 1 and of ROS 2 in SQLite and MCAP."""

import importlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from netvlad_deploy.errors import InputError, UsageError
from netvlad_deploy.sources.open_sources import open_sources
from netvlad_deploy.sources.ros_messages import image_of
from netvlad_deploy.spec.items import Content, Item, Skipped
from netvlad_deploy.support.arrays import Array

pytestmark = pytest.mark.bulk

RGB = np.random.default_rng(0).integers(0, 256, (3, 5, 3), dtype=np.uint8)
T0 = 1_700_000_000_000_000_000
KINDS = ("bag", "db3", "mcap", "folder")
Message = tuple[str, Any, int]
"""Topic, message, time in the bag."""


def store(*, ros2: bool = True) -> Any:
    typesys = importlib.import_module("rosbags.typesys")
    return typesys.get_typestore(typesys.Stores.ROS2_HUMBLE if ros2 else typesys.Stores.ROS1_NOETIC)


def header(types: Any, time: int, *, ros2: bool) -> Any:
    stamp = types["builtin_interfaces/msg/Time"](sec=time // 10**9, nanosec=time % 10**9)
    return types["std_msgs/msg/Header"](stamp=stamp, frame_id="camera", **({} if ros2 else {"seq": 7}))


def image(array: Array, time: int, encoding: str = "rgb8", *, padding: int = 0, big: int = 0, ros2: bool = True) -> Any:
    """Return a raw image whose rows have some bytes more than their pixels."""
    types = store(ros2=ros2).types
    rows = array.reshape(len(array), -1).view(np.uint8)
    rows = np.pad(rows, ((0, 0), (0, padding)), constant_values=99)
    return types["sensor_msgs/msg/Image"](
        header=header(types, time, ros2=ros2),
        height=array.shape[0], width=array.shape[1], encoding=encoding, is_bigendian=big, step=rows.shape[1],
        data=rows.ravel(),
    )  # fmt: skip


def compressed(content: bytes, time: int, kind: str = "jpeg", *, ros2: bool = True) -> Any:
    types = store(ros2=ros2).types
    data = np.frombuffer(content, np.uint8)
    return types["sensor_msgs/msg/CompressedImage"](header=header(types, time, ros2=ros2), format=kind, data=data)


def write_bag(folder: Path, kind: str, make: Callable[[bool], Sequence[Message]]) -> Path:
    """Write a bag of a kind with the messages that `make` gives for ROS 2 or not, and return what to name."""
    ros2 = kind != "bag"
    types = store(ros2=ros2)
    if ros2:
        rosbag2 = importlib.import_module("rosbags.rosbag2")
        plugin = rosbag2.StoragePlugin.MCAP if kind == "mcap" else rosbag2.StoragePlugin.SQLITE3
        target = folder / "run"
        writer = rosbag2.Writer(target, version=9, storage_plugin=plugin)
    else:
        target = folder / "run.bag"
        writer = importlib.import_module("rosbags.rosbag1").Writer(target)
    with writer:
        connections: dict[str, Any] = {}
        for topic, message, time in make(ros2):
            name = message.__msgtype__
            if topic not in connections:
                connections[topic] = writer.add_connection(topic, name, typestore=types)
            data = types.serialize_cdr(message, name) if ros2 else types.serialize_ros1(message, name)
            writer.write(connections[topic], time, data)
    return target / f"run.{kind}" if kind in ("db3", "mcap") else target


def camera(ros2: bool) -> list[Message]:
    """Return three raw images, a second apart, whose headers are 5 ns older than the bag's times; and a text."""
    text = store(ros2=ros2).types["std_msgs/msg/String"](data="hello")
    images = [
        ("/camera", image(RGB + number, T0 + number * 10**9, ros2=ros2), T0 + number * 10**9 + 5) for number in range(3)
    ]
    return [images[0], ("/chatter", text, T0 + 6), *images[1:]]


def listed(path: Path, topic: str | None = None) -> tuple[list[Item], list[str]]:
    found = list(open_sources([str(path)], topic=topic).items())
    return [one for one in found if isinstance(one, Item)], [str(one) for one in found if isinstance(one, Skipped)]


def read(path: Path, items: list[Item], topic: str | None = None) -> list[Content]:
    return [load() for _, load in list(open_sources([str(path)], topic=topic).open(items))]


@pytest.mark.parametrize("kind", KINDS)
def test_images_of_the_only_topic_by_their_time_stamps(tmp_path: Path, kind: str) -> None:
    path = write_bag(tmp_path, kind, camera)
    items, skipped = listed(path)
    assert [(item.name, item.time_ns) for item in items] == [(str(T0 + n * 10**9), T0 + n * 10**9) for n in range(3)]
    assert skipped == []
    assert [np.asarray(values).tolist() for values in read(path, items)] == [(RGB + n).tolist() for n in range(3)]
    (last,) = read(path, items[2:])
    assert np.array_equal(np.asarray(last), RGB + 2)
    assert items[0].modified_ns == path.stat().st_mtime_ns


@pytest.mark.parametrize("kind", ["bag", "mcap"])
def test_compressed_images_are_their_bytes(tmp_path: Path, kind: str) -> None:
    def messages(ros2: bool) -> list[Message]:
        return [
            ("/cam", compressed(b"\xff\xd8jpeg", T0, ros2=ros2), T0),
            ("/cam", compressed(b"depth", T0 + 1, "16UC1; compressedDepth png", ros2=ros2), T0 + 1),
        ]

    path = write_bag(tmp_path, kind, messages)
    items, _ = listed(path)
    assert read(path, items[:1]) == [b"\xff\xd8jpeg"]
    with pytest.raises(InputError, match=rf"run.*, image {T0 + 1}: its format is 16UC1; compressedDepth png"):
        read(path, items[1:])


def test_a_topic_must_be_chosen_where_several_have_images(tmp_path: Path) -> None:
    def messages(ros2: bool) -> list[Message]:
        return [*camera(ros2), ("/left", image(RGB, T0, ros2=ros2), T0)]

    path = write_bag(tmp_path, "mcap", messages)
    with pytest.raises(UsageError, match=r"topics with images: /camera \(3\), /left \(1\): choose one with --topic"):
        listed(path)
    assert len(listed(path, "/left")[0]) == 1
    with pytest.raises(UsageError, match=r"no images in /chatter, but topics with images: /camera \(3\), /left \(1\)"):
        listed(path, "/chatter")


def test_a_bag_without_images_names_its_topics(tmp_path: Path) -> None:
    path = write_bag(tmp_path, "folder", lambda ros2: camera(ros2)[1:2])
    with pytest.raises(UsageError, match="topics with images: none: its topics are /chatter"):
        listed(path)


def test_without_a_stamp_the_bag_s_time_counts_and_equal_stamps_are_skipped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    path = write_bag(tmp_path, "mcap", lambda ros2: [
        ("/c", image(RGB, time, ros2=ros2), bag_time) for time, bag_time in ((0, 11), (0, 12), (12, 13), (14, 14))
    ])  # fmt: skip
    items, skipped = listed(path)
    assert [item.name for item in items] == ["11", "12", "14"]
    assert skipped == [f"{path}, message 2: the time stamp of an image before it (12)"]
    assert caplog.messages == [f"{path}: headers have no time stamp, that of the bag is taken"]
    assert len(read(path, items)) == 3


GREY = RGB[..., 0]
DEEP = GREY.astype(np.uint16) * 256 + RGB[..., 1]


@pytest.mark.parametrize("ros2", [False, True])
@pytest.mark.parametrize("padding", [0, 3])
@pytest.mark.parametrize(
    ("encoding", "array", "expected"),
    [
        ("rgb8", RGB, RGB),
        ("bgr8", RGB[..., ::-1], RGB),
        ("rgba8", np.dstack([RGB, GREY]), RGB),
        ("bgra8", np.dstack([RGB[..., ::-1], GREY]), RGB),
        ("mono8", GREY, np.dstack([GREY] * 3)),
        ("8UC1", GREY, np.dstack([GREY] * 3)),
        ("mono16", DEEP, DEEP),
        ("16UC1", DEEP, DEEP),
    ],
)
def test_encodings(encoding: str, array: Array, expected: Array, padding: int, ros2: bool) -> None:
    """Rows may be longer than their pixels; 16 bits come as a PGM file, whichever byte is first."""
    types = store(ros2=ros2)
    for big in (0, 1):
        values = np.ascontiguousarray(array.byteswap() if big and array.itemsize == 2 else array)
        message = image(values, T0, encoding, padding=padding, big=big, ros2=ros2)
        serialize = types.serialize_cdr if ros2 else types.serialize_ros1
        got = image_of(bytes(serialize(message, message.__msgtype__)), message.__msgtype__, ros2=ros2)
        if array.itemsize == 2:
            pillow = importlib.import_module("PIL.Image")
            io = importlib.import_module("io")
            assert isinstance(got, bytes)
            got = np.asarray(pillow.open(io.BytesIO(got)))
        assert np.array_equal(np.asarray(got), expected)


def message_bytes(**fields: Any) -> bytes:
    message = image(RGB, T0)
    for name, value in fields.items():
        setattr(message, name, value)
    return bytes(store().serialize_cdr(message, message.__msgtype__))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "its encapsulation is not plain CDR"),
        (b"\0\x01\0\0" + bytes(3), "its message is cut short"),
        (b"\0\x01\0\0" + bytes(8) + b"\xff" * 8, "it claims 4294967295 bytes, and 4 are left"),
    ],
)
def test_a_message_that_is_damaged_is_refused(data: bytes, words: str) -> None:
    with pytest.raises(InputError, match=words):
        image_of(data, "sensor_msgs/msg/Image", ros2=True)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"encoding": "bayer_rggb8"}, "its encoding is 'bayer_rggb8', expected rgb8, .*: convert it with image_proc"),
        ({"step": 14}, "it claims height 3, width 5 and 14 bytes a row, and holds 45 bytes"),
        ({"height": 4}, "it claims height 4"),
        ({"height": 2**32 - 1, "width": 2**32 - 1, "step": 2**32 - 1}, "and holds 45 bytes"),
        ({"width": 0, "step": 0}, "width 0"),
    ],
)
def test_an_image_that_does_not_fit_its_bytes_is_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        image_of(message_bytes(**fields), "sensor_msgs/msg/Image", ros2=True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.0, 0.3, 0.97])
def test_a_bag_that_is_cut_short_is_refused(tmp_path: Path, kind: str, share: float) -> None:
    path = write_bag(tmp_path, kind, camera)
    file = path / "run.db3" if kind == "folder" else path
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * share)])
    try:
        items, _ = listed(path)
        read(path, items)
    except InputError as error:
        assert f"{path} is damaged or cut short" in str(error)  # noqa: PT017 - SQLite does not mind a lost end
    else:
        assert share > 0.9
        assert kind in ("db3", "folder")


def test_a_bag_that_is_another_one_now_is_noticed(tmp_path: Path) -> None:
    path = write_bag(tmp_path, "bag", camera)
    items, _ = listed(path)
    path.unlink()
    write_bag(tmp_path, "bag", lambda ros2: camera(ros2)[:1])
    with pytest.raises(InputError, match=f"has no image {items[1].name}: it is another bag now"):
        read(path, items)


def test_a_file_of_a_bag_that_is_written_over_is_noticed(tmp_path: Path) -> None:
    """The folder's own time stays as it was, and raw images have one size whatever they show."""
    path = write_bag(tmp_path, "folder", camera)
    before, folder = listed(path)[0], path.stat().st_mtime_ns
    os.utime(path / "run.db3", ns=(10**18, 2 * 10**18))
    assert path.stat().st_mtime_ns == folder
    assert [item.modified_ns for item in listed(path)[0]] == [2 * 10**18] * len(before)
    os.utime(path / "metadata.yaml", ns=(10**18, 10**18))
    (path / "run.db3-shm").touch()  # SQLite's own, of a reader
    assert [item.modified_ns for item in listed(path)[0]] == [2 * 10**18] * len(before)


def test_files_of_something_else_are_refused(tmp_path: Path) -> None:
    for suffix in (".bag", ".mcap", ".db3"):
        (tmp_path / f"x{suffix}").write_bytes(b"this is no bag")
        with pytest.raises(InputError, match=f"x{suffix} is damaged or cut short"):
            listed(tmp_path / f"x{suffix}")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "metadata.yaml").write_text("a: [")
    with pytest.raises(InputError, match="folder is damaged or cut short"):
        listed(tmp_path / "folder")
