"""Files of descriptors come back as they were written, in equal bytes, and those of others are read."""

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from netvlad_deploy.artifact import OnnxArtifact
from netvlad_deploy.bulk.open_plan import header_for
from netvlad_deploy.descriptors.header import DescriptorHeader, header_from_json
from netvlad_deploy.descriptors.open_files import files_of, open_writer, read_descriptors
from netvlad_deploy.errors import InputError, UsageError
from netvlad_deploy.runtime.open_runner import Candidate
from netvlad_deploy.support.arrays import Array

P = 6
BULK = pytest.mark.bulk
ALL = (".npz", ".npy", pytest.param(".h5", marks=BULK), pytest.param(".parquet", marks=BULK))
NAMES = ["b.jpg", "a/ü.jpg", "a/b/1.jpg", "/abs/x.jpg", "../up.jpg", "z\nz"]
TIMES = [None, 5, None, 1_700_000_000_000_000_001, 0, None]
ROWS = np.random.default_rng(1).normal(size=(len(NAMES), P)).astype(np.float32)


def header(dtype: Any = "float32", **changes: Any) -> DescriptorHeader:
    values = {"artifact": "m.onnx", "sha256": "ab" * 32, "precision": "fp16", "spec": {"num_clusters": 2}}
    return DescriptorHeader(**{**values, "descriptor_size": P, "dtype": dtype, "images": None, **changes})


def write(path: Path, *, dtype: Any = "float32", step: int = 6, force: bool = False) -> Path:
    with open_writer(path, header(dtype), len(NAMES), force=force) as writer:
        for start in range(0, len(NAMES), step):
            part = slice(start, start + step)
            writer.write(NAMES[part], ROWS[part], TIMES[part])
    return path


def rows(path: Path, at_once: int = 4096) -> dict[str, tuple[list[float], int | None]]:
    found: dict[str, tuple[list[float], int | None]] = {}
    for names, values, times in read_descriptors(path).timed_blocks(at_once):
        assert values.dtype == np.float32
        assert len(names) <= at_once
        found |= {name: (row.tolist(), time) for name, row, time in zip(names, values, times, strict=True)}
    return found


EXPECTED = {name: (row.tolist(), time) for name, row, time in zip(NAMES, ROWS, TIMES, strict=True)}


@pytest.mark.parametrize("suffix", ALL)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_rows_come_back_and_equal_rows_give_equal_bytes(tmp_path: Path, suffix: str, dtype: str) -> None:
    path = write(tmp_path / f"x{suffix}", dtype=dtype)
    again = write(tmp_path / f"y{suffix}", dtype=dtype, step=1)
    for one, other in zip(files_of(path), files_of(again), strict=True):
        assert one.read_bytes() == other.read_bytes()
    reader = read_descriptors(path)
    assert (reader.header, reader.count, reader.descriptor_size) == (header(dtype), 6, P)
    rounded = {name: (np.float32(row).astype(dtype).tolist(), time) for name, (row, time) in EXPECTED.items()}
    for at_once in (1, 4, 4096):
        got = rows(path, at_once)
        assert got == rounded
        assert list(got) == (sorted(got, key=lambda name: name.strip("/")) if suffix == ".h5" else NAMES)


@pytest.mark.parametrize("suffix", ALL)
def test_a_file_is_whole_or_not_there(tmp_path: Path, suffix: str) -> None:
    target = tmp_path / f"x{suffix}"
    with pytest.raises(InputError, match="was announced with 3 descriptors, and got 1"):
        with open_writer(target, header(), 3) as writer:
            writer.write(["a"], ROWS[:1])
    with pytest.raises(InputError, match="was announced with 1 descriptors, and gets more"):
        with open_writer(target, header(), 1) as writer:
            writer.write(["a", "b"], ROWS[:2])
    with pytest.raises(ZeroDivisionError):
        with open_writer(target, header(), 1) as writer:
            writer.write([str(1 // 0)], ROWS[:1])
    assert list(tmp_path.iterdir()) == []
    write(target)
    with pytest.raises(UsageError, match="exists already"):
        write(target)
    write(target, force=True)


@pytest.mark.parametrize("suffix", ALL)
def test_no_descriptor_is_a_file_too(tmp_path: Path, suffix: str) -> None:
    with open_writer(tmp_path / f"x{suffix}", header(), 0):
        pass
    reader = read_descriptors(tmp_path / f"x{suffix}")
    assert (reader.count, reader.descriptor_size, list(reader.blocks())) == (0, P, [])


@pytest.mark.parametrize(
    ("names", "values", "words"),
    [
        (["a"], ROWS[:1, :3], r"descriptors have shape \(1, 3\), expected \(1, 6\)"),
        (["a"], ROWS[:1] * np.nan, "the descriptor of a is not finite"),
        (["a", "b"], ROWS[:2] * [[1], [1e6]], "the descriptor of b holds values that float16 cannot"),
        ([""], ROWS[:1], "'' is no name"),
        (["a\0"], ROWS[:1], r"'a\\x00' is no name"),
        (["\ud800"], ROWS[:1], r"'\\ud800' is no name"),
    ],
)
def test_rows_that_no_format_can_hold_are_refused(tmp_path: Path, names: list[str], values: Array, words: str) -> None:
    with pytest.raises(InputError, match=words):
        with open_writer(tmp_path / "x.npy", header("float16"), 2) as writer:
            writer.write(names, values)


def test_the_suffix_says_the_format(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"x\.csv does not end in \.npz, \.npy, \.h5, \.parquet"):
        with open_writer(tmp_path / "x.csv", header(), 1):
            pass
    with pytest.raises(InputError, match=r"x\.csv is no file of descriptors"):
        read_descriptors(tmp_path / "x.csv")


def test_numpy_reads_what_is_written(tmp_path: Path) -> None:
    """As anybody would, without this package."""
    with np.load(write(tmp_path / "x.npz")) as arrays:
        assert arrays["names"].tolist() == NAMES
        assert np.array_equal(arrays["descriptors"], ROWS)
        assert arrays["times_ns"].tolist() == [-1 if time is None else time for time in TIMES]
        assert json.loads(arrays["header"].item())["artifact"] == "m.onnx"
    assert np.array_equal(np.load(write(tmp_path / "x.npy"), mmap_mode="r"), ROWS)
    first, *lines = map(json.loads, (tmp_path / "x.names.jsonl").read_text().splitlines())
    assert first["sha256"] == "ab" * 32
    assert [line["name"] for line in lines] == NAMES
    assert [line.get("time_ns") for line in lines] == TIMES


@pytest.mark.export
def test_the_header_of_an_artifact(tiny: OnnxArtifact) -> None:
    got = header_for(Candidate.of(tiny), head=None, dtype="float32")
    assert (got.artifact, got.sha256, got.precision) == (tiny.path.name, tiny.sha256, "fp32")
    assert got.descriptor_size == tiny.spec.descriptor_size
    assert got.images is not None
    assert header_from_json(got.to_json()) == got


# hloc


@BULK
def test_hloc_reads_what_is_written(tmp_path: Path) -> None:
    """With the behaviour of list_h5_names and get_descriptors: the parents of all datasets, and a dataset by name."""
    import h5py

    names = ["query/night/1.jpg", "db/2.jpg", "3.jpg"]
    with open_writer(tmp_path / "x.h5", header("float16"), 3) as writer:
        writer.write(names, ROWS[:3])
    listed: list[str] = []
    with h5py.File(str(tmp_path / "x.h5"), "r", libver="latest") as file:
        file.visititems(
            lambda _, each: listed.append(each.parent.name.strip("/")) if isinstance(each, h5py.Dataset) else None
        )
        got = np.stack([file[name]["global_descriptor"].__array__() for name in names])
    assert sorted(set(listed)) == sorted(names)
    assert np.array_equal(got, ROWS[:3].astype(np.float16))


@BULK
def test_what_hloc_writes_is_read(tmp_path: Path) -> None:
    """With image_size beside each descriptor, in float16 as it is by default, in its latest layout."""
    import h5py

    for name, row in zip(("b/1.jpg", "a.jpg"), ROWS, strict=False):
        with h5py.File(str(tmp_path / "x.h5"), "a", libver="latest") as file:
            group = file.create_group(name)
            group.create_dataset("global_descriptor", data=row.astype(np.float16))
            group.create_dataset("image_size", data=np.array([640, 480]))
    reader = read_descriptors(tmp_path / "x.h5")
    assert (reader.header, reader.count, reader.descriptor_size) == (None, 2, P)
    half = ROWS.astype(np.float16).astype(np.float32)
    assert rows(tmp_path / "x.h5") == {"a.jpg": (half[1].tolist(), None), "b/1.jpg": (half[0].tolist(), None)}


@BULK
def test_names_that_hdf5_cannot_tell_apart_are_refused(tmp_path: Path) -> None:
    for names in (["a", "/a"], ["a", "a/global_descriptor"], ["a/b", "a//b"]):
        with pytest.raises(InputError, match=r"stands in the way of another name in HDF5: write \.parquet"):
            with open_writer(tmp_path / "x.h5", header(), 2) as writer:
                writer.write(names, ROWS[:2])
    with open_writer(tmp_path / "y.h5", header(), 2) as writer:
        writer.write(["a/b", "a"], ROWS[:2])  # the group of the second is there already
    assert sorted(rows(tmp_path / "y.h5")) == ["a", "a/b"]


# files of others


def parquet(path: Path, columns: dict[str, Any]) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table(columns), path, row_group_size=2)
    return path


@BULK
def test_parquet_of_others(tmp_path: Path) -> None:
    import pyarrow as pa

    lists = pa.array(ROWS.tolist(), pa.list_(pa.float64()))
    path = parquet(tmp_path / "x.parquet", {"label": [1.5] * 6, "embedding": lists, "id": list(range(6))})
    assert rows(path, 4) == {str(number): (row.tolist(), None) for number, row in enumerate(ROWS)}
    path = parquet(tmp_path / "y.parquet", {"anything": pa.array(ROWS.tolist(), pa.large_list(pa.float32()))})
    assert list(rows(path)) == list("012345")
    assert read_descriptors(path).header is None
    for kind in (pa.string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())):  # pandas has categories
        path = parquet(tmp_path / "z.parquet", {"vector": lists, "path": pa.array(list("uvwxyz")).cast(kind)})
        assert list(rows(path)) == list("uvwxyz")


@BULK
def test_pyarrow_reads_what_is_written(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    table = pq.read_table(write(tmp_path / "x.parquet", dtype="float16"))
    assert str(table.schema.field("descriptor").type) == f"fixed_size_list<element: halffloat>[{P}]"
    assert table["name"].to_pylist() == NAMES
    assert table["time_ns"].to_pylist() == TIMES
    assert json.loads(table.schema.metadata[b"netvlad_deploy"])["dtype"] == "float16"


@BULK
def test_row_groups_are_alike_whatever_is_written_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow.parquet as pq

    monkeypatch.setattr("netvlad_deploy.descriptors.parquet_file.GROUP_BYTES", 4 * P * 4)
    paths = [write(tmp_path / f"{step}.parquet", step=step) for step in (1, 3, 5, 6)]
    assert len({path.read_bytes() for path in paths}) == 1
    metadata = pq.ParquetFile(paths[0]).metadata
    assert [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)] == [4, 2]


@BULK
@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"descriptor": [[1.0, 2.0], [1.0]]}, "row 1 has no descriptor of 2 values"),
        ({"descriptor": [[1.0, 2.0], None]}, "row 1 has no descriptor of 2 values"),
        ({"descriptor": [[1.0, None]]}, "row 0 has no descriptor"),
        ({"descriptor": [[], [1.0]]}, "has descriptors of 0 values"),
        ({"a": [[1.0]], "b": [[1.0]]}, "several columns with lists of numbers, but a, b"),
        ({"a": ["x"]}, "no column with lists of numbers, but a: call that of the descriptors descriptor"),
        ({"name": ["a", "a"], "descriptor": [[1.0], [2.0]]}, "holds a name twice, a: rename one"),
        ({"name": ["a", None], "descriptor": [[1.0], [2.0]]}, "row 1 has no name: write one in all rows"),
        ({"name": ["a"], "descriptor": [[float("nan")]]}, "the descriptor of a is not finite"),
    ],
)
def test_parquet_that_holds_no_descriptors_is_refused(tmp_path: Path, columns: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        rows(parquet(tmp_path / "x.parquet", columns))


def savez(path: Path, **arrays: Any) -> Path:
    np.savez_compressed(path, **arrays)
    return path


def test_numpy_files_of_others(tmp_path: Path) -> None:
    path = savez(tmp_path / "x.npz", names=np.array(["a", "b"]), descriptors=ROWS[:2].astype(">f8"), more=np.ones(3))
    assert rows(path) == {name: (row.tolist(), None) for name, row in zip("ab", ROWS, strict=False)}
    path = savez(tmp_path / "y.npz", names=np.array([b"\xff", b"b"]), descriptors=ROWS[:2])
    assert list(rows(path)) == ["\\xff", "b"]
    np.save(tmp_path / "x.npy", ROWS.astype(np.float16))
    assert list(rows(tmp_path / "x.npy", 2)) == list("012345")


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"names": np.array(["a"])}, r"x\.npz: has no array descriptors, but names"),
        ({"names": np.array(["a"]), "descriptors": ROWS[:2]}, "there are 1 names and 2 descriptors"),
        ({"names": np.array(["a", "a"]), "descriptors": ROWS[:2]}, "holds a name twice"),
        ({"names": np.array(["a"]), "descriptors": ROWS[:1] * np.inf}, "the descriptor of a is not finite"),
        (
            {"names": np.array(["a"]), "descriptors": np.array([[1]])},
            r"descriptors are int64 \(1, 1\), expected \(N, P\)",
        ),
        ({"names": np.array([["a"]]), "descriptors": ROWS[:1]}, r"names are <U1 \(1, 1\), expected \(N,\) of texts"),
        ({"names": np.array(["a"], object), "descriptors": ROWS[:1]}, "holds no numbers"),
        ({"names": np.array(["a"]), "descriptors": ROWS[:1, :0]}, "descriptors of 0 values"),
        ({"names": np.array(["a"] * 6), "descriptors": np.asfortranarray(ROWS)}, "Fortran order"),
        ({"names": np.array(["a"]), "descriptors": ROWS[:1], "times_ns": np.ones(1)}, "times_ns are"),
    ],
)
def test_npz_that_holds_no_descriptors_is_refused(tmp_path: Path, arrays: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        rows(savez(tmp_path / "x.npz", **arrays))


def test_the_names_of_a_npy_file_must_fit(tmp_path: Path) -> None:
    path = write(tmp_path / "x.npy")
    beside = tmp_path / "x.names.jsonl"
    first, *lines = beside.read_text().splitlines()
    for kept, words in (
        ([first, *lines[:4]], "has 4 names for 6 descriptors"),
        ([first, *lines, '{"name":"more"}'], "has more than 6 names"),
        ([first, *lines[:5], lines[0]], "holds a name twice"),
        ([first, "[]"], r"has the line '\[\]"),
        ([first, "{"], "cut short"),
        (lines, "its first line is no header"),
        ([first.replace('"descriptor_size":6', '"descriptor_size":7'), *lines], "its header says 7: embed again"),
        ([first.replace("descriptors/1", "descriptors/9"), *lines], "has a header of netvlad-deploy/descriptors/9"),
        ([first.replace('"fp16"', "16"), *lines], "has a damaged header"),
    ):
        beside.write_text("\n".join(kept))
        with pytest.raises(InputError, match=words):
            rows(path)


@pytest.mark.parametrize("suffix", ALL)
def test_a_damaged_file_is_refused(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"x{suffix}")
    content = path.read_bytes()
    for broken in (b"", content[:40], content[: len(content) // 2], content[:-1], b"what is this"):
        path.write_bytes(broken)
        with pytest.raises(InputError, match=f"x{suffix}"):
            rows(path)
    path.unlink()
    with pytest.raises(InputError, match=f"x{suffix} is missing"):
        rows(path)


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    """A member that claims a terabyte of a few bytes, and one whose single name is huge."""
    with zipfile.ZipFile(savez(tmp_path / "x.npz", names=np.array(["a"]), descriptors=ROWS[:1]), "a") as archive:
        archive.filelist[1].file_size = 2**40
        archive._didModify = True  # type: ignore[attr-defined]
    with pytest.raises(InputError, match="claims 1099511627776 bytes"):
        rows(tmp_path / "x.npz")
    with pytest.raises(InputError, match="names are <U20000"):
        rows(savez(tmp_path / "y.npz", names=np.array(["a" * 20_000]), descriptors=ROWS[:1]))
