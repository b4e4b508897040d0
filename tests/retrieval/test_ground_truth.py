"""Right images come from a file that names images of the folders alone, or from the order of two folders."""

import json
import logging
import os
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from netvlad_deploy.errors import InputError, UsageError
from netvlad_deploy.retrieval import ground_truth
from netvlad_deploy.retrieval.ground_truth import load_positives, positives_within

QUERIES, DATABASE = ["q0", "q1"], ["d0", "d1", "d2"]


def write(folder: Path, record: Any) -> Path:
    (folder / "truth.json").write_text(json.dumps(record))
    return folder / "truth.json"


@pytest.mark.parametrize("wrapped", [True, False])
def test_a_mapping_is_read_wrapped_or_plain(tmp_path: Path, wrapped: bool) -> None:
    mapping = {"q0": ["d0", "d2"], "q1": []}
    path = write(tmp_path, {"tolerance": "words", "positives": mapping} if wrapped else mapping)
    assert load_positives(path, QUERIES, DATABASE) == {"q0": {"d0", "d2"}, "q1": set()}


@pytest.mark.parametrize("record", [[], 3, "q0", {"positives": []}, {"q0": "d0"}, {"q0": [1]}, {"q0": None}])
def test_a_record_that_is_no_mapping_is_refused(tmp_path: Path, record: Any) -> None:
    with pytest.raises(InputError, match="is no ground truth"):
        load_positives(write(tmp_path, record), QUERIES, DATABASE)


def test_a_file_that_is_no_json_is_refused(tmp_path: Path) -> None:
    for content in (b"{\xff", b"", b"[" * 100_000, b'{"q0": ' + b"1" * 5000 + b"}"):
        (tmp_path / "truth.json").write_bytes(content)
        with pytest.raises(InputError, match="is not a JSON file"):
            load_positives(tmp_path / "truth.json", QUERIES, DATABASE)


@pytest.mark.parametrize("suffix", ["json", "npz"])
def test_a_pipe_a_device_or_too_large_a_file_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    """A pipe would wait for a writer, a device has no end."""
    monkeypatch.setattr(ground_truth, "LARGEST_TRUTH_BYTES", 10)
    pipe = tmp_path / f"pipe.{suffix}"
    os.mkfifo(pipe)
    (tmp_path / f"zero.{suffix}").symlink_to("/dev/zero")
    (tmp_path / "large.json").write_bytes(b" " * 11)
    for name, said in (
        (pipe.name, "is not a file but a device"),
        (f"zero.{suffix}", "is not a file but a device"),
        (f"missing.{suffix}", "is missing"),
        ("large.json", "has 11 bytes, of a ground truth in JSON at most 10 are read"),
    ):
        with pytest.raises(InputError, match=said):
            load_positives(tmp_path / name, QUERIES, DATABASE)


def test_unknown_names_are_refused_and_so_is_a_transposed_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"names query q2, which is not in the query folder"):
        load_positives(write(tmp_path, {"q2": ["d0"]}), QUERIES, DATABASE)
    with pytest.raises(InputError, match=r"names database d8 \(and 1 more\), which is not in the database folder"):
        load_positives(write(tmp_path, {"q0": ["d9", "d0", "d8"]}), QUERIES, DATABASE)
    with pytest.raises(InputError, match="names query d0"):
        load_positives(write(tmp_path, {"d0": ["q0"]}), QUERIES, DATABASE)


def test_places_in_order() -> None:
    names = [f"{index}" for index in range(5)]
    assert positives_within(1, names, names) == {
        "0": {"0", "1"}, "1": {"0", "1", "2"}, "2": {"1", "2", "3"}, "3": {"2", "3", "4"}, "4": {"3", "4"},
    }  # fmt: skip
    assert positives_within(0, ["a", "b"], ["c", "d"]) == {"a": {"c"}, "b": {"d"}}
    with pytest.raises(UsageError, match="2 queries and 3 database images"):
        positives_within(1, QUERIES, DATABASE)


def test_places_of_names_whose_order_is_not_sure_are_refused() -> None:
    """f10 stands beside f1 by letters, and beside f9 on the walk."""
    names = sorted(f"f{number}.jpg" for number in range(11))
    with pytest.raises(UsageError, match=r"place 2 may be f10\.jpg \(sorted by letters\) or f2\.jpg \(by numbers\)"):
        positives_within(1, names, names)
    assert positives_within(0, names, names) == {name: {name} for name in names}


class TestPlaces:
    """The arrays of a published ground truth, `utmQ`, `utmDb` and `posDistThr`."""

    PLACES: ClassVar[dict[str, Any]] = {
        "utmQ": np.array([[584000.0, 4477000.0], [584100.0, 4477000.0]]),
        "utmDb": np.array([[584000.0, 4477025.0], [584000.0, 4477025.5], [584085.0, 4476980.0]]),
        "posDistThr": np.array(25),
    }

    def write(self, folder: Path, **changed: Any) -> Path:
        arrays = {name: value for name, value in {**self.PLACES, **changed}.items() if value is not None}
        np.savez(folder / "truth.npz", **arrays)
        return folder / "truth.npz"

    def test_an_image_at_the_distance_itself_is_right(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.INFO):
            found = load_positives(self.write(tmp_path), QUERIES, DATABASE)
        assert found == {"q0": {"d0"}, "q1": {"d2"}}
        assert [record.message.split(": ")[1] for record in caplog.records] == [
            f"the rows of {key} are taken in the order of the sorted folder" for key in ("utmQ", "utmDb")
        ]

    def test_names_say_the_order_of_the_rows(self, tmp_path: Path) -> None:
        path = self.write(
            tmp_path, dbImage=np.array(["./set/d2", "./set/d0", "./set/d1"]), qImage=np.array([["q1"], ["q0"]])
        )
        assert load_positives(path, QUERIES, DATABASE) == {"q0": {"d1"}, "q1": {"d2"}}

    def test_a_suffix_in_capitals_is_one(self, tmp_path: Path) -> None:
        path = self.write(tmp_path).rename(tmp_path / "TRUTH.NPZ")
        assert load_positives(path, QUERIES, DATABASE) == {"q0": {"d0"}, "q1": {"d2"}}

    def test_other_arrays_in_the_file_are_not_looked_at(self, tmp_path: Path) -> None:
        path = self.write(tmp_path, dataset=np.array(None), whichSet=np.array({"split": "test"}, dtype=object))
        assert load_positives(path, QUERIES, DATABASE) == {"q0": {"d0"}, "q1": {"d2"}}

    def test_an_order_that_may_be_another_is_refused(self, tmp_path: Path) -> None:
        """Pittsburgh's lists go on from yaw9 to yaw10; a sorted folder has yaw10 before yaw2."""
        names = ["yaw1", "yaw10", "yaw2"]
        with pytest.raises(InputError, match=r"row 1 of utmDb may be yaw10 \(sorted by letters\) or yaw2 .* dbImage"):
            load_positives(self.write(tmp_path), QUERIES, names)
        listed = np.array(["yaw1", "yaw2", "yaw10"])
        found = load_positives(self.write(tmp_path, dbImage=listed), QUERIES, names)
        assert found == {"q0": {"yaw1"}, "q1": {"yaw10"}}

    @pytest.mark.parametrize(
        ("changed", "said"),
        [
            ({"utmDb": None}, r"of utmQ \(N,2\), .* it holds utmQ, posDistThr"),
            ({"utmDb": np.zeros((4, 2))}, r"utmDb has 4 rows, 3 images are in the folder"),
            ({"utmDb": np.zeros((3, 3))}, r"places and their largest distance must be numbers"),
            ({"utmDb": np.zeros(3)}, r"utmDb is float64 \(3,\), expected numbers"),
            ({"utmQ": np.full((2, 2), np.nan)}, r"utmQ has places that are not finite"),
            ({"utmQ": np.array([["a", "b"]] * 2)}, r"utmQ is <U1"),
            ({"posDistThr": np.array(-1)}, r"largest distance"),
            ({"posDistThr": np.array([5, 25])}, r"largest distance"),
            ({"posDistThr": np.array("25")}, r"largest distance"),
            ({"dbImage": np.array(["d0", "d1"])}, r"utmDb has 3 rows, dbImage has 2 names"),
            ({"dbImage": np.array(["d0", "d1", "d9"])}, r"dbImage has 3 names, the folder 3 images, it lacks d2"),
            ({"dbImage": np.array(["d0", "d1", "d1"])}, r"it lacks d2"),
            ({"dbImage": np.arange(3)}, r"dbImage is int64, expected names as text"),
        ],
    )
    def test_arrays_that_do_not_fit_are_refused(self, tmp_path: Path, changed: dict[str, Any], said: str) -> None:
        with pytest.raises(InputError, match=said):
            load_positives(self.write(tmp_path, **changed), QUERIES, DATABASE)

    def test_one_array_and_a_damaged_file_are_refused(self, tmp_path: Path) -> None:
        (tmp_path / "truth.npz").write_bytes(b"PK not a zip")
        with pytest.raises(InputError, match="damaged or cut short"):
            load_positives(tmp_path / "truth.npz", QUERIES, DATABASE)
        with (tmp_path / "truth.npz").open("wb") as stream:
            np.save(stream, np.zeros((2, 2)))
        with pytest.raises(InputError, match="it holds one array"):
            load_positives(tmp_path / "truth.npz", QUERIES, DATABASE)
