"""An index on disk: FAISS's file, the names of its descriptors, and a sidecar that says what both are.

`places.faiss` is written by FAISS. `places.faiss.names` has the name of each descriptor in a line of UTF-8, in the
order of the index. `places.faiss.json`, sealed as the sidecars of artifacts are, has the hashes of both. They are
written together or not at all.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from netvlad_deploy.artifact import sidecar_path
from netvlad_deploy.descriptors.header import DescriptorHeader
from netvlad_deploy.errors import ArtifactError, InputError
from netvlad_deploy.index.survey import UNIT_ERROR
from netvlad_deploy.spec.images import ImageInput
from netvlad_deploy.spec.layer import AnySpec
from netvlad_deploy.support.arrays import Float32
from netvlad_deploy.support.files import finish_writing, open_regular, read_bounded
from netvlad_deploy.support.records import from_record
from netvlad_deploy.support.require import require
from netvlad_deploy.support.sidecar import MAX_SIDECAR_BYTES, Form, read_sealed, seal

INDEX_AGAIN: Final = "index the descriptors again"
INDEX_FORM: Final = Form(
    kind="the sidecar of an index",
    schema="netvlad-deploy/place-index/1",
    hash_name="sidecar_sha256",
    remedy=INDEX_AGAIN,
)
COSINE, DISTANCE = "cosine", "distance"


@dataclass(frozen=True, kw_only=True)
class Maker:
    """The artifact that made some descriptors: two files of them can be compared if spec, images and hash are equal.

    The hash alone is not enough: how images are resized stands beside the graph, and a graph may have several heads.
    """

    name: str
    sha256: str
    precision: str
    spec: AnySpec
    images: ImageInput | None


@dataclass(frozen=True, kw_only=True)
class PlaceIndex:
    """The record of an index.

    Args:
        path: the file that FAISS wrote.
        sha256: its hash.
        size_bytes: its size.
        names_sha256: the hash of the file of names beside it.
        names_bytes: the size of that file.
        kind: flat, float16, ivf or hnsw.
        reason: why this kind.
        metric: cosine if all descriptors have length 1; otherwise distance, the Euclidean one.
        count: how many descriptors it holds.
        descriptor_size: values of a descriptor.
        lists: into how many lists an ivf divides them, 0 for other kinds.
        visited: how many lists of an ivf, or candidates of an hnsw, a search looks at; 0 where it looks at all.
        recall_at_10: the share of the ten nearest descriptors that it finds, against exact search in FP32; null where
            there were too few descriptors to measure it.
        queries: how many descriptors measured this before they joined the index, 0 for an exact index.
        least_recall: what the recall should be at least.
        artifact: what made the descriptors, null where their file does not say.
        versions: of the packages that made the index.
    """

    path: Path
    sha256: str
    size_bytes: int
    names_sha256: str
    names_bytes: int
    kind: str
    reason: str
    metric: str
    count: int
    descriptor_size: int
    lists: int
    visited: int
    recall_at_10: float | None
    queries: int
    least_recall: float
    artifact: Maker | None
    versions: Mapping[str, str]

    @property
    def has_recall(self) -> bool:
        """Return True if the recall was measured, and is what it should be at least."""
        return self.recall_at_10 is not None and self.recall_at_10 >= self.least_recall

    def sidecar(self) -> bytes:
        """Return the text of the sidecar."""
        return seal({name: value for name, value in asdict(self).items() if name != "path"}, INDEX_FORM)


def names_path(path: Path) -> Path:
    """Return the path of the file of names beside an index."""
    return path.with_name(f"{path.name}.names")


def maker_of(header: DescriptorHeader | None) -> Maker | None:
    """Return the artifact that made a file of descriptors, None where the file does not say.

    Raises: InputError if the header is damaged, or of another version.
    """
    if header is None:
        return None
    record = {name: getattr(header, name) for name in ("sha256", "precision", "spec", "images")}
    try:
        return from_record(Maker, {**record, "name": header.artifact})
    except ValueError as error:
        raise InputError(f"the header of the descriptors is damaged ({error}): embed again") from error


def load_record(path: Path) -> PlaceIndex:
    """Return the record of an index, whose other files are not read yet.

    Raises: ArtifactError if the sidecar is missing, damaged, or of another version.
    """
    sidecar = sidecar_path(path)
    finish_writing(path.parent)
    content = read_bounded(sidecar, MAX_SIDECAR_BYTES, missing="an index needs the sidecar it was written with")
    return read_sealed(PlaceIndex, content, str(sidecar), INDEX_FORM, path=path)


@dataclass(frozen=True, kw_only=True)
class Found:
    """A descriptor that is near to a query: its name, its rank from 1, and its cosine or distance."""

    name: str
    rank: int
    score: float


class OpenIndex:
    """An index in memory, ready to search; any number of threads may share it.

    The bytes that FAISS parses are those that were hashed: FAISS keeps the descriptors where they were read to, so that
    they stand in memory once.

    Raises: ArtifactError if a file is missing, damaged, or another than the sidecar says; MissingDependencyError
        without FAISS.
    """

    def __init__(self, path: Path) -> None:
        self.record = record = load_record(path)
        faiss = require("faiss", extra="index")
        self._content = _proven(path, record.size_bytes, record.sha256)
        self._names = _proven(names_path(path), record.names_bytes, record.names_sha256)
        self._ends = np.flatnonzero(self._names == ord("\n"))
        try:
            reader = faiss.ZeroCopyIOReader(faiss.swig_ptr(self._content), len(self._content))
            self._index = faiss.read_index(reader)
        except RuntimeError as error:
            raise ArtifactError(f"{path} is no index that FAISS {faiss.__version__} reads: {INDEX_AGAIN}") from error
        metric = faiss.METRIC_INNER_PRODUCT if record.metric == COSINE else faiss.METRIC_L2
        found = self._index.ntotal, self._index.d, self._index.metric_type, len(self._ends)
        if found != (record.count, record.descriptor_size, metric, record.count):
            raise ArtifactError(f"{path} and its names do not fit its sidecar: {INDEX_AGAIN}")

    def search(self, queries: Float32, top: int) -> list[list[Found]]:
        """Return the `top` nearest of each query (Q,P), the nearest first; fewer where the index holds or finds fewer.

        The score is the cosine, or the Euclidean distance, whichever the index has.

        Raises: InputError if the queries have another width, are not finite, or not of length 1 as the index's are;
            ArtifactError as `name`.
        """
        self._check(queries)
        scores, places = self._index.search(np.ascontiguousarray(queries, np.float32), min(top, self.record.count))
        if self.record.metric == DISTANCE:
            scores = np.sqrt(np.maximum(scores, 0))  # FAISS gives squares
        return [
            [
                Found(name=self.name(int(place)), rank=rank, score=float(score))
                for rank, (score, place) in enumerate(zip(*one, strict=True), 1)
                if place >= 0
            ]
            for one in zip(scores, places, strict=True)
        ]

    def name(self, place: int) -> str:
        """Return the name of the descriptor at a place of the index.

        Raises: ArtifactError if it is no UTF-8.
        """
        start = int(self._ends[place - 1]) + 1 if place else 0
        try:
            return self._names[start : int(self._ends[place])].tobytes().decode()
        except UnicodeDecodeError as error:
            path = names_path(self.record.path)
            raise ArtifactError(f"{path}, line {place + 1} is no UTF-8: {INDEX_AGAIN}") from error

    def _check(self, queries: Float32) -> None:
        if queries.ndim != 2 or queries.shape[1] != self.record.descriptor_size:
            raise InputError(
                f"queries have shape {queries.shape}, the index has descriptors of {self.record.descriptor_size} values"
            )
        lengths = np.linalg.norm(queries.astype(np.float64), axis=1)
        wrong = ~np.isfinite(lengths)
        if self.record.metric == COSINE:
            wrong |= np.abs(lengths - 1) > UNIT_ERROR
        if wrong.any():
            first, expected = (
                int(wrong.argmax()),
                "1, as the index's have" if self.record.metric == COSINE else "finite",
            )
            raise InputError(f"query {first} has length {lengths[first]:.4g}, expected {expected}: embed it again")


def _proven(path: Path, size_bytes: int, sha256: str) -> npt.NDArray[np.uint8]:
    """Return the bytes of a file.

    Raises: ArtifactError if it cannot be read, or has another size or hash than the sidecar says.
    """
    with open_regular(path, missing="it was written with the index") as stream:
        actual = stream.seek(0, 2)
        if actual != size_bytes:
            raise ArtifactError(f"{path} has {actual} bytes, its sidecar says {size_bytes}: {INDEX_AGAIN}")
        stream.seek(0)
        content = np.empty(size_bytes, np.uint8)
        filled = stream.readinto(content.data)  # type: ignore[attr-defined]
    found = hashlib.sha256(content.data).hexdigest()
    if filled != size_bytes or found != sha256:
        raise ArtifactError(f"{path} has SHA-256 {found[:12]}, its sidecar says {sha256[:12]}: {INDEX_AGAIN}")
    return content


def write_index(stream: Any, index: Any) -> None:
    """Write an index of FAISS into a stream, block by block.

    Raises: OSError as the stream does.
    """
    faiss = require("faiss", extra="index")
    faiss.write_index(index, faiss.PyCallbackIOWriter(stream.write))
