"""Local descriptors come item by item from .npy, .npz, folders of .npy, and HDF5 as hloc writes it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from netvlad_deploy.errors import InputError
from netvlad_deploy.sources.open_sources import open_sources
from netvlad_deploy.spec.items import Item
from netvlad_deploy.support.arrays import Array

D = 4
RANDOM = np.random.default_rng(5)


def made(*shape: int) -> Array:
    return RANDOM.normal(size=shape).astype(np.float32)


def read(*paths: Path, feature_size: int | None = D) -> dict[str, Array]:
    """Return what a source has, loaded after its end."""
    source = open_sources([str(path) for path in paths], features=True, feature_size=feature_size)
    items = [one for one in source.items() if isinstance(one, Item)]
    loads = list(open_sources([str(path) for path in paths], features=True, feature_size=feature_size).open(items))
    return {item.name: np.asarray(load()) for item, load in loads}


def same(got: dict[str, Array], expected: dict[str, Array]) -> None:
    assert list(got) == list(expected)
    for name, values in expected.items():
        assert got[name].dtype == values.dtype
        assert np.array_equal(got[name], values), name


def test_an_array_has_an_item_for_each_of_its_first_axis(tmp_path: Path) -> None:
    x = made(3, 5, D).astype(np.float16)
    np.save(tmp_path / "x.npy", x)
    same(read(tmp_path / "x.npy"), {f"x.npy/{number}": x[number] for number in range(3)})
    np.save(tmp_path / "y.npy", made(2, D).astype(">f4"))
    same(read(tmp_path / "y.npy"), {"y.npy": np.load(tmp_path / "y.npy").astype(np.float32)})


def test_of_an_array_no_more_than_an_item_is_read(tmp_path: Path) -> None:
    """A file of 64 GiB that takes no place on the disk: its last item is there at once."""
    with (tmp_path / "x.npy").open("wb") as stream:
        np.lib.format.write_array_header_1_0(
            stream, {"descr": "<f4", "fortran_order": False, "shape": (2**14, 2**18, D)}
        )
        stream.truncate(stream.tell() + 2**14 * 2**18 * D * 4)
    source = open_sources([str(tmp_path / "x.npy")], features=True, feature_size=D)
    *_, last = source.items()
    assert isinstance(last, Item)
    ((_, load),) = source.open([last])
    assert np.asarray(load()).shape == (2**18, D)


def test_sequences_have_their_names(tmp_path: Path) -> None:
    sequences = {"b": made(3, D), "a/1": made(7, D)}
    np.savez_compressed(tmp_path / "x.npz", allow_pickle=False, **sequences)
    same(read(tmp_path / "x.npz"), sequences)


def test_a_folder_of_arrays_is_a_folder_of_items(tmp_path: Path) -> None:
    for name in ("a", "b/c"):
        (tmp_path / "f" / name).parent.mkdir(exist_ok=True, parents=True)
    x, y = made(3, D), made(1, 2, D)
    np.save(tmp_path / "f" / "a.npy", x)
    np.save(tmp_path / "f" / "b" / "c.npy", y)
    same(read(tmp_path / "f"), {"a.npy": x, "b/c.npy": y[0]})
    np.save(tmp_path / "f" / "a.npy", made(2, 3, D))
    with pytest.raises(InputError, match=r"a\.npy has shape \(2, 3, 4\), expected one item"):
        read(tmp_path / "f")


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (made(3, 5, 7), r"x\.npy: features have shape \(5, 7\), expected \(num_features, 4\)"),
        (made(3), r"features have shape \(\), expected"),
        (made(1, 2, 3, 4), r"features have shape \(2, 3, 4\)"),
        (made(3, 0, D), "there is none"),
        (made(3, 5, D).astype(np.float64), "features are float64, expected float32 or float16"),
        (np.zeros((2, 3, D), np.uint8), "features are uint8"),
        (np.asfortranarray(made(3, 5, D)), "Fortran order: save numpy.ascontiguousarray of it"),
    ],
)
def test_another_array_is_refused(tmp_path: Path, array: Array, words: str) -> None:
    np.save(tmp_path / "x.npy", array)
    with pytest.raises(InputError, match=words):
        read(tmp_path / "x.npy")


@pytest.mark.parametrize("suffix", [".npy", ".npz", pytest.param(".h5", marks=pytest.mark.bulk)])
@pytest.mark.parametrize("content", [b"", b"this is no array", b"PK\3\4", b"\x89HDF\r\n\x1a\n" + bytes(99)])
def test_a_file_of_something_else_is_refused(tmp_path: Path, suffix: str, content: bytes) -> None:
    (tmp_path / f"x{suffix}").write_bytes(content)
    with pytest.raises(InputError, match=f"x{suffix} is damaged or cut short"):
        read(tmp_path / f"x{suffix}")


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_a_file_that_is_cut_short_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    np.save(path, made(3, 5, D)) if suffix == ".npy" else np.savez(path, allow_pickle=False, a=made(5, D))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match="cut short"):
        read(path)


def test_one_sequence_that_is_wrong_is_lost_alone(tmp_path: Path) -> None:
    good = made(2, D)
    np.savez(tmp_path / "x.npz", allow_pickle=False, a=made(3, 9), b=good)
    source = open_sources([str(tmp_path / "x.npz")], features=True, feature_size=D)
    (_, wrong), (_, right) = source.open(one for one in source.items() if isinstance(one, Item))
    with pytest.raises(InputError, match=r"x\.npz: a\.npy: features have shape \(3, 9\)"):
        wrong()
    assert np.array_equal(np.asarray(right()), good)


# HDF5


def hloc(path: Path, images: dict[str, Array], **others: Any) -> Path:
    """Write local descriptors as hloc's extract_features.main does: keypoints, scores and descriptors (D,N)."""
    import h5py

    for name, features in images.items():
        with h5py.File(str(path), "a", libver="latest") as file:
            group = file.create_group(name)
            count = len(features)
            values = {"keypoints": np.ones((count, 2)), "scores": np.ones(count), "image_size": np.array([640, 480])}
            for key, value in {**values, "descriptors": features.T, **others}.items():
                group.create_dataset(key, data=value.astype(np.float16) if value.dtype == np.float32 else value)
    return path


@pytest.mark.bulk
def test_local_descriptors_of_hloc(tmp_path: Path) -> None:
    """Names with slashes are groups within groups; D comes first."""
    images = {"query/night/1.jpg": made(7, D), "db/2.jpg": made(3, D), "3.jpg": made(D, D)}
    path = hloc(tmp_path / "feats.h5", images)
    expected = {name: images[name].astype(np.float16) for name in sorted(images)}
    same(read(path), expected)
    same(read(path, feature_size=None), expected)


@pytest.mark.bulk
def test_a_layout_that_is_not_sure_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    images = {"a": made(D, D), "b": made(D, D)}
    same(read(hloc(tmp_path / "x.h5", images)), {name: x.astype(np.float16) for name, x in images.items()})
    (line,) = caplog.messages
    assert "a/descriptors (4, 4) is taken as (D,N): both axes fit" in line
    caplog.clear()
    turned = {"a": made(3, D)}
    same(read(hloc(tmp_path / "y.h5", {"a": turned["a"].T})), {"a": turned["a"].astype(np.float16)})
    assert "a/descriptors (3, 4) is taken as (N,D): the only axis that fits" in caplog.messages[0]


@pytest.mark.bulk
def test_plain_datasets(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    import h5py

    sequences = {"a": made(5, D), "deep/b": made(2, D), "descriptors": made(1, D)}
    with h5py.File(tmp_path / "x.hdf5", "w") as file:
        for name, values in sequences.items():
            file.create_dataset(name, data=values, chunks=(1, D), compression="gzip")
    same(read(tmp_path / "x.hdf5"), sequences)
    assert caplog.messages == []


@pytest.mark.bulk
def test_hostile_hdf5_is_refused(tmp_path: Path) -> None:
    import h5py

    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["x"] = made(2, D)
    with h5py.File(tmp_path / "link.h5", "w") as file:
        file["a"] = h5py.ExternalLink("secret.h5", "x")
    with h5py.File(tmp_path / "circle.h5", "w") as file:
        group = file.create_group("a")
        group["again"] = group
    with h5py.File(tmp_path / "huge.h5", "w") as file:
        file.create_dataset("a", (2**40, D), np.float32, chunks=(8, D))
    with h5py.File(tmp_path / "wide.h5", "w") as file:
        file["a"] = made(3, 7)
    for name, words in (
        ("link", "has a link in place of a"),
        ("circle", "groups within groups over 64 deep"),
        ("huge", "claims 17592186044416 bytes"),
        ("wide", r"wide\.h5: a: features have shape \(3, 7\)"),
    ):
        with pytest.raises(InputError, match=words):
            read(tmp_path / f"{name}.h5")


def test_a_name_that_no_file_of_descriptors_can_hold_is_skipped(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", **{"": made(1, D), "a" * 5000: made(1, D), "b": made(1, D)})  # type: ignore[arg-type]
    found = list(open_sources([str(tmp_path / "x.npz")], features=True).items())
    assert [one.name if isinstance(one, Item) else one.reason for one in found] == [
        "without a name that can be kept", "without a name that can be kept", "b",
    ]  # fmt: skip
