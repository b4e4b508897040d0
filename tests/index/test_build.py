from pathlib import Path
from typing import Any

import numpy as np
import pytest

from netvlad_deploy.errors import InputError
from netvlad_deploy.index import build, survey
from netvlad_deploy.index.exact import DEPTH, ExactNearest
from netvlad_deploy.index.kinds import FLAT, HNSW, INDEXED, IVF
from netvlad_deploy.index.place_index import OpenIndex
from netvlad_deploy.support.arrays import Float32
from netvlad_deploy.workflow.index import index
from tests.index.places import SIZE, descriptors, write

pytestmark = pytest.mark.faiss

ROWS = descriptors(1_500)
NAMES = [f"walk/{place:05}.jpg" for place in range(len(ROWS))]


def true_names(queries: Float32, rows: Float32, top: int, *, unit: bool = True) -> list[list[str]]:
    """Return the nearest of each query in float64, by comparing it with all."""
    left, right = queries.astype(np.float64), rows.astype(np.float64)
    far = -left @ right.T if unit else ((left[:, None] - right[None]) ** 2).sum(-1)
    return [[NAMES[place] for place in order[:top]] for order in np.argsort(far, axis=1, kind="stable")]


@pytest.mark.parametrize("kind", INDEXED)
def test_an_index_finds_what_is_near_and_gives_equal_files(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(survey, "BLOCK_BYTES", 4 * SIZE * 400)
    source, queries = write(tmp_path / "places.npz", ROWS), descriptors(100, seed=1)
    made = index(source, tmp_path / "places.faiss", kind=kind)
    again = index(source, tmp_path / "again.faiss", kind=kind)
    assert (made.sha256, made.names_sha256) == (again.sha256, again.names_sha256)
    assert (made.count, made.descriptor_size, made.metric, made.kind) == (len(ROWS), SIZE, "cosine", kind)
    opened = OpenIndex(tmp_path / "places.faiss")
    found = opened.search(queries, DEPTH)
    hits = [
        len({one.name for one in got} & set(expected)) / DEPTH
        for got, expected in zip(found, true_names(queries, ROWS, DEPTH), strict=True)
    ]
    assert np.mean(hits) >= (1.0 if kind == FLAT else 0.97)
    places = {name: place for place, name in enumerate(NAMES)}
    for query, got in zip(queries, found, strict=True):
        cosines = [float(query @ ROWS[places[one.name]]) for one in got]
        assert [one.score for one in got] == pytest.approx(cosines, abs=2e-3)
        assert [one.rank for one in got] == list(range(1, DEPTH + 1))
    itself = opened.search(ROWS, 1)
    assert np.mean([one[0].name == name for one, name in zip(itself, NAMES, strict=True)]) > 0.99


def test_the_recall_that_is_written_down_is_that_of_queries_that_are_not_in_the_index(tmp_path: Path) -> None:
    """The lists of an ivf are searched again here, without the queries, by FAISS alone."""
    import faiss

    made = index(write(tmp_path / "places.npz", ROWS), tmp_path / "places.faiss", kind=IVF)
    assert made.recall_at_10 is not None
    assert (made.queries, made.recall_at_10 >= 0.99, 1 <= made.visited <= made.lists) == (150, True, True)
    full: Any = faiss.read_index(str(tmp_path / "places.faiss"))
    lines = (tmp_path / "places.faiss.names").read_text().splitlines()
    queries = ROWS[[NAMES.index(name) for name in lines[-made.queries :]]]
    full.remove_ids(np.arange(len(lines) - made.queries, len(lines)))
    rest = ROWS[[NAMES.index(name) for name in lines[: -made.queries]]]

    def recall_of(visited: int) -> float:
        full.nprobe = visited
        _, got = full.search(queries, DEPTH)
        expected = np.argsort(-(queries.astype(np.float64) @ rest.T.astype(np.float64)), axis=1)[:, :DEPTH]
        return float(np.mean([len(set(one) & set(other)) / DEPTH for one, other in zip(got, expected, strict=True)]))

    assert recall_of(made.visited) == pytest.approx(made.recall_at_10, abs=1e-3)
    if made.visited > 1:
        assert recall_of(made.visited // 2) < 0.99, "half as many lists would have been enough"


@pytest.mark.parametrize("kind", [IVF, HNSW])
def test_a_search_looks_at_more_until_the_recall_holds(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rows = descriptors(1_500, places=1_500, spread=2)  # no places at all: lists hardly help
    source = write(tmp_path / "places.npz", rows)
    made = index(source, tmp_path / "places.faiss", kind=kind)
    assert made.recall_at_10 is not None
    assert made.recall_at_10 >= 0.99
    assert made.visited > build.FIRST_VISITED[kind]
    assert "recall@10" not in caplog.text
    monkeypatch.setattr(build, "MOST_CANDIDATES", 16)
    monkeypatch.setattr(build, "LEAST_RECALL", 1.01)
    monkeypatch.setattr("netvlad_deploy.workflow.index.LEAST_RECALL", 1.01)
    low = index(source, tmp_path / "low.faiss", kind=kind)
    assert low.visited == (low.lists if kind == IVF else 16)
    assert not low.has_recall
    assert "recall@10 is " in caplog.text


def test_recall_counts_what_is_as_near_as_the_last() -> None:
    rows = np.repeat(np.eye(3, dtype=np.float32), (20, 1, 1), axis=0)
    exact = ExactNearest(rows[:1], unit=True)
    exact.see(rows[:7], 0)
    exact.see(rows[7:], 7)
    assert exact.recall(np.arange(10, 20)[None]) == 1.0, "twenty are equally near"
    assert exact.recall(np.array([[*range(9), 21]])) == 0.9
    assert exact.recall(np.full((1, DEPTH), -1)) == 0.0


def test_descriptors_that_are_not_of_length_1_are_compared_by_distance(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = ROWS[:300] * np.linspace(0.5, 2, 300, dtype=np.float32)[:, None]
    made = index(write(tmp_path / "places.npz", rows), tmp_path / "places.faiss", kind="float16")
    assert made.metric == "distance"
    assert "compared by Euclidean distance" in caplog.text
    found = OpenIndex(tmp_path / "places.faiss").search(rows[:50], 2)
    assert [[one.name for one in got] for got in found] == true_names(rows[:50], rows, 2, unit=False)
    assert found[3][0].score == pytest.approx(0, abs=1e-2)
    nearest = np.linalg.norm(rows[3] - rows[NAMES.index(found[3][1].name)])
    assert found[3][1].score == pytest.approx(float(nearest), rel=1e-2)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("nan", r"the descriptor of walk/00007.jpg is not finite"),
        ("huge", r"the descriptor of walk/00007.jpg has length inf"),
        ("zero", r"the descriptor of walk/00007.jpg has length 0, expected a finite one above 0"),
        ("twice", r"holds a name twice"),
        ("line", r"the name 'a\\nb' holds a line break"),
        ("none", r"holds no descriptors"),
    ],
)
def test_what_cannot_be_indexed_is_refused_by_name(change: str, words: str, tmp_path: Path) -> None:
    rows, names = ROWS[:40].copy(), NAMES[:40]
    if change in ("nan", "huge", "zero"):
        rows[7] = {"nan": np.nan, "huge": 3e38, "zero": 0}[change]
    elif change == "none":
        rows, names = rows[:0], []
    else:
        names[20] = {"twice": "walk/00003.jpg", "line": "a\nb"}[change]
    source = tmp_path / "places.npz"
    np.savez(source, names=np.array(names, dtype=str), descriptors=rows)
    with pytest.raises(InputError, match=words):
        index(source, tmp_path / "places.faiss")
    assert list(tmp_path.iterdir()) == [source]


@pytest.mark.bulk
@pytest.mark.parametrize("kind", ["hdf5", "parquet", "shards"])
def test_descriptors_that_others_wrote(kind: str, tmp_path: Path) -> None:
    """HDF5 as hloc writes it with h5py, Parquet by pyarrow, and a folder of files of NumPy."""
    rows = ROWS[:60]
    if kind == "hdf5":
        import h5py

        source = tmp_path / "theirs.h5"
        with h5py.File(source, "w") as file:
            for name, row in zip(NAMES, rows, strict=False):
                file.create_group(name).create_dataset("global_descriptor", data=row)
    elif kind == "parquet":
        import pyarrow as pa
        from pyarrow import parquet

        source = tmp_path / "theirs.parquet"
        values = pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), SIZE)
        parquet.write_table(pa.table({"name": NAMES[:60], "descriptor": values}), source)
    else:
        (source := tmp_path / "shards").mkdir()
        for part in range(3):
            own = slice(20 * part, 20 * part + 20)
            write(source / f"part-{part}.npz", rows[own], NAMES[own])
    made = index(source, tmp_path / "places.faiss")
    assert (made.count, made.descriptor_size, made.metric) == (60, SIZE, "cosine")
    found = OpenIndex(made.path).search(rows, 2)
    assert [[one.name for one in got] for got in found] == true_names(rows, rows, 2)


@pytest.mark.parametrize("kind", [kind for kind in INDEXED if kind != FLAT])
def test_a_value_that_fp16_cannot_hold_is_refused_by_name(kind: str, tmp_path: Path) -> None:
    """Infinite values would be found nowhere, and search would answer nothing."""
    rows = ROWS[:9].copy()
    rows[7] *= 1e6 / np.abs(rows[7]).max()
    with pytest.raises(InputError, match=rf"the descriptor of walk/00007.jpg holds 1e\+06, and {kind} keeps .* 65504"):
        index(write(tmp_path / "places.npz", rows), tmp_path / "places.faiss", kind=kind)
    assert index(tmp_path / "places.npz", tmp_path / "flat.faiss", kind=FLAT).count == 9


def test_few_descriptors_measure_nothing_and_everything_is_searched(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = index(write(tmp_path / "places.npz", ROWS[:9]), tmp_path / "places.faiss", kind=IVF)
    assert (made.recall_at_10, made.queries, made.lists, made.visited) == (None, 0, 1, 1)
    assert "recall@10 cannot be measured with 9 descriptors: the kind flat is exact" in caplog.text
    assert OpenIndex(tmp_path / "places.faiss").search(ROWS[:1], 100)[0][0].name == NAMES[0]
