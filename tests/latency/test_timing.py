from contextlib import ExitStack
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest

from netvlad_deploy.artifact import OnnxArtifact
from netvlad_deploy.errors import ArtifactError, InputError, ParityError, RunError, UsageError
from netvlad_deploy.latency import timing as latency
from netvlad_deploy.latency import worker
from netvlad_deploy.latency.results import CandidateLatency, DeviceTimes, LatencyReport
from netvlad_deploy.latency.timing import _Worker, bootstrap_ratio, measure
from netvlad_deploy.report.text import device_lines
from netvlad_deploy.runtime.open_runner import Candidate, Checkpoint
from netvlad_deploy.spec.layer import FEATURES, MASK
from netvlad_deploy.spec.verdict import Verdict
from netvlad_deploy.support.children import Channel
from netvlad_deploy.tensorrt.tensorrt_runner import TensorRTRunner
from tests.double.machine import install
from tests.modules import features

pytestmark = [pytest.mark.export, pytest.mark.ort]

FEEDS = {FEATURES: features(2, 10, 16), MASK: np.ones((2, 10), dtype=np.bool_)}


def test_candidates_are_timed_in_their_own_processes(exported: OnnxArtifact) -> None:
    candidates = [Candidate(path=exported.path, backend="oracle"), Candidate(path=exported.path)]
    report = measure(candidates, FEEDS, rounds=3, block_ms=10, warmup_ms=10, threads=1)
    assert report.verdict is Verdict.PASS
    assert (report.batch, report.num_features, report.threads, report.rounds) == (2, 10, 1, 3)
    assert report.machine["processor"]
    assert report.machine["numpy"] == np.__version__
    oracle, onnx = report.candidates
    assert (oracle.name, onnx.name) == ("m.onnx on oracle", "m.onnx")
    assert oracle.ratio is None
    assert onnx.ratio is not None
    assert 0 < onnx.ratio.low <= onnx.ratio.value <= onnx.ratio.high
    for result in report.candidates:
        assert result.runs >= 3
        assert result.warmup_runs >= 1
        assert result.p50_ms is not None
        assert result.mean_ms is not None
        assert result.throughput is not None
        values = [result.percentiles_ms[name].value for name in ("p50", "p90", "p95", "p99")]
        assert 0 < values[0] <= values[1] <= values[2] <= values[3]
        assert all(each.low <= each.value <= each.high for each in result.percentiles_ms.values())
        assert result.quantiles_ms[25] == pytest.approx(result.p50_ms)
        assert len(result.block_medians_ms) == 3
        assert result.throughput.value == pytest.approx(2e3 / result.mean_ms)


def test_a_slower_candidate_is_seen_to_be_slower(exported: OnnxArtifact, monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted fault: a worker whose clock runs 1.5 times as fast."""
    times = iter(range(1, 100))

    class Planted(latency._Worker):
        def __init__(self, candidate: Candidate, *_: object, **__: object) -> None:
            self.candidate, self.reason, self.conditions, self.warmup_runs = candidate, "", "", 1
            self.blocks, self.times = [], []
            self.slow = 1.5 if candidate.backend else 1.0

        def warm_up(self, *_: object, **__: object) -> None: ...

        def run_block(self, block_ms: float) -> None:
            self.blocks.append(np.array([self.slow * (1 + 0.01 * (next(times) % 3))]))

    monkeypatch.setattr(latency, "_Worker", Planted)
    candidates = [Candidate(path=exported.path), Candidate(path=exported.path, backend="torch")]
    report = measure(candidates, FEEDS, rounds=9, block_ms=1, warmup_ms=1)
    ratio = report.candidates[1].ratio
    assert ratio is not None
    assert 1.45 < ratio.low <= 1.5 <= ratio.high < 1.55


def test_bootstrap_interval_covers_the_ratio_and_narrows() -> None:
    random = np.random.default_rng(0)
    widths = []
    for rounds in (10, 1000):
        baseline = [np.array([random.uniform(0.9, 1.1)]) for _ in range(rounds)]
        blocks = [2 * block * random.uniform(0.9, 1.1) for block in baseline]
        ratio = bootstrap_ratio(blocks, baseline, random)
        assert ratio.low <= 2 <= ratio.high
        widths.append(ratio.high - ratio.low)
    assert widths[1] < widths[0] / 3


def test_drift_of_the_machine_cancels() -> None:
    drift = np.linspace(1, 3, 20)
    ratio = bootstrap_ratio(
        [np.array([1.2 * speed]) for speed in drift], [np.array([speed]) for speed in drift], np.random.default_rng(0)
    )
    assert (ratio.low, ratio.high) == pytest.approx((1.2, 1.2))


@pytest.mark.parametrize(("budget_ms", "verdict"), [(1e4, Verdict.PASS), (1e-6, Verdict.FAIL)])
def test_a_broken_budget_fails(exported: OnnxArtifact, budget_ms: float, verdict: Verdict) -> None:
    candidates = [Candidate(path=exported.path)]
    report = measure(candidates, FEEDS, rounds=1, block_ms=1, warmup_ms=1, threads=1, budget_p99_ms=budget_ms)
    assert report.verdict is verdict
    assert bool(report.candidates[0].reason) is (verdict is Verdict.FAIL)


def test_a_candidate_that_cannot_run_here_is_not_run_and_the_others_go_on(
    exported: OnnxArtifact, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('no torch here')")
    monkeypatch.syspath_prepend(tmp_path)
    candidates = [Candidate(path=exported.path, backend="torch"), Candidate(path=exported.path)]
    report = measure(candidates, FEEDS, rounds=1, block_ms=1, warmup_ms=1, threads=1)
    assert [result.verdict for result in report.candidates] == [Verdict.NOT_RUN, Verdict.PASS]
    assert "no torch here" in report.candidates[0].reason
    assert report.verdict is Verdict.NOT_RUN


def test_a_worker_that_fails_is_an_error(exported: OnnxArtifact, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"none.onnx: .*is missing"):
        measure([Candidate.of(Checkpoint(path=tmp_path / "none.onnx"))], FEEDS, rounds=1)
    with pytest.raises(UsageError, match="leave --backend out for onnxruntime"):
        measure([Candidate(path=exported.path, backend="tensorrt")], FEEDS, rounds=1)
    with pytest.raises(InputError, match="expected float32"):
        measure([Candidate(path=exported.path)], {FEATURES: np.ones((1, 2, 16))}, rounds=1)


def test_nothing_to_measure_is_an_error() -> None:
    with pytest.raises(ParityError, match="no candidate or no round"):
        measure([], FEEDS)
    with pytest.raises(ParityError, match="no candidate or no round"):
        measure([Candidate.of(Checkpoint(path=Path("m.onnx")))], FEEDS, rounds=0)


def test_features_that_are_not_finite_are_not_timed() -> None:
    with pytest.raises(InputError, match="not finite"):
        measure([Candidate.of(Checkpoint(path=Path("m.onnx")))], {FEATURES: np.full((1, 2, 16), np.nan, np.float32)})


def test_a_worker_that_dies_is_an_error(exported: OnnxArtifact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "WORKER", "netvlad_deploy.nothing")
    with pytest.raises(RunError, match=r"m.onnx: its process ended with exit code 1"):
        measure([Candidate(path=exported.path)], FEEDS, rounds=1)


def test_an_error_in_a_block_is_named_by_its_candidate(exported: OnnxArtifact, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone() -> None:
        raise RunError("the GPU fell off")

    with ExitStack() as stack:
        worker = latency._Worker(Candidate(path=exported.path), 1, stack)
        monkeypatch.setattr(worker._child, "receive", gone)
        with pytest.raises(RunError, match=r"^m.onnx: the GPU fell off$"):
            worker.run_block(1.0)


def test_a_folder_of_files_named_as_modules_does_no_harm(
    exported: OnnxArtifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "random.py").write_text("raise RuntimeError('not the random that was meant')")
    monkeypatch.chdir(tmp_path)
    report = measure([Candidate(path=exported.path)], FEEDS, rounds=1, block_ms=1, warmup_ms=1)
    assert report.verdict is Verdict.PASS


def test_an_engines_report_has_the_gpus_own_times(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The worker of an engine, in this process and on doubles: one run of each block is timed by events."""
    machine = install(monkeypatch, "10.3")
    runner = TensorRTRunner(machine.engine(tmp_path / "m.engine"))
    monkeypatch.setattr(Candidate, "open", lambda *_, **__: runner)
    feeds, requests, answers = BytesIO(), BytesIO(), BytesIO()
    np.savez(feeds, features=np.ones((1, 3, 3), np.float32), mask=np.ones((1, 3), np.bool_))
    asked = {"path": "m.pt", "backend": None, "expect_sha256": None, "threads": 1, "warmup_ms": 1}
    Channel(BytesIO(), requests).send(asked, feeds.getvalue())
    for _ in range(2):
        Channel(BytesIO(), requests).send({"block_ms": 1})
    requests.seek(0)
    with pytest.raises(EOFError):
        worker.serve(Channel(requests, answers))
    answers.seek(0)
    opened, *blocks = (Channel(answers, BytesIO()).receive()[0] for _ in range(3))
    assert opened["conditions"].startswith("CUDA graphs on, ")
    assert [block["times_ms"] for block in blocks] == [[2, 2, 2]] * 2


def test_gpu_times_are_medians_over_the_rounds() -> None:
    one = CandidateLatency(
        name="m.engine", verdict=Verdict.PASS, device=DeviceTimes(h2d_ms=0.5, compute_ms=2, d2h_ms=0.25), conditions="x"
    )
    other = CandidateLatency(name="m.onnx", verdict=Verdict.PASS)
    report = LatencyReport(
        batch=1, num_features=1, threads=1, rounds=1, block_ms=1, warmup_ms=1, machine={}, candidates=(one, other)
    )
    assert device_lines(report) == [
        "m.engine by the GPU's clock: copies in 0.500 ms, work 2.000 ms, copies out 0.250 ms; x"
    ]
    process = _Worker.__new__(_Worker)
    process.candidate, process.reason, process.conditions, process.warmup_runs = (
        Candidate.of(Checkpoint(path=Path("m"))),
        "",
        "x",
        1,
    )
    process.blocks, process.times = [np.ones(3)], [[1.0, 2.0, 3.0], [2.0, 4.0, 6.0], [9.0, 9.0, 9.0]]
    result = process.result(1, process, np.random.default_rng(0))
    assert result.device == DeviceTimes(h2d_ms=2, compute_ms=4, d2h_ms=6)
