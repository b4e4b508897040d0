import zipfile
from pathlib import Path

import numpy as np
import pytest

from netvlad_deploy.arrays import npz_content, read_arrays
from netvlad_deploy.errors import InputError


def test_names_of_any_kind_survive(tmp_path: Path) -> None:
    arrays = {"file": np.arange(3), "allow_pickle": np.ones((2, 2)), "a/b": np.float32(1)}
    (tmp_path / "x.npz").write_bytes(npz_content(arrays))
    loaded = read_arrays(tmp_path / "x.npz")
    assert isinstance(loaded, dict)
    assert list(loaded) == list(arrays)
    assert all(np.array_equal(loaded[name], arrays[name]) for name in arrays)


def test_damage_of_any_kind_is_one_error(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "good.npz", a=np.random.default_rng(0).random(5000))
    content = bytearray((tmp_path / "good.npz").read_bytes())
    content[200:260] = bytes(60)
    (tmp_path / "corrupt.npz").write_bytes(content)
    with zipfile.ZipFile(tmp_path / "member.npz", "w") as archive:
        archive.writestr("readme.txt", "no array")
    (tmp_path / "header.npy").write_bytes(b"\x93NUMPY\x01\x00\x10\x00{'descr': '<f4', ")
    (tmp_path / "empty.npy").write_bytes(b"")
    for name in ("corrupt.npz", "member.npz", "header.npy", "empty.npy", "missing.npy"):
        with pytest.raises(InputError, match=name):
            read_arrays(tmp_path / name)
