"""Stand-ins for rooms that are on their way: sources, descriptors, the stream."""

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from netvlad_deploy.errors import InputError
from netvlad_deploy.retrieval import embed_features as features
from netvlad_deploy.retrieval.embed_images import embed_images
from netvlad_deploy.runner import Runner
from netvlad_deploy.sources.image_folders import ImageFile, find_images
from netvlad_deploy.spec.images import ImageInput
from netvlad_deploy.spec.items import Item, Load, Skipped
from netvlad_deploy.support.arrays import Float32, write_npz
from netvlad_deploy.support.files import stage_files


@dataclass(frozen=True)
class DescriptorHeader:
    artifact: str
    sha256: str
    precision: str
    descriptor_size: int
    dtype: str
    spec: Mapping[str, Any]
    images: Mapping[str, Any] | None


class Source:
    def __init__(self, texts: Sequence[str], features: bool) -> None:
        self.texts, self.features = texts, features

    def items(self) -> Iterator[Item | Skipped]:
        if self.features:
            for text in self.texts:
                loaded = features.load_features(Path(text))
                names = list(loaded) if isinstance(loaded, dict) else [str(i) for i in range(len(loaded))]
                status = Path(text).stat()
                for name in names:
                    yield Item(
                        name=name, path=Path(text), part=name, size_bytes=status.st_size, modified_ns=status.st_mtime_ns
                    )
            return
        files, skipped = find_images([Path(text) for text in self.texts])
        yield from skipped
        for file in files:
            status = file.path.stat()
            yield Item(name=file.name, path=file.path, size_bytes=status.st_size, modified_ns=status.st_mtime_ns)

    def open(self, items: Iterable[Item]) -> Iterator[tuple[Item, Load]]:
        for item in items:
            if self.features:
                loaded = features.load_features(item.path)
                value = loaded[item.part] if isinstance(loaded, dict) else loaded[int(item.part)]
                yield item, lambda value=value: value
            else:
                yield item, item.path.read_bytes


def open_sources(
    texts: Sequence[str],
    *,
    listing: str | None,
    column: str | None,
    topic: str | None,
    features: bool,
    feature_size: int | None,
) -> Source:
    return Source(texts, features)


def describe(
    runner: Runner,
    images: ImageInput | None,
    contents: Iterable[tuple[Item, Load]],
    *,
    batch: int,
    decoders: int | None = None,
    lanes: int | None = None,
) -> Iterator[tuple[Item, Float32 | Skipped]]:
    if images is None:
        for item, load in contents:
            value = load()
            yield item, features.embed_array(runner, np.asarray(value)[None], batch=1)[0]
        return
    items = [item for item, _ in contents]
    try:
        done = embed_images(runner, images, [ImageFile(path=i.path, name=i.name) for i in items], batch=batch)
        rows, lost = dict(zip(done.names, done.descriptors)), {one.path: one for one in done.skipped}
    except InputError:
        rows, lost = {}, {}
    for item in items:
        yield (
            item,
            rows[item.name]
            if item.name in rows
            else lost.get(str(item.path), Skipped(path=str(item.path), reason="damaged or not supported")),
        )


@dataclass
class Writer:
    names: list[str]
    rows: list[Any]

    def write(self, names: Sequence[str], descriptors: Any, times_ns: Sequence[int | None]) -> None:
        self.names += names
        self.rows += list(descriptors)


@contextlib.contextmanager
def open_writer(target: Path, header: DescriptorHeader, count: int) -> Iterator[Writer]:
    writer = Writer([], [])
    with stage_files(force=True) as staging:
        yield writer
        assert len(writer.names) == count
        rows = np.array(writer.rows, dtype=header.dtype).reshape(count, header.descriptor_size)
        with staging.open(target) as stream:
            write_npz(
                stream,
                {"names": np.array(writer.names), "descriptors": rows, "header": np.array(json.dumps(asdict(header)))},
            )


@dataclass
class Reader:
    count: int
    arrays: Any

    def blocks(self, rows: int = 4096) -> Iterator[tuple[list[str], Any]]:
        for start in range(0, self.count, rows):
            yield (
                self.arrays["names"][start : start + rows].tolist(),
                self.arrays["descriptors"][start : start + rows].astype(np.float32),
            )


def read_descriptors(path: Path) -> Reader:
    arrays = dict(np.load(path))
    return Reader(len(arrays["names"]), arrays)
