"""Sidecars and other files of JSON: any value at any place is read as it is, or refused in one line."""

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netvlad_deploy.artifact import load_artifact
from netvlad_deploy.bulk.manifest import MANIFEST, read_manifest
from netvlad_deploy.descriptors.header import header_from_json
from netvlad_deploy.latency.baseline import FORM, load_baseline
from netvlad_deploy.retrieval.ground_truth import load_positives
from netvlad_deploy.support.sidecar import SIDECAR, Form, seal
from tests.properties import few, refusal

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
"""Anything that JSON can say, NaN and numbers beyond 64 bits too."""


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the way to every value in JSON, the whole itself included."""
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in inner:
        yield from places(each, (*path, key))


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """Return a copy with another value at a place."""
    if not path:
        return new
    changed = copy.deepcopy(value)
    at = changed
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = new
    return changed


Read = Callable[[Path, bytes], object]


def sidecar(folder: Path, content: bytes) -> object:
    (folder / "m.onnx").write_bytes(b"content")
    (folder / "m.onnx.json").write_bytes(content)
    return load_artifact(folder / "m.onnx")


def baseline(folder: Path, content: bytes) -> object:
    (folder / "b.json").write_bytes(content)
    return load_baseline(folder / "b.json")


def positives(folder: Path, content: bytes) -> object:
    (folder / "g.json").write_bytes(content)
    return load_positives(folder / "g.json", ["q.jpg"], ["a.jpg"])


def sidecar_record() -> dict[str, Any]:
    from tools.fuzz.parsers import PARSERS

    return unsealed(PARSERS["sidecar"].seeds()[0], SIDECAR)


def baseline_record() -> dict[str, Any]:
    from tests.latency.test_baseline import BASELINE

    return unsealed(BASELINE.text(), FORM)


def manifest_record() -> dict[str, Any]:
    from tools.fuzz.bulk_parsers import WANTED

    return WANTED.record


def header_record() -> dict[str, Any]:
    from tools.fuzz.bulk_parsers import HEADER

    record: dict[str, Any] = json.loads(HEADER.to_json())
    return record


def unsealed(content: bytes, form: Form) -> dict[str, Any]:
    record = json.loads(content)
    return {name: value for name, value in record.items() if name not in (form.hash_name, "schema")}


FILES: dict[str, tuple[Callable[[], dict[str, Any]], Form | None, Read]] = {
    "sidecar": (sidecar_record, SIDECAR, sidecar),
    "baseline": (baseline_record, FORM, baseline),
    "manifest": (manifest_record, MANIFEST, lambda _, content: read_manifest(content, "manifest.json")),
    "header": (header_record, None, lambda _, content: header_from_json(content)),
    "ground truth": (lambda: {"positives": {"q.jpg": ["a.jpg"]}}, None, positives),
}


def content_of(record: Any, form: Form | None) -> bytes:
    return json.dumps(record).encode() if form is None else seal(record, form)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.export
def test_the_sound_file_is_read(tmp_path: Path, name: str) -> None:
    record_of, form, read = FILES[name]
    assert read(tmp_path, content_of(record_of(), form))


@pytest.mark.parametrize("name", FILES)
@pytest.mark.export
@few
@given(data=st.data())
def test_any_value_at_any_place_is_read_or_refused_in_one_line(tmp_path: Path, name: str, data: st.DataObject) -> None:
    record_of, form, read = FILES[name]
    record = record_of()
    path = data.draw(st.sampled_from(list(places(record))[form is not None :]), label="place")
    changed = replaced(record, path, data.draw(VALUES, label="value"))
    assert len(refusal(lambda: read(tmp_path, content_of(changed, form))).splitlines()) <= 1
