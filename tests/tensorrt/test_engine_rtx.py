"""What the builder of TensorRT-RTX really does with options, progress and Ctrl-C; it needs no GPU."""

import logging
from dataclasses import replace
from pathlib import Path

import pytest

from netvlad_deploy.artifact import OnnxArtifact, load_artifact, log_path
from netvlad_deploy.errors import BuildError, UsageError
from netvlad_deploy.export.onnx_model import export_onnx
from netvlad_deploy.models.netvlad import NetVLAD
from netvlad_deploy.spec.build_options import BuildOptions
from netvlad_deploy.spec.graph_options import GraphOptions
from netvlad_deploy.spec.layer import Projection
from netvlad_deploy.spec.profiles import Profile
from netvlad_deploy.tensorrt import engine
from netvlad_deploy.tensorrt.api import open_tensorrt
from netvlad_deploy.tensorrt.engine import build_engine
from tests.modules import make_projected

pytestmark = [pytest.mark.export, pytest.mark.rtx]

OPTIONS = BuildOptions(flavor="tensorrt-rtx", profiles=(Profile.parse("1x1,2x10,4x20"), Profile.parse("1x50")))


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


def test_the_log_holds_the_messages_of_the_builder(masked: OnnxArtifact, tmp_path: Path) -> None:
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


def test_capabilities() -> None:
    tensorrt = open_tensorrt("tensorrt-rtx")
    assert tensorrt.builds_without_gpu
    assert tensorrt.checks_validity
    assert tensorrt.has_runtime_cache
    assert not tensorrt.has_timing_cache
    assert "has precision flags" not in tensorrt.capabilities


def test_a_failed_build_for_turing_leaves_nothing_in_the_next(
    tmp_path: Path, module: NetVLAD, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one process the second build of the half graph took Turing's plan, and its sidecar said SM89."""
    single = export_onnx(module, tmp_path / "single.onnx")
    half = export_onnx(module, tmp_path / "half.onnx", GraphOptions(precision="fp16"))
    ada, turing = (replace(OPTIONS, compute_capabilities=(name,)) for name in ("SM89", "SM75"))
    before = build_engine(half, tmp_path / "before.engine", ada)
    monkeypatch.setattr(engine, "TURING", "unchecked")
    with pytest.raises(BuildError, match="FP32 GEMM is not supported"):
        build_engine(single, tmp_path / "turing.engine", turing)
    after = build_engine(half, tmp_path / "after.engine", ada)
    assert after.sha256 == before.sha256
    assert after.figures.kernels == before.figures.kernels


@pytest.mark.parametrize("options", [GraphOptions(), GraphOptions(precision="fp16", wide_logits=True)])
def test_fp32_products_are_refused_for_turing_before_the_builder_starts(
    tmp_path: Path, module: NetVLAD, options: GraphOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = export_onnx(module, tmp_path / "m.onnx", options)
    monkeypatch.delattr(engine, "build_apart")
    with pytest.raises(UsageError, match=rf"SM75 .* no matrix product in FP32, .*m.onnx is {options.precision_name}: "):
        build_engine(artifact, tmp_path / "m.engine", replace(OPTIONS, compute_capabilities=("SM89", "SM75")))


def test_gating_is_refused_for_turing_and_whitening_is_not(tmp_path: Path) -> None:
    half = GraphOptions(precision="fp16")
    turing = BuildOptions(flavor="tensorrt-rtx", compute_capabilities=("SM75",))
    for gating in (None, "batch_norm"):
        artifact = export_onnx(
            make_projected(Projection(size=16, gating=gating), 8, 32, 0), tmp_path / f"{gating}.onnx", half
        )
        if gating is None:
            assert build_engine(artifact, tmp_path / "m.engine", turing).targets == ("SM75",)
            continue
        with pytest.raises(UsageError, match="has gating in FP32: leave SM75 out"):
            build_engine(artifact, tmp_path / "gated.engine", turing)


def test_a_half_pipeline_is_built_for_turing(half: OnnxArtifact, tmp_path: Path) -> None:
    options = BuildOptions(flavor="tensorrt-rtx", compute_capabilities=("SM75",))
    assert build_engine(half, tmp_path / "half.engine", options).targets == ("SM75",)
