"""Every CUDA call with every failure code, on the double; the calls are found by walking the source."""

import ast
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from cuda.bindings import runtime as binding

from netvlad_deploy.errors import DeviceUnavailableError, MissingDependencyError, RunError
from netvlad_deploy.spec.build_options import Gpu
from netvlad_deploy.spec.layer import FEATURES
from netvlad_deploy.tensorrt import cuda
from netvlad_deploy.tensorrt.cuda import Cuda
from netvlad_deploy.tensorrt.tensorrt_runner import TensorRTRunner
from tests.double.arrays import InterfaceOnGpu
from tests.double.machine import Machine, install

SOURCES = [path.read_text() for path in Path(cuda.__file__).parent.glob("*.py")]
CODES = [code for code in binding.cudaError_t if code != binding.cudaError_t.cudaSuccess]
CAPTURING = {"cudaStreamBeginCapture", "cudaStreamEndCapture", "cudaGraphInstantiate", "cudaGraphDestroy"}
RELEASING = re.compile("Destroy|Free")


def used_calls() -> set[str]:
    """Return every CUDA function that the sources call, or hand on to be called at the end of a `with`."""
    nodes = [node for source in SOURCES for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    called = [node.func for node in nodes if isinstance(node.func, ast.Attribute)]
    handed = [node.args[0] for node in nodes if isinstance(node.func, ast.Attribute) and node.func.attr == "callback"]
    names = {node.attr for node in (*called, *handed) if isinstance(node, ast.Attribute)}
    return {name for name in names if re.fullmatch("cuda[A-Z]\\w+", name)}


@pytest.fixture
def single(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return install(monkeypatch, "10.3")


def scenario(machine: Machine, folder: Path) -> None:
    """Do all that a runner can: graphs, memory that grows, an array on the GPU, times, how much memory is free."""
    with TensorRTRunner(machine.engine(folder / "m.engine")) as runner:
        for length in (3, 3, 3, 3, 9):
            runner.run({FEATURES: np.ones((1, length, 3), np.float32)})
        on_gpu = InterfaceOnGpu(machine.cuda, np.ones((1, 3, 3), np.float32), stream=1)
        try:
            runner.time({FEATURES: on_gpu})
        finally:
            machine.cuda.memory.pop(on_gpu.address)
    Cuda(extra="rtx").free_bytes()


def test_the_walk_finds_the_calls_and_the_scenario_makes_them(single: Machine, tmp_path: Path) -> None:
    assert {"cudaMemGetInfo", "cudaGetDeviceCount", "cudaGraphLaunch", "cudaMallocHost"} <= used_calls()
    scenario(single, tmp_path)
    assert used_calls() == {call for call in single.world.journal if call.startswith("cuda")}
    assert single.cuda.alive == {}


@pytest.mark.parametrize("call", sorted(used_calls()))
def test_every_call_is_in_the_installed_binding(call: str) -> None:
    assert callable(getattr(binding, call))


@pytest.mark.parametrize("call", sorted(CAPTURING))
def test_every_failure_code_of_a_capture_is_logged_and_the_run_goes_on(
    single: Machine, tmp_path: Path, caplog: pytest.LogCaptureFixture, call: str
) -> None:
    for code in CODES:
        single.cuda.code = code
        single.world.failing = {call}
        scenario(single, tmp_path)
        assert f"no CUDA graphs for m.engine on tensorrt: {call} failed: {code.name}" in caplog.text
        caplog.clear()
        assert set(single.cuda.alive) <= ({"graphs", "executables"} if RELEASING.search(call) else set())
        single.cuda.graphs.clear()
        single.cuda.executables.clear()


@pytest.mark.parametrize("call", sorted(used_calls() - CAPTURING))
def test_every_failure_code_of_every_call_is_named(single: Machine, tmp_path: Path, call: str) -> None:
    for code in CODES:
        single.cuda.code = code
        single.world.failing = {call}
        with pytest.raises((RunError, DeviceUnavailableError), match=rf"\b{code.name}\b") as caught:
            scenario(single, tmp_path)
        single.world.failing = set()
        assert call == "cudaGetDeviceCount" or f"{call} failed" in str(caught.value)
        if not RELEASING.search(call):
            assert single.cuda.alive == {}, code
        for kind in ("memory", "pinned", "events", "graphs", "executables"):
            getattr(single.cuda, kind).clear()


def test_a_capture_that_fails_ends(single: Machine) -> None:
    gpu = Cuda(extra="rtx")
    stream = gpu.create_stream()

    def fail() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gpu.capture(stream, fail)
    assert single.world.journal[-2:] == ["cudaStreamEndCapture", "cudaGraphDestroy"]
    gpu.cudaStreamDestroy(stream)
    assert single.cuda.alive == {}


def test_the_gpu_is_described(single: Machine) -> None:
    assert Cuda(extra="tensorrt").gpu() == Gpu(name="Double GPU", compute_capability="8.7", driver="12.4")
    single.cuda.driver = 13010
    assert Cuda(extra="tensorrt").gpu().driver == "13.1"


def test_another_thread_is_put_on_the_same_gpu(single: Machine) -> None:
    single.cuda.cudaSetDevice(3)
    device = Cuda(extra="tensorrt").device()
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(lambda: single.cuda.current).result() == 0
        pool.submit(Cuda(extra="tensorrt").cudaSetDevice, device).result()
        assert pool.submit(lambda: single.cuda.current).result() == 3


def test_free_memory_shrinks_by_an_allocation(single: Machine) -> None:
    gpu = Cuda(extra="rtx")
    before = gpu.free_bytes()
    address = gpu.cudaMalloc(1000)
    assert before - gpu.free_bytes() == 1000
    gpu.cudaFree(address)


def test_no_gpu_is_an_unavailable_device(single: Machine) -> None:
    single.world.failing.add("cudaGetDeviceCount")
    with pytest.raises(DeviceUnavailableError, match="no usable NVIDIA GPU on this machine: cudaErrorUnknown"):
        Cuda(extra="rtx")
    single.world.failing.clear()
    single.cuda.count = 0
    with pytest.raises(DeviceUnavailableError, match="found none"):
        Cuda(extra="rtx")


@pytest.mark.parametrize("error", [RuntimeError("libcudart.so not found"), None])
def test_a_missing_library_and_a_missing_binding_are_told_apart(
    monkeypatch: pytest.MonkeyPatch, error: RuntimeError | None
) -> None:
    if error is None:
        monkeypatch.setitem(__import__("sys").modules, "cuda.bindings.runtime", None)
        with pytest.raises(MissingDependencyError, match=r"pip install .*cuda-bindings"):
            Cuda(extra="rtx")
        return

    def no_library(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(cuda, "require", no_library)
    with pytest.raises(DeviceUnavailableError, match="libcudart"):
        Cuda(extra="rtx")


def test_the_double_is_strict(single: Machine) -> None:
    """A double that forgives would prove nothing."""
    runtime: Any = single.cuda
    bad: list[Callable[[], Any]] = [
        lambda: runtime.cudaFree(1),
        lambda: runtime.cudaFreeHost(1),
        lambda: runtime.cudaStreamCreateWithFlags(0),
        lambda: runtime.cudaMemcpyAsync(1, 2, 3, binding.cudaMemcpyKind.cudaMemcpyHostToDevice, 1),
        lambda: runtime.cudaStreamSynchronize(7),
        lambda: runtime.cudaEventRecord(7, 1),
        lambda: runtime.cudaEventElapsedTime(7, 7),
        lambda: runtime.cudaGraphLaunch(7, 1),
        lambda: runtime.cudaStreamEndCapture(1),
    ]
    assert all(call()[0] != binding.cudaError_t.cudaSuccess for call in bad)
    with pytest.raises(AttributeError):
        _ = runtime.cudaNoSuchCall
    assert isinstance(single.cuda.gpu, SimpleNamespace)
