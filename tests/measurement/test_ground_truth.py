"""Right images come from a file that names only what is there, or from the order of two folders."""

import json
from pathlib import Path
from typing import Any

import pytest

from netvlad_deploy.errors import InputError, UsageError
from netvlad_deploy.measurement.ground_truth import load_positives, positives_within

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
def test_what_is_no_mapping_is_refused(tmp_path: Path, record: Any) -> None:
    with pytest.raises(InputError, match="is no ground truth"):
        load_positives(write(tmp_path, record), QUERIES, DATABASE)


def test_what_is_no_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "truth.json").write_bytes(b"{\xff")
    for name in ("truth.json", "missing.json"):
        with pytest.raises(InputError, match="is not a JSON file"):
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
