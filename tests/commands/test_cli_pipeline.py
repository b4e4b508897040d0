"""The verbs of an artifact that takes images: the same as those of a head."""

import json
import shutil
from pathlib import Path

import pytest

from netvlad_deploy.artifact import EngineArtifact, OnnxArtifact, load_artifact
from netvlad_deploy.spec.images import Resize
from tests.command import Command, error_of

pytestmark = [pytest.mark.export, pytest.mark.ort]
rtx = pytest.mark.rtx


@pytest.fixture
def here(tiny: OnnxArtifact, tmp_path: Path) -> Path:
    """Return the pipeline's ONNX file in the test's folder."""
    for path in tiny.path.parent.iterdir():
        shutil.copy(path, tmp_path)
    return tmp_path / tiny.path.name


def test_validate_prints_golden_images(command: Command, here: Path) -> None:
    outcome = command("validate", here, "--junit", "junit.xml")
    assert outcome.code == 0
    assert outcome.out.startswith("PASS  tiny.onnx against golden images, fp32, 6 cases")
    assert "PASS     images 224x224          1 " in outcome.out
    assert "PASS     head on images 225x257  1 x 896   " in outcome.out
    assert 'name="images 224x224"' in Path("junit.xml").read_text()


@pytest.mark.parametrize("options", [("--bank", "x.npy"), ("--backend", "torch"), ("--backend", "oracle")])
def test_validate_refuses_options_that_need_a_head(command: Command, here: Path, options: tuple[str, str]) -> None:
    assert command("validate", here, *options).code == 2


def test_bench_measures_images(command: Command, here: Path) -> None:
    arguments = ("bench", here, "--duration", 0.3, "--threads", 1)
    outcome = command(*arguments, "--image-size", "32x40", "--batch", 2, "--json")
    assert outcome.code == 0
    record = json.loads(outcome.out)
    assert (record["batch"], record["image_size"], record["num_features"]) == (2, [32, 40], None)
    assert record["candidates"][0]["runs"] > 0
    assert "batch 1, images of 480x640, 1 threads" in command(*arguments).out
    assert "leave the number of features out" in error_of(command(*arguments, "--num-features", 5).err)
    assert "is not HxW" in error_of(command(*arguments, "--image-size", "480").err)


def test_bench_keeps_heads_and_pipelines_apart(command: Command, here: Path, exported: OnnxArtifact) -> None:
    outcome = command("bench", here, exported.path, "--duration", 0.3)
    assert outcome.code == 2
    assert "measure them apart" in error_of(outcome.err)
    assert command("bench", exported.path, "--image-size", "32x40").code == 2


@rtx
class TestEngine:
    def test_of_the_usual_images(self, command: Command, here: Path) -> None:
        assert command("build", here, "--flavor", "tensorrt-rtx").code == 0
        engine = load_artifact(here.with_suffix(".engine"))
        assert isinstance(engine, EngineArtifact)
        assert [profile.text for profile in engine.profiles] == ["1x224x224,1x480x640,8x1024x1024"]
        assert "--profile 1x224x224,1x480x640,8x1024x1024" in engine.cure
        outcome = command("validate", engine.path, "--allow-not-run")
        assert outcome.code == 0
        assert "against golden images" in outcome.out
        assert "profile: batch 1:1:8, height 224:480:1024, width 224:640:1024" in command("inspect", engine.path).out

    def test_of_the_images_that_were_asked_for(self, command: Command, here: Path) -> None:
        arguments = ("build", here, "--flavor", "tensorrt-rtx", "--force")
        record = json.loads(command(*arguments, "--batch", "2", "--image-size", "224x320", "--json").out)
        (profile,) = record["options"]["profiles"]
        lengths = {"batch": 2, "height": 224, "width": 320}
        assert profile == {axis: {"min": each, "opt": each, "max": each} for axis, each in lengths.items()}
        for wrong in (("--num-features", "300"), ("--profile", "1x300"), ("--batch", "1")):
            outcome = command(*arguments, *wrong)
            assert outcome.code == 2
            assert "takes images, got a profile of" in error_of(outcome.err)

    def test_a_head_takes_no_images(self, command: Command, exported: OnnxArtifact) -> None:
        outcome = command("build", exported.path, "-o", "m.engine", "--flavor", "tensorrt-rtx", "--image-size", "32x32")
        assert outcome.code == 2
        assert "pass --num-features or --profile BxN" in error_of(outcome.err)

    def test_deploy_does_it_all(self, command: Command, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def export(_: object, target: Path, *__: object, **___: object) -> OnnxArtifact:
            from netvlad_deploy.export.onnx_model import export_onnx
            from tests.pipelines import tiny_pipeline

            return export_onnx(tiny_pipeline(Resize(size=(48, 64))), target)

        monkeypatch.setattr("netvlad_deploy.workflow.deploy.export", export)
        arguments = ("deploy", "--flavor", "tensorrt-rtx", "--duration", 0.3, "--allow-not-run", "--json")
        outcome = command(*arguments)
        assert outcome.code == 0, outcome.err
        record = json.loads(outcome.out)
        steps = {step["name"]: step["verdict"] for step in record["steps"]}
        assert steps["parity of the ONNX file"] == steps["build with tensorrt-rtx"] == "PASS"
        assert record["latency"]["image_size"] == [48, 64]
        assert [one["name"] for one in record["latency"]["candidates"]] == ["netvlad.onnx", "netvlad.engine"]
        assert "images of 48x64" in Path("deployment/report.md").read_text()
