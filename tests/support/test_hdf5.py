"""A walk through an HDF5 file of others ends, however its groups hold each other."""

from pathlib import Path

import pytest

from netvlad_deploy.errors import InputError
from netvlad_deploy.support.hdf5 import MAX_DEPTH, open_hdf5, walk

h5py = pytest.importorskip("h5py")
pytestmark = pytest.mark.bulk


def test_every_dataset_comes_with_its_group_though_two_groups_hold_it(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "m.h5", "w") as file:
        file["b/x"] = [1.0]
        file["a/y"] = file["b"]
        assert [(path, group.name) for path, group, _ in walk(h5py, file)] == [("a/y/x", "/a/y"), ("b/x", "/b")]


def test_groups_that_hold_the_same_groups_twice_over_and_over_are_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "m.h5", "w") as file:
        group = file
        for _ in range(40):  # 2**40 ways to the last one
            below = group.create_group("a")
            group["b"] = below
            group = below
        with pytest.raises(InputError, match="hold the same groups again and again"):
            list(walk(h5py, file))


def test_a_group_that_holds_itself_is_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "m.h5", "w") as file:
        file["a/a"] = file.create_group("a")
        with pytest.raises(InputError, match=f"groups within groups over {MAX_DEPTH} deep"):
            list(walk(h5py, file))


@pytest.mark.parametrize("user_block", [0, 512, 2048])
@pytest.mark.parametrize("libver", ["earliest", "latest"])
def test_a_file_is_opened_wherever_its_superblock_stands(tmp_path: Path, user_block: int, libver: str) -> None:
    path = tmp_path / "m.h5"
    with h5py.File(path, "w", userblock_size=user_block, libver=libver) as file:
        file["x"] = [1.0]
    with open_hdf5(h5py, path) as file:
        assert list(file["x"]) == [1.0]


@pytest.mark.parametrize("user_block", [0, 512])
@pytest.mark.parametrize("version", [0, 1])
def test_a_file_with_a_block_for_a_driver_is_refused_before_it_is_opened(
    tmp_path: Path, user_block: int, version: int
) -> None:
    """The block would begin where the file has other bytes, and these say that it has over 1 GiB."""
    path = tmp_path / "m.h5"
    with h5py.File(path, "w", userblock_size=user_block, libver="earliest") as file:
        file["x"] = [1.0]
    content = bytearray(path.read_bytes())
    if version == 1:  # which has four bytes more before the addresses; h5py writes none
        content[user_block + 8] = 1
        content[user_block + 24 : user_block + 24] = bytes(4)
    place = user_block + 48 + 4 * version
    assert content[place : place + 8] == b"\xff" * 8
    content[place : place + 8] = (96).to_bytes(8, "little")
    path.write_bytes(content)
    with pytest.raises(InputError, match="one of several files of HDF5's multi or family driver"):
        open_hdf5(h5py, path)
