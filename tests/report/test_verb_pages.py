"""The page of each verb: the verdict first, every figure that its result can give, and the way to make it again."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from netvlad_deploy.artifact import OnnxArtifact
from netvlad_deploy.errors import UsageError
from netvlad_deploy.latency.results import Estimate
from netvlad_deploy.report.graph_figure import MOST_NODES, graph_block
from netvlad_deploy.report.latency import latency_headline, latency_section
from netvlad_deploy.report.markdown_page import markdown_page
from netvlad_deploy.report.page import Figure, Grid, Page, Paragraph
from netvlad_deploy.report.parity import parity_headline
from netvlad_deploy.report.plots import Boxes, Dots, Drawn, Heat, Intervals
from netvlad_deploy.report.write import REPORT_FILES, check_reports, write_report
from netvlad_deploy.spec.verdict import Verdict
from tests.command import Command, error_of
from tests.report.results import COMMAND, failed, latency, pages
from tests.report.test_reports import BLIND, LATENCY, OUTPUT, parity


def figures(page: Page) -> list[type]:
    return [type(each.plot) for part in page.sections for each in part.blocks if isinstance(each, Figure)]


@pytest.mark.parametrize(
    ("verb", "start", "plots"),
    [
        ("deploy", "# NOT_RUN: model_best-vgg16", [Dots, Heat, Boxes, Intervals, Intervals]),
        ("validate", "# FAIL: Parity of m.onnx", [Dots, Heat]),
        ("bench", "# NOT_RUN: Latency of m.onnx", [Boxes, Intervals, Intervals]),
        ("evaluate", "# Retrieval of a.onnx", []),
        ("precision", "# Precisions of photos", [Dots]),
    ],
)
def test_the_verdict_stands_first_and_the_command_last(verb: str, start: str, plots: list[type]) -> None:
    page = pages()[verb]
    text = markdown_page(page)
    assert text.startswith(start)
    assert figures(page) == plots
    assert page.sections[-1].title == "Repeat it"
    assert f"```\n{COMMAND}\n```" in text


def test_a_failed_comparison_says_where_it_departs() -> None:
    text = markdown_page(pages()["validate"])
    assert "do not agree: 1 of 3 cases are over their tolerance (case 1)." in text
    assert "| soft_assignment | within its tolerance, or not shown by this file |" in text
    assert "| mean_residual | the first to depart |" in text
    assert "| descriptor | made of what departed |" in text
    assert "Not judged: long: a swap would not show." in text


def test_each_verdict_has_its_sentence() -> None:
    assert parity_headline(parity(OUTPUT)) == (
        "m.onnx and the float64 oracle agree: in 1 cases no error exceeds 0.01 of its tolerance."
    )
    doubtful = replace(failed(), cases=(*parity(OUTPUT).cases, BLIND))
    assert parity_headline(doubtful).endswith("; 1 more prove nothing.")
    assert "nothing is proven" in parity_headline(replace(doubtful, cases=(BLIND,)))
    assert parity_headline(parity(reason="no GPU")) == "m.onnx could not run here: no GPU."


def test_a_ratio_says_no_more_than_its_interval() -> None:
    report = latency()
    slower = replace(report.candidates[0], percentiles_ms={"p50": Estimate(value=5, low=5, high=5)})
    faster = latency_headline(replace(report, candidates=(slower, report.candidates[1])))
    assert faster.endswith(": 0.50 [0.40, 0.60] times the time of m.onnx.")
    unsure = replace(report.candidates[1], ratio=Estimate(value=0.9, low=0.7, high=1.1))
    assert "no difference is shown" in latency_headline(replace(report, candidates=(slower, unsure)))
    broken = replace(unsure, verdict=Verdict.FAIL, reason="p99 4 ms is over the budget")
    assert "Too slow: " in latency_headline(replace(report, candidates=(slower, broken)))
    assert latency_headline(replace(LATENCY, candidates=LATENCY.candidates[2:])) == "Nothing could be timed here."


def test_what_makes_a_latency_doubtful_stands_beside_it() -> None:
    blocks = latency_section(latency()).blocks
    assert Paragraph("The machine was busy: its load was 3 on 2 cores, stop other work.") in blocks
    assert Grid(("state of the machine", "before", "after"), [("load", "0.1", "3.0")]) in blocks
    (limit,) = (each for each in blocks if isinstance(each, Figure) and "over the limit" in each.alt)
    assert "The limit is its two matrix products alone." in limit.caption


@pytest.mark.export
def test_the_graph_is_drawn_node_by_node(exported: OnnxArtifact) -> None:
    block = graph_block(exported)
    assert isinstance(block, Figure)
    assert isinstance(block.plot, Drawn)
    import onnx

    operators = [node.op_type for node in onnx.load(exported.path).graph.node]
    drawn = [name for text in block.plot.svg.split("</text>") for name in text.rpartition(">")[2].split(", ")]
    assert sorted(set(drawn) & set(operators)) == sorted(set(operators))
    assert sum(drawn.count(name) for name in set(operators)) == len(operators)
    assert {"features", "descriptor", "soft_assignment"} <= set(drawn)
    assert block.alt.endswith(f"{len(operators)} nodes")


@pytest.mark.export
def test_a_backbone_is_one_box_and_a_huge_graph_is_counted(tiny: OnnxArtifact, monkeypatch: pytest.MonkeyPatch) -> None:
    block = graph_block(tiny)
    assert isinstance(block, Figure)
    assert isinstance(block.plot, Drawn)
    assert "backbone, 17 nodes</text>" in block.plot.svg
    assert "Conv" not in block.plot.svg
    monkeypatch.setattr("netvlad_deploy.report.graph_figure.MOST_NODES", 3)
    counted = graph_block(tiny)
    assert isinstance(counted, Grid)
    assert ("MatMul", "2") in counted.rows
    assert MOST_NODES > 3
    monkeypatch.setitem(sys.modules, "onnx", None)
    said = graph_block(tiny)
    assert isinstance(said, Paragraph)
    assert "onnx cannot be imported" in said.text


def test_without_its_packages_a_folder_has_markdown_and_the_log_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    page = pages()["validate"]
    write_report(tmp_path, "validate", failed(), page, force=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(REPORT_FILES)
    monkeypatch.setitem(sys.modules, "jinja2", None)
    write_report(tmp_path, "validate", failed(), page, force=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.json", "report.md"], "none of an earlier run"
    assert "report.html is left out: jinja2 cannot be imported" in caplog.text


def test_a_report_of_another_format_or_twice_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="txt ends in neither"):
        check_reports([Path("parity.txt")])
    with pytest.raises(UsageError, match="one file twice"):
        check_reports([tmp_path / "a.md", tmp_path / "." / "a.md"])
    check_reports([tmp_path / "a.md", tmp_path / "a.html"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.export
@pytest.mark.ort
def test_validate_and_bench_write_their_pages(command: Command, exported: OnnxArtifact, tmp_path: Path) -> None:
    (tmp_path / "p.md").write_text("old")
    outcome = command("validate", exported.path, "--report", "p.html", "--report", "p.md")
    assert outcome.code == 0, outcome.err
    page, text = Path("p.html").read_text(), Path("p.md").read_text()
    assert text.startswith("# PASS: Parity of m.onnx\n")
    assert f"netvlad-deploy validate {exported.path} --report p.html --report p.md" in text
    assert exported.sha256 in text
    assert "<svg" in page
    assert exported.sha256 in page
    timed = command("bench", exported.path, "--num-features", 5, "--duration", 0.1, "--report", "b b.md")
    assert timed.code == 0, timed.err
    text = Path("b b.md").read_text()
    assert text.startswith("# PASS: Latency of m.onnx\n")
    assert "--report 'b b.md'" in text, "as a shell takes it"


@pytest.mark.export
def test_a_report_is_refused_before_the_work(
    command: Command, exported: OnnxArtifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    for verb in ("validate", "bench"):
        outcome = command(verb, exported.path, "--report", "none/p.md")
        assert (outcome.code, "there is no folder none" in error_of(outcome.err)) == (73, True)
    monkeypatch.setitem(sys.modules, "jinja2", None)
    outcome = command("validate", exported.path, "--report", "p.html")
    assert outcome.code == 69
    assert "jinja2 cannot be imported" in error_of(outcome.err)
    assert "pip install" in outcome.err
    assert not Path("p.html").exists()
