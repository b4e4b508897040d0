"""The checks of `make gpu-check` on doubles: each passes a sound runner and sees a planted fault."""

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from netvlad_deploy.artifact import OnnxArtifact
from netvlad_deploy.errors import DeviceUnavailableError, RunError, UsageError
from netvlad_deploy.runtime.open_runner import Candidate, Checkpoint
from netvlad_deploy.spec.layer import DESCRIPTOR
from netvlad_deploy.spec.verdict import Verdict
from netvlad_deploy.tensorrt.tensorrt_runner import TensorRTRunner
from tests.double.machine import install
from tools import gpu_check

Check = Any


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[TensorRTRunner]:
    machine = install(monkeypatch, "10.3")
    with TensorRTRunner(machine.engine(tmp_path / "m.engine", profiles=gpu_check.PROFILES)) as runner:
        yield runner


def keeps_no_memory(runner: TensorRTRunner) -> str:
    return gpu_check.keeps_no_memory(runner, runs=200)


def test_a_runner_without_graphs_is_seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machine = install(monkeypatch, "10.3")
    engine = machine.engine(tmp_path / "m.engine", profiles=gpu_check.PROFILES)
    with TensorRTRunner(engine, cuda_graphs=False) as runner:
        assert gpu_check.same_from_graphs(runner) == "nothing was replayed from a graph"


@pytest.mark.parametrize("check", [gpu_check.same_in_threads, gpu_check.same_from_graphs, keeps_no_memory])
def test_a_sound_runner_passes(runner: TensorRTRunner, check: Check) -> None:
    assert check(runner) == ""


def test_a_result_that_depends_on_the_thread_is_seen(runner: TensorRTRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    run, main = runner.run, threading.current_thread()

    def planted(feeds: Any) -> Any:
        result = run(feeds)
        if threading.current_thread() is not main:
            result[DESCRIPTOR][0, 1] += 1
        return result

    monkeypatch.setattr(runner, "run", planted)
    assert "is off by 1.0e+00" in gpu_check.same_in_threads(runner)


def test_a_replay_that_differs_is_seen(runner: TensorRTRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    run, runs = runner.run, iter(range(1000))

    def planted(feeds: Any) -> Any:
        result = run(feeds)
        result[DESCRIPTOR][0, 1] += next(runs) > 10
        return result

    monkeypatch.setattr(runner, "run", planted)
    assert "differs from the first at shape" in gpu_check.same_from_graphs(runner)


def test_memory_that_is_kept_is_seen(runner: TensorRTRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    run, loaded = runner.run, runner._loaded
    assert loaded is not None

    def planted(feeds: Any) -> Any:
        loaded.cuda.cudaMalloc(2**14)
        return run(feeds)

    monkeypatch.setattr(runner, "run", planted)
    assert "bytes of device memory are gone after 200 runs" in keeps_no_memory(runner)


def test_a_missing_part_is_not_run_and_an_error_is_a_fail() -> None:
    def missing() -> str:
        raise DeviceUnavailableError("no GPU")

    def fails() -> str:
        raise RunError("refused")

    steps = [gpu_check.attempt("x", work) for work in (missing, fails, lambda: "differs", lambda: "")]
    assert [step.verdict for step in steps] == [Verdict.NOT_RUN, Verdict.FAIL, Verdict.FAIL, Verdict.PASS]
    assert [step.reason for step in steps] == ["no GPU", "RunError: refused", "differs", ""]


def test_a_combination_that_is_refused_by_design_did_not_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(_: Candidate) -> None:
        raise UsageError("wide logits may be rounded to TF32")

    monkeypatch.setattr("tools.gpu_check.validate", refuse)
    found = gpu_check.Findings()
    assert not found.check_parity(Candidate.of(Checkpoint(path=tmp_path / "m.onnx")), "x")
    assert [(step.verdict, step.reason) for step in found.steps] == [
        (Verdict.NOT_RUN, "wide logits may be rounded to TF32")
    ]


@pytest.mark.export
@pytest.mark.ort
@pytest.mark.rtx
def test_without_a_gpu_nothing_passes_but_builds(exported: OnnxArtifact, tmp_path: Path) -> None:
    report = gpu_check.gpu_check([exported.path], tmp_path)
    passed = {step.name for step in report.steps if step.verdict is Verdict.PASS}
    if report.machine.gpu is not None:
        return
    assert passed == {"tensorrt-rtx, fp32: build", "tensorrt-rtx, tf32: build"}
    assert report.verdict is Verdict.NOT_RUN
    assert replace(report, steps=()).verdict is Verdict.NOT_RUN
    assert np.all([step.reason for step in report.steps if step.verdict is Verdict.NOT_RUN])
