"""GPU providers of ONNX Runtime, on a double of it."""

import hashlib
import os
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from netvlad_deploy.artifact import OnnxArtifact
from netvlad_deploy.errors import ArtifactError, DeviceUnavailableError, InputError, OutputError, UsageError
from netvlad_deploy.oracle.reference_file import load_reference
from netvlad_deploy.parity.heads import compare
from netvlad_deploy.runtime.execution_providers import PROBE, PROVIDERS, probe, provider_options
from netvlad_deploy.runtime.onnxruntime_runner import OnnxRuntimeRunner
from netvlad_deploy.runtime.open_runner import open_runner
from netvlad_deploy.spec.backends import BACKENDS
from netvlad_deploy.spec.layer import DESCRIPTOR, FEATURES, MASK
from netvlad_deploy.spec.profiles import Profile
from netvlad_deploy.spec.verdict import Verdict
from tests.double.onnxruntime import CUDA, TENSORRT, OnnxRuntime
from tests.modules import features

pytestmark = [pytest.mark.export, pytest.mark.ort]

GPU_BACKENDS = tuple(PROVIDERS)[1:]
PROFILE = Profile.parse("1x1,2x10,4x20")
SHAPES = ("features:1x1x16,mask:1x1", "features:2x10x16,mask:2x10", "features:4x20x16,mask:4x20")


def test_every_provider_is_a_backend() -> None:
    assert BACKENDS[:4] == ("onnxruntime", "onnxruntime-cuda", "onnxruntime-tensorrt", "onnxruntime-rtx")


@pytest.mark.parametrize("backend", GPU_BACKENDS)
def test_the_session_has_the_provider_and_no_way_out(
    runtime: OnnxRuntime, artifact: OnnxArtifact, backend: str
) -> None:
    x = features(2, 10, 16)
    feeds = {FEATURES: x, MASK: np.ones((2, 10), dtype=np.bool_)}
    with open_runner(artifact, backend=backend) as runner, open_runner(artifact, backend="oracle") as oracle:
        assert np.abs(runner.run(feeds)[DESCRIPTOR] - oracle.run(feeds)[DESCRIPTOR]).max() < 1e-6
    (session,) = runtime.sessions
    assert session.provider == PROVIDERS[backend]
    assert session.options.entries == {"session.disable_cpu_ep_fallback": "1"}
    assert not session.fallback
    assert session.options.log_severity_level == 3


def test_the_cpu_session_forbids_nothing_it_needs(runtime: OnnxRuntime, artifact: OnnxArtifact) -> None:
    with open_runner(artifact, threads=3) as runner:
        assert (runner.precision, runner.profiles) == ("fp32", ())
    (session,) = runtime.sessions
    assert (session.options.entries, session.settings, session.fallback) == ({}, {}, False)
    assert session.options.intra_op_num_threads == 3


def test_a_session_beside_decoders_does_not_wait_busily(runtime: OnnxRuntime, artifact: OnnxArtifact) -> None:
    with open_runner(artifact, spin=False) as runner:
        assert (runner.concurrent, runner.lanes) == (True, 1)
    (session,) = runtime.sessions
    assert session.options.entries == {"session.intra_op.allow_spinning": "0"}


@pytest.mark.parametrize(("precision", "tf32"), [("fp32", "0"), ("tf32", "1"), ("fp16", "0")])
def test_cuda_computes_in_tf32_only_if_the_artifact_does(
    runtime: OnnxRuntime, artifact: OnnxArtifact, precision: str, tf32: str
) -> None:
    with open_runner(replace(artifact, precision=precision), backend="onnxruntime-cuda") as runner:
        assert (runner.precision, runner.profiles) == (precision, ())
    assert runtime.sessions[0].settings == {"device_id": "0", "use_tf32": tf32}


def test_tensorrt_builds_for_one_profile_and_caches_beside_the_file(
    runtime: OnnxRuntime, artifact: OnnxArtifact
) -> None:
    with open_runner(artifact, backend="onnxruntime-tensorrt", profile=PROFILE) as runner:
        assert runner.profiles == (PROFILE,)
    cache = artifact.path.parent / "m.onnx.cache" / f"{artifact.sha256[:16]}-tf32-1x1,2x10,4x20"
    assert cache.is_dir()
    assert cache.stat().st_mode & 0o77 == 0, "its files are code"
    assert runtime.sessions[0].settings == {
        "device_id": "0",
        **dict(zip((f"trt_profile_{name}_shapes" for name in ("min", "opt", "max")), SHAPES, strict=True)),
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(cache),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(cache),
    }


def test_rtx_keeps_its_runtime_cache(runtime: OnnxRuntime, artifact: OnnxArtifact) -> None:
    with open_runner(artifact, backend="onnxruntime-rtx", profile=PROFILE) as runner:
        assert runner.profiles == (PROFILE,)
    cache = artifact.path.parent / "m.onnx.cache" / f"{artifact.sha256[:16]}-tf32-1x1,2x10,4x20"
    assert runtime.sessions[0].settings == {
        "device_id": "0",
        **dict(zip((f"nv_profile_{name}_shapes" for name in ("min", "opt", "max")), SHAPES, strict=True)),
        "nv_runtime_cache_path": str(cache),
    }


def test_other_weights_precisions_and_profiles_have_other_caches(
    runtime: OnnxRuntime, artifact: OnnxArtifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    for given in (artifact, replace(artifact, precision="fp16")):
        OnnxRuntimeRunner(given, backend="onnxruntime-tensorrt").close()
    OnnxRuntimeRunner(artifact, backend="onnxruntime-tensorrt", profile=PROFILE).close()
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    OnnxRuntimeRunner(artifact, backend="onnxruntime-tensorrt").close()
    content = artifact.path.read_bytes() + b"\x32\x01x"  # a doc string: the same graph in another file
    artifact.path.write_bytes(content)
    OnnxRuntimeRunner(
        replace(artifact, sha256=hashlib.sha256(content).hexdigest()), backend="onnxruntime-tensorrt"
    ).close()
    assert len({session.settings["trt_engine_cache_path"] for session in runtime.sessions}) == 5


def test_a_folder_that_cannot_be_made_is_an_output_error(runtime: OnnxRuntime, artifact: OnnxArtifact) -> None:
    (artifact.path.parent / "m.onnx.cache").write_text("in the way")
    with pytest.raises(OutputError, match=r"m\.onnx\.cache/.* cannot be made: "):
        open_runner(artifact, backend="onnxruntime-tensorrt")


@pytest.mark.parametrize("which", ["cache", "folder in it"])
@pytest.mark.parametrize("mode", [0o777, 0o770, 0o1777])
def test_a_cache_that_others_can_write_into_is_refused(
    runtime: OnnxRuntime, artifact: OnnxArtifact, which: str, mode: int
) -> None:
    """What stands there is executable code."""
    open_runner(artifact, backend="onnxruntime-tensorrt").close()
    cache = artifact.path.parent / "m.onnx.cache"
    (inside,) = cache.iterdir()
    assert [folder.stat().st_mode & 0o777 for folder in (cache, inside)] == [0o700, 0o700]
    planted = cache if which == "cache" else inside
    planted.chmod(mode)
    with pytest.raises(ArtifactError, match="holds code, and others may have written it: remove it"):
        open_runner(artifact, backend="onnxruntime-tensorrt")
    planted.chmod(0o700)
    open_runner(artifact, backend="onnxruntime-tensorrt").close()


def test_a_cache_of_another_user_or_a_link_is_refused(runtime: OnnxRuntime, artifact: OnnxArtifact) -> None:
    cache = artifact.path.parent / "m.onnx.cache"
    cache.symlink_to(artifact.path.parent)
    with pytest.raises(ArtifactError, match="holds code"):
        open_runner(artifact, backend="onnxruntime-tensorrt")
    cache.unlink()
    if os.geteuid() == 0:
        cache.mkdir(mode=0o700)
        os.chown(cache, 65534, 65534)
        with pytest.raises(ArtifactError, match="holds code"):
            open_runner(artifact, backend="onnxruntime-rtx")


def test_a_tapped_graph_meets_no_cache(runtime: OnnxRuntime, artifact: OnnxArtifact) -> None:
    with open_runner(artifact, backend="onnxruntime-tensorrt", profile=PROFILE) as runner, runner.tapped() as tapped:
        assert tapped.profiles == (PROFILE,)
        assert "mean_residual" in tapped.outputs
    assert not [name for name in runtime.sessions[1].settings if "cache" in name]
    assert runtime.sessions[1].provider == TENSORRT


@pytest.mark.parametrize("backend", ["onnxruntime-tensorrt", "onnxruntime-rtx"])
def test_a_shape_outside_the_profile_is_refused_before_it_builds(
    runtime: OnnxRuntime, artifact: OnnxArtifact, backend: str
) -> None:
    with open_runner(artifact, backend=backend) as runner:
        assert runner.profiles == (Profile(),)
        with pytest.raises(InputError, match=r"batch is 65, .* outside the profile"):
            runner.run({FEATURES: features(65, 2, 16), MASK: np.ones((65, 2), dtype=np.bool_)})


@pytest.mark.parametrize("backend", ["onnxruntime-tensorrt", "onnxruntime-rtx"])
def test_tf32_that_no_option_turns_off_is_reported_and_judged(
    runtime: OnnxRuntime, artifact: OnnxArtifact, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = replace(artifact, precision="fp16-wide-logits")
    with open_runner(artifact, backend=backend) as runner:
        assert runner.precision == "tf32"
        report = compare(runner, load_reference(artifact.reference_path))
        assert (report.verdict, report.precision) == (Verdict.PASS, "tf32")
    with open_runner(replace(artifact, precision="fp16"), backend=backend) as runner:
        assert runner.precision == "fp16"
    with pytest.raises(UsageError, match=rf"{PROVIDERS[backend]} may round wide logits to TF32: set NVIDIA_TF32_"):
        open_runner(wide, backend=backend)
    for value, precision in (("1", "tf32"), ("0", "fp32")):
        monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", value)
        with open_runner(artifact, backend=backend) as runner:
            assert runner.precision == precision
    with open_runner(wide, backend=backend) as runner:
        assert runner.precision == "fp16-wide-logits"


def test_the_double_refuses_options_that_no_provider_has(runtime: OnnxRuntime, artifact: OnnxArtifact) -> None:
    options = runtime.module.SessionOptions()
    with pytest.raises(RuntimeError, match='Unknown provider option: "trt_use_tf32"'):
        runtime.module.InferenceSession(artifact.path, options, [(TENSORRT, {"trt_use_tf32": "0"})], enable_fallback=0)


def test_the_double_falls_back_as_onnx_runtime_does(
    runtime: OnnxRuntime, artifact: OnnxArtifact, capsys: pytest.CaptureFixture[str]
) -> None:
    runtime.creation = RuntimeError("CUDA failure 35")
    session = runtime.module.InferenceSession(artifact.path, runtime.module.SessionOptions(), [(CUDA, {})])
    assert session.get_providers() == ["CPUExecutionProvider"]
    assert "Falling back" in capsys.readouterr().out


def test_the_probe_is_a_valid_model_of_one_node() -> None:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "probe", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    assert model.SerializeToString() == PROBE


def test_the_probe_tells_providers_that_can_be_used_from_others(runtime: OnnxRuntime) -> None:
    for backend in PROVIDERS:
        probe(backend)
    assert [session.provider for session in runtime.sessions] == list(PROVIDERS.values())
    runtime.unloaded = True
    with pytest.raises(DeviceUnavailableError, match="cannot be used here"):
        probe("onnxruntime-cuda")


@pytest.mark.export
def test_a_pipeline_is_built_for_its_images(tiny: OnnxArtifact) -> None:
    options = provider_options("onnxruntime-rtx", tiny, tiny.usual_profile)
    shapes = [options[f"nv_profile_{bound}_shapes"] for bound in ("min", "opt", "max")]
    assert shapes == ["images:1x224x224x3", "images:1x480x640x3", "images:8x1024x1024x3"]
