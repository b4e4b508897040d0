"""The verbs that build and take engines, by the command line."""

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from netvlad_deploy.artifact import EngineArtifact, OnnxArtifact, load_artifact
from netvlad_deploy.errors import BuildError
from netvlad_deploy.spec.build_options import RTX, BuildOptions
from netvlad_deploy.spec.profiles import Profile
from netvlad_deploy.workflow import build, deploy
from tests.command import Command, error_of

pytestmark = [pytest.mark.export, pytest.mark.ort]
rtx = pytest.mark.rtx


@rtx
class TestEngine:
    def build(self, command: Command, checkpoint: Path) -> None:
        assert command("export", checkpoint, "--masked").code == 0
        assert command("build", "best.onnx", "--flavor", "tensorrt-rtx", "--batch", "1:2:4").code == 0

    def test_build_prints_json_alone(self, command: Command, checkpoint: Path) -> None:
        command("export", checkpoint)
        outcome = command("build", "best.onnx", "--flavor", "tensorrt-rtx", "--num-features", "1:10:20", "--json")
        record = json.loads(outcome.out)
        assert record["schema"] == "netvlad-deploy/build/1"
        assert record["options"]["profiles"][0]["num_features"] == {"min": 1, "opt": 10, "max": 20}
        assert record["figures"]["activation_bytes"] > 0

    def test_options_of_the_builder(self, command: Command, checkpoint: Path, tmp_path: Path) -> None:
        command("export", checkpoint)
        options = ("--profile", "1x1,2x5,4x9", "--profile", "1x20", "--workspace-mib", 64, "--optimization-level", 2)
        arguments = ("build", "best.onnx", "--flavor", "tensorrt-rtx", *options, "--compute-capability", "SM89")
        outcome = command(*arguments)
        assert outcome.code == 0
        assert "  profile: batch 1:1:1, num_features 20:20:20" in outcome.out
        assert outcome.out.splitlines()[-1].startswith("  tensorrt_rtx --onnx=best.onnx --saveEngine=best.engine ")
        assert outcome.out.splitlines()[-1] in (tmp_path / "best.engine.log").read_text().replace("#", " ")
        assert "build: Building engine" in outcome.err
        record = json.loads(command(*arguments, "--force", "--json").out)
        assert record["targets"] == ["SM89"]
        assert (record["options"]["workspace_mib"], record["options"]["optimization_level"]) == (64, 2)
        refused = command(*arguments, "--force", "--timing-cache", "timings")
        assert refused.code == 2
        assert "keeps no timings" in error_of(refused.err)

    def test_the_rebuild_command_builds_it_again(self, command: Command, checkpoint: Path, tmp_path: Path) -> None:
        self.build(command, checkpoint)
        before = load_artifact(tmp_path / "best.engine")
        assert isinstance(before, EngineArtifact)
        words = shlex.split(before.cure)
        (tmp_path / "best.engine").write_bytes(b"damaged")
        assert words[0] == "netvlad-deploy"
        assert command(*words[1:]).code == 0
        after = load_artifact(tmp_path / "best.engine")
        assert isinstance(after, EngineArtifact)
        assert (after.options, after.sha256) == (before.options, before.sha256)

    def test_an_engine_where_no_gpu_is_did_not_run(self, command: Command, checkpoint: Path) -> None:
        self.build(command, checkpoint)
        outcome = command("validate", "best.engine")
        if outcome.code == 0:
            pytest.skip("this machine has a GPU")
        assert outcome.code == 69
        assert outcome.out.startswith("NOT_RUN  best.engine against oracle, fp32: no usable NVIDIA GPU")
        assert command("validate", "best.engine", "--allow-not-run").code == 0

    def test_a_stale_parent_is_refused(self, command: Command, checkpoint: Path) -> None:
        self.build(command, checkpoint)
        assert command("export", checkpoint, "--opset", 20, "--force").code == 0
        outcome = command("validate", "best.engine")
        assert outcome.code == 65
        assert "best.onnx has SHA-256" in error_of(outcome.err)
        assert "stale" in outcome.err
        assert command("bench", "best.engine", "--num-features", 5, "--duration", 0.3).code == 65

    def test_an_engine_is_compared_with_its_own_onnx_only(self, command: Command, checkpoint: Path) -> None:
        self.build(command, checkpoint)
        assert command("export", checkpoint, "-o", "other.onnx").code == 0
        outcome = command("validate", "best.engine", "--against", "other.onnx")
        assert outcome.code == 65
        assert "was not built from other.onnx" in error_of(outcome.err)

    def test_bench_goes_on_without_the_engine(self, command: Command, checkpoint: Path) -> None:
        self.build(command, checkpoint)
        outcome = command("bench", "best.onnx", "best.engine", "--num-features", 5, "--duration", 0.3, "--json")
        if outcome.code == 0:
            pytest.skip("this machine has a GPU")
        assert outcome.code == 69
        assert [entry["verdict"] for entry in json.loads(outcome.out)["candidates"]] == ["PASS", "NOT_RUN"]

    def test_deploy_writes_one_folder_and_without_tensorrt_keeps_no_engine_in_it(
        self, command: Command, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder, arguments = tmp_path / "out", ("deploy", checkpoint, "--duration", 0.3, "-o", "out")
        outcome = command(*arguments, "--flavor", "tensorrt-rtx", "--allow-not-run", "--json")
        assert outcome.code == 0
        record = json.loads(outcome.out)
        assert record == json.loads((folder / "report.json").read_text())
        verdicts = {step["name"]: step["verdict"] for step in record["steps"]}
        assert (
            verdicts["export"] == verdicts["parity of the ONNX file"] == verdicts["build with tensorrt-rtx"] == "PASS"
        )
        assert record["engine"]["figures"]["kernels"]
        assert (folder / "best.engine").exists()
        assert (folder / "report.md").read_text().startswith(f"# {record['verdict']}: best.onnx")
        assert command(*arguments, "--flavor", "tensorrt-rtx").code == 2
        (folder / "report.md").unlink()
        monkeypatch.setitem(sys.modules, "tensorrt", None)
        outcome = command(*arguments, "--flavor", "tensorrt", "--force")
        assert outcome.code == 69
        assert outcome.out.strip().splitlines()[-1].startswith("NOT_RUN  build with tensorrt")
        assert (folder / "report.md").exists()
        assert not list(folder.glob("best.engine*"))


@pytest.mark.parametrize(
    "options",
    [
        BuildOptions(),
        BuildOptions(profiles=(Profile.parse("1x1,2x5,4x9"), Profile.parse("1x1200")), tf32=True),
        BuildOptions(workspace_mib=512, optimization_level=0, hardware_compatible=True),
        BuildOptions(version_compatible=True, optimization_level=5),
        BuildOptions(flavor=RTX, profiles=(Profile.parse("1x1"),), compute_capabilities=("SM89", "SM120")),
    ],
)
def test_the_arguments_of_build_options_are_those_of_the_command_line(
    command: Command, monkeypatch: pytest.MonkeyPatch, exported: OnnxArtifact, options: BuildOptions
) -> None:
    given: list[tuple[BuildOptions, Path | None]] = []

    def built(_: Path, __: Path, chosen: BuildOptions, *, timing_cache: Path | None, **___: Any) -> OnnxArtifact:
        given.append((chosen, timing_cache))
        raise BuildError("enough")

    monkeypatch.setattr(build, "build", built)
    assert command("build", "m.onnx", *options.arguments, "--timing-cache", "timings").code == 70
    assert command("build", "m.onnx", *options.arguments).code == 70
    assert given == [(options, Path("timings")), (options, None)]


def test_build_without_tensorrt_names_the_missing_package(
    command: Command, exported: OnnxArtifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    outcome = command("build", exported.path, "-o", "m.engine")
    assert outcome.code == 69
    assert "-m pip install 'tensorrt>=10.3'" in error_of(outcome.err)


def test_deploy_refuses_before_any_work(
    command: Command, tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deploy, "export", lambda *_, **__: pytest.fail("worked before asking"))
    (tmp_path / "file").write_text("in the way")
    outcome = command("deploy", checkpoint, "-o", "file")
    assert outcome.code == 73
    assert "file cannot be made" in error_of(outcome.err)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "report.md").write_text("old")
    outcome = command("deploy", checkpoint, "-o", "out")
    assert outcome.code == 2
    assert "out/report.md exists already" in error_of(outcome.err)


@rtx
def test_an_engine_behind_a_link_finds_its_parent(command: Command, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "deep" / "real").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "deep" / "real")
    assert command("export", checkpoint).code == 0
    assert command("build", "best.onnx", "--flavor", "tensorrt-rtx", "-o", "link/best.engine").code == 0
    assert command("validate", "link/best.engine", "--allow-not-run").code == 0


def test_an_unknown_flavor_is_refused_before_any_work(command: Command, checkpoint: Path, tmp_path: Path) -> None:
    outcome = command("deploy", checkpoint, "--flavor", "bogus", "-o", "out")
    assert outcome.code == 2
    assert not (tmp_path / "out").exists()
