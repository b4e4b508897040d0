"""A folder of shards is read as one file, and only if it is whole."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from netvlad_deploy.descriptors.open_files import open_writer, read_descriptors
from netvlad_deploy.errors import InputError
from tests.descriptors.test_files import ALL, ROWS, header, rows, write


def shards(folder: Path, suffix: str = ".npz", count: int = 3, **changes: Any) -> Iterator[str]:
    folder.mkdir(exist_ok=True)
    for number in range(count):
        with open_writer(folder / f"shard-{number:06}{suffix}", header(**changes), 2, force=True) as writer:
            writer.write(names := [f"{number}/a", f"{number}/b"], ROWS[:2])
        yield from names


@pytest.mark.parametrize("suffix", ALL)
def test_a_folder_of_shards_is_read_as_one_file(tmp_path: Path, suffix: str) -> None:
    names = list(shards(tmp_path / "s", suffix))
    (tmp_path / "s" / "manifest.json").write_text('{"shards": 3}')
    reader = read_descriptors(tmp_path / "s")
    assert (reader.header, reader.count, list(rows(tmp_path / "s"))) == (header(), 6, names)


def test_shards_that_are_missing_or_of_another_run_are_noticed(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    list(shards(folder))
    (folder / "manifest.json").write_text('{"shards": 5}')
    with pytest.raises(InputError, match="lacks 2 of 5 shards, first 3: finish the run"):
        read_descriptors(folder)
    (folder / "manifest.json").write_text('{"shards": 1000000000000}')
    with pytest.raises(InputError, match="lacks 999999999997 of 1000000000000 shards, first 3"):
        read_descriptors(folder)
    for other in ('{"shards": 1e999}', '{"shards": null}', "[" * 100_000, "[]"):
        (folder / "manifest.json").write_text(other)
        assert read_descriptors(folder).count == 6
    (folder / "manifest.json").unlink()
    (folder / "shard-000001.npz").unlink()
    with pytest.raises(InputError, match="lacks 1 of 3 shards, first 1"):
        read_descriptors(folder)
    list(shards(folder, count=2, sha256="cd" * 32))
    with pytest.raises(InputError, match="are of different artifacts"):
        read_descriptors(folder)
    list(shards(folder))
    write(folder / "shard-000003.npy")
    with pytest.raises(InputError, match=r"holds \.npy and \.npz files"):
        read_descriptors(folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no file of descriptors"):
        read_descriptors(tmp_path / "empty")
    list(shards(folder, count=1))
    (folder / "shard-000003.npy").unlink()
    (folder / "shard-000002.npz").write_bytes((folder / "shard-000001.npz").read_bytes())
    with pytest.raises(InputError, match="holds a name twice"):
        rows(folder)
