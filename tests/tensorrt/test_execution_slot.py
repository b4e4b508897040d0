"""CUDA graphs, arrays on the GPU and its own clock, on doubles of CUDA and of all six TensorRT versions."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from netvlad_deploy.errors import InputError
from netvlad_deploy.runtime.open_runner import open_runner
from netvlad_deploy.spec.layer import DESCRIPTOR, FEATURES, MASK
from netvlad_deploy.tensorrt.tensorrt_runner import TensorRTRunner
from tests.double.arrays import DlpackOnGpu, InterfaceOnGpu, OnGpu
from tests.double.machine import SPEC, Machine
from tests.double.runtime import descriptors
from tests.tensorrt.test_tensorrt_runner import check, values

SIZE = SPEC.descriptor_size


def test_repeated_work_is_captured_and_replayed_from_then_on(machine: Machine, tmp_path: Path) -> None:
    with TensorRTRunner(machine.engine(tmp_path / "m.engine")) as runner:
        for seed in range(5):
            check(runner, values(2, 5, 3, seed=seed))
        executions = machine.world.journal.count("IExecutionContext.execute_async_v3")
        launches = machine.world.journal.count("cudaGraphLaunch")
        assert (executions, launches) == ((5, 0) if machine.world.rtx else (3, 3))  # twice, and once to record
        assert runner.replays == launches
        for seed in range(3):  # more memory: captured graphs hold the old address
            check(runner, values(4, 9, 3, seed=seed))
            check(runner, values(2, 5, 3, seed=seed))
    assert machine.cuda.alive == {}


def test_shapes_that_take_turns_are_recorded_as_they_last_ran(machine: Machine, tmp_path: Path) -> None:
    """TensorRT has work to do when a shape changes, which no graph can hold: the double refuses to record it."""
    with TensorRTRunner(machine.engine(tmp_path / "m.engine")) as runner:
        check(runner, values(4, 9, 3))
        for seed in range(5):
            for batch in (1, 2, 3):
                check(runner, values(batch, 5, 3, seed=seed))
        assert runner.replays == (0 if machine.world.rtx else 9)


@pytest.mark.parametrize(
    "shapes",
    [
        [(1, 9, 3)] * 4 + [(4, 2, 3)] + [(1, 9, 3)] * 4,  # the output alone grows
        [(2, 400, 3)] + [(2, 5, 3)] * 4 + [(2, 300, 3)] + [(2, 5, 3)] * 4,  # nothing grows, the profile changes
    ],
)
def test_a_graph_goes_with_the_memory_it_was_recorded_in(
    machine: Machine, tmp_path: Path, shapes: list[tuple[int, int, int]]
) -> None:
    with TensorRTRunner(machine.engine(tmp_path / "m.engine")) as runner:
        for seed, shape in enumerate(shapes):
            check(runner, values(*shape, seed=seed))
        assert runner.replays == (0 if machine.world.rtx else 4)
    assert machine.cuda.alive == {}


def test_work_that_cannot_be_recorded_runs_without_graphs(
    machine: Machine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    machine.world.failing.add("cudaGraphInstantiate")
    with caplog.at_level(logging.WARNING), TensorRTRunner(machine.engine(tmp_path / "m.engine")) as runner:
        for seed in range(4):
            check(runner, values(2, 5, 3, seed=seed))
        assert runner.replays == 0
    assert caplog.text.count("no CUDA graphs for m.engine") == (0 if machine.world.rtx else 1)
    assert machine.cuda.alive == {}


def test_graphs_can_be_left_out(machine: Machine, tmp_path: Path) -> None:
    with TensorRTRunner(machine.engine(tmp_path / "m.engine"), cuda_graphs=False) as runner:
        for seed in range(4):
            check(runner, values(2, 5, 3, seed=seed))
    assert "cudaStreamBeginCapture" not in machine.world.journal
    assert not machine.world.rtx or "RTX EAGER DISABLED False" in machine.world.journal


@pytest.mark.parametrize(("backend", "replays"), [("tensorrt", 1), ("tensorrt-no-graphs", 0)])
def test_a_backend_leaves_graphs_out(machine: Machine, tmp_path: Path, backend: str, replays: int) -> None:
    with open_runner(machine.engine(tmp_path / "m.engine"), backend=backend, lineage=False) as runner:
        assert isinstance(runner, TensorRTRunner)
        for seed in range(3):
            check(runner, values(2, 5, 3, seed=seed))
        assert runner.replays == (0 if machine.world.rtx else replays)
        assert f"CUDA graphs {'on' if replays else 'off'}" in runner.conditions


def test_only_so_many_graphs_are_kept(machine: Machine, tmp_path: Path) -> None:
    with TensorRTRunner(machine.engine(tmp_path / "m.engine")) as runner:
        check(runner, values(2, 400, 3))
        for length in range(100, 150):
            for seed in range(3):
                check(runner, values(2, length, 3, seed=seed))
        assert len(machine.cuda.executables) <= 32
    assert machine.cuda.alive == {}


@pytest.mark.parametrize("kind", [DlpackOnGpu, InterfaceOnGpu])
@pytest.mark.parametrize("stream", [None, 1])
def test_an_array_on_the_gpu_is_read_in_place(
    machine: Machine, tmp_path: Path, kind: type[OnGpu], stream: int | None
) -> None:
    x, mask = values(2, 3, 3), np.array([[True, True, False], [False, True, True]])
    with TensorRTRunner(machine.engine(tmp_path / "m.engine", masked=True)) as runner:
        for _ in range(3):
            on_gpu, mask_on_gpu = (kind(machine.cuda, array, stream=stream) for array in (x, mask))
            result = runner.run({FEATURES: on_gpu, MASK: mask_on_gpu})[DESCRIPTOR]
            assert np.abs(result - descriptors(x, SIZE, mask)).max() < 1e-4
            mixed = runner.run({FEATURES: on_gpu, MASK: mask})[DESCRIPTOR]
            assert np.array_equal(result, mixed)
            on_gpu.free()
            mask_on_gpu.free()
    assert machine.cuda.copies == ["out", "in", "out"] * 3
    assert machine.cuda.alive == {}


def test_an_array_on_another_gpu_or_in_pieces_is_refused(machine: Machine, tmp_path: Path) -> None:
    with TensorRTRunner(machine.engine(tmp_path / "m.engine")) as runner:
        x = DlpackOnGpu(machine.cuda, values(2, 3, 3))
        machine.cuda.elsewhere.add(x.address)
        with pytest.raises(InputError, match="features is on GPU 1, the engine on GPU 0"):
            runner.run({FEATURES: x})
        machine.cuda.elsewhere.clear()
        for name, value, message in (
            ("strides", (9, 1, 3), "make it contiguous"),
            ("lanes", 2, "fits no input"),
            ("code", 4, "fits no input"),
            ("code", 0, "features are int32, expected float32"),
        ):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(x, name, value)
                with pytest.raises(InputError, match=message):
                    runner.run({FEATURES: x})
        x.strides = (9, 3, 1)
        assert runner.run({FEATURES: x})[DESCRIPTOR].shape == (2, SIZE)
        x.free()
        sliced = InterfaceOnGpu(machine.cuda, values(2, 3, 3))
        sliced.strides = (72, 24, 8)
        with pytest.raises(InputError, match="make it contiguous"):
            runner.run({FEATURES: sliced})
        sliced.free()
    assert machine.cuda.alive == {}


def test_an_array_that_its_producer_withholds_is_refused(machine: Machine, tmp_path: Path) -> None:
    class Kept(DlpackOnGpu):
        def __dlpack__(self, *, stream: int) -> Any:
            raise BufferError("it requires a gradient")

    class Elsewhere(DlpackOnGpu):
        def __dlpack_device__(self) -> tuple[int, int]:
            return 2, 1

    class Masked(InterfaceOnGpu):
        @property
        def __cuda_array_interface__(self) -> dict[str, Any]:
            return super().__cuda_array_interface__ | {"mask": object()}

    kinds = {Kept: "it requires a gradient", Elsewhere: "input is on GPU 1", Masked: "a mask of its own"}
    with TensorRTRunner(machine.engine(tmp_path / "m.engine")) as runner:
        for kind, message in kinds.items():
            x = kind(machine.cuda, values(2, 3, 3))
            with pytest.raises(InputError, match=message):
                runner.run({FEATURES: x})
            x.free()
        x = InterfaceOnGpu(machine.cuda, values(2, 3, 3))
        x.address += 16
        with pytest.raises(InputError, match="no multiple of 256: clone it"):
            runner.run({FEATURES: x})
        x.address -= 16
        x.free()
        assert machine.world.journal.count("ICudaEngine.create_execution_context") == 1
    assert machine.cuda.alive == {}


def test_the_gpus_own_clock_tells_copies_from_work(machine: Machine, tmp_path: Path) -> None:
    with TensorRTRunner(machine.engine(tmp_path / "m.engine", masked=True)) as runner:
        times = runner.time({FEATURES: values(2, 3, 3), MASK: np.ones((2, 3), np.bool_)})
        assert (times.h2d_ms, times.compute_ms, times.d2h_ms) == (3, 2, 2)  # two copies in, work, a copy out
