"""Each verb opens each of an artifact's files once: the bytes that were hashed are used, and not read again."""

import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from netvlad_deploy.artifact import OnnxArtifact, sidecar_path, stage_artifact
from netvlad_deploy.export import onnx_model
from netvlad_deploy.runtime.open_runner import Candidate, candidates_of
from netvlad_deploy.spec.build_options import BuildOptions
from netvlad_deploy.spec.graph_options import GraphOptions
from netvlad_deploy.spec.verdict import Verdict
from netvlad_deploy.support.files import stage_files
from netvlad_deploy.workflow.bench import bench
from netvlad_deploy.workflow.deploy import deploy
from netvlad_deploy.workflow.embed import embed
from netvlad_deploy.workflow.evaluate import evaluate
from netvlad_deploy.workflow.inspect import inspect
from netvlad_deploy.workflow.source import Source
from netvlad_deploy.workflow.validate import validate
from tests.double.machine import install

pytestmark = [pytest.mark.export, pytest.mark.ort]

Opened = Counter[str]

_watching: list[tuple[Path, Opened]] = []


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and _watching and isinstance(arguments[0], str) and arguments[1] in ("r", "rb"):
        folder, opened = _watching[0]
        path = Path(arguments[0])
        if path.is_relative_to(folder):
            opened[path.relative_to(folder).as_posix()] += 1


@pytest.fixture(scope="module", autouse=True)
def _hook() -> None:
    """Watch this process open files; an audit hook stays for good, so it asks whether somebody wants to know."""
    sys.addaudithook(_audit)


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Opened]:
    """Return the number of times that each file in the test's folder is opened for reading from now on."""
    _watching.append((tmp_path, Counter()))
    try:
        yield _watching[0][1]
    finally:
        _watching.clear()


def copy_of(artifact: OnnxArtifact, folder: Path) -> Path:
    """Return the file of a copy of an artifact in a folder."""
    for path in filter(Path.is_file, artifact.path.parent.iterdir()):  # a provider's cache may stand there, too
        (folder / path.name).write_bytes(path.read_bytes())
    return folder / artifact.path.name


def pictures(folder: Path) -> Path:
    """Return a folder with two images."""
    from PIL import Image

    folder.mkdir()
    for number in range(2):
        Image.effect_noise((80, 60), 90).convert("RGB").save(folder / f"{number}.png")
    return folder


def of(artifact: Path, opened: Opened) -> dict[str, int]:
    """Return the number of times that the artifact, its sidecar and its relatives were opened; start to count anew."""
    found = {name: count for name, count in opened.items() if name.startswith(artifact.stem)}
    opened.clear()
    return found


def once(*names: str) -> dict[str, int]:
    return dict.fromkeys(names, 1)


def test_the_verbs_of_a_head(exported: OnnxArtifact, tmp_path: Path, opened: Opened) -> None:
    path = copy_of(exported, tmp_path)
    np.save(tmp_path / "x.npy", np.ones((2, 3, 16), np.float32))
    opened.clear()
    alone, all_files = once("m.onnx", "m.onnx.json"), once("m.onnx", "m.onnx.json", "m.reference.npz")
    assert validate(Candidate(path=path)).verdict is Verdict.PASS
    assert of(path, opened) == all_files
    embed(Candidate(path=path), [tmp_path / "x.npy"], tmp_path / "y.npy")
    assert of(path, opened) == alone
    embed(Candidate(path=path, backend="oracle"), [tmp_path / "x.npy"], tmp_path / "z.npy")
    assert of(path, opened) == all_files
    bench(candidates_of([path], ["onnxruntime", "torch"], hold=False), duration_s=0.01, num_features=3)
    assert of(path, opened) == alone, "each worker is a process of its own, and reads for itself"
    inspect(path)
    assert of(path, opened) == all_files


def test_the_verbs_of_a_pipeline(tiny: OnnxArtifact, tmp_path: Path, opened: Opened) -> None:
    path = copy_of(tiny, tmp_path)
    images = pictures(tmp_path / "images")
    opened.clear()
    assert validate(Candidate(path=path)).verdict is Verdict.PASS
    assert of(path, opened) == once("tiny.onnx", "tiny.onnx.json", "tiny.reference.npz"), "opened twice, read once"
    embed(Candidate(path=path), [images], tmp_path / "y.npz")
    assert of(path, opened) == once("tiny.onnx", "tiny.onnx.json")
    candidates = candidates_of([path], ["onnxruntime", "strict"])
    evaluate(candidates, tmp_path / "report", queries=images, database=images, within=1)
    assert of(path, opened) == once("tiny.onnx", "tiny.onnx.json"), "two backends run the same bytes"
    assert [candidate.source.__dict__.keys() & {"_held", "kept"} for candidate in candidates] == [set(), set()]


def test_weights_beside_the_graph(tmp_path: Path, opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.pipelines import tiny_pipeline

    monkeypatch.setattr(onnx_model, "LARGEST_INSIDE", 0)
    monkeypatch.setattr("netvlad_deploy.export.graph.LARGE_BYTES", 500)
    path = onnx_model.export_onnx(tiny_pipeline(), tmp_path / "m.onnx").path
    images = pictures(tmp_path / "images")
    weights = once("m.onnx", "m.onnx.json", "m.onnx.data")
    opened.clear()
    assert validate(Candidate(path=path)).verdict is Verdict.PASS
    assert of(path, opened) == weights | once("m.reference.npz")
    embed(Candidate(path=path), [images], tmp_path / "y.npz")
    assert of(path, opened) == weights
    inspect(path)
    assert of(path, opened) == weights | once("m.reference.npz")


def test_the_verbs_of_an_engine(tmp_path: Path, opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.engine"
    engine = install(monkeypatch, "10.3").engine(path)
    with stage_files(force=True) as staging:
        stage_artifact(staging, engine, path.read_bytes())
    np.save(tmp_path / "x.npy", np.ones((2, 3, 3), np.float32))
    opened.clear()
    candidate = Candidate(path=path)
    embed(candidate, [tmp_path / "x.npy"], tmp_path / "y.npy")
    assert of(path, opened) == once("m.engine", "m.engine.json")
    assert inspect(path, load=True).tensors
    assert of(path, opened) == once("m.engine", "m.engine.json")
    assert "_held" not in vars(candidate.source)


@pytest.mark.rtx
def test_an_engine_with_its_relatives(exported: OnnxArtifact, tmp_path: Path, opened: Opened) -> None:
    """Against the ONNX file that it was built from, which is a candidate, and a relative too."""
    from netvlad_deploy.tensorrt.engine import build_engine

    path = copy_of(exported, tmp_path)
    engine = build_engine(path, tmp_path / "m.engine", BuildOptions(flavor="tensorrt-rtx"))
    opened.clear()
    validate(Candidate(path=engine.path), against=path)
    assert set(opened) == {"m.engine", "m.engine.json", "m.onnx", "m.onnx.json", "m.reference.npz"}
    assert set(of(path, opened).values()) == {1}


def test_deploy_reads_its_own_export_once(tmp_path: Path, opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    source = Source(num_clusters=3, feature_size=8)
    deployment = deploy(
        source, tmp_path / "out", GraphOptions(), engine_options=BuildOptions(flavor="tensorrt"), duration_s=0.01
    )
    assert deployment.engine is None
    assert opened["out/netvlad.onnx"] == 1
    assert not opened[f"out/{sidecar_path(Path('netvlad.onnx'))}"], "its content is known already"


def test_bytes_are_held_until_they_are_taken(exported: OnnxArtifact, tmp_path: Path) -> None:
    path = copy_of(exported, tmp_path)
    assert "_held" not in vars(Candidate(path=path, hold=False).source)
    candidate = Candidate(path=path)
    assert vars(candidate.source)["_held"] == path.read_bytes()
    with candidate.open():
        assert "_held" not in vars(candidate.source)
    for verb in (validate, lambda candidate: bench([candidate], duration_s=0.01, num_features=3)):
        candidate = Candidate(path=path, backend="torch")
        verb(candidate)
        assert "_held" not in vars(candidate.source)
