"""What happens where a provider, its GPU or its package is not there, on a double of ONNX Runtime and for real."""

import re
from pathlib import Path

import numpy as np
import pytest

from netvlad_deploy.artifact import OnnxArtifact
from netvlad_deploy.errors import DeviceUnavailableError, MissingDependencyError, RunError
from netvlad_deploy.runtime import execution_providers
from netvlad_deploy.runtime.execution_providers import (
    DISTRIBUTIONS,
    PROVIDERS,
    check_distributions,
    installed_distributions,
)
from netvlad_deploy.runtime.open_runner import open_runner
from netvlad_deploy.spec.layer import FEATURES, MASK
from netvlad_deploy.spec.profiles import Profile
from netvlad_deploy.support.require import installed_version
from tests.command import Command, error_of
from tests.double.onnxruntime import CUDA, RTX, OnnxRuntime
from tests.modules import features

pytestmark = [pytest.mark.export, pytest.mark.ort]

GPU_BACKENDS = tuple(PROVIDERS)[1:]
PROFILE = Profile.parse("1x1,2x10,4x20")

ABSENT = (
    "onnxruntime/core/providers/cuda/cuda_call.cc:121 CUDA failure 35: CUDA driver version is insufficient",
    "CUDA failure 100: no CUDA-capable device is detected ; GPU=-1",
    "CUDA initialization failure with error: 35",
    "Failed to load library libonnxruntime_providers_cuda.so with error: libcublasLt.so.13: cannot open shared object",
    "CUDA_PATH is set but CUDA wasn't able to be loaded. Please install the correct version of CUDA and cuDNN",
    "RegisterTensorRTPluginsAsCustomOps Please install TensorRT libraries as mentioned in the GPU requirements page",
    "Invalid device ID: 0, must be between 0 (inclusive) and 0 (exclusive).",
)
FAULTS = (
    "CUDA failure 2: out of memory ; GPU=0",
    "CUDA failure 1001: something else",
    "TensorRT EP failed to create engine from network.",
    'Unknown provider option: "trt_fp17_enable".',
)


@pytest.mark.parametrize("kind", ["EPFail", "Fail", "RuntimeException", "builtin"])
@pytest.mark.parametrize(
    ("words", "error"),
    [*((words, DeviceUnavailableError) for words in ABSENT), *((words, RunError) for words in FAULTS)],
)
def test_an_absent_gpu_is_not_run_and_a_fault_is_an_error(
    runtime: OnnxRuntime, artifact: OnnxArtifact, words: str, error: type[Exception], kind: str
) -> None:
    """Otherwise an engine that cannot be built would be NOT_RUN, and exit 0 with --allow-not-run."""
    said = f"first\n{words}\nlast"
    runtime.creation = RuntimeError(said) if kind == "builtin" else runtime.error(kind)(said)
    with pytest.raises(error, match=re.escape(words)) as raised:
        open_runner(artifact, backend="onnxruntime-cuda")
    assert "\n" not in str(raised.value)
    assert not runtime.sessions, "it went on with the CPU"


@pytest.mark.parametrize("backend", GPU_BACKENDS)
def test_a_provider_whose_library_is_not_loaded_is_not_there(
    runtime: OnnxRuntime, artifact: OnnxArtifact, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime.unloaded = True
    with pytest.raises(
        DeviceUnavailableError, match=f"{PROVIDERS[backend]} cannot be used here; .*explicitly disabled"
    ):
        open_runner(artifact, backend=backend)
    monkeypatch.setattr(execution_providers, "NO_CPU", "an entry that this version does not know")
    with pytest.raises(DeviceUnavailableError, match=f"asked for {PROVIDERS[backend]}, ONNX Runtime took CPU"):
        open_runner(artifact, backend=backend)


def test_a_run_that_fails_does_not_go_on_with_the_cpu(runtime: OnnxRuntime, artifact: OnnxArtifact) -> None:
    with open_runner(artifact, backend="onnxruntime-cuda") as runner:
        for error in (runtime.error("EPFail")("CUDA failure 700"), RuntimeError("CUDA failure 700")):
            runtime.run = error
            with pytest.raises(RunError, match="ONNX Runtime failed: CUDA failure 700"):
                runner.run({FEATURES: features(1, 3, 16), MASK: np.ones((1, 3), dtype=np.bool_)})
    assert runtime.sessions[0].provider == CUDA


def test_a_provider_that_the_package_lacks_names_the_one_that_has_it(
    artifact: OnnxArtifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    OnnxRuntime(monkeypatch)
    with pytest.raises(DeviceUnavailableError, match=r"pip uninstall -y onnxruntime, then .*'onnxruntime-gpu>=1\.20'$"):
        open_runner(artifact, backend="onnxruntime-cuda")


@pytest.mark.parametrize("name", [RTX, "nv_tensorrt_rtx"])
def test_the_rtx_plugin_is_registered_once_and_used(
    artifact: OnnxArtifact, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    runtime = OnnxRuntime(monkeypatch)
    runtime.install_plugin(monkeypatch, name)
    for _ in range(2):
        open_runner(artifact, backend="onnxruntime-rtx", profile=PROFILE).close()
    assert runtime.registered == {name: "/plugin/libonnxruntime_providers_nv_tensorrt_rtx.so"}
    for session in runtime.sessions:
        assert session.provider == name
        assert session.settings["nv_profile_max_shapes"] == "features:4x20x16,mask:4x20"
        assert "nv_runtime_cache_path" in session.settings


def test_an_rtx_plugin_without_a_gpu_is_not_run(artifact: OnnxArtifact, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = OnnxRuntime(monkeypatch)
    runtime.install_plugin(monkeypatch, RTX)
    runtime.plugin_devices = []
    for _ in range(2):  # the second time it is registered already
        with pytest.raises(DeviceUnavailableError, match="tensorrt-rtx found no GPU it can use"):
            open_runner(artifact, backend="onnxruntime-rtx")
    monkeypatch.delattr(runtime.module, "register_execution_provider_library")
    with pytest.raises(MissingDependencyError, match=r"1\.32\.0 takes no plugins: \S+ -m pip install -U onnxruntime"):
        open_runner(artifact, backend="onnxruntime-rtx")


def test_an_rtx_plugin_that_cannot_be_loaded_is_not_run(
    artifact: OnnxArtifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = OnnxRuntime(monkeypatch)
    runtime.install_plugin(monkeypatch, RTX)

    def fails(*_: str) -> None:
        raise runtime.error("Fail")("libcudart.so.13: cannot open shared object file")

    monkeypatch.setattr(runtime.module, "register_execution_provider_library", fails)
    with pytest.raises(DeviceUnavailableError, match=r"cannot be used here: libcudart\.so\.13"):
        open_runner(artifact, backend="onnxruntime-rtx")


class TestClash:
    """Two packages that bring the same module break each other, and `pip check` says fine."""

    @pytest.fixture
    def install(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> "Install":
        monkeypatch.syspath_prepend(tmp_path)
        return Install(tmp_path)

    def test_one_package_is_fine(self) -> None:
        check_distributions()
        assert installed_distributions() == {"onnxruntime": installed_version("onnxruntime")}

    @pytest.mark.parametrize("other", [name for name in DISTRIBUTIONS if name != "onnxruntime"])
    def test_two_are_named_with_the_cure(self, install: "Install", artifact: OnnxArtifact, other: str) -> None:
        install(other)
        message = (
            rf"^onnxruntime and {other} overwrite each other's files: \S+ -m pip uninstall -y onnxruntime {other}, "
            r"then \S+ -m pip install .*'onnxruntime>=1\.20' or .*'onnxruntime-gpu>=1\.20', not both$"
        )
        for backend in ("onnxruntime", "onnxruntime-cuda", "strict"):
            with pytest.raises(MissingDependencyError, match=message):
                open_runner(artifact, backend=backend)

    def test_packages_that_build_on_onnx_runtime_do_not_clash_with_it(self, install: "Install") -> None:
        for name in ("onnxruntime-extensions", "onnxruntime-genai", "onnxruntime-ep-nv-tensorrt-rtx"):
            install(name)
        check_distributions()


class Install:
    """Install packages as pip leaves them, without their files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, name: str) -> None:
        info = self.folder / f"{name.replace('-', '_')}-1.27.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.27.0\n")


@pytest.mark.parametrize("backend", GPU_BACKENDS)
def test_the_commands_end_in_not_run_without_the_provider(
    command: Command, exported: OnnxArtifact, backend: str
) -> None:
    """For real: this is ONNX Runtime for the CPU."""
    outcome = command("validate", exported.path, "--backend", backend)
    assert outcome.code == 69
    assert outcome.out.startswith(f"NOT_RUN  m.onnx on {backend} against oracle, fp32: onnxruntime")
    assert "-m pip install" in outcome.out
    assert command("validate", exported.path, "--backend", backend, "--allow-not-run").code == 0
    outcome = command("bench", exported.path, "--backend", backend, "--num-features", 5, "--duration", 0.1)
    assert outcome.code == 69
    assert f"NOT_RUN  m.onnx on {backend}: onnxruntime" in outcome.out
    np.save("x.npy", features(1, 3, 16))
    outcome = command("embed", exported.path, "x.npy", "-o", "y.npy", "--backend", backend)
    assert outcome.code == 69
    assert "pip install" in error_of(outcome.err)


def test_validate_on_a_gpu_provider(command: Command, exported: OnnxArtifact, runtime: OnnxRuntime) -> None:
    outcome = command("validate", exported.path, "--backend", "onnxruntime-cuda")
    assert outcome.code == 0
    assert outcome.out.startswith("PASS  m.onnx on onnxruntime-cuda against oracle, fp32, ")
    runtime.creation = RuntimeError("CUDA failure 35: CUDA driver version is insufficient")
    outcome = command("validate", exported.path, "--backend", "onnxruntime-cuda")
    assert outcome.code == 69
    assert outcome.out.startswith("NOT_RUN  m.onnx on onnxruntime-cuda against oracle, fp32: CUDAExecutionProvider")
