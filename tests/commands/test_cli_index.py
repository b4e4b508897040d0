"""`index` and `search`: from descriptors to the photos that are near."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from netvlad_deploy.artifact import OnnxArtifact
from netvlad_deploy.bulk.open_plan import header_for
from netvlad_deploy.descriptors.open_files import open_writer
from netvlad_deploy.retrieval.embed_images import embed_images
from netvlad_deploy.runtime.open_runner import Candidate, open_runner
from netvlad_deploy.sources.image_folders import find_images
from netvlad_deploy.spec.images import Resize
from netvlad_deploy.workflow.search import _hashes
from tests.colour_graphs import band_pipeline
from tests.command import Command, error_of
from tests.test_artifact import engine_artifact

pytestmark = [pytest.mark.export, pytest.mark.ort, pytest.mark.faiss]

PLACES = 6


@pytest.fixture
def walk(tmp_path: Path) -> OnnxArtifact:
    """Write photos of some places, the same a little darker in another folder, and the descriptors of the former."""
    random = np.random.default_rng(0)
    for number in range(PLACES):
        place = np.kron(random.integers(60, 256, (4, 1, 3)), np.ones((4, 12, 1))).astype(np.uint8)
        for folder, name, darker in (("asked", f"q{number}.png", 5), ("known", f"sub/d{number}.png", 0)):
            path = tmp_path / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(place - np.uint8(darker)).save(path)
    artifact = band_pipeline(tmp_path / "m.onnx", Resize(size=(16, 12)))
    describe(artifact, tmp_path / "known", tmp_path / "places.npz")
    return artifact


def describe(artifact: OnnxArtifact, folder: Path, target: Path) -> None:
    assert artifact.images is not None
    with open_runner(artifact) as runner:
        done = embed_images(runner, artifact.images, find_images([folder])[0])
    header = header_for(Candidate.of(artifact), head=None, dtype="float32")
    with open_writer(target, header, len(done.names)) as writer:
        writer.write(done.names, done.descriptors)


def first_names(out: str) -> dict[str, str]:
    return {one["query"]: one["matches"][0]["name"] for one in json.loads(out)["answers"]}


RIGHT = {f"q{number}.png": f"sub/d{number}.png" for number in range(PLACES)}


def test_from_photos_to_the_photos_that_are_near(command: Command, walk: OnnxArtifact, tmp_path: Path) -> None:
    assert command("embed", "m.onnx", "known", "-o", "places.npz", "--force").code == 0
    made = command("index", "places.npz", "-o", "places.faiss")
    assert (made.code, made.err) == (0, ""), made.err
    assert made.out.splitlines()[0].startswith("places.faiss  6 x ")
    assert f"recall@10 1.0000 (exact), artifact m.onnx, SHA-256 {walk.sha256[:16]}" in made.out
    outcome = command("search", "places.faiss", "asked", "--top", 2)
    assert (outcome.code, outcome.err) == (0, "")
    header, first, second, *rest = outcome.out.splitlines()
    assert header.split() == ["query", "rank", json.loads(Path("places.faiss.json").read_text())["metric"], "name"]
    assert (first.split()[0], first.split()[3], second.split()[1], len(rest)) == ("q0.png", "sub/d0.png", "2", 10)
    outcome = command("search", "places.faiss", "asked/q3.png", "asked/q1.png", "--json", "--backend", "onnxruntime")
    assert first_names(outcome.out) == {name: RIGHT[name] for name in ("q3.png", "q1.png")}
    describe(walk, tmp_path / "asked", tmp_path / "asked.npz")
    outcome = command("search", "places.faiss", "asked.npz", "--json")
    assert (outcome.err, first_names(outcome.out)) == ("", RIGHT)


def test_a_report_shows_the_photos(command: Command, walk: OnnxArtifact) -> None:
    command("index", "places.npz", "-o", "places.faiss")
    (outside := Path("secret.png")).write_bytes(Path("asked/q0.png").read_bytes())
    outcome = command("search", "places.faiss", "asked", "-o", "results", "--images", "known", "--json")
    assert (outcome.code, outcome.err) == (0, "")
    assert json.loads(Path("results/report.json").read_text()) == json.loads(outcome.out)
    page = Path("results/report.md").read_text()
    assert "(matches.png)" in page
    assert "sub/d5.png" in page
    assert "data:image/jpeg" in Path("results/report.html").read_text()
    with Image.open("results/matches.png") as picture:
        assert picture.height > PLACES * 132
    assert outside.name not in page
    assert command("search", "places.faiss", "asked", "-o", "results").code == 2, "the folder holds a report"
    assert command("search", "places.faiss", "asked", "-o", "plain").code == 0
    assert not Path("plain/matches.png").exists()
    assert command("search", "places.faiss", "asked", "--images", "known").code == 2


def test_a_name_that_leads_out_of_the_folder_shows_no_photo(command: Command, walk: OnnxArtifact) -> None:
    from netvlad_deploy.workflow.search import _within

    assert _within(Path("known"), "../asked/q0.png") == Path("known")
    assert _within(Path("known"), "/etc/passwd") == Path("known")
    assert _within(Path("known"), "sub/d0.png") == Path("known/sub/d0.png").resolve()


def test_another_artifact_is_refused_with_both_hashes(command: Command, walk: OnnxArtifact, tmp_path: Path) -> None:
    command("index", "places.npz", "-o", "places.faiss")
    other = band_pipeline(tmp_path / "other.onnx", Resize(size=(16, 12)), convolutions=1)
    outcome = command("search", "places.faiss", "asked", "--artifact", "other.onnx")
    assert outcome.code == 65
    assert walk.sha256[:12] in error_of(outcome.err)
    assert other.sha256[:12] in error_of(outcome.err)
    describe(other, tmp_path / "asked", tmp_path / "asked.npz")
    assert other.sha256[:12] in error_of(command("search", "places.faiss", "asked.npz").err)
    assert command("search", "places.faiss", "asked.npz", "--artifact", "m.onnx").code == 2
    Path("m.onnx").rename("moved.onnx")
    outcome = command("search", "places.faiss", "asked")
    assert (outcome.code, "which is not beside it: name it with --artifact" in error_of(outcome.err)) == (65, True)
    Path("m.onnx.json").rename("moved.onnx.json")
    assert command("search", "places.faiss", "asked", "--artifact", "moved.onnx").code == 0


def test_the_same_graph_with_another_resize_is_refused(command: Command, walk: OnnxArtifact, tmp_path: Path) -> None:
    command("index", "places.npz", "-o", "places.faiss")
    other = band_pipeline(tmp_path / "other.onnx", Resize(size=(8, 12)))
    assert other.sha256 == walk.sha256, "the rule stands in the sidecar alone"
    outcome = command("search", "places.faiss", "asked", "--artifact", "other.onnx")
    assert (outcome.code, "prepares images otherwise" in error_of(outcome.err)) == (65, True)


def test_an_engine_of_the_graph_asks_what_the_graph_has_indexed(tmp_path: Path) -> None:
    engine = engine_artifact(tmp_path / "m.engine")
    assert engine.parent is not None
    assert engine.parent.sha256 in _hashes(engine)


def test_descriptors_of_others_say_that_nothing_is_known(command: Command, walk: OnnxArtifact) -> None:
    with np.load("places.npz") as ours:
        np.savez("theirs.npz", names=ours["names"], descriptors=ours["descriptors"])
    outcome = command("index", "theirs.npz", "-o", "theirs.faiss", "--json")
    assert json.loads(outcome.out)["artifact"] is None
    assert "nothing says which artifact" in outcome.err
    assert "name it with --artifact" in error_of(command("search", "theirs.faiss", "asked").err)
    outcome = command("search", "theirs.faiss", "asked", "--artifact", "m.onnx", "--json")
    assert (first_names(outcome.out), "only their sizes are compared" in outcome.err) == (RIGHT, True)
    assert "only their sizes are compared" in command("search", "theirs.faiss", "theirs.npz").err


def test_what_is_wrong_is_said_in_one_line(command: Command, walk: OnnxArtifact, exported: OnnxArtifact) -> None:
    command("index", "places.npz", "-o", "places.faiss")
    Path("asked/none.png").write_bytes(b"")
    np.savez("empty.npz", names=np.array([], dtype=str), descriptors=np.empty((0, 12), np.float32))
    for arguments, code, words in (
        (("index", "nowhere.npz", "-o", "x.faiss"), 65, "nowhere.npz"),
        (("index", "places.npz", "-o", "x.faiss", "--kind", "lsh"), 2, "kind 'lsh' is unknown"),
        (("index", "places.npz", "-o", "x.faiss", "--memory", "0"), 2, "memory is 0, expected 1 to"),
        (("index", "places.npz", "-o", "places.faiss"), 2, "exists already"),
        (("index", "m.onnx", "-o", "x.faiss"), 65, "m.onnx is no file of descriptors"),
        (("search", "nowhere.faiss", "asked"), 65, "an index needs the sidecar"),
        (("search", "places.npz", "asked"), 65, "an index needs the sidecar"),
        (("search", "places.faiss", "nowhere"), 65, "nowhere does not exist"),
        (("search", "places.faiss", "empty.npz"), 65, "empty.npz holds no descriptors: nothing to search"),
        (("search", "places.faiss", "asked", "--artifact", exported.path), 2, "takes no images"),
        (("search", "places.faiss", "asked", "--top", 0), 2, "top is 0, expected 1 to"),
        (("search", "places.faiss", "asked", "-o", "r", "--images", "m.onnx"), 65, "is no folder of images"),
    ):
        outcome = command(*arguments)
        assert (outcome.code, words in error_of(outcome.err)) == (code, True), (arguments, outcome.err)
        assert not Path("x.faiss").exists()
    outcome = command("search", "places.faiss", "asked")
    assert (outcome.code, "1 skipped: 1 an empty file" in outcome.out) == (1, True)
    assert command("index", "places.npz", "-o", "places.faiss", "--kind", "float16", "--force").code == 1, (
        "6 are too few"
    )
