"""The TensorRT runner on a scripted double of CUDA and TensorRT: order of calls, shapes, failures, clean-up.

Nothing here runs on a GPU; `test_gpu.py` does, where there is one.
"""

import ctypes
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from netvlad_deploy.artifact import BuildFigures, EngineArtifact, FileReference
from netvlad_deploy.build_options import BuildOptions
from netvlad_deploy.errors import ArtifactError, DeviceUnavailableError, InputError, MissingDependencyError, RunError
from netvlad_deploy.runtime import cuda, tensorrt_runner
from netvlad_deploy.runtime.cuda import Cuda
from netvlad_deploy.runtime.tensorrt_runner import TensorRTRunner
from netvlad_deploy.runtime.trt_api import TensorRT
from netvlad_deploy.spec import DESCRIPTOR, FEATURES, NetVLADSpec, Profile
from tests.modules import RANGE, features

SPEC = NetVLADSpec(num_clusters=2, feature_size=3)
OK, FAILED = SimpleNamespace(name="cudaSuccess"), SimpleNamespace(name="cudaErrorUnknown")


class FakeCudaRuntime:
    """Device memory as host memory, and a log of live allocations; `fail` names the call that fails."""

    cudaError_t = SimpleNamespace(cudaSuccess=OK)  # noqa: N815 - CUDA's own names
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice="in", cudaMemcpyDeviceToHost="out")  # noqa: N815

    def __init__(self) -> None:
        self.fail = ""
        self.memory: dict[int, Any] = {}
        self.streams = 0
        self.copies: list[str] = []

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("cuda") and name == object.__getattribute__(self, "fail"):
            return lambda *_: (FAILED, None)
        return object.__getattribute__(self, name)

    def cudaGetDeviceCount(self) -> Any:  # noqa: N802 - CUDA's own name
        return OK, 1

    def cudaStreamCreate(self) -> Any:  # noqa: N802
        self.streams += 1
        return OK, 7

    def cudaStreamDestroy(self, _: int) -> Any:  # noqa: N802
        self.streams -= 1
        return (OK,)

    def cudaStreamSynchronize(self, _: int) -> Any:  # noqa: N802
        return (OK,)

    def cudaMalloc(self, size: int) -> Any:  # noqa: N802
        buffer = ctypes.create_string_buffer(size)
        self.memory[ctypes.addressof(buffer)] = buffer
        return OK, ctypes.addressof(buffer)

    def cudaFree(self, address: int) -> Any:  # noqa: N802
        del self.memory[address]
        return (OK,)

    def cudaMemcpyAsync(self, to: int, source: int, size: int, kind: str, _: int) -> Any:  # noqa: N802
        ctypes.memmove(to, source, size)
        self.copies.append(kind)
        return (OK,)


class FakeContext:
    """Computes descriptor[b, i] = the sum of all features of item b, at the addresses it was given."""

    def __init__(self) -> None:
        self.shape: tuple[int, ...] = ()
        self.addresses: dict[str, int] = {}
        self.refuse = ""
        self.dtype: np.dtype[Any] = np.dtype(np.float32)

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shape = shape
        return self.refuse != "shape"

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return self.refuse != "address"

    def infer_shapes(self) -> list[str]:
        return ["mask"] if self.refuse == "infer" else []

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        assert name == DESCRIPTOR
        return self.shape[0], SPEC.descriptor_size

    def execute_async_v3(self, stream: int) -> bool:
        assert stream == 7
        count = int(np.prod(self.shape))
        source = ctypes.string_at(self.addresses[FEATURES], count * self.dtype.itemsize)
        sums = np.frombuffer(source, self.dtype).reshape(self.shape).sum(axis=(1, 2), dtype=np.float32)
        target = np.repeat(sums, SPEC.descriptor_size).astype(self.dtype).tobytes()
        ctypes.memmove(self.addresses[DESCRIPTOR], target, len(target))
        return self.refuse != "execute"


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> FakeCudaRuntime:
    fake = FakeCudaRuntime()
    monkeypatch.setattr(cuda, "require", lambda *_, **__: fake)
    return fake


@pytest.fixture
def context(monkeypatch: pytest.MonkeyPatch) -> FakeContext:
    fake = FakeContext()
    engine = SimpleNamespace(create_execution_context=lambda: fake)
    module = SimpleNamespace(
        __version__="10.3.0",
        ILogger=object,
        Runtime=lambda _: SimpleNamespace(
            deserialize_cuda_engine=lambda content: engine if content == b"engine" else None
        ),
    )
    monkeypatch.setattr(tensorrt_runner, "open_tensorrt", lambda flavor: TensorRT(flavor=flavor, module=module))
    return fake


@pytest.fixture
def artifact(tmp_path: Path) -> EngineArtifact:
    path = tmp_path / "m.engine"
    path.write_bytes(b"engine")
    return EngineArtifact(
        path=path,
        spec=SPEC,
        precision="fp32",
        inputs=(FEATURES,),
        outputs=(DESCRIPTOR,),
        dtypes={FEATURES: "float32", DESCRIPTOR: "float32"},
        range=RANGE,
        origin="m.pth",
        parent=FileReference(name="m.onnx", sha256=""),
        reference=FileReference(name="m.reference.npz", sha256=""),
        preprocessing="none",
        versions={"tensorrt": "10.3.0"},
        options=BuildOptions(
            flavor="tensorrt",
            profiles=(Profile.parse("1x1,2x5,4x9"),),
        ),
        flags=(),
        gpu=None,
        targets=(),
        figures=BuildFigures(build_ms=1, activation_bytes=None, weight_bytes=None, kernels=()),
    )


def test_runs_of_changing_shape_reuse_and_grow_buffers(
    runtime: FakeCudaRuntime, context: FakeContext, artifact: EngineArtifact
) -> None:
    with TensorRTRunner(artifact) as runner:
        for shape in ((1, 3, 3), (4, 9, 3), (2, 2, 3)):
            x = features(*shape)
            result = runner.run({FEATURES: x})[DESCRIPTOR]
            assert result.shape == (shape[0], 6)
            assert np.abs(result - x.sum(axis=(1, 2))[:, None]).max() < 1e-4
        assert len(runtime.memory) == 2
        assert runtime.copies == ["in", "out"] * 3
    assert (runtime.memory, runtime.streams) == ({}, 0)


def test_an_fp16_engine_takes_and_gives_float16(
    runtime: FakeCudaRuntime, context: FakeContext, artifact: EngineArtifact
) -> None:
    context.dtype = np.dtype(np.float16)
    half = replace(artifact, precision="fp16", dtypes={FEATURES: "float16", DESCRIPTOR: "float16"})
    with TensorRTRunner(half) as runner:
        assert (runner.precision, runner.half, runner.largest_feature) == ("fp16", True, RANGE.largest)
        x = features(2, 5, 3).astype(np.float16)
        result = runner.run({FEATURES: x})[DESCRIPTOR]
        assert result.dtype == np.float16
        assert np.abs(result - x.astype(np.float32).sum(axis=(1, 2))[:, None]).max() < 0.01
        with pytest.raises(InputError, match="features are float32, expected float16"):
            runner.run({FEATURES: features(2, 5, 3)})


def test_shapes_outside_the_profile_are_refused_before_any_copy(
    runtime: FakeCudaRuntime, context: FakeContext, artifact: EngineArtifact
) -> None:
    with TensorRTRunner(artifact) as runner, pytest.raises(InputError, match="outside the profile"):
        runner.run({FEATURES: features(5, 3, 3)})
    assert not runtime.copies


@pytest.mark.parametrize(
    ("refuse", "message"),
    [
        ("shape", "refused shape"),
        ("address", "address of features"),
        ("infer", "without a shape"),
        ("execute", "execution"),
    ],
)
def test_every_refusal_of_the_context_is_a_run_error(
    runtime: FakeCudaRuntime, context: FakeContext, artifact: EngineArtifact, refuse: str, message: str
) -> None:
    with TensorRTRunner(artifact) as runner:
        context.refuse = refuse
        with pytest.raises(RunError, match=message):
            runner.run({FEATURES: features(1, 3, 3)})
    assert (runtime.memory, runtime.streams) == ({}, 0)


@pytest.mark.parametrize("call", ["cudaMalloc", "cudaMemcpyAsync", "cudaStreamSynchronize"])
def test_every_failing_cuda_call_is_named(
    runtime: FakeCudaRuntime, context: FakeContext, artifact: EngineArtifact, call: str
) -> None:
    with TensorRTRunner(artifact) as runner:
        runtime.fail = call
        with pytest.raises(RunError, match=f"{call} failed: cudaErrorUnknown"):
            runner.run({FEATURES: features(1, 3, 3)})
        runtime.fail = ""
    assert (runtime.memory, runtime.streams) == ({}, 0)


def test_an_engine_of_another_version_is_refused_with_the_rebuild_command(
    runtime: FakeCudaRuntime, context: FakeContext, artifact: EngineArtifact
) -> None:
    object.__setattr__(artifact, "versions", {"tensorrt": "10.1.0"})
    with pytest.raises(ArtifactError, match=r"built by tensorrt 10.1.0, this is 10.3.0: netvlad-deploy build .*m.onnx"):
        TensorRTRunner(artifact)
    assert runtime.streams == 0


def test_an_engine_that_does_not_load_is_a_run_error(
    runtime: FakeCudaRuntime, context: FakeContext, artifact: EngineArtifact
) -> None:
    artifact.path.write_bytes(b"other")
    with pytest.raises(RunError, match="cannot be loaded: no reason given"):
        TensorRTRunner(artifact)
    assert runtime.streams == 0


def test_no_gpu_is_an_unavailable_device(runtime: FakeCudaRuntime, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime.fail = "cudaGetDeviceCount"
    with pytest.raises(DeviceUnavailableError, match="cudaErrorUnknown"):
        Cuda(extra="rtx")
    runtime.fail = ""
    monkeypatch.setattr(runtime, "cudaGetDeviceCount", lambda: (OK, 0))
    with pytest.raises(DeviceUnavailableError, match="found none"):
        Cuda(extra="rtx")


def test_a_missing_binding_or_library_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_library(*_: Any, **__: Any) -> Any:
        raise RuntimeError("libcudart.so not found")

    monkeypatch.setattr(cuda, "require", no_library)
    with pytest.raises(DeviceUnavailableError, match="libcudart"):
        Cuda(extra="rtx")
    monkeypatch.undo()
    monkeypatch.setitem(__import__("sys").modules, "cuda.bindings.runtime", None)
    with pytest.raises(MissingDependencyError, match=r"netvlad-deploy\[rtx\]"):
        Cuda(extra="rtx")
