"""What every verb says of a file that this package did not write."""

import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from netvlad_deploy.artifact import load_artifact
from netvlad_deploy.errors import ArtifactError, InputError
from netvlad_deploy.support.formats import (
    CHECKPOINT_SUFFIXES,
    HDF5_MAGIC,
    KERAS_SUFFIXES,
    foreign,
    is_checkpoint,
    no_artifact,
    reading,
)
from tests.command import Command, error_of

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0"
ONNX = b"\x08\x0a\x12\x07pytorch\x1a\x032.0:\x00"


def zipped(path: Path, *members: str) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for member in members:
            archive.writestr(member, b"x")


def archived(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        archive.add(__file__, "model.pth")


FOREIGN: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "keras 3": (
        "m.keras",
        lambda path: zipped(path, "config.json", "model.weights.h5"),
        "of Keras 3 without the names of its weights",
    ),
    "no hdf5": ("m.h5", lambda path: path.write_bytes(bytes(90)), "no HDF5 file, which its name says it is"),
    "a shard": (
        "m.ckpt-1.data-00000-of-00002",
        lambda path: path.write_bytes(bytes(90)),
        "a part of a TensorFlow checkpoint: give m.ckpt-1.index",
    ),
    "onnx": ("m.onnx", lambda path: path.write_bytes(ONNX), r"an ONNX file, whose sidecar m.onnx.json is missing"),
    "onnx as a checkpoint": ("m.pt", lambda path: path.write_bytes(ONNX), "an ONNX file"),
    "web page": ("m.pth", lambda path: path.write_text("\n<!DOCTYPE html><title>404"), "a web page"),
    "answer of a server": ("m.onnx", lambda path: path.write_text("<?xml version='1.0'?><Error>"), "a web page"),
    "answer of a server in JSON": (
        "m.pth",
        lambda path: path.write_text('{"message": "Not Found"}\n'),
        "text, not weights",
    ),
    "answer in words": ("m.tar", lambda path: path.write_text("Zugriff verweigert"), "text, not weights"),
    "nothing": ("m.pth", lambda path: path.write_bytes(b""), "empty: fetch it again"),
    "git lfs": (
        "m.tar",
        lambda path: path.write_bytes(LFS),
        "git lfs pull",
    ),
    "git lfs of an engine": (
        "m.engine",
        lambda path: path.write_bytes(LFS),
        "lfs",
    ),
    "torch.export": ("m.pt2", lambda path: zipped(path, "m/archive_format", "m/data/x"), r"a program of torch.export"),
    "tar": ("m.pth.tar", archived, "an archive of tar: unpack it"),
    "gzip": ("m.pth", lambda path: path.write_bytes(b"\x1f\x8b" + bytes(90)), "compressed by gzip: unpack it"),
    "MATLAB 7.3": ("m.mat", lambda path: path.write_bytes(b"MATLAB 7.3 MAT-file"), "of MATLAB 7.3: save it with -v7"),
}


@pytest.mark.parametrize("kind", FOREIGN)
@pytest.mark.parametrize("verb", ["inspect", "export", "validate", "build"])
def test_every_verb_says_the_same_of_a_file_of_others(command: Command, tmp_path: Path, kind: str, verb: str) -> None:
    pytest.importorskip("torch")
    name, make, message = FOREIGN[kind]
    make(tmp_path / name)
    result = command(verb, tmp_path / name, *(["-o", tmp_path / "out.onnx"] if verb == "export" else []))
    assert result.code == 65
    assert message in foreign(tmp_path / name)
    assert error_of(result.err) == f"error: {tmp_path / name} is {foreign(tmp_path / name)}"


@pytest.mark.parametrize("suffix", CHECKPOINT_SUFFIXES)
def test_an_artifact_is_asked_for_and_a_checkpoint_given(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"m{suffix.upper()}"
    path.write_bytes(HDF5_MAGIC if suffix in KERAS_SUFFIXES else b"\x80\x02}q\x00.")
    assert is_checkpoint(path)
    with pytest.raises(ArtifactError, match=r"is a checkpoint, which must be exported first: netvlad-deploy export"):
        load_artifact(path)


def test_torchscript_is_named_where_an_artifact_is_asked_for(tmp_path: Path) -> None:
    zipped(tmp_path / "m.pt", "m/data.pkl", "m/constants.pkl", "m/code/__torch__.py")
    with pytest.raises(
        ArtifactError, match=r"is a TorchScript archive, whose weights can be exported: netvlad-deploy export"
    ):
        load_artifact(tmp_path / "m.pt")


def test_own_files_and_unknown_ones_are_not_foreign(tmp_path: Path) -> None:
    np.savez(tmp_path / "m.npz", a=np.ones(2))
    (tmp_path / "m.engine").write_bytes(b"ftrt" + bytes(40))
    (tmp_path / "broken.zip").write_bytes(b"PK\x03\x04")
    for name in ("m.npz", "m.engine", "broken.zip"):
        assert foreign(tmp_path / name) == ""
    assert no_artifact(tmp_path / "m.engine") == ""


def test_a_missing_file_is_missing_and_a_folder_a_folder(tmp_path: Path) -> None:
    for name in ("none", "none/none", "x" * 300, "a\0b"):
        with pytest.raises(InputError, match="is missing" if len(name) < 20 and "\0" not in name else "cannot be read"):
            foreign(tmp_path / name)
    with pytest.raises(InputError, match="is not a file but a folder"):
        foreign(tmp_path)
    with pytest.raises(InputError, match="is not a file but a device"):
        foreign(Path("/dev/null"))


@pytest.mark.parametrize("error", [OverflowError("a\nb"), RecursionError(), MemoryError(), EOFError()])
def test_every_error_of_a_reader_becomes_one_line(tmp_path: Path, error: Exception) -> None:
    (tmp_path / "m").write_bytes(b"")
    with (
        pytest.raises(InputError, match=rf"m is damaged or cut short \({type(error).__name__}") as caught,
        reading(tmp_path / "m"),
    ):
        raise error
    assert "\n" not in str(caught.value)
