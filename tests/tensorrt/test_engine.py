"""Engines of TensorRT-RTX, built for real: sidecar, log, figures, refusals."""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from netvlad_deploy.artifact import EngineArtifact, OnnxArtifact, load_artifact, stage_artifact
from netvlad_deploy.errors import ArtifactError, BuildError, DeviceUnavailableError, MissingDependencyError, UsageError
from netvlad_deploy.export.onnx_model import export_onnx
from netvlad_deploy.spec.build_options import BuildOptions
from netvlad_deploy.spec.profiles import AxisRange, Profile
from netvlad_deploy.support.files import sha256_file, stage_files
from netvlad_deploy.tensorrt import api as trt_api
from netvlad_deploy.tensorrt import builder
from netvlad_deploy.tensorrt import engine as engines
from netvlad_deploy.tensorrt.api import LogLine, TensorRT
from netvlad_deploy.tensorrt.build_log import read_figures
from netvlad_deploy.tensorrt.engine import build_engine
from tests.modules import make_module

rtx = pytest.mark.rtx
pytestmark = pytest.mark.export

PROFILE = Profile(batch=AxisRange(min=1, opt=2, max=4), num_features=AxisRange(min=1, opt=10, max=20))
OPTIONS = BuildOptions(flavor="tensorrt-rtx", profiles=(PROFILE,))

LOG = [
    LogLine(severity="INFO", text="Total Activation Memory: 2048 bytes"),
    LogLine(severity="INFO", text="Total Weights Memory: 96 bytes"),
    LogLine(
        severity="VERBOSE",
        text="Layers:\n"
        "Name: start, LayerType: shape_call, Inputs: [], Constants: [], Outputs: [], TacticName: , StreamId: 0\n"
        "Name: gemm, LayerType: runtime_fusion, Inputs: [ { Name: features, Dimensions: [-1,512], Datatype: Float }], "
        "Constants: [ { Name: w, Dimensions: [1,72], Datatype: Half }], "
        "Outputs: [ { Name: l, Dimensions: [-1,72], Datatype: Half }, { Name: s, Dimensions: [1], Datatype: Float }], "
        "TacticName: t, StreamId: 0, Metadata: [ONNX Layer: node_matmul]\n"
        "Name: wait, LayerType: wait, Inputs: [], Constants: [], Outputs: [], TacticName: , StreamId: 0\n",
    ),
]


def test_figures_are_read_from_the_log() -> None:
    figures = read_figures(LOG, 12.3456, 7)
    assert (figures.build_ms, figures.activation_bytes, figures.weight_bytes) == (12.346, 2048, 96)
    assert [(kernel.name, kernel.kind, kernel.inputs, kernel.outputs) for kernel in figures.kernels] == [
        ("gemm", "runtime_fusion", ("Float",), ("Half", "Float"))
    ]


def test_a_silent_log_gives_no_figures() -> None:
    figures = read_figures([], 1.0, 7)
    assert (figures.activation_bytes, figures.weight_bytes, figures.kernels) == (None, None, ())


@pytest.fixture(scope="module")
def engine(masked: OnnxArtifact, tmp_path_factory: pytest.TempPathFactory) -> EngineArtifact:
    target = tmp_path_factory.mktemp("engine") / "m.engine"
    return build_engine(masked, target, OPTIONS)


@rtx
def test_the_sidecar_describes_the_build(engine: EngineArtifact, masked: OnnxArtifact) -> None:
    assert load_artifact(engine.path) == engine
    assert engine.parent is not None
    assert engine.parent.sha256 == sha256_file(masked.path)
    assert (engine.path.parent / engine.parent.name).resolve() == masked.path.resolve()
    assert engine.reference_path.resolve() == masked.reference_path.resolve()
    assert (engine.profiles, engine.options.tf32, engine.precision) == ((PROFILE,), False, "fp32")
    assert engine.inputs == ("features", "mask")
    assert engine.versions["tensorrt-rtx"].startswith("1.")
    assert engine.targets
    assert engine.figures.activation_bytes
    assert engine.figures.weight_bytes
    assert engine.size_bytes == engine.path.stat().st_size


@rtx
def test_every_kernel_computes_in_the_types_of_the_graph(engine: EngineArtifact) -> None:
    kinds = {kind for kernel in engine.figures.kernels for kind in (*kernel.inputs, *kernel.outputs)}
    assert kinds == {"Float", "Bool"}


@rtx
def test_building_again_gives_the_same_bytes(engine: EngineArtifact, masked: OnnxArtifact, tmp_path: Path) -> None:
    again = build_engine(masked, tmp_path / "m.engine", OPTIONS)
    assert again.sha256 == engine.sha256


@rtx
def test_tf32_is_off_unless_asked_for(masked: OnnxArtifact, tmp_path: Path) -> None:
    artifact = build_engine(masked, tmp_path / "m.engine", replace(OPTIONS, tf32=True))
    assert (artifact.options.tf32, artifact.precision) == (True, "tf32")


@rtx
def test_an_existing_target_is_kept(engine: EngineArtifact, masked: OnnxArtifact) -> None:
    before = engine.path.read_bytes()
    with pytest.raises(UsageError, match="--force"):
        build_engine(masked, engine.path, OPTIONS)
    assert engine.path.read_bytes() == before


@rtx
def test_an_engine_is_no_source(engine: EngineArtifact, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="expected an ONNX file"):
        build_engine(engine.path, tmp_path / "m.engine", OPTIONS)


@rtx
def test_a_changed_onnx_file_is_not_built(tmp_path: Path) -> None:
    artifact = export_onnx(make_module(3, 8), tmp_path / "m.onnx")
    content = bytearray(artifact.path.read_bytes())
    content[-1] ^= 1
    artifact.path.write_bytes(content)
    with pytest.raises(ArtifactError, match="SHA-256"):
        build_engine(artifact.path, tmp_path / "m.engine", OPTIONS)
    assert not (tmp_path / "m.engine").exists()


@rtx
def test_output_of_the_compiler_stays_off_standard_output(
    masked: OnnxArtifact, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    parse = trt_api.parse_onnx

    def noisy(*arguments: Any) -> None:
        os.write(1, b"[W] printed past the logger\n")
        parse(*arguments)

    monkeypatch.setattr(builder, "parse_onnx", noisy)
    monkeypatch.setattr(engines, "build_apart", builder.build_here)
    build_engine(masked, tmp_path / "m.engine", OPTIONS)
    os.write(1, b"{}")
    captured = capfd.readouterr()
    assert json.loads(captured.out) == {}
    assert "past the logger" in captured.err


@rtx
def test_a_graph_the_parser_refuses_is_quoted(masked: OnnxArtifact, tmp_path: Path) -> None:
    import onnx

    model = onnx.load(masked.path)
    model.graph.node[0].op_type = "NoSuchOperator"
    with stage_files(force=False) as staging:
        wrong = stage_artifact(staging, replace(masked, path=tmp_path / "m.onnx"), model.SerializeToString())
        staging.write(tmp_path / masked.reference.name, masked.reference_path.read_bytes())
    with pytest.raises(BuildError, match=r"cannot parse the graph: .*NoSuchOperator"):
        build_engine(wrong, tmp_path / "m.engine", OPTIONS)


@rtx
def test_no_engine_is_a_build_error(masked: OnnxArtifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OnnxArtifact, "input_shapes", lambda *_: {})
    monkeypatch.setattr(engines, "build_apart", builder.build_here)
    with pytest.raises(BuildError, match=r"built no engine: .*profile"):
        build_engine(masked, tmp_path / "m.engine", OPTIONS)


def test_an_unknown_flavor_is_refused(exported: OnnxArtifact, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="choose tensorrt or tensorrt-rtx"):
        build_engine(exported, tmp_path / "m.engine", BuildOptions(flavor="openvino"))


def test_a_missing_flavor_names_the_pip_line(
    exported: OnnxArtifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setattr(engines, "build_apart", builder.build_here)
    with pytest.raises(MissingDependencyError, match=r"pip install 'tensorrt>=10\.3'"):
        build_engine(exported, tmp_path / "m.engine", BuildOptions(flavor="tensorrt"))


def test_a_builder_without_a_driver_is_an_unavailable_device() -> None:
    def builder(logger: Any) -> None:
        logger.lines.append(LogLine(severity="ERROR", text="CUDA initialization failure with error: 35"))
        raise TypeError("pybind11::init(): factory function returned nullptr")

    module = SimpleNamespace(ILogger=object, Builder=builder, __version__="10.3.0")
    tensorrt = TensorRT(flavor="tensorrt", module=module)
    with pytest.raises(DeviceUnavailableError, match=r"tensorrt 10.3.0 cannot build here: CUDA initialization failure"):
        tensorrt.builder()
