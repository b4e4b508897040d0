import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from netvlad_deploy.artifact import (
    EngineArtifact,
    FileReference,
    OnnxArtifact,
    check_file,
    load_artifact,
    sidecar_path,
    stage_artifact,
)
from netvlad_deploy.errors import ArtifactError, OutputError, UsageError
from netvlad_deploy.spec.build_options import BuildFigures, BuildOptions, Kernel
from netvlad_deploy.spec.layer import NetVLADSpec
from netvlad_deploy.spec.profiles import Profile
from netvlad_deploy.support import sidecar
from netvlad_deploy.support.files import stage_files, write_text
from tests.modules import RANGE

SPEC = NetVLADSpec(num_clusters=6, feature_size=16, num_ghost_clusters=2)
REFERENCE = FileReference(name="m.reference.npz", sha256="0" * 64)


def onnx_artifact(path: Path) -> OnnxArtifact:
    return OnnxArtifact(
        path=path,
        spec=SPEC,
        precision="fp32",
        inputs=("features",),
        outputs=("descriptor",),
        dtypes={"features": "float32", "mask": "bool", "descriptor": "float32"},
        range=RANGE,
        warnings=("cluster 3 is far away",),
        origin="untrained, seed 0",
        parent=None,
        reference=REFERENCE,
        preprocessing="none",
        versions={"torch": "2.13.0"},
        opset=18,
    )


def engine_artifact(path: Path) -> EngineArtifact:
    kernel = Kernel(name="gemm", kind="runtime_fusion", inputs=("Float",), outputs=("Float",))
    return EngineArtifact(
        path=path,
        spec=SPEC,
        precision="fp32",
        inputs=("features", "mask"),
        outputs=("descriptor",),
        dtypes={"features": "float32", "mask": "bool", "descriptor": "float32"},
        range=RANGE,
        warnings=("cluster 3 is far away",),
        origin="m.pth",
        parent=FileReference(name="m.onnx", sha256="1" * 64),
        reference=REFERENCE,
        preprocessing="none",
        versions={"tensorrt-rtx": "1.7.1"},
        options=BuildOptions(flavor="tensorrt-rtx", profiles=(Profile(),)),
        flags=(),
        gpu=None,
        machine={"cores": "2"},
        targets=("SM89",),
        figures=BuildFigures(build_ms=1.5, host_bytes=2**20, activation_bytes=None, weight_bytes=7, kernels=(kernel,)),
    )


def write(artifact: OnnxArtifact | EngineArtifact, content: bytes = b"content", *, force: bool = False) -> None:
    with stage_files(force=force) as staging:
        stage_artifact(staging, artifact, content)


@pytest.mark.parametrize("make", [onnx_artifact, engine_artifact])
def test_round_trip(tmp_path: Path, make: Callable[[Path], OnnxArtifact]) -> None:
    artifact = make(tmp_path / "m")
    with stage_files(force=False) as staging:
        written = stage_artifact(staging, artifact, b"content")
    assert written.size_bytes == 7
    assert load_artifact(tmp_path / "m") == written


@pytest.mark.parametrize("make", [onnx_artifact, engine_artifact])
def test_one_changed_byte_is_refused_wherever_it_is(tmp_path: Path, make: Callable[[Path], OnnxArtifact]) -> None:
    path = tmp_path / "m"
    write(make(path))
    for file in (path, sidecar_path(path)):
        good = file.read_bytes()
        for position in range(len(good)):
            file.write_bytes(good[:position] + bytes([good[position] ^ 1]) + good[position + 1 :])
            with pytest.raises(ArtifactError):
                load_artifact(path)
        file.write_bytes(good)
    load_artifact(path)


def test_a_damaged_engine_names_the_command_that_builds_it_again(tmp_path: Path) -> None:
    write(engine_artifact(tmp_path / "m.engine"))
    (tmp_path / "m.engine").write_bytes(b"other")
    with pytest.raises(ArtifactError, match=r"netvlad-deploy build .*m.onnx -o .*m.engine --flavor .* --force"):
        load_artifact(tmp_path / "m.engine")


def test_an_expected_hash_is_compared(tmp_path: Path) -> None:
    write(onnx_artifact(tmp_path / "m.onnx"))
    artifact = load_artifact(tmp_path / "m.onnx")
    assert load_artifact(tmp_path / "m.onnx", expect_sha256=artifact.sha256.upper()) == artifact
    with pytest.raises(ArtifactError, match="another file, do not use it"):
        load_artifact(tmp_path / "m.onnx", expect_sha256="0" * 64)


def test_a_swapped_sibling_is_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(onnx_artifact(tmp_path / name), name.encode())
    sidecar_path(tmp_path / "a").write_bytes(sidecar_path(tmp_path / "b").read_bytes())
    with pytest.raises(ArtifactError, match="its sidecar says"):
        load_artifact(tmp_path / "a")


def test_a_missing_or_foreign_sidecar_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"m.onnx is missing"):
        load_artifact(tmp_path / "m.onnx")
    write(onnx_artifact(tmp_path / "m.onnx"))
    sidecar_path(tmp_path / "m.onnx").write_text("[]")
    with pytest.raises(ArtifactError, match="is not a sidecar"):
        load_artifact(tmp_path / "m.onnx")
    sidecar_path(tmp_path / "m.onnx").unlink()
    with pytest.raises(ArtifactError, match="is missing"):
        load_artifact(tmp_path / "m.onnx")


@pytest.mark.parametrize(
    "change", [{"schema": "other/2"}, {"kind": "plan"}, {"kind": "e\ngine"}, {"extra": 1}, {"spec": {}}]
)
def test_a_sidecar_of_another_version_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    write(onnx_artifact(tmp_path / "m.onnx"))
    record = json.loads(sidecar_path(tmp_path / "m.onnx").read_text()) | change
    del record["sidecar_sha256"]
    record["sidecar_sha256"] = sidecar.record_hash(record)
    sidecar_path(tmp_path / "m.onnx").write_text(json.dumps(record, indent=2, sort_keys=True) + "\n")
    with pytest.raises(ArtifactError, match=r"another version|has schema") as caught:
        load_artifact(tmp_path / "m.onnx")
    assert "\n" not in str(caught.value)


def test_a_stale_reference_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.reference.npz").write_bytes(b"new")
    with pytest.raises(ArtifactError, match="it is stale"):
        check_file(tmp_path, REFERENCE)
    with pytest.raises(ArtifactError, match="is missing"):
        check_file(tmp_path, FileReference(name="other", sha256=""))


def test_an_existing_target_needs_force(tmp_path: Path) -> None:
    write(onnx_artifact(tmp_path / "m.onnx"), b"old")
    with pytest.raises(UsageError, match="--force"):
        write(onnx_artifact(tmp_path / "m.onnx"), b"new")
    assert (tmp_path / "m.onnx").read_bytes() == b"old"
    write(onnx_artifact(tmp_path / "m.onnx"), b"new", force=True)
    assert (tmp_path / "m.onnx").read_bytes() == b"new"


@pytest.mark.parametrize(
    ("fault", "raised"),
    [(OSError(errno.ENOSPC, "No space left on device"), OutputError), (KeyboardInterrupt(), KeyboardInterrupt)],
)
def test_a_full_disk_or_ctrl_c_leaves_the_previous_files_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: BaseException, raised: type[BaseException]
) -> None:
    write(onnx_artifact(tmp_path / "m.onnx"), b"old")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    calls = 0

    def fsync(_: int) -> None:  # the second file of two
        nonlocal calls
        calls += 1
        if calls == 2:
            raise fault

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(raised):
        write(onnx_artifact(tmp_path / "m.onnx"), b"new", force=True)
    assert calls == 2
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    load_artifact(tmp_path / "m.onnx")


def test_a_folder_that_is_not_there_or_in_the_way_is_an_output_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written"):
        write_text(tmp_path / "none" / "report.json", "{}")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match="it is a folder, name a file"):
        write_text(tmp_path / "folder", "{}")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
