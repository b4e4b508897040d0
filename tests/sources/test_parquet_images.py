"""Images in Parquet files that pyarrow wrote: bytes, Hugging Face's struct, and paths."""

from pathlib import Path
from typing import Any

import pytest

from netvlad_deploy.errors import InputError, UsageError
from netvlad_deploy.sources.open_sources import open_sources
from netvlad_deploy.spec.items import Item, Skipped

pytestmark = pytest.mark.bulk


def write(path: Path, columns: dict[str, Any], row_group_size: int = 2, **options: Any) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table(columns), path, row_group_size=row_group_size, **options)
    return path


def listed(path: Path, column: str | None = None) -> tuple[list[Item], list[str]]:
    found = list(open_sources([str(path)], column=column).items())
    return [one for one in found if isinstance(one, Item)], [str(one) for one in found if isinstance(one, Skipped)]


def read(path: Path, items: list[Item], column: str | None = None) -> list[bytes]:
    """Return what the items load, after the source is done."""
    return [bytes(load()) for _, load in list(open_sources([str(path)], column=column).open(items))]


IMAGES = [b"one", b"two", b"three", b"four", b"five"]


def test_bytes_of_images_row_by_row(tmp_path: Path) -> None:
    path = write(tmp_path / "x.parquet", {"jpg": IMAGES, "label": [1] * 5})
    items, skipped = listed(path)
    assert [item.name for item in items] == [f"x.parquet/{row}" for row in range(5)]
    assert skipped == []
    assert read(path, items) == IMAGES
    assert read(path, items[1:2] + items[4:]) == [b"two", b"five"]


def test_the_images_of_hugging_face(tmp_path: Path) -> None:
    """Bytes or a path, and either may be null."""
    (tmp_path / "far.jpg").write_bytes(b"far")
    images = [{"bytes": b"one", "path": "a.jpg"}, {"bytes": None, "path": str(tmp_path / "far.jpg")}, None]
    path = write(tmp_path / "x.parquet", {"image": images, "id": [7, 8, 9], "text": ["t.jpg"] * 3})
    items, _ = listed(path)
    assert [item.name for item in items] == ["7", "8", "9"]
    assert read(path, items[:2]) == [b"one", b"far"]
    with pytest.raises(InputError, match=r"x\.parquet, row 2 holds no image"):
        read(path, items[2:])


def test_paths_are_items_of_their_own_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.jpg").write_bytes(b"a")
    columns = {"image_path": ["a.jpg", "gone.jpg", None], "place": ["x", "y", "z"]}
    path = write(tmp_path / "x.parquet", columns)
    items, skipped = listed(path)
    assert [(item.name, item.path, item.part) for item in items] == [("a.jpg", Path("a.jpg"), "")]
    assert skipped == [f"gone.jpg: missing ({path}, row 1)", f"{path}, row 2: missing"]
    assert read(path, items) == [b"a"]
    path = write(tmp_path / "y.parquet", {**columns, "id": ["first", "second", "third"]})
    assert [item.name for item in listed(path)[0]] == ["first"]


def test_views_and_categories_are_texts_and_bytes_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Polars may keep them, and pandas its categories."""
    import pyarrow as pa

    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.jpg").write_bytes(b"a")
    path = write(tmp_path / "x.parquet", {"path": pa.array(["a.jpg"]).dictionary_encode()})
    assert read(path, listed(path)[0]) == [b"a"]
    names = pa.array(["n", "m"], pa.string_view())
    path = write(tmp_path / "y.parquet", {"jpg": pa.array(IMAGES[:2], pa.binary_view()), "name": names})
    items, _ = listed(path)
    assert [item.name for item in items] == ["n", "m"]
    assert read(path, items) == IMAGES[:2]


def test_which_column_is_meant(tmp_path: Path) -> None:
    path = write(tmp_path / "x.parquet", {"left": IMAGES, "right": IMAGES[::-1], "n": [1] * 5})
    with pytest.raises(UsageError, match="images may be in left, right: choose with --column"):
        listed(path)
    items, _ = listed(path, "right")
    assert read(path, items[:1], "right") == [b"five"]
    with pytest.raises(UsageError, match="has no images or paths in n; its columns are left, right, n"):
        listed(path, "n")
    path = write(tmp_path / "y.parquet", {"text": ["no path"], "n": [1]})
    with pytest.raises(UsageError, match="has no images or paths, but text, n: choose with --column"):
        listed(path)


def test_rows_without_a_name_are_skipped(tmp_path: Path) -> None:
    path = write(tmp_path / "x.parquet", {"image": IMAGES[:3], "name": ["a", None, ""]})
    items, skipped = listed(path)
    assert [item.name for item in items] == ["a"]
    assert skipped == [f"{path} [{row}]: without a name that can be kept" for row in (1, 2)]


def test_only_row_groups_with_wanted_rows_are_read(tmp_path: Path) -> None:
    """The first row group is damaged on the disk, and nobody notices who does not need it."""
    path = write(tmp_path / "x.parquet", {"image": [b"a" * 500] * 2 + [b"b" * 500] * 2}, compression="none")
    items, _ = listed(path)
    content = bytearray(path.read_bytes())
    content[4:60] = b"\xff" * 56
    path.write_bytes(content)
    assert read(path, items[2:]) == [b"b" * 500] * 2
    with pytest.raises(InputError, match=r"x\.parquet is damaged"):
        read(path, items[:1])


def test_a_path_that_no_file_can_have_is_its_own_rows_loss(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"one")
    images: list[dict[str, Any]] = [{"bytes": None, "path": each} for each in ("a\0.jpg", str(tmp_path / "a.jpg"))]
    images.append({"bytes": b"two", "path": None})
    path = write(tmp_path / "x.parquet", {"image": images})
    items, _ = listed(path)
    with pytest.raises(InputError, match="cannot be read: embedded null byte"):
        read(path, items[:1])
    assert read(path, items[1:]) == [b"one", b"two"]


def test_a_page_that_claims_more_than_the_file_has_takes_no_memory_for_it(tmp_path: Path) -> None:
    """The page header of Thrift has both sizes of the page, of which the second one is made 1.5 GiB."""
    import pyarrow as pa

    path = write(tmp_path / "x.parquet", {"path": ["a.jpg"]}, compression="none", use_dictionary=False)
    content = path.read_bytes()
    size = content[7:8]  # of one byte, behind the magic, the kind of the page, and its size before compression
    assert content[4:10] == b"\x15\x00\x15" + size + b"\x15" + size
    path.write_bytes(content[:9] + b"\x80\x80\x80\x80\x0c" + content[10:])
    before = pa.default_memory_pool().max_memory()
    with pytest.raises(InputError, match=r"Page was smaller \(\d+\) than expected \(1610612736\)"):
        listed(path)
    assert pa.default_memory_pool().max_memory() - before < 1 << 24


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" + bytes(99) + b"PAR1"])
def test_a_file_that_is_none_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.parquet").write_bytes(content)
    with pytest.raises(InputError, match=r"x\.parquet is damaged or cut short"):
        listed(tmp_path / "x.parquet")


def test_a_file_that_was_replaced_is_noticed(tmp_path: Path) -> None:
    items, _ = listed(write(tmp_path / "x.parquet", {"image": IMAGES}))
    write(tmp_path / "x.parquet", {"image": IMAGES[:2]})
    with pytest.raises(InputError, match="has 2 rows, and no row 4"):
        read(tmp_path / "x.parquet", items[4:])
