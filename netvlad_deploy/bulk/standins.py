"""Stand-ins for rooms that are on their way: sources, descriptors, the stream."""

import contextlib
import json
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from netvlad_deploy.errors import InputError
from netvlad_deploy.retrieval import embed_features as features
from netvlad_deploy.retrieval.embed_images import embed_images
from netvlad_deploy.runner import Runner
from netvlad_deploy.sources.image_folders import ImageFile
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


def describe(
    runner: Runner,
    images: ImageInput | None,
    contents: Iterable[tuple[Item, Load]],
    *,
    batch: int,
    decoders: int | None = None,
    lanes: int | None = None,
) -> Generator[tuple[Item, Float32 | Skipped], None, None]:
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
