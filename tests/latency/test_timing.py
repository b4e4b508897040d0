from contextlib import ExitStack
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from threading import Barrier
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest

from netvlad_deploy.artifact import OnnxArtifact
from netvlad_deploy.errors import ArtifactError, InputError, ParityError, RunError, UsageError
from netvlad_deploy.latency import process as latency
from netvlad_deploy.latency import timing, worker
from netvlad_deploy.latency.process import CandidateProcess, result_of
from netvlad_deploy.latency.results import CandidateLatency, DeviceTimes, Estimate, LatencyReport
from netvlad_deploy.latency.timing import measure
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
    report = measure(candidates, FEEDS, rounds=8, block_ms=10, warmup_ms=10, threads=1)
    assert report.verdict is Verdict.PASS
    assert (report.batch, report.num_features, report.threads, report.rounds) == (2, 10, 1, 8)
    assert report.machine["processor"]
    assert {"load", "gpu"} <= report.before.keys() & report.after.keys()
    assert report.machine["numpy"] == np.__version__
    oracle, onnx = report.candidates
    assert (oracle.name, onnx.name) == ("m.onnx on oracle", "m.onnx")
    assert oracle.ratio is None
    assert onnx.ratio is not None
    assert 0 < onnx.ratio.low <= onnx.ratio.value <= onnx.ratio.high
    for result in report.candidates:
        assert result.runs >= 8
        assert result.warmup_runs >= 1
        assert result.p50_ms is not None
        assert result.mean_ms is not None
        assert result.throughput is not None
        values = [result.percentiles_ms[name].value for name in ("p50", "p90", "p95", "p99")]
        assert 0 < values[0] <= values[1] <= values[2] <= values[3]
        assert all(each.low <= each.value <= each.high for each in result.percentiles_ms.values())
        assert result.quantiles_ms[25] == pytest.approx(result.p50_ms)
        assert len(result.block_medians_ms) == 8
        assert 0 < result.throughput.low <= result.throughput.value <= result.throughput.high


class Simulated(CandidateProcess):
    """A process without a process: a run takes 1 to 1.02 ms, with a backend half as long again."""

    journal: ClassVar[list[tuple[str, int]]] = []

    def __init__(self, candidate: Candidate, *_: object) -> None:
        self.candidate, self.reason, self.conditions, self.warmup_runs = candidate, "", "", 1
        self.blocks, self.rates, self.times, self.settled = [], [], [], True
        self.concurrency = 1
        self.slow = 1.5 if candidate.backend else 1.0
        self.run_ms = self.slow

    pid = property(lambda _: 0)

    def warm_up(self, *_: object, **__: object) -> None: ...

    def compare_with(self, first: CandidateProcess) -> None: ...

    def run_block(self, block_ms: float, place: int) -> None:
        self.journal.append((self.candidate.name, place))
        self.blocks.append(np.array([self.slow * (1 + 0.01 * (len(self.blocks) % 3))]))
        self.rates.append(1 / self.slow)


@pytest.fixture
def simulated(monkeypatch: pytest.MonkeyPatch) -> type[Simulated]:
    monkeypatch.setattr(timing, "CandidateProcess", Simulated)
    monkeypatch.setattr(Simulated, "journal", [])
    monkeypatch.setattr(timing, "available_cores", lambda: 4)
    return Simulated


def test_rounds_are_drawn_balanced_and_compared(exported: OnnxArtifact, simulated: type[Simulated]) -> None:
    candidates = [Candidate(path=exported.path), Candidate(path=exported.path, backend="torch")]
    limit = Candidate(path=exported.path, backend="oracle")
    report = measure(candidates, FEEDS, limit=limit, rounds=20, block_ms=3)
    first, second, last = report.candidates
    assert (report.limit, last.name) == ("m.onnx on oracle", "m.onnx on oracle")
    assert second.ratio is not None
    assert (second.ratio.low, second.ratio.high) == pytest.approx((1.5, 1.5))
    assert (first.ratio, last.over_limit) == (None, None)
    assert first.over_limit is not None
    assert first.over_limit.value == pytest.approx(1 / 1.5)
    assert second.throughput is not None
    assert second.throughput.value == pytest.approx(2e3 / 1.5)
    rounds = [simulated.journal[start : start + 3] for start in range(0, 60, 3)]
    assert all([name for name, _ in two] == [name for name, _ in one][::-1] for one, two in pairwise(rounds[:2]))
    assert all(len({place for _, place in each}) == 1 for each in rounds), "one place for all of a round"
    assert {place for each in rounds for _, place in each} == {0, 1, 2, 3}
    assert len({tuple(name for name, _ in each) for each in rounds}) > 2


@pytest.mark.parametrize(("block_ms", "asked", "run"), [(3.0, 40, 40), (0.75, 40, 20), (0.01, 40, 8), (0.01, 5, 5)])
def test_long_runs_make_fewer_rounds(
    exported: OnnxArtifact, simulated: type[Simulated], block_ms: float, asked: int, run: int
) -> None:
    report = measure([Candidate(path=exported.path, backend="torch")], FEEDS, rounds=asked, block_ms=block_ms)
    assert (report.rounds, len(simulated.journal)) == (run, run)


def test_several_requests_in_flight(exported: OnnxArtifact) -> None:
    candidates = [Candidate(path=exported.path)]
    report = measure(candidates, FEEDS, rounds=8, block_ms=3, warmup_ms=3, threads=1, concurrency=3)
    assert report.concurrency == 3
    assert report.candidates[0].runs >= 3 * 8
    with pytest.raises(UsageError, match=r"m.onnx on torch: .* takes one request at a time: leave --concurrency out"):
        measure([Candidate(path=exported.path, backend="torch")], FEEDS, rounds=1, concurrency=2)
    with pytest.raises(UsageError, match="concurrency is 65, expected 1 to 64"):
        measure(candidates, FEEDS, concurrency=65)


def test_requests_in_flight_are_at_once_and_the_last_counts_in_part() -> None:
    """Each run waits for the other thread, so one thread alone would wait for ever."""
    meeting = Barrier(2, timeout=10)
    runner = SimpleNamespace(
        inputs=("x",),
        optional_inputs=(),
        tensors=None,
        dtype=np.float32,
        concurrent=True,
        name="x",
        run=lambda _: meeting.wait(),
    )
    with worker._Lanes(runner, {"x": np.ones(1)}, 2) as lanes:  # type: ignore[arg-type]
        samples, completed = lanes.run_for(0.001)
    assert (len(samples), 0 < completed <= 2) == (2, True)


def test_requests_at_once_are_compared_by_what_is_completed(exported: OnnxArtifact) -> None:
    """A run of the second takes twice as long, since it waits for the other, and as many are completed."""
    one, other = (Simulated(Candidate(path=exported.path)) for _ in range(2))
    for process, run_ms in ((one, 1.0), (other, 2.0)):
        process.concurrency, process.blocks, process.rates = 2, [np.full(5, run_ms)] * 8, [1.25] * 8
    result = result_of(other, one, None, batch=1)
    assert result.ratio == Estimate(value=1, low=1, high=1)
    assert result.block_medians_ms == (0.8,) * 8
    assert result.p50_ms == 2


def test_a_warm_up_goes_on_until_runs_get_no_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(np.arange(0, 100, 0.1))
    monkeypatch.setattr("netvlad_deploy.latency.worker.time.perf_counter", lambda: next(clock))

    def warmed(medians: list[float]) -> dict[str, object]:
        each = iter(medians)
        return worker._warm_up(SimpleNamespace(run_for=lambda _: ([next(each)], 1.0)), 500)  # type: ignore[arg-type]

    assert warmed([3.0] * 40) == {"warmup_runs": 6, "settled": True, "run_ms": 3.0}
    assert warmed([9, 8, 7, 6, 5, 4, 3, 3, 3, 3, 3])["warmup_runs"] == 11
    never = warmed([0.8**number for number in range(50)])
    assert (never["settled"], never["warmup_runs"]) == (False, 40)


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
        process = CandidateProcess(Candidate(path=exported.path), 1, 1, stack)
        monkeypatch.setattr(process._child, "receive", gone)
        with pytest.raises(RunError, match=r"^m.onnx: the GPU fell off$"):
            process.run_block(1.0, 0)


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
    candidate = Candidate.of(Checkpoint(path=Path("m.pt")))
    asked = {"candidate": candidate.request, "threads": 1, "concurrency": 1, "warmup_ms": 1}
    Channel(BytesIO(), requests).send(asked, feeds.getvalue())
    for _ in range(2):
        Channel(BytesIO(), requests).send({"block_ms": 1, "place": 1, "clock": True})
    requests.seek(0)
    with pytest.raises(EOFError):
        worker.serve(Channel(requests, answers))
    answers.seek(0)
    opened, *blocks = (Channel(answers, BytesIO()).receive()[0] for _ in range(3))
    assert opened["conditions"].startswith("CUDA graphs on, ")
    for times in (block["times_ms"] for block in blocks):
        assert (times["h2d_ms"], times["compute_ms"], times["d2h_ms"]) == (2, 2, 2)
        assert times["enqueue_ms"] > 0


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
    process = Simulated(Candidate.of(Checkpoint(path=Path("m"))))
    process.blocks, process.rates = [np.ones(3)], [3.0]
    names = ("h2d_ms", "compute_ms", "d2h_ms", "enqueue_ms")
    process.times = [dict(zip(names, row, strict=True)) for row in ((1, 2, 3, 5), (2, 4, 6, 5), (9, 9, 9, 5))]
    result = result_of(process, process, None, batch=1)
    assert result.device == DeviceTimes(h2d_ms=2, compute_ms=4, d2h_ms=6, enqueue_ms=5)
    assert [words.split(" ")[0] for words in result.advice] == ["Copies", "The"]
