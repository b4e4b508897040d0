import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest

from netvlad_deploy.errors import ArtifactError, InputError, UsageError
from netvlad_deploy.index.place_index import INDEX_FORM, OpenIndex
from netvlad_deploy.support.sidecar import seal
from netvlad_deploy.workflow.index import index
from tests.index.places import SIZE, descriptors, write

pytestmark = pytest.mark.faiss

ROWS = descriptors(60)


@pytest.fixture
def places(tmp_path: Path) -> Path:
    write(tmp_path / "places.npz", ROWS)
    return index(tmp_path / "places.npz", tmp_path / "places.faiss").path


def test_the_file_is_one_that_faiss_reads(places: Path) -> None:
    import faiss

    theirs = faiss.read_index(str(places))
    assert (theirs.ntotal, theirs.d) == ROWS.shape
    assert theirs.search(ROWS[:9], 1)[1][:, 0].tolist() == list(range(9))
    assert places.with_name("places.faiss.names").read_text().splitlines()[5] == "walk/00005.jpg"


def changed(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "cut":
        del content[len(content) // 2 :]
    elif how == "flipped":
        content[len(content) // 2] ^= 4
    else:
        path.unlink()
        return
    path.write_bytes(content)


@pytest.mark.parametrize("how", ["cut", "flipped", "missing"])
@pytest.mark.parametrize("suffix", ["", ".names", ".json"])
def test_a_damaged_file_is_refused_in_one_line(suffix: str, how: str, places: Path) -> None:
    changed(places.with_name(places.name + suffix), how)
    with pytest.raises(ArtifactError, match=r"is missing|index the descriptors again") as info:
        OpenIndex(places)
    assert "\n" not in str(info.value)


def forged(places: Path, **fields: object) -> None:
    """Write the sidecar anew with other fields, and its own hash right."""
    sidecar = places.with_name(f"{places.name}.json")
    record = json.loads(sidecar.read_text())
    for name in ("schema", "sidecar_sha256"):
        del record[name]
    sidecar.write_bytes(seal({**record, **fields}, INDEX_FORM))


@pytest.mark.parametrize(
    "fields",
    [
        {"count": 59},
        {"descriptor_size": SIZE + 1},
        {"metric": "distance"},
        {"kind": 3},
        {"further": 1},
        {"names_bytes": 10},
        {"sha256": "0" * 64},
    ],
    ids=str,
)
def test_a_sidecar_that_does_not_fit_is_refused(fields: dict[str, object], places: Path) -> None:
    forged(places, **fields)
    with pytest.raises(ArtifactError, match="index the descriptors again"):
        OpenIndex(places)


def test_bytes_that_faiss_cannot_read_are_refused_in_one_line(places: Path) -> None:
    import hashlib

    content = places.read_bytes()[:50]
    places.write_bytes(content)
    forged(places, sha256=hashlib.sha256(content).hexdigest(), size_bytes=len(content))
    with pytest.raises(ArtifactError, match="no index that FAISS"):
        OpenIndex(places)


def test_a_pipe_in_place_of_the_index_is_not_waited_for(places: Path) -> None:
    places.unlink()
    os.mkfifo(places)
    with pytest.raises(ArtifactError, match="is no regular file"):
        OpenIndex(places)


@pytest.mark.parametrize(
    ("queries", "words"),
    [
        (ROWS[:2, :-1], "of 24 values"),
        (ROWS[0], "queries have shape"),
        (2 * ROWS[:2], "query 0 has length 2, expected 1, as the index's have"),
        (np.full((2, SIZE), np.nan, np.float32), "query 0 has length nan"),
        (np.zeros((1, SIZE), np.float32), "query 0 has length 0"),
    ],
)
def test_queries_that_cannot_be_compared_are_refused(queries: np.ndarray, words: str, places: Path) -> None:
    with pytest.raises(InputError, match=words):
        OpenIndex(places).search(queries, 3)


def test_the_three_files_are_written_together_or_not_at_all(places: Path, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(UsageError, match="exists already"):
        index(tmp_path / "places.npz", places)
    write(tmp_path / "places.npz", np.vstack([ROWS, 0 * ROWS[:1]]))
    with pytest.raises(InputError, match="has length 0"):
        index(tmp_path / "places.npz", places, force=True)
    after = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.suffix != ".npz"}
    assert {name: before[name] for name in after} == after
    with pytest.raises(UsageError, match=r"name the target places\.faiss"):
        index(tmp_path / "places.npz", tmp_path / "places.bin")
    write(tmp_path / "places.npz", ROWS[:20])
    assert index(tmp_path / "places.npz", places, force=True).count == 20
    assert len(OpenIndex(places).search(ROWS[:1], 50)[0]) == 20


def test_a_name_that_is_no_utf8_is_refused_when_it_is_found(places: Path) -> None:
    names = places.with_name("places.faiss.names")
    content = names.read_bytes().replace(b"walk/00003.jpg", b"walk/\xff0003.jpg")
    names.write_bytes(content)
    forged(places, names_sha256=hashlib.sha256(content).hexdigest())
    opened = OpenIndex(places)
    assert opened.search(ROWS[:1], 1)[0][0].name == "walk/00000.jpg"
    with pytest.raises(ArtifactError, match=r"places\.faiss\.names, line 4 is no UTF-8: index the descriptors again"):
        opened.search(ROWS[3:4], 1)
