"""Sidecars that are damaged or of another kind: an error of one line, in bounded time and memory."""

import json
import os
import resource
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest

from netvlad_deploy.artifact import EngineArtifact, OnnxArtifact, load_artifact, sidecar_path
from netvlad_deploy.errors import ArtifactError, InputError
from netvlad_deploy.models.vocabulary import METADATA_KEY, VocabularyRecord
from netvlad_deploy.spec.build_options import BuildOptions
from netvlad_deploy.spec.graph_options import FeatureRange, HeadsRange
from netvlad_deploy.spec.images import ImageInput, ImageProfile, Resize
from netvlad_deploy.spec.layer import NetVLADSpec
from netvlad_deploy.spec.profiles import Profile
from netvlad_deploy.support import sidecar
from netvlad_deploy.support.records import from_record
from tests.test_artifact import engine_artifact, onnx_artifact, write

WRONG: tuple[Any, ...] = (None, True, 1, 1.5, "x", [], ["x"], [1], {}, {"x": 1}, [[]], -1, "\ud800", 2**70)


@dataclass(frozen=True, kw_only=True)
class Ranges:
    """A field of two types of which one has the other's fields and one more."""

    range: FeatureRange | HeadsRange


@dataclass(frozen=True, kw_only=True)
class Record:
    """One field of every kind."""

    text: str
    number: float
    whole: int
    flag: bool
    maybe: int | None
    pair: tuple[int, int]
    many: tuple[str, ...]
    named: Mapping[str, str]
    either: Profile | ImageProfile
    inner: Resize | None


GOOD: dict[str, Any] = {
    "text": "t", "number": 1, "whole": 2, "flag": False, "maybe": None, "pair": [1, 2], "many": ["a", "b"],
    "named": {"a": "b"}, "inner": json.loads(json.dumps(asdict(Resize(size=(3, 4), filter="box")))),
    "either": {name: {"min": 1, "opt": 2, "max": 3} for name in ("batch", "height", "width")},
}  # fmt: skip


def test_every_kind_of_field_comes_back() -> None:
    record = from_record(Record, GOOD)
    assert (record.number, type(record.number)) == (1.0, float)
    assert record.pair == (1, 2)
    assert record.many == ("a", "b")
    assert isinstance(record.either, ImageProfile)
    assert record.inner == Resize(size=(3, 4), filter="box")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("text", 1), ("text", None), ("number", "1"), ("number", True), ("number", 10**400), ("whole", 1.0),
        ("whole", True), ("whole", 10**400), ("flag", 1), ("maybe", "1"), ("maybe", -(10**400)),
        ("pair", [1]), ("pair", [1, 2, 3]), ("pair", [1, "2"]),
        ("pair", {"0": 1}), ("many", "ab"), ("many", [1]), ("named", {"a": 1}), ("named", {"a\n": 1}), ("named", []),
        ("either", None),
        ("either", {}), ("either", {"batch": 1}), ("inner", {"sizes": None}), ("inner", []),
        ("either", {name: {"min": 3, "opt": 2, "max": 1} for name in ("batch", "height", "width")}),
    ],
)  # fmt: skip
def test_a_value_of_another_type_is_named_in_one_line(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"Record\.{field}") as caught:
        from_record(Record, {**GOOD, "inner": None, field: value})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("record", [{}, {**GOOD, "extra": 1}, None, [], "x"])
def test_fields_are_all_there_and_no_others(record: object) -> None:
    with pytest.raises(ValueError, match=r"Record is .*, (which has or lacks|expected an object)"):
        from_record(Record, record)


def test_a_field_that_came_later_has_its_default() -> None:
    written = json.loads(json.dumps(asdict(ImageInput(resize=Resize(longest=1024, filter="box")))))
    before = {name: written[name] for name in ("mean", "std", "resize")}
    assert from_record(ImageInput, before) == ImageInput(resize=Resize(longest=1024, filter="box"))
    assert from_record(ImageInput, before).orient, "all images were set upright"


def test_a_field_of_several_types_takes_the_one_that_lacks_only_what_came_later() -> None:
    before = {"norm": 1.0, "largest": None, "logit_slope": 1.0, "logit_step": 0.5}
    wanted = FeatureRange(norm=1.0, largest=None, logit_slope=1.0, logit_step=0.5)
    assert from_record(Ranges, {"range": before}).range == wanted
    heads = from_record(Ranges, {"range": {**before, "heads": {"a": before}}}).range
    assert isinstance(heads, HeadsRange)
    assert heads.heads == {"a": wanted}


def rewrite(path: Path, change: Mapping[str, Any]) -> None:
    """Change a sidecar, its hash right again, as whoever knows the format can."""
    record = json.loads(sidecar_path(path).read_text()) | change
    for name in ("sidecar_sha256", "schema"):
        record.pop(name)
    sidecar_path(path).write_bytes(sidecar.seal(record))


@pytest.mark.parametrize("make", [onnx_artifact, engine_artifact])
def test_every_field_is_refused_with_every_wrong_type(tmp_path: Path, make: Any) -> None:
    write(make(tmp_path / "m"))
    good = sidecar_path(tmp_path / "m").read_bytes()
    right = load_artifact(tmp_path / "m")
    for field in json.loads(good).keys() - {"sidecar_sha256", "schema"}:
        for wrong in WRONG:
            rewrite(tmp_path / "m", {field: wrong})
            try:
                loaded = load_artifact(tmp_path / "m")
            except ArtifactError:
                continue
            else:  # it has the type, if not the value
                assert type(loaded) is type(right)
                assert field in ("preprocessing", "origin", "precision", "size_bytes", "opset", "warnings", "flags",
                                 "targets", "parent", "gpu", "images", "machine", "versions", "external_data",
                                 "outputs"), (field, wrong)  # fmt: skip
            finally:
                sidecar_path(tmp_path / "m").write_bytes(good)


@pytest.mark.parametrize(
    "change",
    [
        {"inputs": ["something"]},
        {"inputs": []},
        {"dtypes": {"features": "float32"}},
        {"images": asdict(ImageInput())},
        {"versions": {"torch": "2.13.0"}},
        {"options": asdict(BuildOptions(flavor="tensorrt-rtx"))},
    ],
)
def test_fields_that_do_not_fit_each_other_are_refused(tmp_path: Path, change: Mapping[str, Any]) -> None:
    write(engine_artifact(tmp_path / "m.engine"))
    rewrite(tmp_path / "m.engine", json.loads(json.dumps(change)))
    with pytest.raises(ArtifactError, match="fields of another version"):
        load_artifact(tmp_path / "m.engine")


def test_external_data_stands_beside_its_graph(tmp_path: Path) -> None:
    write(onnx_artifact(tmp_path / "m.onnx"))
    for name in ("../m.onnx.data", "/etc/passwd", ".", "..", "a/b"):
        rewrite(tmp_path / "m.onnx", {"external_data": {"name": name, "sha256": "0" * 64}})
        with pytest.raises(ArtifactError, match="no name of a file beside the graph"):
            load_artifact(tmp_path / "m.onnx")


@pytest.mark.parametrize("content", [b"[" * 10**6, b'{"a":' * 1000 + b"1" + b"}" * 1000, b"\xff", b"", b"1" * 5000])
def test_a_damaged_sidecar_is_an_error_of_one_line(tmp_path: Path, content: bytes) -> None:
    write(onnx_artifact(tmp_path / "m.onnx"))
    sidecar_path(tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(ArtifactError, match=r"m\.onnx\.json is not a sidecar: export or build again"):
        load_artifact(tmp_path / "m.onnx")


def test_a_sidecar_is_read_only_as_far_as_one_can_be(tmp_path: Path) -> None:
    write(onnx_artifact(tmp_path / "m.onnx"))
    beside = sidecar_path(tmp_path / "m.onnx")
    with beside.open("r+b") as stream:
        stream.truncate(2**40)  # sparse
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ArtifactError, match="has more than 16777216 bytes"):
        load_artifact(tmp_path / "m.onnx")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
@pytest.mark.parametrize("which", ["sidecar", "file"])
def test_pipes_devices_and_folders_are_refused_without_waiting(tmp_path: Path, kind: str, which: str) -> None:
    write(onnx_artifact(tmp_path / "m.onnx"))
    path = sidecar_path(tmp_path / "m.onnx") if which == "sidecar" else tmp_path / "m.onnx"
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    with pytest.raises(ArtifactError, match=r"no regular file|is not a file|cannot be read: Is a directory"):
        load_artifact(tmp_path / "m.onnx")


@pytest.mark.parametrize("make", [onnx_artifact, engine_artifact])
def test_cut_and_shuffled_sidecars_raise_only_our_error(tmp_path: Path, make: Any) -> None:
    write(make(tmp_path / "m"))
    good = sidecar_path(tmp_path / "m").read_bytes()
    for number in range(300):
        cut = (number * 7919) % len(good)
        other = (number * 104729) % len(good)
        sidecar_path(tmp_path / "m").write_bytes(good[:cut] + good[other : other + 40] + good[cut:])
        with pytest.raises(ArtifactError):
            load_artifact(tmp_path / "m")


def test_a_vocabulary_s_record_is_read_the_same_way() -> None:
    record = VocabularyRecord(
        backbone="resnet18-conv4", images=ImageInput(resize=Resize(size=(48, 64))), num_images=3, num_descriptors=9,
        seed=1, alpha=100.0, versions={"torch": "2"},
    )  # fmt: skip
    assert VocabularyRecord.parse(record.metadata()) == record
    assert VocabularyRecord.parse({}) is None
    for change in ({"seed": "1"}, {"images": None}, {"images": [1]}, {"extra": 1}, {"versions": {"torch": 2}}):
        with pytest.raises(InputError, match="the record of its vocabulary is damaged"):
            VocabularyRecord.parse({METADATA_KEY: json.dumps({**asdict(record), **change})})
    with pytest.raises(InputError, match="the record of its vocabulary is damaged"):
        VocabularyRecord.parse({METADATA_KEY: "[" * 10**5})


def test_both_kinds_of_artifact_come_back_equal(tmp_path: Path) -> None:
    for make, kind in ((onnx_artifact, OnnxArtifact), (engine_artifact, EngineArtifact)):
        write(make(tmp_path / kind.__name__))
        loaded = load_artifact(tmp_path / kind.__name__)
        assert isinstance(loaded, kind)
        assert isinstance(loaded.spec, NetVLADSpec)
        assert isinstance(loaded.spec.normalization, tuple)
