"""Arrays are read as NumPy reads them, and a damaged or hostile file is one error within bounded memory."""

import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from netvlad_deploy.errors import InputError
from netvlad_deploy.support import arrays as arrays_module
from netvlad_deploy.support.arrays import cosines, npz_content, read_arrays


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


@pytest.mark.parametrize("broken", ["\n", "\x85", "\u2028"])
def test_a_member_s_name_breaks_no_line(tmp_path: Path, broken: str) -> None:
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr(f"one{broken}two", "no array")
    with pytest.raises(InputError, match="holds one two, which is no array"):
        read_arrays(tmp_path / "x.npz")


def npy(descr: str, shape: str, content: bytes = b"") -> bytes:
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + content


CLAIMS: dict[str, bytes] = {
    "30 GB": npy("'<f4'", "(1000, 1000, 7500)", bytes(64)),
    "more than an integer holds": npy("'<f4'", f"({1 << 70},)"),
    "a negative shape": npy("'<f4'", "(-1, 3)", bytes(12)),
    "nothing, very often": npy("'|S0'", f"({1 << 40},)"),
    "nothing of much": npy("'|V0'", f"({1 << 40},)"),
    "objects": npy("'|O'", "(3,)", bytes(24)),
    "one value too many": npy("'<f8'", "(3,)", bytes(23)),
    "a dtype that is none": npy("'<q9'", "(3,)", bytes(64)),
    "records": npy("[('a', '<f4')]", f"({1 << 33},)"),
    "brackets": npy("(" * 100, "(3,)"),
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", CLAIMS)
def test_a_header_may_claim_no_more_than_its_file_has(tmp_path: Path, kind: str, packed: bool) -> None:
    path = tmp_path / ("x.npz" if packed else "x.npy")
    path.write_bytes(CLAIMS[kind])
    if packed:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("x.npy", CLAIMS[kind])
    tracemalloc.start()
    with pytest.raises(InputError, match=r"x.np. is damaged or cut short \("):
        read_arrays(path)
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()


@pytest.mark.parametrize("method", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_members_that_numpy_does_not_write_are_refused(tmp_path: Path, method: int) -> None:
    with zipfile.ZipFile(tmp_path / "x.npz", "w", method) as archive:
        archive.writestr("x.npy", npy("'<f4'", "(3,)", bytes(12)))
    with pytest.raises(InputError, match=r"claims 140 bytes of \d+ compressed ones"):
        read_arrays(tmp_path / "x.npz")


def test_a_directory_of_a_zip_archive_may_not_claim_more_than_deflate_can_make(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("x.npy", npy("'<f4'", "(1000, 1000, 7500)", bytes(64)))
    content = bytearray((tmp_path / "x.npz").read_bytes())
    entry = content.index(b"PK\x01\x02")
    content[entry + 20 : entry + 28] = b"\xff\xff\xff\x00\xff\xff\xff\x0f"
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(InputError, match=r"claims 268435455 bytes of 16777215 compressed ones"):
        read_arrays(tmp_path / "x.npz")


@pytest.mark.parametrize(
    "array",
    [
        np.asfortranarray(np.arange(6).reshape(2, 3)),
        np.zeros((0, 3)),
        np.float16(2),
        np.array(["a", "bc"]),
        np.ones(3, ">f4"),
    ],
)
def test_arrays_are_those_that_numpy_reads(tmp_path: Path, array: np.ndarray) -> None:
    np.save(tmp_path / "x.npy", array)
    np.savez_compressed(tmp_path / "x.npz", x=array)
    packed = read_arrays(tmp_path / "x.npz")
    assert isinstance(packed, dict)
    for loaded in (read_arrays(tmp_path / "x.npy"), packed["x"]):
        assert isinstance(loaded, np.ndarray)
        assert loaded.dtype == np.asarray(array).dtype
        assert np.array_equal(loaded, array)
        assert loaded.flags.writeable


def test_an_archive_of_many_arrays_or_of_much_out_of_little_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.npz"
    np.savez_compressed(path, allow_pickle=False, **{f"a{number}": np.zeros(1 << 12) for number in range(9)})
    assert len(read_arrays(path)) == 9
    monkeypatch.setattr(arrays_module, "MAX_INFLATED_BYTES", 1 << 12)
    with pytest.raises(InputError, match=r"m.npz has \d+ bytes and would inflate to 296\d\d\d: write"):
        read_arrays(path)
    np.savez(path, allow_pickle=False, **{f"a{number}": np.zeros(1 << 12) for number in range(9)})
    assert len(read_arrays(path)) == 9
    monkeypatch.setattr(arrays_module, "MAX_ARRAYS", 8)
    with pytest.raises(InputError, match=r"holds 9 arrays, expected 8 at most"):
        read_arrays(path)


def test_cosines_are_those_of_each_row_in_any_number() -> None:
    random = np.random.default_rng(0)
    got, expected = (random.standard_normal((600, 7)).astype(np.float32) for _ in range(2))
    wanted = [np.dot(a, b) / (np.linalg.norm(a) * np.linalg.norm(b)) for a, b in zip(got, expected, strict=True)]
    assert np.abs(cosines(got, expected) - wanted).max() < 1e-6
    assert np.abs(cosines(got, got) - 1).max() < 1e-15
    assert np.array_equal(cosines(got, expected[:1]), cosines(got, np.repeat(expected[:1], 600, axis=0)))
    assert cosines(np.zeros((1, 7)), got[:1]).tolist() == [0]
    assert cosines(got[:0], expected[:0]).shape == (0,)
