"""Outputs that stay on the GPU, on doubles: who owns their memory, when it is freed, and what others read of it."""

import gc
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from netvlad_deploy.errors import InputError, RunError, UsageError
from netvlad_deploy.runtime.oracle_runner import OracleRunner
from netvlad_deploy.spec.layer import DESCRIPTOR, FEATURES
from netvlad_deploy.tensorrt import device_output
from netvlad_deploy.tensorrt.cuda import Cuda
from netvlad_deploy.tensorrt.device_array import device_array
from netvlad_deploy.tensorrt.tensorrt_runner import TensorRTRunner
from tests.double.machine import SPEC, Machine, install
from tests.double.runtime import descriptors, from_address

SIZE = SPEC.descriptor_size
X = np.random.default_rng(0).standard_normal((2, 5, 3), dtype=np.float32)


@pytest.fixture
def single(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return install(monkeypatch, "10.3")


def on_host(output: Any) -> Any:
    return from_address(output.address, output.shape, output.dtype).copy()


def test_outputs_stay_on_the_gpu_in_memory_of_their_own(machine: Machine, tmp_path: Path) -> None:
    with TensorRTRunner(machine.engine(tmp_path / "m.engine")) as runner:
        for seed in range(4):  # the last ones come from a CUDA graph
            output = runner.run({FEATURES: X + seed}, on_device=True)[DESCRIPTOR]
            assert (output.shape, str(output.dtype), output.__dlpack_device__()) == ((2, SIZE), "float32", (2, 0))
            values = on_host(output)
            assert np.abs(values - descriptors(X + seed, SIZE)).max() < 1e-4
            runner.run({FEATURES: X * 3})
            assert np.array_equal(on_host(output), values), "no later run changes it"
        assert machine.cuda.copies == ["in", "on", "in", "out"] * 4
        assert len(machine.cuda.memory) == 3, "those before were freed when they were dropped"
    assert machine.cuda.alive == {"memory": 1}
    assert np.array_equal(on_host(output), values), "it outlives the runner"
    del output
    assert machine.cuda.alive == {}


def test_half_precision_and_a_runner_that_is_closed(machine: Machine, tmp_path: Path) -> None:
    with TensorRTRunner(machine.engine(tmp_path / "m.engine", half=True)) as runner:
        output = runner.run({FEATURES: X.astype(np.float16)}, on_device=True)[DESCRIPTOR]
        assert repr(output) == f"DeviceOutput(shape=(2, {SIZE}), dtype=float16, device=0)"
        with pytest.raises(InputError, match="features are float32, expected float16"):
            runner.run({FEATURES: X}, on_device=True)
    with pytest.raises(RunError, match="is closed: open it again"):
        runner.run({FEATURES: X}, on_device=True)
    del output
    assert machine.cuda.alive == {}


def test_an_output_is_a_feed_of_another_engine(single: Machine, tmp_path: Path) -> None:
    with TensorRTRunner(single.engine(tmp_path / "m.engine")) as runner:
        output = runner.run({FEATURES: X}, on_device=True)[DESCRIPTOR]
        view = device_array(output, stream=1, device=0)
        assert view is not None
        assert (view.address, view.shape, view.dtype) == (output.address, output.shape, output.dtype)
        del output
        assert view.address in single.cuda.memory, "the capsule keeps it"
        del view
        assert len(single.cuda.memory) == 2


Consume = Callable[[Any], Any]


def by_numpy(output: Any) -> Any:
    class Producer:
        __dlpack_device__ = staticmethod(lambda: (1, 0))
        __dlpack__ = staticmethod(lambda **_: output.__dlpack__())

    return np.from_dlpack(Producer())


def by_torch(output: Any) -> Any:
    torch = pytest.importorskip("torch")
    return torch.from_dlpack(output.__dlpack__())


@pytest.mark.parametrize("consume", [by_numpy, by_torch])
def test_what_others_took_keeps_the_memory_and_frees_it(
    single: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, consume: Consume
) -> None:
    """The double's memory is the host's, and the capsule says so here: real consumers then read and release it."""
    monkeypatch.setattr(device_output, "CUDA_DEVICE", 1)
    with TensorRTRunner(single.engine(tmp_path / "m.engine")) as runner:
        output = runner.run({FEATURES: X}, on_device=True)[DESCRIPTOR]
        expected, first, second = on_host(output), consume(output), consume(output)
        del output
        gc.collect()
        assert np.array_equal(np.asarray(first), expected)
        del first
        assert len(single.cuda.memory) == 3
        held = [second]
        del second
        drop = threading.Thread(target=held.clear)  # its last reference
        drop.start()
        drop.join()
    assert single.cuda.alive == {}


def test_a_capsule_that_nobody_took_frees_the_memory_while_an_error_is_on_its_way(
    single: Machine, tmp_path: Path
) -> None:
    """A release in Python would then raise SystemError in place of the error."""

    def taken(output: Any) -> None:
        capsule = output.__dlpack__()
        raise ValueError(str(len(str(capsule))))

    with TensorRTRunner(single.engine(tmp_path / "m.engine")) as runner:
        with pytest.raises(ValueError, match=r"^\d+$"):
            taken(runner.run({FEATURES: X}, on_device=True)[DESCRIPTOR])
        with pytest.raises(TypeError, match="takes exactly one"):
            len(*[3, runner.run({FEATURES: X}, on_device=True)[DESCRIPTOR].__dlpack__()])
    gc.collect()
    assert single.cuda.alive == {}


def test_the_host_and_copies_are_refused(single: Machine, tmp_path: Path) -> None:
    with TensorRTRunner(single.engine(tmp_path / "m.engine")) as runner:
        output = runner.run({FEATURES: X}, on_device=True)[DESCRIPTOR]
        for asked in ({"copy": True}, {"dl_device": (1, 0)}):
            with pytest.raises(BufferError, match="stays on GPU 0: run without on_device"):
                output.__dlpack__(**asked)
        output.__dlpack__(stream=7, max_version=(1, 0), dl_device=(2, 0), copy=False)
        with pytest.raises((BufferError, RuntimeError, TypeError)):
            np.from_dlpack(output)
        with pytest.raises(TypeError, match="stays on GPU 0"):
            np.asarray(output)


@pytest.mark.parametrize("call", ["cudaMalloc", "cudaMemcpyAsync"])
def test_a_failure_leaves_nothing_behind(single: Machine, tmp_path: Path, call: str) -> None:
    with TensorRTRunner(single.engine(tmp_path / "m.engine")) as runner:
        runner.run({FEATURES: X})
        single.world.failing.add(call)
        with pytest.raises(RunError, match=f"{call} failed"):
            runner.run({FEATURES: X}, on_device=True)
        single.world.failing.clear()
        gc.collect()
        assert single.cuda.alive == {}
        assert runner.run({FEATURES: X}, on_device=True)[DESCRIPTOR].shape == (2, SIZE)


def test_memory_that_cannot_be_freed_is_logged(
    single: Machine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with TensorRTRunner(single.engine(tmp_path / "m.engine")) as runner:
        output = runner.run({FEATURES: X}, on_device=True)
        single.world.failing.add("cudaFree")
        with caplog.at_level(logging.WARNING):
            del output
        assert "memory of an output on GPU 0 is not freed: cudaFree failed" in caplog.text
        single.world.failing.clear()


def test_an_output_dropped_in_a_capture_is_freed_after_it(
    single: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As garbage collection may do it at any moment; freed on the GPU of the engine, whichever is the thread's own."""
    real = Cuda.capture
    kept: list[Any] = []

    def capture(self: Cuda, stream: Any, queue: Callable[[], None]) -> Any:
        def dropping() -> None:
            kept.clear()
            queue()

        return real(self, stream, dropping)

    monkeypatch.setattr(Cuda, "capture", capture)
    with TensorRTRunner(single.engine(tmp_path / "m.engine")) as runner:
        kept.append(runner.run({FEATURES: X}, on_device=True))
        for _ in range(3):
            runner.run({FEATURES: X})
        assert (kept, runner.replays) == ([], 2)
        assert len(single.cuda.memory) == 2


def test_memory_is_freed_on_the_gpu_that_it_is_on(single: Machine, tmp_path: Path) -> None:
    with TensorRTRunner(single.engine(tmp_path / "m.engine")) as runner:
        output = runner.run({FEATURES: X}, on_device=True)
    single.cuda.cudaSetDevice(1)
    single.world.journal.clear()
    del output
    assert single.world.journal == ["cudaGetDevice", "cudaSetDevice", "cudaFree", "cudaSetDevice"]
    assert single.cuda.current == 1


def test_a_runner_on_the_host_refuses() -> None:
    runner = OracleRunner.__new__(OracleRunner)
    runner.name = "m.onnx on oracle"
    with pytest.raises(UsageError, match="on oracle has its outputs on the host, only an engine's stay"):
        runner.run({}, on_device=True)
