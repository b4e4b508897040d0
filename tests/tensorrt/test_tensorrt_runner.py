"""The TensorRT runner on doubles of CUDA and of all six TensorRT versions: results, threads and released memory.

Nothing here runs on a GPU; `test_gpu.py` does, where there is one.
"""

import gc
import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from netvlad_deploy.errors import ArtifactError, DeviceUnavailableError, InputError, OutputError, RunError, UsageError
from netvlad_deploy.spec.layer import DESCRIPTOR, FEATURES, MASK
from netvlad_deploy.spec.tensors import LaidOut
from netvlad_deploy.tensorrt.cuda import Cuda
from netvlad_deploy.tensorrt.tensorrt_runner import TensorRTRunner
from tests.double.machine import SPEC, Machine
from tests.double.runtime import descriptors

SIZE = SPEC.descriptor_size


def values(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def check(runner: TensorRTRunner, x: Any, mask: Any = None) -> None:
    feeds = {FEATURES: x} if mask is None else {FEATURES: x, MASK: mask}
    result = runner.run(feeds)[DESCRIPTOR]
    tolerance = 1e-2 if result.dtype == np.float16 else 1e-4
    assert result.shape == (len(x), SIZE)
    assert np.abs(result - descriptors(x, SIZE, mask)).max() < tolerance


def test_shapes_come_and_go_and_everything_is_released(machine: Machine, tmp_path: Path) -> None:
    with TensorRTRunner(machine.engine(tmp_path / "m.engine")) as runner:
        for shape in ((1, 3, 3), (4, 9, 3), (2, 2, 3), (4, 9, 3), (1, 3, 3), (1, 3, 3), (1, 3, 3)):
            check(runner, values(*shape, seed=shape[0]))
        assert len(machine.cuda.memory) == len(machine.cuda.pinned) == 2
        assert machine.cuda.copies == ["in", "out"] * 7
    gc.collect()
    assert machine.cuda.alive == {}
    journal = machine.world.journal
    assert journal.index("cudaGraphExecDestroy" if not machine.world.rtx else "cudaFree") < len(journal)
    assert journal.index("IExecutionContext.gone") < len(journal) - 1 - journal[::-1].index("cudaStreamDestroy")
    assert journal.index("IExecutionContext.gone") < journal.index("ICudaEngine.gone")


def test_masks_and_half_precision(machine: Machine, tmp_path: Path) -> None:
    mask = np.array([[True, True, False], [False, True, True]])
    with TensorRTRunner(machine.engine(tmp_path / "m.engine", masked=True)) as runner:
        check(runner, values(2, 3, 3), mask)
    with TensorRTRunner(machine.engine(tmp_path / "h.engine", half=True)) as runner:
        assert (runner.precision, runner.half) == ("fp16", True)
        check(runner, values(2, 3, 3).astype(np.float16))
        assert runner.run({FEATURES: values(1, 1, 3).astype(np.float16)})[DESCRIPTOR].dtype == np.float16
        with pytest.raises(InputError, match="features are float32, expected float16"):
            runner.run({FEATURES: values(2, 5, 3)})


def test_feeds_that_were_checked_are_taken_as_they_are(machine: Machine, tmp_path: Path) -> None:
    x = values(2, 3, 3)
    with TensorRTRunner(machine.engine(tmp_path / "m.engine")) as runner:
        found = runner.run(LaidOut({FEATURES: x}))[DESCRIPTOR]
        assert np.array_equal(found, runner.run({FEATURES: x})[DESCRIPTOR])
    assert np.abs(found - descriptors(x, SIZE, None)).max() < 1e-4


def test_a_result_is_the_callers_own(machine: Machine, tmp_path: Path) -> None:
    with TensorRTRunner(machine.engine(tmp_path / "m.engine")) as runner:
        first = runner.run({FEATURES: values(1, 3, 3)})[DESCRIPTOR]
        kept = first.copy()
        runner.run({FEATURES: values(1, 3, 3, seed=1)})
    assert np.array_equal(first, kept)


def test_the_profile_that_fits_is_chosen_and_switched_only_when_it_changes(machine: Machine, tmp_path: Path) -> None:
    with TensorRTRunner(machine.engine(tmp_path / "m.engine")) as runner:
        for shape in ((2, 5, 3), (2, 5, 3), (2, 300, 3), (2, 300, 3), (2, 5, 3), (2, 5, 3)):
            check(runner, values(*shape))
        with pytest.raises(InputError, match=r"num_features is 50, outside every profile"):
            runner.run({FEATURES: values(2, 50, 3)})
    assert machine.world.journal.count("IExecutionContext.set_optimization_profile_async") == 3
    assert "memory of one profile" in machine.world.journal
    assert len(machine.cuda.copies) == 12
    assert machine.cuda.alive == {}


def test_every_thread_works_on_the_engines_gpu_and_keeps_its_own(machine: Machine, tmp_path: Path) -> None:
    def work(_: int) -> int:
        check(runner, values(1, 3, 3))
        return machine.cuda.current

    machine.cuda.cudaSetDevice(1)
    with TensorRTRunner(machine.engine(tmp_path / "m.engine")) as runner:
        with ThreadPoolExecutor(4) as pool:
            assert set(pool.map(work, range(8))) == {0}
        check(runner, values(1, 3, 3))
        assert machine.cuda.current == 1
    machine.cuda.cudaSetDevice(0)
    assert machine.cuda.alive == {}


def test_sixteen_threads_share_no_buffer(machine: Machine, tmp_path: Path) -> None:
    barrier = threading.Barrier(16)

    def work(number: int) -> None:
        barrier.wait()
        for seed in range(8):
            check(runner, values(1 + (number + seed) % 4, 1 + number % 9, 3, seed=100 * number + seed))

    with TensorRTRunner(machine.engine(tmp_path / "m.engine")) as runner:
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(work, range(16)))
        contexts = machine.world.journal.count("ICudaEngine.create_execution_context")
        assert 1 <= contexts <= 16
        check(runner, values(1, 1, 3))
        assert machine.world.journal.count("ICudaEngine.create_execution_context") == contexts
    gc.collect()
    assert machine.cuda.alive == {}


def test_runs_at_once_have_a_lane_each(machine: Machine, tmp_path: Path) -> None:
    with TensorRTRunner(machine.engine(tmp_path / "m.engine")) as runner:
        with runner._slot() as first, runner._slot() as second:
            assert first.stream != second.stream
        assert len(machine.cuda.streams) == 3


def test_closing_while_a_run_is_under_way_lets_it_end(machine: Machine, tmp_path: Path) -> None:
    cache = {"runtime_cache": tmp_path / "kernels"} if machine.world.rtx else {}
    runner = TensorRTRunner(machine.engine(tmp_path / "m.engine"), **cache)  # type: ignore[arg-type]
    with runner._slot() as slot:
        runner.close()
        runner.close()
        assert machine.cuda.alive["streams"] == 1
        assert not (tmp_path / "kernels").exists()
        with pytest.raises(RunError, match="is closed: open it again"):
            runner.run({FEATURES: values(1, 1, 3)})
        assert slot.run({FEATURES: values(1, 1, 3)})[DESCRIPTOR].shape == (1, SIZE)
    assert machine.cuda.alive == {}
    assert (tmp_path / "kernels").exists() == machine.world.rtx


def test_a_failed_lane_is_not_lent_again(machine: Machine, tmp_path: Path) -> None:
    with TensorRTRunner(machine.engine(tmp_path / "m.engine")) as runner:
        machine.world.failing.add("IExecutionContext.execute_async_v3")
        with pytest.raises(RunError, match="refused execution"):
            runner.run({FEATURES: values(1, 3, 3)})
        machine.world.failing.clear()
        assert machine.cuda.alive == {}
        check(runner, values(1, 3, 3))
        with pytest.raises(InputError):
            runner.run({FEATURES: values(9, 3, 3)})
        assert machine.world.journal.count("ICudaEngine.create_execution_context") == 2
    assert machine.cuda.alive == {}


def test_memory_on_the_gpu_goes_where_there_is_none_on_the_host(machine: Machine, tmp_path: Path) -> None:
    with TensorRTRunner(machine.engine(tmp_path / "m.engine")) as runner:
        machine.world.failing.add("cudaMallocHost")
        with pytest.raises(RunError, match="cudaMallocHost failed"):
            runner.run({FEATURES: values(1, 3, 3)})
        assert machine.cuda.alive == {}


def test_the_first_failure_is_the_one_reported(
    machine: Machine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with TensorRTRunner(machine.engine(tmp_path / "m.engine")) as runner:
        check(runner, values(1, 3, 3))
        machine.world.failing |= {"cudaStreamSynchronize", "cudaFree"}
        with caplog.at_level(logging.WARNING), pytest.raises(RunError, match="cudaStreamSynchronize failed"):
            runner.run({FEATURES: values(1, 3, 3)})
        assert "cleaning up: cudaFree failed" in caplog.text
        machine.world.failing.clear()
    assert set(machine.cuda.alive) == {"memory"}  # CUDA refused to release it; nothing else is left


def test_work_that_a_failed_run_left_behind_ends_before_its_context_does(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise RunError("no copy")

    with TensorRTRunner(machine.engine(tmp_path / "m.engine")) as runner:
        monkeypatch.setattr(Cuda, "copy_to_host", fail)
        with pytest.raises(RunError, match="no copy"):
            runner.run({FEATURES: values(1, 3, 3)})
        gc.collect()
        assert machine.world.journal.index("computed") < machine.world.journal.index("IExecutionContext.gone")


def test_a_release_that_fails_after_a_sound_run_is_said(machine: Machine, tmp_path: Path) -> None:
    runner = TensorRTRunner(machine.engine(tmp_path / "m.engine"))
    lending = runner._slot()
    lending.__enter__()
    runner.close()
    machine.world.failing.add("cudaStreamDestroy")
    with pytest.raises(RunError, match="cudaStreamDestroy failed"):
        lending.__exit__(None, None, None)


def test_latency_reports_name_the_conditions_of_the_runs(machine: Machine, tmp_path: Path) -> None:
    said = ", kernels compiled eagerly" if machine.world.rtx else ""
    for graphs, word in ((True, "on"), (False, "off")):
        with TensorRTRunner(machine.engine(tmp_path / "m.engine"), cuda_graphs=graphs) as runner:
            replays = ", 0 replays" if graphs and not machine.world.rtx else ""
            assert runner.conditions == f"CUDA graphs {word}{replays}{said}"


def test_rtx_compiles_eagerly_captures_itself_and_keeps_its_kernels(
    machine: Machine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    artifact, cache = machine.engine(tmp_path / "m.engine"), tmp_path / "kernels"
    if not machine.world.rtx:
        with pytest.raises(UsageError, match="compiles nothing at run time"):
            TensorRTRunner(artifact, runtime_cache=cache)
        return
    for content in (b"kernels+", b"kernels++"):
        with TensorRTRunner(artifact, runtime_cache=cache) as runner:
            check(runner, values(1, 3, 3))
        assert cache.read_bytes() == content
    assert machine.world.journal.count("RTX EAGER WHOLE_GRAPH_CAPTURE True") == 2
    assert cache.stat().st_mode & 0o777 == 0o600
    cache.chmod(0o666)
    with pytest.raises(ArtifactError, match="holds code, and others may have written it"):
        TensorRTRunner(artifact, runtime_cache=cache)
    cache.chmod(0o600)
    cache.write_bytes(b"of another GPU")
    with caplog.at_level(logging.WARNING), TensorRTRunner(artifact, runtime_cache=cache):
        assert "is of another GPU, driver or version" in caplog.text
    machine.world.failing.add("IRuntimeConfig.set_runtime_cache")
    with pytest.raises(RunError, match="refused the runtime cache"):
        TensorRTRunner(artifact, runtime_cache=cache)


def test_a_runtime_cache_is_a_file_of_its_own_and_can_be_written(machine: Machine, tmp_path: Path) -> None:
    if not machine.world.rtx:
        return
    artifact = machine.engine(tmp_path / "m.engine")
    before = artifact.path.read_bytes()
    for name in ("m.engine", "m.engine.json", "m.engine.log", artifact.reference.name):
        with pytest.raises(UsageError, match="is read or written here, it cannot be the runtime cache too"):
            TensorRTRunner(artifact, runtime_cache=tmp_path / name)
    assert artifact.path.read_bytes() == before
    for name, message in ((".", "it is a folder"), ("none/kernels", "there is no folder")):
        with pytest.raises(OutputError, match=message):
            TensorRTRunner(artifact, runtime_cache=tmp_path / name)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("IExecutionContext.set_optimization_profile_async", "refused optimization profile 0: no reason given"),
        ("IExecutionContext.set_input_shape", r"refused shape \(1, 3, 3\) of features"),
        ("IExecutionContext.set_tensor_address", "refused address of features"),
        ("address of descriptor", "refused address of descriptor"),
        ("shapes", "refused inputs without a shape: features"),
        ("IExecutionContext.infer_shapes", "cannot infer shapes: shape inference failed"),
        ("IExecutionContext.execute_async_v3", "refused execution"),
    ],
)
def test_every_refusal_of_the_context_is_a_run_error(machine: Machine, tmp_path: Path, call: str, message: str) -> None:
    with TensorRTRunner(machine.engine(tmp_path / "m.engine")) as runner:
        machine.world.failing.add(call)
        with pytest.raises(RunError, match=message):
            runner.run({FEATURES: values(1, 3, 3)})
    assert machine.cuda.alive == {}


def test_no_context_is_a_run_error(machine: Machine, tmp_path: Path) -> None:
    machine.world.failing.add("ICudaEngine.create_execution_context")
    with pytest.raises(RunError, match="gives no execution context: no reason given"):
        TensorRTRunner(machine.engine(tmp_path / "m.engine"))
    assert machine.cuda.alive == {}


def test_no_gpu_is_an_unavailable_device(machine: Machine, tmp_path: Path) -> None:
    artifact = machine.engine(tmp_path / "m.engine")
    machine.cuda.count = 0
    with pytest.raises(DeviceUnavailableError, match="found none"):
        TensorRTRunner(artifact)
    machine.cuda.count = 1
    machine.world.failing.add("Runtime")
    with pytest.raises(RunError, match="gives no runtime: no reason given"):
        TensorRTRunner(artifact)


def test_the_last_profile_alone_can_be_all_there_is(machine: Machine, tmp_path: Path) -> None:
    artifact = machine.engine(tmp_path / "m.engine")
    with pytest.raises(ArtifactError, match="its sidecar says"):
        TensorRTRunner(replace(artifact, options=replace(artifact.options, profiles=artifact.profiles[:1])))
