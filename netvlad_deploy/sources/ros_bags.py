"""Images in bags of ROS 1 and ROS 2, read without ROS by rosbags."""

import contextlib
import logging
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from netvlad_deploy.errors import InputError, UsageError
from netvlad_deploy.sources.image_folders import item_of_file
from netvlad_deploy.sources.ros_messages import IMAGE_TYPES, header_time, image_of
from netvlad_deploy.sources.source import Source
from netvlad_deploy.spec.items import UNREADABLE, Content, Item, Load, Skipped, printable
from netvlad_deploy.support.formats import READER_ERRORS, naming, said, shown
from netvlad_deploy.support.require import require

LOG = logging.getLogger(__name__)

ROS1_SUFFIX: Final = ".bag"
BAG_SUFFIXES: Final = (ROS1_SUFFIX, ".mcap", ".db3")
METADATA_NAME: Final = "metadata.yaml"
"""A file that makes a folder a bag of ROS 2."""

NO_URI: Final = "?#%"
"""Signs by which SQLite would take the name of a `.db3` file for something else."""

SAME_TIME: Final = "the time stamp of an image before it"
CUT: Final = "cut short: record it again, or mend it with rosbag reindex, ros2 bag reindex or mcap recover"


class RosBag(Source):
    """The images of one topic of a bag, in the order of the bag, called by their time stamps in nanoseconds.

    The time stamp is that of the message's header; where its sender has set none, that of the bag, and the log says so.

    Args:
        path: a `.bag` file, a folder with a `metadata.yaml`, or a lone `.mcap` or `.db3` file.
        topic: the topic, None for the only one with images.
    """

    def __init__(self, path: Path, topic: str | None) -> None:
        self.path = path
        self.topic = topic
        self.ros2 = path.suffix.lower() != ROS1_SUFFIX

    def items(self) -> Iterator[Item | Skipped]:
        """Yield an item for each image; a message without a whole header, or with a stamp that came before, is skipped.

        About 100 bytes are held for each, to find equal stamps.

        Raises: InputError if the bag is missing or damaged; UsageError if it has no such topic, or several with images;
            MissingDependencyError without rosbags.
        """
        whole = item_of_file(self.path, self.path.name)
        seen: set[int] = set()
        said_bag_time = False
        for number, (_, bag_time, data) in enumerate(self._messages()):
            try:
                time = header_time(data, ros2=self.ros2)
            except InputError as error:
                yield Skipped(path=f"{printable(self.path)}, message {number}", reason=UNREADABLE, detail=str(error))
                continue
            if not time and not said_bag_time:
                LOG.info("%s: headers have no time stamp, that of the bag is taken", self.path)
                said_bag_time = True
            time = time or bag_time
            if time in seen:
                yield Skipped(path=f"{printable(self.path)}, message {number}", reason=SAME_TIME, detail=str(time))
                continue
            seen.add(time)
            yield replace(whole, name=str(time), part=str(bag_time), size_bytes=len(data), time_ns=time)

    def open(self, items: Iterable[Item]) -> Iterator[tuple[Item, Load]]:
        """Yield the items with what loads each; the bag is read from the first of them to the last.

        Raises: InputError as `items`, or if an item is gone.
        """
        wanted = iter(items)
        item = next(wanted, None)
        if item is None:
            return
        for kind, bag_time, data in self._messages(start=int(item.part)):
            try:
                time = header_time(data, ros2=self.ros2) or bag_time
            except InputError:
                continue
            if time == item.time_ns:
                yield item, partial(self._load, item.name, data, kind)
                item = next(wanted, None)
                if item is None:
                    return
        raise InputError(f"{self.path} has no image {item.name}: it is another bag now")

    def _load(self, name: str, data: bytes, kind: str) -> Content:
        with naming(f"{self.path}, image {name}"):
            return image_of(data, kind, ros2=self.ros2)

    def _messages(self, start: int | None = None) -> Iterator[tuple[str, int, bytes]]:
        """Yield type, time in the bag and bytes of each message of the topic."""
        if self.path.suffix == ".db3" and any(sign in str(self.path) for sign in NO_URI):
            raise InputError(f"{self.path} has one of {' '.join(NO_URI)} in its name: rename it")
        with self._damage():
            reader = _open_reader(self.path, ros2=self.ros2)
            with reader:
                connections = self._connections(reader)
                for connection, bag_time, data in reader.messages(connections, start):
                    yield connection.msgtype, bag_time, bytes(data)

    def _connections(self, reader: Any) -> list[Any]:
        """Return the connections of the topic.

        Raises: UsageError naming the topics with images, and how many each has, if it is not clear which is meant.
        """
        counts = {
            topic: sum(each.msgcount for each in reader.connections if each.topic == topic)
            for topic in dict.fromkeys(each.topic for each in reader.connections if each.msgtype in IMAGE_TYPES)
        }
        listed = ", ".join(f"{topic} ({count})" for topic, count in sorted(counts.items())) or "none"
        topic = self.topic if self.topic is not None or len(counts) != 1 else next(iter(counts))
        if topic not in counts:
            others = ", ".join(sorted({each.topic for each in reader.connections}))
            cure = f"its topics are {shown(others, 300) or 'none'}" if not counts else "choose one with --topic"
            fault = "" if topic is None else f"no images in {topic}, but "
            raise UsageError(f"{self.path} has {fault}topics with images: {shown(listed, 600)}: {cure}")
        return [each for each in reader.connections if each.topic == topic and each.msgtype in IMAGE_TYPES]

    @contextlib.contextmanager
    def _damage(self) -> Iterator[None]:
        """Turn what a damaged bag makes rosbags raise into an InputError of one line."""
        errors: tuple[type[BaseException], ...] = (*READER_ERRORS, *_reader_errors())
        try:
            yield
        except FileNotFoundError as error:
            raise InputError(f"{self.path} is missing, or no bag: {said(error)}") from error
        except errors as error:
            raise InputError(f"{self.path} is damaged or {CUT} ({said(error)})") from error


def is_bag_folder(path: Path) -> bool:
    """Return True for the folder of a ROS 2 bag, False for one that cannot be searched."""
    try:
        return path.is_dir() and (path / METADATA_NAME).is_file()
    except OSError:
        return False


def _open_reader(path: Path, *, ros2: bool) -> Any:
    return require("rosbags.rosbag2" if ros2 else "rosbags.rosbag1", extra="bags").Reader(path)


def _reader_errors() -> tuple[type[Exception], ...]:
    """Return the errors of rosbags, and of what it reads databases and compressed parts with."""
    zstd = "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd"
    return (
        require("rosbags.rosbag1", extra="bags").ReaderError,
        require("rosbags.rosbag2", extra="bags").ReaderError,
        require("apsw", extra="bags").Error,
        require(zstd, extra="bags").ZstdError,
    )
