"""Baselines at the command line: saved, compared in the same rounds or by stored figures, refused."""

import json
import shutil
from pathlib import Path

import pytest

from netvlad_deploy.artifact import FileReference, OnnxArtifact
from netvlad_deploy.latency import timing
from netvlad_deploy.latency.baseline import Baseline, Setup
from netvlad_deploy.support.files import sha256_file
from tests.command import Command, error_of

pytestmark = [pytest.mark.export, pytest.mark.ort]

OPTIONS = ("--num-features", 5, "--threads", 1, "--duration", 0.2)


@pytest.fixture(autouse=True)
def short_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many rounds as in a long bench, each of 2 ms: what is decided here does not depend on the times."""
    measure = timing.measure
    short = {"block_ms": 2.0, "warmup_ms": 2.0}
    monkeypatch.setattr(
        "netvlad_deploy.workflow.bench.measure", lambda *given, **options: measure(*given, **{**options, **short})
    )


@pytest.fixture
def here(exported: OnnxArtifact, tmp_path: Path) -> Path:
    """Return a copy of the artifact in the test's folder."""
    for name in ("m.onnx", "m.onnx.json", "m.reference.npz"):
        shutil.copy(exported.path.with_name(name), tmp_path)
    return Path("m.onnx")


def write_baseline(artifact: Path) -> None:
    """Write a baseline of an artifact, of figures from another machine."""
    baseline = Baseline(
        artifact=FileReference(name=artifact.name, sha256=sha256_file(artifact)),
        setup=Setup(backend="onnxruntime", batch=1, num_features=5, image_size=None, threads=1),
        machine={"processor": "another"},
        block_medians_ms=(1.0,) * 10,
    )
    Path("base.json").write_bytes(baseline.text())


def test_saved_and_compared(command: Command, here: Path, masked: OnnxArtifact) -> None:
    outcome = command("bench", here, *OPTIONS, "--save-baseline", "base.json")
    assert outcome.code == 0, outcome.err
    before = Path("base.json").read_bytes()
    record = json.loads(before)
    assert record["artifact"]["name"] == "m.onnx"
    assert record["setup"] == {
        "backend": "onnxruntime", "batch": 1, "num_features": 5, "image_size": None, "threads": 1, "concurrency": 1,
    }  # fmt: skip
    assert command("bench", here, *OPTIONS, "--save-baseline", "base.json").code == 2
    assert Path("base.json").read_bytes() == before
    compared = ("bench", masked.path, *OPTIONS, "--baseline", "base.json", "--max-regression", "1000%", "--json")
    outcome = command(*compared)
    report = json.loads(outcome.out)
    assert (outcome.code, report["verdict"]) == (0, "PASS")
    assert [one["name"] for one in report["candidates"]] == ["m.onnx (baseline)", "m.onnx"]
    assert report["regression"]["paired"] is True
    assert report["regression"]["ratio"] == report["candidates"][1]["ratio"]
    here.unlink()
    outcome = command(*compared)
    report = json.loads(outcome.out)
    assert outcome.code == 0, outcome.err
    assert [one["name"] for one in report["candidates"]] == ["m.onnx"]
    assert report["regression"]["paired"] is False


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (("--baseline", "none.json"), 65, "none.json is missing"),
        (("--baseline", "m.onnx.json"), 65, "m.onnx.json is not a baseline"),
        (("--baseline", "base.json", "--batch", 2), 2, "batch 1, here 2: measure alike"),
        (("--baseline", "base.json", "--backend", "torch"), 2, "backend onnxruntime, here torch"),
        (("--baseline", "base.json", "--max-regression", "5"), 2, "'5' is no percentage, for example 5%"),
        (("--baseline", "base.json", "--max-regression", "nan%"), 2, "is no percentage"),
        (("--baseline", "base.json", "--max-regression", "2000%"), 2, "max-regression is 2000, expected 0 to 1000"),
        (("--max-regression", "5%"), 2, "pass --baseline, too"),
        (("--baseline", "base.json", "--save-baseline", "new.json"), 2, "give one of them"),
        (("--baseline", "base.json", "--backend", "torch", "--backend", "oracle"), 2, "one file on one backend, 2 are"),
        (("--save-baseline", "new.txt"), 2, "does not end in .json"),
        (("--save-baseline", "m.onnx.json", "--force"), 2, "m.onnx.json is read or written here"),
        (("--baseline", "base.json", "--concurrency", 2), 2, "concurrency 1, here 2"),
    ],
)
def test_refusals_come_before_the_measurement(
    command: Command, here: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[object, ...], code: int, said: str
) -> None:
    write_baseline(here)
    monkeypatch.setattr("netvlad_deploy.workflow.bench.measure", None)
    outcome = command("bench", here, *OPTIONS, *options)
    assert (outcome.code, said in error_of(outcome.err)) == (code, True), outcome.err
    assert not Path("new.json").exists()


def test_stored_figures_of_another_machine_are_refused(
    command: Command, here: Path, masked: OnnxArtifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_baseline(here)
    assert command("bench", masked.path, *OPTIONS, "--baseline", "base.json").code in (0, 1)
    here.write_bytes(b"a new export")
    outcome = command("bench", masked.path, *OPTIONS, "--baseline", "base.json")
    assert outcome.code == 65
    assert "processor another, here " in error_of(outcome.err)


def test_nothing_is_saved_of_what_did_not_run_or_broke_its_budget(
    command: Command, here: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    outcome = command("bench", here, *OPTIONS, "--save-baseline", "base.json", "--budget-p99-ms", 1e-6)
    assert outcome.code == 1
    assert "base.json was not written: p99 is" in outcome.err
    (tmp_path / "torch.py").write_text("raise ImportError('no torch here')")
    monkeypatch.syspath_prepend(tmp_path)
    outcome = command("bench", here, *OPTIONS, "--backend", "torch", "--save-baseline", "base.json")
    assert outcome.code == 69
    assert "did not run, so base.json was not written" in error_of(outcome.err)
    assert not Path("base.json").exists()
