"""What the builder of TensorRT-RTX really does with options, progress and Ctrl-C; it needs no GPU."""

import logging
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from netvlad_deploy.artifact import OnnxArtifact, load_artifact, log_path
from netvlad_deploy.build_options import BuildOptions
from netvlad_deploy.errors import UsageError
from netvlad_deploy.export.engine import build_engine
from netvlad_deploy.runtime.trt_api import open_tensorrt
from netvlad_deploy.shapes import Profile

pytestmark = [pytest.mark.export, pytest.mark.rtx]

OPTIONS = BuildOptions(flavor="tensorrt-rtx", profiles=(Profile.parse("1x1,2x10,4x20"), Profile.parse("1x50")))

INTERRUPT = """
import os, signal, sys, time
from netvlad_deploy.cli import main
from netvlad_deploy.export.progress import Progress

step = Progress.step

def interrupted(self, phase, number):
    os.write(2, f"step {number} of {phase}\\n".encode())
    os.kill(os.getpid(), signal.SIGINT)
    self._cancelled.wait(20)
    return step(self, phase, number)

Progress.step = interrupted
sys.argv = ["netvlad-deploy", *sys.argv[1:]]
main()
"""


def test_options_are_kept_and_written_down(masked: OnnxArtifact, tmp_path: Path) -> None:
    options = replace(OPTIONS, workspace_mib=64, optimization_level=1, compute_capabilities=("SM86", "SM120"))
    artifact = build_engine(masked, tmp_path / "m.engine", options)
    assert load_artifact(artifact.path).options == options  # type: ignore[union-attr]
    assert (artifact.targets, artifact.gpu, artifact.flags) == (("SM86", "SM120"), None, ())
    assert build_engine(masked, tmp_path / "t.engine", replace(options, tf32=True)).flags == ("TF32",)


def test_an_engine_for_one_architecture_is_another_engine(masked: OnnxArtifact, tmp_path: Path) -> None:
    portable = build_engine(masked, tmp_path / "portable.engine", OPTIONS)
    single = build_engine(masked, tmp_path / "single.engine", replace(OPTIONS, compute_capabilities=("SM89",)))
    assert (len(portable.targets), single.targets) == (4, ("SM89",))
    assert portable.sha256 != single.sha256


def test_an_unknown_architecture_is_refused_with_those_there_are(masked: OnnxArtifact, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no compute capability SM87: choose from SM75, .*SM120"):
        build_engine(masked, tmp_path / "m.engine", replace(OPTIONS, compute_capabilities=("SM87",)))


def test_more_profiles_need_more_room(masked: OnnxArtifact, tmp_path: Path) -> None:
    both = build_engine(masked, tmp_path / "both.engine", OPTIONS)
    one = build_engine(masked, tmp_path / "one.engine", replace(OPTIONS, profiles=OPTIONS.profiles[:1]))
    assert both.profiles == OPTIONS.profiles
    assert both.sha256 != one.sha256


def test_no_timing_cache(masked: OnnxArtifact, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="keeps no timings"):
        build_engine(masked, tmp_path / "m.engine", OPTIONS, timing_cache=tmp_path / "timings")
    assert not list(tmp_path.iterdir())


def test_the_log_holds_what_the_builder_said(masked: OnnxArtifact, tmp_path: Path) -> None:
    artifact = build_engine(masked, tmp_path / "m.engine", OPTIONS)
    text = log_path(artifact.path).read_text()
    assert text.startswith(f"# tensorrt_rtx --onnx={tmp_path}/")
    assert f"tensorrt-rtx {artifact.versions['tensorrt-rtx']}" in text.splitlines()[1]
    assert f"Total Activation Memory: {artifact.figures.activation_bytes} bytes" in text
    assert "\n[VERBOSE] " in text


def test_progress_is_a_line_or_two(masked: OnnxArtifact, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="netvlad_deploy")
    build_engine(masked, tmp_path / "m.engine", OPTIONS)
    assert caplog.messages[0] == "build: Building engine"
    assert len(caplog.messages) < 20


def test_ctrl_c_stops_the_builder_and_leaves_nothing(masked: OnnxArtifact, tmp_path: Path) -> None:
    arguments = ["build", str(masked.path), "--flavor", "tensorrt-rtx", "-o", "m.engine", "--json"]
    script = [sys.executable, "-c", INTERRUPT, *arguments]
    outcome = subprocess.run(script, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert outcome.returncode == 130, outcome.stderr
    assert outcome.stdout == ""
    assert "Traceback" not in outcome.stderr
    assert outcome.stderr.count("step ") == 1, "the builder went on"
    assert not list(tmp_path.iterdir())


def test_capabilities() -> None:
    tensorrt = open_tensorrt("tensorrt-rtx")
    assert tensorrt.builds_without_gpu
    assert tensorrt.chooses_compute_capability
    assert tensorrt.checks_validity
    assert tensorrt.has_runtime_cache
    assert not tensorrt.has_timing_cache
    assert not tensorrt.has_precision_flags
