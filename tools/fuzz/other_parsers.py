"""The parsers of what comes beside files of weights: requests of a server, model folders, indexes, names of shards."""

import contextlib
import functools
import io
import json
import math
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from netvlad_deploy.descriptors.open_files import read_descriptors
from netvlad_deploy.errors import InputError, NetVLADDeployError
from netvlad_deploy.index.place_index import INDEX_FORM, OpenIndex, load_record, names_path
from netvlad_deploy.retrieval.ground_truth import load_positives
from netvlad_deploy.runner import Runner
from netvlad_deploy.serving.config import IMAGE
from netvlad_deploy.serving.served import Served
from netvlad_deploy.serving.triton_model import ServedModel
from netvlad_deploy.spec.images import IMAGES, ImageInput, Resize
from netvlad_deploy.spec.layer import DESCRIPTOR, NetVLADSpec
from netvlad_deploy.support.arrays import Array, Arrays
from netvlad_deploy.support.sidecar import seal
from tests.double.triton import TritonError, binding
from tools.fuzz.parser import Parser, sealed, written

MOST_REQUEST_BYTES = 1 << 20
MOST_IMAGES = 16
HELD: dict[str, "tempfile.TemporaryDirectory[str]"] = {}
"""Folders that are kept while this process lives."""
NAMES, ROWS = ["a.jpg", "b/\u00e9.jpg", "c.jpg"], np.eye(3, dtype=np.float32)


def _held(name: str) -> Path:
    return Path(HELD.setdefault(name, tempfile.TemporaryDirectory()).name)


def _requests() -> list[bytes]:
    """Return requests: a line of JSON that says which tensors they have, and the bytes of all of them."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(np.arange(96, dtype=np.uint8).reshape(4, 8, 3)).save(file, "PNG")
    pixels = {"name": "pixels", "dtype": "uint8", "shape": [1, 4, 8, 3]}
    image = {"name": "image", "dtype": "object", "shape": [1, 1]}
    return [
        json.dumps([pixels]).encode() + b"\n" + bytes(range(96)),
        json.dumps([image]).encode() + b"\n" + file.getvalue(),
        json.dumps([image, pixels]).encode() + b"\n",
        json.dumps([{**pixels, "dtype": "float32", "shape": [2, 4, 4, 3]}]).encode() + b"\n" + bytes(384),
    ]


def _tensor(said: Any, content: bytes) -> Array:
    """Return a tensor as Triton's binding gives it, whatever the request says of it."""
    shape = [int(length) for length in said["shape"]]
    dtype = np.dtype(object if said["name"] == IMAGE else said["dtype"])  # the server lets no other through
    count = math.prod(shape)
    size = count * dtype.itemsize
    images = count if dtype.hasobject else max(shape[:1], default=0)
    if min(shape, default=1) < 0 or images > MOST_IMAGES or size > MOST_REQUEST_BYTES:
        raise ValueError(shape)
    if dtype.hasobject:
        values: Array = np.empty(count, object)
        values[:] = [content] * count
    else:
        values = np.frombuffer(content[:size].ljust(size, b"\0"), dtype)
    return values.reshape(shape)


def _request(path: Path) -> object:
    """Answer a request; a refusal of it is an error of ours."""
    line, _, content = path.read_bytes().partition(b"\n")
    try:
        tensors = {each["name"]: _tensor(each, content) for each in json.loads(line)}
    except (ValueError, TypeError, KeyError, RecursionError, OverflowError, SyntaxError) as error:
        raise InputError("no request that Triton would take") from error
    model = _model()
    given = {name: SimpleNamespace(as_numpy=lambda values=values: values) for name, values in tensors.items()}
    (answer,) = model.execute([given])
    if isinstance(answer, TritonError):
        raise InputError(str(answer))
    return answer


class Means(Runner):
    """A double of an opened pipeline: a descriptor is the mean colour of an image."""

    def _run(self, feeds: Arrays) -> Arrays:
        return {DESCRIPTOR: feeds[IMAGES].mean(axis=(1, 2), dtype=np.float32)}


@functools.cache
def _model() -> ServedModel:
    """Return a served model with doubles of its pipeline and of Triton's binding."""
    served = Served.__new__(Served)
    spec = NetVLADSpec(num_clusters=1, feature_size=3, num_ghost_clusters=0, batch_norm=False)
    served._runner = Means("means", spec, inputs=(IMAGES,), outputs=(DESCRIPTOR,), dtype=np.dtype(np.uint8))
    served._images, served._batch = ImageInput(resize=Resize(size=(16, 24))), 2
    served._pool = ThreadPoolExecutor(max_workers=2)
    model = ServedModel()
    model._served = served
    model._triton = binding()
    return model


def _model_folders() -> list[bytes]:
    """Return a config, a preprocessor and an index of weights, a line each."""
    from tests.models.backbones.transformers import PREPROCESSOR, settings

    parts = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
    records = [{"model_type": "dinov2", **settings("dinov2")}, {**PREPROCESSOR, "crop_size": 20}, parts]
    others = [
        {"model_type": "resnet"},
        {**PREPROCESSOR, "size": {"shortest_edge": 256}, "crop_pct": 0.875, "include_top": True},
        {},
    ]
    return [b"\n".join(json.dumps(each).encode() for each in lines) for lines in (records, others)]


def _model_folder(path: Path) -> object:
    """Read the description of a network; the network itself is not built."""
    from netvlad_deploy.models.backbones.model_folder import folder_backbone

    folder = path.parent / "model"
    folder.mkdir(exist_ok=True)
    names = ("config.json", "preprocessor_config.json", "model.safetensors.index.json")
    for name, line in zip(names, [*path.read_bytes().split(b"\n"), b"{}", b"{}", b"{}"], strict=False):
        (folder / name).write_bytes(line)
    backbone = folder_backbone(str(folder))
    with contextlib.suppress(NetVLADDeployError):
        assert backbone.weights is not None
        backbone.weights()
    return backbone


def _record() -> list[bytes]:
    from netvlad_deploy.models.vocabulary import VocabularyRecord
    from netvlad_deploy.spec.images import ImageInput

    record = VocabularyRecord(
        backbone="b", images=ImageInput(), num_images=2, num_descriptors=9, seed=0, alpha=1.5, versions={"numpy": "2"}
    )
    return [text.encode() for text in record.metadata().values()]


def _vocabulary(path: Path) -> object:
    from netvlad_deploy.models.vocabulary import METADATA_KEY, VocabularyRecord

    return VocabularyRecord.parse({METADATA_KEY: path.read_bytes().decode(errors="replace")})


@functools.cache
def _index() -> Path:
    """Return an index of three descriptors."""
    from netvlad_deploy.workflow.index import index

    folder = _held("index")
    np.savez(folder / "rows.npz", allow_pickle=False, names=np.array(NAMES), descriptors=ROWS)
    index(folder / "rows.npz", folder / "places.faiss")
    return folder / "places.faiss"


def _found(path: Path) -> object:
    return OpenIndex(path).search(ROWS, 3)


def _index_sidecar(path: Path) -> object:
    target = _index()
    target.with_name("places.faiss.json").write_bytes(sealed(path.read_bytes(), INDEX_FORM))
    return _found(target)


def _index_names(path: Path) -> object:
    """Search an index with these names, whose hash its sidecar has."""
    import hashlib

    target, content = _index(), path.read_bytes()
    sidecar = target.with_name("places.faiss.json")
    sidecar.write_bytes(_sound_index()["places.faiss.json"])
    record = json.loads(load_record(target).sidecar())
    record |= {"names_sha256": hashlib.sha256(content).hexdigest(), "names_bytes": len(content)}
    sidecar.write_bytes(seal({name: record[name] for name in record if name != INDEX_FORM.hash_name}, INDEX_FORM))
    names_path(target).write_bytes(content)
    try:
        return _found(target)
    finally:
        for name, sound in _sound_index().items():
            target.with_name(name).write_bytes(sound)


@functools.cache
def _sound_index() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in _index().parent.glob("places.faiss.*")}


def _shard_manifest(path: Path) -> object:
    """Read a folder of shards beside this manifest."""
    folder = path.parent / "shards"
    folder.mkdir(exist_ok=True)
    np.savez(folder / "shard-00000.npz", allow_pickle=False, names=np.array(NAMES), descriptors=ROWS)
    (folder / "manifest.json").write_bytes(path.read_bytes())
    return list(read_descriptors(folder).blocks())


def _truth() -> list[bytes]:
    places = {"utmQ": np.zeros((2, 2)), "utmDb": np.ones((2, 2)), "posDistThr": np.float64(25)}
    names = {"qImage": np.array(["x/q0.jpg", "x/q1.jpg"]), "dbImage": np.array(["y/a.jpg", "y/b/c.jpg"])}
    write = partial(np.savez, allow_pickle=False)
    return [written(".npz", partial(write, **places)), written(".npz", partial(write, **places, **names))]


OTHERS: dict[str, Parser] = {
    "request": Parser(suffix=".request", seeds=_requests, read=_request),
    "model folder": Parser(suffix=".json", seeds=_model_folders, read=_model_folder),
    "vocabulary": Parser(suffix=".json", seeds=_record, read=_vocabulary),
    "index sidecar": Parser(suffix=".json", seeds=lambda: [_sound_index()["places.faiss.json"]], read=_index_sidecar),
    "index names": Parser(suffix=".names", seeds=lambda: [_sound_index()["places.faiss.names"]], read=_index_names),
    "shards": Parser(suffix=".json", seeds=lambda: [b'{"shards": 1}'], read=_shard_manifest),
    "ground truth npz": Parser(
        suffix=".npz",
        seeds=_truth,
        read=lambda path: load_positives(path, ["q0.jpg", "q1.jpg"], ["a.jpg", "b/c.jpg"]),
    ),
}
