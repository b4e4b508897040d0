"""The parsers of what is embedded in bulk: sources of items, files of descriptors, plans, words of the command line."""

import contextlib
import hashlib
import itertools
import json
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from netvlad_deploy.bulk.listing import listing_path, read_listing
from netvlad_deploy.bulk.manifest import MANIFEST, Given, Manifest
from netvlad_deploy.bulk.plan import load_plan, make_plan
from netvlad_deploy.bulk.shards import RECORD, ShardDone, read_shard, record_path
from netvlad_deploy.commands.embed import parse_part
from netvlad_deploy.descriptors.header import DescriptorHeader
from netvlad_deploy.descriptors.npy_file import names_path
from netvlad_deploy.descriptors.open_files import open_writer, read_descriptors
from netvlad_deploy.errors import ArtifactError, InputError, NetVLADDeployError
from netvlad_deploy.sources.open_sources import open_sources
from netvlad_deploy.sources.ros_messages import header_time, image_of
from netvlad_deploy.spec.images import Resize, parse_profile, parse_size
from netvlad_deploy.spec.items import Item, Skipped
from netvlad_deploy.spec.profiles import AxisRange
from netvlad_deploy.spec.tensors import parse_names
from netvlad_deploy.support.sidecar import seal
from netvlad_deploy.workflow.sweep import parse_axes
from tools.fuzz.parser import Parser, sealed, written

HEADER = DescriptorHeader(
    artifact="m.onnx", sha256="0" * 64, precision="fp32", descriptor_size=3, dtype="float32", spec={}, images=None
)
NAMES, ROWS, TIMES = ["a.jpg", "b/\u00e9.jpg"], np.arange(6, dtype=np.float32).reshape(2, 3), [None, 7]
MOST_ITEMS = 50
"""Items of a damaged source that are loaded."""


def _source(path: Path, **given: Any) -> object:
    """List a source and load its first items, as a run does: an item that cannot be loaded is skipped."""
    source = open_sources([str(path)], **given)
    items = [one for one in itertools.islice(source.items(), MOST_ITEMS) if isinstance(one, Item)]
    for _, load in source.open(items):
        with contextlib.suppress(InputError, ArtifactError, OSError):
            load()
    return items


def _features_h5() -> list[bytes]:
    import h5py

    def write(path: Path, *, turned: bool) -> None:
        with h5py.File(path, "w") as file:
            for name in ("a.jpg", "b/c.jpg"):
                values = np.ones((5, 3), np.float32)
                file.create_group(name).create_dataset("descriptors", data=values.T if turned else values)

    return [written(".h5", partial(write, turned=turned)) for turned in (False, True)]


def _features_npz() -> list[bytes]:
    return [written(".npz", partial(np.savez, allow_pickle=False, a=np.ones((4, 3), np.float32), b=np.ones((1, 3))))]


def _features_npy() -> list[bytes]:
    return [written(".npy", partial(np.save, arr=np.ones((2, 4, 3), kind))) for kind in (np.float32, np.float16)]


def _images_parquet() -> list[bytes]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    content = [b"\x89PNG\r\n", b"", None]
    structs = [{"bytes": each, "path": f"{number}.png"} for number, each in enumerate(content)]
    tables = [pa.table({"image": content, "name": ["a", "b", "c"]}), pa.table({"image": structs})]
    tables.append(pa.table({"path": ["a.jpg", "../b.jpg", None]}))
    return [written(".parquet", partial(pq.write_table, table)) for table in tables]


def _bags(kind: str) -> list[bytes]:
    from tests.sources.test_ros_bags import camera, write_bag

    with tempfile.TemporaryDirectory() as folder:
        return [write_bag(Path(folder), kind, camera).read_bytes()]


def _metadata() -> list[bytes]:
    from tests.sources.test_ros_bags import camera, write_bag

    with tempfile.TemporaryDirectory() as folder:
        return [(write_bag(Path(folder), "folder", camera) / "metadata.yaml").read_bytes()]


def _bag_folder(path: Path) -> object:
    folder = path.parent / "bag"
    folder.mkdir(exist_ok=True)
    (folder / "metadata.yaml").write_bytes(path.read_bytes())
    if not (folder / "run.db3").exists():
        (folder / "run.db3").write_bytes(_bags("db3")[0])
    return _source(folder)


def _messages() -> list[bytes]:
    from tests.sources.test_ros_bags import RGB, T0, compressed, image, store

    made = []
    for ros2 in (False, True):
        for message in (image(RGB, T0, ros2=ros2), compressed(b"\x89PNG", T0, ros2=ros2)):
            types, kind = store(ros2=ros2), message.__msgtype__
            data = types.serialize_cdr(message, kind) if ros2 else types.serialize_ros1(message, kind)
            made.append(bytes(data))
    return made


def _message(path: Path) -> object:
    """Read the bytes as each kind of message; they are sound if one of them takes them."""
    content, errors, read = path.read_bytes(), [], []
    for kind, ros2 in itertools.product(("sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"), (False, True)):
        for parse in (partial(header_time, ros2=ros2), partial(image_of, kind=kind, ros2=ros2)):
            try:
                read.append(parse(content))
            except NetVLADDeployError as error:
                errors.append(error)
    if not read:
        raise errors[0]
    return read


def _list(path: Path) -> object:
    source = open_sources([], listing=str(path))
    return list(itertools.islice(source.items(), MOST_ITEMS))


def _descriptors(suffix: str) -> list[bytes]:
    def write(path: Path) -> None:
        with open_writer(path, HEADER, 2) as writer:
            writer.write(NAMES, ROWS, TIMES)

    return [written(suffix, write), *OTHERS.get(suffix, list)()]


def _by_numpy() -> list[bytes]:
    return [written(".npz", partial(np.savez, allow_pickle=False, names=np.array(NAMES), descriptors=ROWS))]


def _by_hloc() -> list[bytes]:
    import h5py

    def write(path: Path) -> None:
        with h5py.File(path, "w") as file:
            for name, row in zip(NAMES, ROWS, strict=True):
                file.create_group(name).create_dataset("global_descriptor", data=row)

    return [written(".h5", write)]


OTHERS: dict[str, Callable[[], list[bytes]]] = {".npz": _by_numpy, ".h5": _by_hloc}
"""Files of descriptors as others write them."""


def _rows(path: Path) -> object:
    return [(names, values) for names, values in itertools.islice(read_descriptors(path).blocks(), 50)]


def _rows_of_names(path: Path) -> object:
    """Read the names beside a sound file of descriptors."""
    np.save(path.parent / "rows.npy", ROWS)
    names_path(path.parent / "rows.npy").write_bytes(path.read_bytes())
    return _rows(path.parent / "rows.npy")


def _names() -> list[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "x.npy"
        with open_writer(target, HEADER, 2) as writer:
            writer.write(NAMES, ROWS, TIMES)
        return [names_path(target).read_bytes()]


WANTED = Manifest(
    version="1", target="x.npz", header=HEADER, backend=None, head=None, batch=2,
    given=Given(inputs=("photos",)), shard_size=2,
)  # fmt: skip
LOST = Skipped(path="b.jpg", reason="empty", detail="")
ENTRIES: list[Item | Skipped] = [
    Item(name="a.jpg", path=Path("a.jpg"), size_bytes=1, modified_ns=2),
    LOST,
]


def _planned(folder: Path) -> Any:
    for old in folder.iterdir():
        old.unlink()
    return make_plan(folder, WANTED, ENTRIES)


def _manifests() -> list[bytes]:
    return [WANTED.content()]


def _manifest(path: Path) -> object:
    with tempfile.TemporaryDirectory() as name:
        plan = _planned(Path(name))
        (plan.folder / "manifest.json").write_bytes(sealed(path.read_bytes(), MANIFEST))
        return load_plan(plan.folder)


def _listings() -> list[bytes]:
    with tempfile.TemporaryDirectory() as name:
        plan = _planned(Path(name))
        return [listing_path(plan.folder, 0).read_bytes().partition(b"\n")[2]]


def _listing(path: Path) -> object:
    rest = path.read_bytes()
    with tempfile.TemporaryDirectory() as name:
        head = json.dumps({"shard": 0, "items": 1, "sha256": hashlib.sha256(rest).hexdigest()})
        listing_path(Path(name), 0).write_bytes(head.encode() + b"\n" + rest)
        return read_listing(Path(name), 0)


def _records() -> list[bytes]:
    with tempfile.TemporaryDirectory() as name:
        run = _planned(Path(name)).manifest.sha256
    done = ShardDone(manifest_sha256=run, shard=0, descriptors=1, skipped=(LOST,), sha256="0" * 64, size_bytes=1)
    return [seal(asdict(done), RECORD)]


def _record(path: Path) -> object:
    with tempfile.TemporaryDirectory() as name:
        plan = _planned(Path(name))
        record_path(plan.folder, 0).write_bytes(sealed(path.read_bytes(), RECORD))
        return read_shard(plan, 0, proven=False)


WORDS: tuple[Callable[[str], object], ...] = (
    AxisRange.parse, parse_profile, Resize.parse, parse_size, parse_part, parse_names, lambda text: parse_axes([text]),
)  # fmt: skip


def _words(path: Path) -> object:
    """Read a word of the command line as each kind; it is sound if one of them takes it."""
    text, read = path.read_bytes().decode(errors="surrogateescape"), []
    for parse in WORDS:
        try:
            read.append(parse(text))
        except NetVLADDeployError as error:
            last = error
    if not read:
        raise last
    return read


BULK: dict[str, Parser] = {
    "features npy": Parser(suffix=".npy", seeds=_features_npy, read=partial(_source, features=True)),
    "features npz": Parser(suffix=".npz", seeds=_features_npz, read=partial(_source, features=True)),
    "features h5": Parser(suffix=".h5", seeds=_features_h5, read=partial(_source, features=True)),
    "images parquet": Parser(suffix=".parquet", seeds=_images_parquet, read=_source),
    "bag": Parser(suffix=".bag", seeds=partial(_bags, "bag"), read=_source, may_ask=True),
    "bag db3": Parser(suffix=".db3", seeds=partial(_bags, "db3"), read=_source),
    "bag mcap": Parser(suffix=".mcap", seeds=partial(_bags, "mcap"), read=_source, may_ask=True),
    "bag metadata": Parser(suffix=".yaml", seeds=_metadata, read=_bag_folder),
    "ros message": Parser(suffix=".cdr", seeds=_messages, read=_message),
    "list": Parser(suffix=".txt", seeds=lambda: [b"/dev/null\n\n# x\n../a.jpg\nb\xff.jpg\n"], read=_list),
    "descriptors npz": Parser(suffix=".npz", seeds=partial(_descriptors, ".npz"), read=_rows),
    "descriptors npy": Parser(suffix=".npy", seeds=partial(_descriptors, ".npy"), read=_rows),
    "descriptors h5": Parser(suffix=".h5", seeds=partial(_descriptors, ".h5"), read=_rows),
    "descriptors parquet": Parser(suffix=".parquet", seeds=partial(_descriptors, ".parquet"), read=_rows),
    "descriptor names": Parser(suffix=".jsonl", seeds=_names, read=_rows_of_names),
    "plan": Parser(suffix=".json", seeds=_manifests, read=_manifest),
    "plan listing": Parser(suffix=".jsonl", seeds=_listings, read=_listing),
    "plan shard": Parser(suffix=".json", seeds=_records, read=_record),
    "words": Parser(
        suffix=".txt",
        seeds=lambda: [
            b"1:8:64",
            b"1x1,8x300,64x4096",
            b"1x480x640",
            b"640,lanczos",
            b"240x320",
            b"0/4",
            b"batch=1,2",
            b"cover:224x224,box",
            b"shorter:480",
            b"image:0,descriptor:0",
        ],
        read=_words,
    ),
}
