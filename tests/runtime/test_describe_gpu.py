"""What a sidecar says of a GPU, on a double of the CUDA runtime."""

from types import SimpleNamespace
from typing import Any

import pytest

from netvlad_deploy.artifact import Gpu
from netvlad_deploy.errors import DeviceUnavailableError
from netvlad_deploy.runtime import cuda

OK, FAILED = SimpleNamespace(name="cudaSuccess"), SimpleNamespace(name="cudaErrorUnknown")


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Any:
    properties = SimpleNamespace(name=b"Orin\0\0", major=8, minor=7)
    fake = SimpleNamespace(
        cudaError_t=SimpleNamespace(cudaSuccess=OK),
        cudaGetDeviceCount=lambda: (OK, 2),
        cudaGetDevice=lambda: (OK, 1),
        cudaGetDeviceProperties=lambda device: (OK, properties) if device == 1 else (FAILED, None),
        cudaDriverGetVersion=lambda: (OK, 12060),
    )
    monkeypatch.setattr(cuda, "require", lambda *_, **__: fake)
    return fake


def test_a_gpu_is_its_name_compute_capability_and_driver(runtime: Any) -> None:
    assert cuda.describe_gpu("tensorrt") == Gpu(name="Orin", compute_capability="8.7", driver="12.6")


@pytest.mark.parametrize("call", ["cudaGetDevice", "cudaGetDeviceProperties", "cudaDriverGetVersion"])
def test_every_failing_call_is_named(runtime: Any, call: str) -> None:
    setattr(runtime, call, lambda *_: (FAILED, None))
    with pytest.raises(DeviceUnavailableError, match=f"{call} failed: cudaErrorUnknown"):
        cuda.describe_gpu("tensorrt")


def test_no_gpu_is_an_unavailable_device(runtime: Any) -> None:
    runtime.cudaGetDeviceCount = lambda: (OK, 0)
    with pytest.raises(DeviceUnavailableError, match="found none"):
        cuda.describe_gpu("tensorrt")
