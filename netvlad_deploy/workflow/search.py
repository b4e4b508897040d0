"""The verb `search`: what an index holds near to photos, or to descriptors."""

import logging
import time
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from netvlad_deploy.artifact import AnyArtifact, EngineArtifact
from netvlad_deploy.descriptors.open_files import READERS, read_descriptors
from netvlad_deploy.descriptors.reader import DescriptorReader
from netvlad_deploy.errors import ArtifactError, InputError, UsageError
from netvlad_deploy.index.place_index import Maker, OpenIndex, PlaceIndex, load_record, maker_of
from netvlad_deploy.index.survey import blocks
from netvlad_deploy.report.matches import Album
from netvlad_deploy.report.search import SearchAnswer, SearchReport, draw_answers, search_page
from netvlad_deploy.report.write import REPORT_FILES, write_report
from netvlad_deploy.retrieval.embed_images import BATCH, embed_images
from netvlad_deploy.runtime.open_runner import Candidate
from netvlad_deploy.sources.image_folders import find_images
from netvlad_deploy.spec.items import Skipped
from netvlad_deploy.support.arrays import Float32
from netvlad_deploy.support.files import make_folder
from netvlad_deploy.support.streams import stdout_to_stderr

LOG = logging.getLogger(__name__)

TOP: Final = 5
"""Matches of a query that are listed."""

PICTURE: Final = "matches.png"


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """Queries: blocks of names and descriptors (n,P), what described them, their photos, and files that gave none."""

    blocks: Iterable[tuple[Sequence[str], Float32]]
    artifact: str | None = None
    photos: Mapping[str, Path] = field(default_factory=dict)
    skipped: tuple[Skipped, ...] = ()


def search(
    path: Path,
    queries: Sequence[Path],
    *,
    artifact: Path | None = None,
    backend: str | None = None,
    top: int = TOP,
    images: Path | None = None,
    folder: Path | None = None,
    command: str = "",
    force: bool = False,
) -> SearchReport:
    """Return the `top` nearest descriptors of each query in an index.

    Queries are photos and folders of them, which the artifact that made the index describes, or one file of
    descriptors. The artifact is found beside the index by the name that stands in its sidecar, or given. A `folder`
    gets a report, which shows `command`, and the photos of the matches where `images` is the folder that was indexed.

    >>> import numpy as np
    >>> from netvlad_deploy.workflow.index import index
    >>> np.savez("places.npz", names=["a.jpg", "b.jpg"], descriptors=np.eye(2, 8, dtype=np.float32))
    >>> made = index(Path("places.npz"), Path("places.faiss"))
    >>> search(Path("places.faiss"), [Path("places.npz")], top=1).answers[1].matches[0].name
    'b.jpg'

    Raises: ArtifactError if the index is damaged, or the queries are of another artifact; InputError if the artifact is
        not to be found, or a query cannot be used.
    """
    _check_folders(images, folder, force=force)
    record = load_record(path)
    source = _source(record, queries, artifact, backend)
    opened = OpenIndex(path)
    asked = _embedded(queries, source) if isinstance(source, Candidate) else _described(source)
    answers, duration_ms = _answers(opened, asked, top)
    report = SearchReport(
        index=path,
        count=record.count,
        metric=record.metric,
        artifact=asked.artifact,
        duration_ms=duration_ms,
        answers=answers,
        skipped=asked.skipped,
    )
    if folder is not None:
        _write(folder, report, asked.photos, images, command, force=force)
    return report


def _check_folders(images: Path | None, folder: Path | None, *, force: bool) -> None:
    """Refuse folders that could not be used, before the work."""
    if images is not None and folder is None:
        raise UsageError("the photos of --images are for a report: name its folder with -o")
    if images is not None and not images.is_dir():
        raise InputError(f"{images} is no folder of images: name the one that was embedded")
    if folder is not None:
        make_folder(folder, (folder / name for name in (*REPORT_FILES, PICTURE)), force=force)


def _source(
    record: PlaceIndex, queries: Sequence[Path], artifact: Path | None, backend: str | None
) -> DescriptorReader | Candidate:
    """Return what has the descriptors of the queries, or makes them, once it is found to be of what made the index."""
    if len(queries) == 1 and queries[0].suffix.lower() in READERS:
        if artifact is not None or backend is not None:
            raise UsageError(f"{queries[0]} holds descriptors: leave --artifact and --backend out")
        return _reader(record, queries[0])
    return _candidate(record, artifact, backend)


def _answers(opened: OpenIndex, asked: _Asked, top: int) -> tuple[tuple[SearchAnswer, ...], float]:
    """Return the answers to all queries, and the milliseconds of the search alone."""
    answers, duration_s = [], 0.0
    for names, descriptors in asked.blocks:
        started = time.perf_counter()
        found = opened.search(descriptors, top)
        duration_s += time.perf_counter() - started
        pairs = zip(names, found, strict=True)
        answers += [SearchAnswer(query=name, matches=tuple(matches)) for name, matches in pairs]
    return tuple(answers), duration_s * 1e3


def _candidate(record: PlaceIndex, given: Path | None, backend: str | None) -> Candidate:
    """Return the artifact that made the index, or an engine that was built of it.

    Raises: ArtifactError if it is another one; InputError if it is not to be found.
    """
    beside = None if record.artifact is None else record.path.with_name(Path(record.artifact.name).name)
    path = given or beside
    if path is None:
        raise InputError(f"{record.path} does not say which artifact made its descriptors: name it with --artifact")
    if given is None and not path.exists():
        made = f"{record.artifact.name}, SHA-256 {record.artifact.sha256[:12]}" if record.artifact else ""
        raise InputError(f"{record.path} was made with {made}, which is not beside it: name it with --artifact")
    candidate = Candidate(path=path, backend=backend)
    if (known := candidate.artifact) is None or known.images is None:
        raise UsageError(f"{path} takes no images: embed the queries, and search with the file of their descriptors")
    asks = Maker(name=path.name, sha256=known.sha256, precision=known.precision, spec=known.spec, images=known.images)
    _compare(record, path, asks, _hashes(known))
    if known.spec.descriptor_size != record.descriptor_size:
        raise ArtifactError(
            f"{path} gives descriptors of {known.spec.descriptor_size} values, those of {record.path} have "
            f"{record.descriptor_size}: name the artifact that made the index"
        )
    return candidate


def _hashes(artifact: AnyArtifact) -> set[str]:
    """Return the hash of an artifact, and for an engine that of the ONNX file it was built of, which is the same."""
    parent = artifact.parent if isinstance(artifact, EngineArtifact) else None
    return {artifact.sha256, *([parent.sha256] if parent else [])}


def _compare(record: PlaceIndex, path: Path, asks: Maker | None, hashes: Set[str]) -> None:
    """Compare what describes the queries with what made the index; a line says where one of them is unknown.

    Raises: ArtifactError if they are not the same.
    """
    made = record.artifact
    if made is None or asks is None:
        LOG.warning("nothing says that %s and %s are of one artifact: only their sizes are compared", record.path, path)
    elif made.sha256 not in hashes:
        raise ArtifactError(
            f"{record.path} was made with {made.name}, SHA-256 {made.sha256[:12]}, and {path} is of SHA-256 "
            f"{asks.sha256[:12]}: ask with the artifact that made the index, or index again"
        )
    elif (made.spec, made.images) != (asks.spec, asks.images):
        raise ArtifactError(
            f"{path} is of the artifact that made {record.path}, SHA-256 {made.sha256[:12]}, but of another head, or "
            "prepares images otherwise: ask with the sidecar that made the index, or index again"
        )


def _embedded(queries: Sequence[Path], candidate: Candidate) -> _Asked:
    """Describe photos."""
    assert candidate.artifact is not None
    assert candidate.artifact.images is not None
    files, skipped = find_images(queries)
    with stdout_to_stderr(), candidate.open(spin=False) as runner:  # the photos are decoded meanwhile
        described = embed_images(runner, candidate.artifact.images, files, batch=BATCH, skipped=skipped)
    photos = {file.name: file.path for file in files}
    content = [(described.names, described.descriptors)]
    return _Asked(blocks=content, artifact=candidate.name, photos=photos, skipped=described.skipped)


def _reader(record: PlaceIndex, path: Path) -> DescriptorReader:
    """Open a file of descriptors, and compare the artifact that made them with the index's.

    Raises: ArtifactError if they are of another artifact; InputError if there are none.
    """
    reader = read_descriptors(path)
    if not reader.count:
        raise InputError(f"{path} holds no descriptors: nothing to search")
    maker = maker_of(reader.header)
    _compare(record, path, maker, {maker.sha256} if maker else set())
    return reader


def _described(reader: DescriptorReader) -> _Asked:
    return _Asked(blocks=((block.names, block.rows) for block in blocks(reader)))


def _write(
    folder: Path,
    report: SearchReport,
    photos: Mapping[str, Path],
    images: Path | None,
    command: str,
    *,
    force: bool,
) -> None:
    """Write the report, with the photos of queries and matches where both are known."""
    album = None
    if images is not None and photos:
        names = {match.name for answer in report.answers for match in answer.matches}
        album = Album(photos, {name: _within(images, name) for name in names}, depth=None)
    page = search_page(report, album, picture=PICTURE, command=command)
    pictures = {} if album is None else {PICTURE: draw_answers(report, album)}
    write_report(folder, "search", report, page, pictures=pictures, force=force)


def _within(folder: Path, name: str) -> Path:
    """Return the path of an image in a folder; the folder's own, which is no image, if the name leads out of it.

    Names come out of a file: one such as `../secret.png` must not bring another photo onto a page.
    """
    path = (folder / name).resolve()
    return path if path.is_relative_to(folder.resolve()) else folder
