"""A model in a repository: its files, its versions, and what is refused."""

import json
import os
import shutil
from pathlib import Path

import pytest

from netvlad_deploy.artifact import OnnxArtifact, load_artifact
from netvlad_deploy.errors import ArtifactError, OutputError, UsageError
from netvlad_deploy.serving import repository as made
from netvlad_deploy.serving.repository import versions
from netvlad_deploy.spec.images import Resize
from netvlad_deploy.workflow.package import package_triton
from tests.command import Command, error_of
from tests.serving.triton import with_resize

pytestmark = pytest.mark.export


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_model_has_all_that_its_artifact_needs(tiny: OnnxArtifact, command: Command) -> None:
    result = command("package", "triton", tiny.path, "-o", "repository", "--json")
    assert result.code == 0, result.err
    record = json.loads(result.out)
    assert (record["schema"], record["version"], record["sha256"]) == ("netvlad-deploy/package/1", 1, tiny.sha256)
    assert record["serving"] == {"name": "tiny", "backend": "python", "device": "cpu", "instances": 1, "batch": 8}
    assert files(Path("repository")) == {
        "tiny/config.pbtxt",
        *(f"tiny/1/{name}" for name in ("model.onnx", "model.onnx.json", "model.py", "tiny.reference.npz")),
    }
    assert Path(record["folder"]).stat().st_mode & 0o777 == Path("repository/tiny").stat().st_mode & 0o777
    assert load_artifact(Path("repository/tiny/1/model.onnx"), expect_sha256=tiny.sha256).images == tiny.images
    compile(Path("repository/tiny/1/model.py").read_text(), "model.py", "exec")


def test_a_new_file_is_the_next_version_and_the_same_file_none(
    tiny: OnnxArtifact, half: OnnxArtifact, tmp_path: Path
) -> None:
    repository = tmp_path / "repository"
    first = package_triton(tiny.path, repository, name="m")
    with pytest.raises(UsageError, match="m/1 has this artifact already: pass --force"):
        package_triton(tiny.path, repository, name="m")
    second = package_triton(half.path, repository, name="m")
    assert (first.version, second.version) == (1, 2)
    assert package_triton(half.path, repository, name="m", force=True).version == 3
    before = second.config.read_bytes()
    with pytest.raises(UsageError, match=r"config.pbtxt says something else: take another --name, or pass --force"):
        package_triton(tiny.path, repository, name="m", batch=2)
    assert (second.config.read_bytes(), versions(repository / "m")) == (before, [1, 2, 3])
    assert package_triton(tiny.path, repository, name="m", batch=2, force=True).version == 4
    assert "max_batch_size: 2" in second.config.read_text()
    assert (first.folder / "model.onnx").read_bytes() == tiny.path.read_bytes()  # a version never changes


def test_the_rule_of_the_images_is_part_of_a_version(tiny: OnnxArtifact, tmp_path: Path) -> None:
    """Two exports that differ in the resize alone have one graph, so one hash."""
    other = with_resize(tiny, tmp_path / "other.onnx", Resize(longest=64))
    assert other.sha256 == tiny.sha256
    package_triton(tiny.path, tmp_path / "repository", name="m")
    assert package_triton(other.path, tmp_path / "repository", name="m").version == 2


def test_what_a_killed_run_left_is_no_version_and_is_removed(tiny: OnnxArtifact, tmp_path: Path) -> None:
    model = tmp_path / "repository" / "tiny"
    (model / f"{made.UNFINISHED}abcdefgh").mkdir(parents=True)
    (model / f"{made.UNFINISHED}abcdefgh" / "model.onnx").write_bytes(b"half")
    for mine in ("01", ".unfinished-mine"):  # no versions, as Triton counts, and the user's own
        (model / mine).mkdir()
    assert package_triton(tiny.path, tmp_path / "repository").version == 1
    assert sorted(path.name for path in model.iterdir()) == [".unfinished-mine", "01", "1", "config.pbtxt"]


def test_nothing_is_left_where_the_artifact_or_the_disk_fails(
    tiny: OnnxArtifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "source"
    shutil.copytree(tiny.path.parent, source)
    (source / tiny.reference.name).unlink()
    with pytest.raises(ArtifactError, match=r"reference.npz is missing: an artifact is served with it"):
        package_triton(source / "tiny.onnx", tmp_path / "repository")
    assert files(tmp_path / "repository") == set()
    (source / tiny.reference.name).write_bytes(b"another")
    with pytest.raises(ArtifactError, match="it is stale"):
        package_triton(source / "tiny.onnx", tmp_path / "repository")
    assert files(tmp_path / "repository") == set()
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError, match="cannot be written"):
        package_triton(tiny.path, tmp_path / "file")

    def full(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(Path, "rename", full)
    with pytest.raises(OutputError, match="No space left on device"):
        package_triton(tiny.path, tmp_path / "repository")
    assert files(tmp_path / "repository") == set()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("tensorflow", "tiny.onnx"), "server 'tensorflow' is unknown: choose triton"),
        (("triton", "tiny.onnx", "--name", "a/b"), "name 'a/b' is no model's"),
        (("triton", "tiny.onnx", "--backend", "openvino"), "backend 'openvino' is unknown"),
        (("triton", "tiny.onnx", "--instances", "65"), "instances is 65, expected 1 to 64"),
        (("triton", "tiny.onnx", "--expect-sha256", "0" * 64), "it is another file, do not use it"),
        (("triton", "gone.onnx"), "gone.onnx is missing"),
        (("triton", "tiny.pth"), "tiny.pth"),
    ],
)
def test_what_cannot_be_packaged_is_refused_in_one_line(
    tiny: OnnxArtifact, command: Command, arguments: tuple[str, ...], words: str
) -> None:
    shutil.copytree(tiny.path.parent, ".", dirs_exist_ok=True)
    result = command("package", *arguments, "-o", "repository")
    assert result.code in (2, 65)
    assert words in error_of(result.err)
    assert not Path("repository").exists()
