"""The table of `make bench`: put between its marks and nowhere else."""

from pathlib import Path

from netvlad_deploy.latency.results import CandidateLatency, Estimate, LatencyReport
from netvlad_deploy.spec.verdict import Verdict
from tools.bench_table import BEGIN, END, HEADING, Row, faster, milliseconds, page_of, put


def estimate(value: float) -> Estimate:
    return Estimate(value=value, low=0.9 * value, high=1.05 * value)


def result(name: str, ratio: float | None) -> CandidateLatency:
    return CandidateLatency(
        name=name,
        verdict=Verdict.PASS,
        percentiles_ms={"p50": estimate(0.301)},
        ratio=None if ratio is None else estimate(ratio),
        over_limit=estimate(1.5),
    )


def row() -> Row:
    missing = CandidateLatency(name="h.onnx on torch", verdict=Verdict.NOT_RUN, reason="no torch here")
    candidates = (result("h.onnx", None), result("h.onnx on openvino", 2.0), missing, result("h.onnx on straight", 1.0))
    machine = {"processor": "A CPU", "openvino": "2026.4.1"}
    report = LatencyReport(
        batch=1, num_features=3, threads=2, rounds=1, block_ms=1, warmup_ms=1, machine=machine, candidates=candidates
    )
    return Row("(1, 3, 4, 5)", report)


def test_the_table_has_every_ratio_with_its_interval_and_what_did_not_run() -> None:
    page = page_of([row()])
    cells = "(1, 3, 4, 5) | 0.301 [0.271, 0.316] | 1.50 [1.35, 1.58] | 2.00 [1.80, 2.10] | 1.00 [0.90, 1.05]"
    assert f"| {cells} | - | - | ONNX Runtime |" in page
    assert "h.onnx on torch did not run: no torch here" in page
    assert "A CPU, 2 threads; openvino 2026.4.1" in page


def test_it_is_put_between_the_marks_once(tmp_path: Path) -> None:
    page = tmp_path / "latency.md"
    put(page, "one")
    page.write_text(f"{page.read_text()}\nafter\n")
    put(page, "two \\1")
    text = page.read_text()
    assert text.count(HEADING) == text.count(BEGIN) == text.count(END) == 1
    assert "two \\1" in text
    assert "one" not in text.replace("one person", "")
    assert text.endswith("after\n")


def test_milliseconds_and_the_faster_engine() -> None:
    assert milliseconds(estimate(2331.7)) == "2332 [2099, 2448]"
    assert milliseconds(estimate(14.41)) == "14.4 [13.0, 15.1]"
    assert (milliseconds(None), faster(None)) == ("-", "-")
    assert [faster(estimate(value)) for value in (0.8, 1.0, 1.3)] == ["OpenVINO", "not told apart", "ONNX Runtime"]
