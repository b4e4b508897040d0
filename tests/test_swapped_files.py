"""The bytes that were hashed are those that run, however often others put another file in their place meanwhile."""

import hashlib
import itertools
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from netvlad_deploy.artifact import AnyArtifact, EngineArtifact, OnnxArtifact, copied, load_artifact, sidecar_path
from netvlad_deploy.errors import ArtifactError, InputError
from netvlad_deploy.oracle.reference_file import load_reference
from netvlad_deploy.runtime import open_runner as candidates
from netvlad_deploy.runtime.open_runner import Candidate, open_runner
from netvlad_deploy.spec.graph_options import GraphOptions
from netvlad_deploy.spec.images import ImageChanges, ImageInput, Resize
from netvlad_deploy.spec.layer import DESCRIPTOR, FEATURES
from netvlad_deploy.support.files import private_copy
from tests.modules import features, make_module

pytestmark = [pytest.mark.export, pytest.mark.ort]

OPENS = 40


@contextmanager
def swapping(path: Path, contents: tuple[bytes, bytes], *, in_place: bool) -> Iterator[None]:
    """Let a thread put one content after the other into a file, by name or into the file itself."""
    ending = threading.Event()

    def swap() -> None:
        for content in itertools.cycle(contents):
            if ending.is_set():
                return
            if in_place:
                path.write_bytes(content)
            else:
                path.with_suffix(".swap").write_bytes(content)
                path.with_suffix(".swap").replace(path)

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        yield
    finally:
        ending.set()
        thread.join()
        path.write_bytes(contents[0])


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[OnnxArtifact, OnnxArtifact]:
    """Return two artifacts of the same shape with other weights; do not change them."""
    from netvlad_deploy.export.onnx_model import export_onnx

    folder = tmp_path_factory.mktemp("pair")
    return export_onnx(make_module(3, 8), folder / "m.onnx"), export_onnx(make_module(3, 8, seed=5), folder / "n.onnx")


def exported_pipeline(folder: Path, resize: str) -> Path:
    """Return the ONNX file of a small pipeline that takes images of this size."""
    from netvlad_deploy.workflow.export import export
    from netvlad_deploy.workflow.source import Source

    changes = ImageChanges(resize=None if resize is None else Resize.parse(resize))
    source = Source(num_clusters=3, backbone="tests.pipelines:tiny_backbone", changes=changes)
    folder.mkdir()
    return export(source, folder / "m.onnx", GraphOptions()).path


@pytest.fixture
def two(pair: tuple[OnnxArtifact, OnnxArtifact], tmp_path: Path) -> tuple[OnnxArtifact, bytes]:
    """Return an artifact in the test's folder, where the other is beside it, and the bytes of that."""
    for path in pair[0].path.parent.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return replace(pair[0], path=tmp_path / "m.onnx"), pair[1].path.read_bytes()


@pytest.mark.parametrize("in_place", [False, True], ids=["renamed", "rewritten"])
@pytest.mark.parametrize("backend", ["onnxruntime", "strict"])
def test_the_bytes_that_run_have_the_expected_hash(
    two: tuple[OnnxArtifact, bytes], backend: str, in_place: bool
) -> None:
    artifact, other = two
    good = artifact.path.read_bytes()
    x = features(1, 4, 8)
    with open_runner(artifact, backend=backend) as runner:
        expected = runner.run({FEATURES: x})[DESCRIPTOR]
    outcomes = []
    with swapping(artifact.path, (good, other), in_place=in_place):
        for _ in range(OPENS):
            try:
                with Candidate(path=artifact.path, backend=backend, expect_sha256=artifact.sha256).open() as runner:
                    outcomes.append(np.array_equal(runner.run({FEATURES: x})[DESCRIPTOR], expected))
            except ArtifactError:
                continue
    assert all(outcomes)


def test_a_file_swapped_after_it_was_loaded_is_not_run(two: tuple[OnnxArtifact, bytes]) -> None:
    """The same without luck: between the hash and the session."""
    artifact, other = two
    loaded = load_artifact(artifact.path, expect_sha256=artifact.sha256)
    artifact.path.write_bytes(other)
    for backend in ("onnxruntime", "strict"):
        with pytest.raises(ArtifactError, match="its sidecar says"):
            open_runner(loaded, backend=backend)


def test_the_oracle_reads_the_bytes_that_were_hashed(
    two: tuple[OnnxArtifact, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact, _ = two
    x = features(1, 4, 8)
    with open_runner(artifact, backend="oracle") as runner:
        right = runner.run({FEATURES: x})[DESCRIPTOR]
    wrong = artifact.path.with_name("n.reference.npz").read_bytes()

    def swapped(path: Path) -> object:
        artifact.reference_path.write_bytes(wrong)
        return load_reference(path)

    monkeypatch.setattr(candidates, "load_reference", swapped)
    with open_runner(artifact, backend="oracle") as runner:
        assert np.array_equal(runner.run({FEATURES: x})[DESCRIPTOR], right)
    with pytest.raises(ArtifactError, match="it is stale"), copied(artifact.path.parent, artifact.reference):
        pass


def test_a_candidate_runs_the_bytes_it_was_loaded_with(two: tuple[OnnxArtifact, bytes]) -> None:
    artifact, other = two
    x = features(1, 4, 8)
    with open_runner(artifact) as runner:
        expected = runner.run({FEATURES: x})[DESCRIPTOR]
    candidate = Candidate(path=artifact.path)
    assert candidate.source == artifact
    artifact.path.write_bytes(other)
    sidecar_path(artifact.path).write_bytes(sidecar_path(artifact.path.with_name("n.onnx")).read_bytes())
    assert load_artifact(artifact.path).sha256 != artifact.sha256, "a whole artifact, but another one"
    with candidate.open() as runner:
        assert np.array_equal(runner.run({FEATURES: x})[DESCRIPTOR], expected)
    with pytest.raises(ArtifactError, match="its sidecar says"):
        candidate.open()  # its bytes went to the first runner
    with pytest.raises(ArtifactError, match="another file, do not use it"):
        Candidate(path=artifact.path, expect_sha256=artifact.sha256)  # as in a process of its own


@pytest.mark.parametrize("verb", ["embed", "evaluate"])
def test_images_are_those_of_the_network_that_runs(verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another pipeline stands there for a moment, whose images are of another size: it is not asked for them."""
    from PIL import Image

    from netvlad_deploy.workflow import embed, evaluate

    looks = {"embed": "bulk.flow.describe", "evaluate": "workflow.evaluate.embed_images"}
    for number in range(2):
        Image.effect_noise((80, 60), 90).convert("RGB").save(tmp_path / f"{number}.png")
    small, large = (exported_pipeline(tmp_path / size, size) for size in ("24x32", "48x64"))
    sizes = set()

    def load(path: Path, *, expect_sha256: str | None = None, hold: bool) -> AnyArtifact:
        loads.append(path)
        return load_artifact(small if len(loads) > 1 else large, expect_sha256=expect_sha256, hold=hold)

    def look(runner: object, images: ImageInput, *_: object, **__: object) -> object:
        sizes.add(images.size)
        raise InputError("seen")

    loads: list[Path] = []
    for module in (evaluate, candidates):
        monkeypatch.setattr(module, "load_artifact", load)
    monkeypatch.setattr(f"netvlad_deploy.{looks[verb]}", look)
    candidate = Candidate(path=tmp_path / "m.onnx", expect_sha256=load_artifact(large).sha256)
    act: dict[str, Callable[[], object]] = {
        "embed": lambda: embed.embed(candidate, [tmp_path], tmp_path / "y.npz"),
        "evaluate": lambda: evaluate.evaluate(
            [candidate], tmp_path / "report", queries=tmp_path, database=tmp_path, within=1
        ),
    }
    with pytest.raises(InputError, match="seen"):
        act[verb]()
    assert (sizes, len(loads)) == ({(48, 64)}, 1)


def test_a_checkpoint_that_changes_while_it_is_read_has_no_hash(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from netvlad_deploy.models import checkpoints
    from netvlad_deploy.workflow.source import Source, load_module

    assert load_module(Source(checkpoint=checkpoint))[2] is not None
    read_head = checkpoints.read_head

    def read(path: Path, **options: object) -> object:
        head = read_head(path, **options)  # type: ignore[arg-type]
        with path.open("ab") as stream:
            stream.write(b"x")
        return head

    monkeypatch.setattr(checkpoints, "read_head", read)
    with pytest.raises(InputError, match="changed while it was read"):
        load_module(Source(checkpoint=checkpoint))


def test_a_private_copy_is_private_and_goes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 3_000_000)
    with private_copy(tmp_path / "a") as (copy, sha256):
        (tmp_path / "a").write_bytes(b"other")
        assert hashlib.sha256(copy.read_bytes()).hexdigest() == sha256
        assert copy.name == "a"
        assert copy.parent.stat().st_mode & 0o077 == 0
    assert not copy.parent.exists()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ArtifactError, match="no regular file"), private_copy(tmp_path / "pipe"):
        pass


def test_bytes_of_an_engine_are_compared_as_they_are_read(tmp_path: Path) -> None:
    from tests.test_artifact import engine_artifact, write

    write(engine_artifact(tmp_path / "m.engine"))
    artifact = load_artifact(tmp_path / "m.engine")
    assert isinstance(artifact, EngineArtifact)
    assert artifact.content() == b"content"
    with pytest.raises(ArtifactError, match="its sidecar says"):
        replace(artifact, sha256="0" * 64).content()
