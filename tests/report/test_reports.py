"""Parity, latency and deployment reports as JSON, text, Markdown and JUnit XML."""

import json
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from netvlad_deploy.errors import ArtifactError
from netvlad_deploy.latency.results import CandidateLatency, Estimate, LatencyReport
from netvlad_deploy.parity.heads import CaseParity, OutputParity, ParityReport
from netvlad_deploy.parity.localise import Departure
from netvlad_deploy.report.deploy import Deployment, Step, deployment_page, step_rows
from netvlad_deploy.report.junit import error_junit, latency_junit, parity_junit
from netvlad_deploy.report.markdown_page import markdown_page
from netvlad_deploy.report.serialize import plain, to_json
from netvlad_deploy.report.text import artifact_lines, departure_line, latency_lines, parity_lines
from netvlad_deploy.spec.verdict import Verdict
from tests.test_artifact import engine_artifact, onnx_artifact

OUTPUT = OutputParity(
    output="descriptor",
    verdict=Verdict.PASS,
    max_abs=1e-8,
    cosine_min=1 - 1e-12,
    cosine_p1=1 - 1e-12,
    cosine_rows=2,
    short_rows=0,
    norm_error=1e-9,
    non_finite=0,
    worst_cluster=4,
    worst_error=1e-8,
    tolerance=1e-6,
    worst_ratio=0.01,
    cluster_errors=(1e-9, 1e-8),
)
FAILED = replace(OUTPUT, verdict=Verdict.FAIL, max_abs=float("inf"), non_finite=3, worst_ratio=float("inf"))
SHORT = replace(OUTPUT, cosine_min=None, cosine_p1=None, cosine_rows=0, short_rows=2)


def parity(*outputs: OutputParity, reason: str = "") -> ParityReport:
    cases = tuple(
        CaseParity(name=f"case {i}", batch=2, num_features=300, logit_step=0.0, outputs=(o,))
        for i, o in enumerate(outputs)
    )
    return ParityReport(candidate="m.onnx", reference="oracle", precision="fp32", cases=cases, reason=reason)


PERCENTILES = {f"p{share}": Estimate(value=ms, low=ms, high=ms) for share, ms in ((50, 1), (90, 2), (95, 3), (99, 4))}
LATENCY = LatencyReport(
    batch=1,
    num_features=300,
    threads=2,
    rounds=10,
    block_ms=300,
    warmup_ms=500,
    machine={"processor": "a processor"},
    candidates=(
        CandidateLatency(name="m.onnx", verdict=Verdict.PASS, percentiles_ms=PERCENTILES, variation=0.1),
        CandidateLatency(name="n.onnx", verdict=Verdict.PASS, ratio=Estimate(value=0.5, low=0.4, high=0.6)),
        CandidateLatency(name="m.engine", verdict=Verdict.NOT_RUN, reason="no GPU"),
    ),
)


def test_json_names_its_schema_and_carries_every_verdict() -> None:
    record = json.loads(to_json("validate", parity(OUTPUT, FAILED)))
    assert record["schema"] == "netvlad-deploy/validate/1"
    assert record["verdict"] == "FAIL"
    assert [case["verdict"] for case in record["cases"]] == ["PASS", "FAIL"]
    assert record["cases"][0]["outputs"][0]["cluster_errors"] == [1e-9, 1e-8]
    assert record["cases"][1]["outputs"][0]["max_abs"] is None


def test_json_of_every_kind_of_value() -> None:
    assert plain(onnx_artifact(Path("m.onnx")))["path"] == "m.onnx"
    assert plain((1, [True, None], {1: "a"})) == [1, [True, None], {"1": "a"}]


def test_parity_text() -> None:
    lines = parity_lines(parity(OUTPUT, FAILED, SHORT))
    assert lines[0].startswith("FAIL  m.onnx against oracle, fp32, 3 cases")
    assert "1.0e-12" in lines[2]
    assert "3 not finite" in lines[3]
    assert "- (2 short)" in lines[4]
    assert parity_lines(parity(reason="no GPU")) == ["NOT_RUN  m.onnx against oracle, fp32: no GPU"]


UNMADE = CaseParity(name="near", batch=2, num_features=3, logit_step=0.0, outputs=(), reason="nothing is near")
BLIND = CaseParity(
    name="long",
    batch=2,
    num_features=3,
    logit_step=0.0,
    outputs=(replace(OUTPUT, verdict=Verdict.NOT_JUDGED),),
    reason="a swap would not show",
    smallest_fault=3.0,
)


def with_cases(*cases: CaseParity) -> ParityReport:
    return replace(parity(OUTPUT), cases=cases)


def test_cases_that_prove_nothing_are_counted_and_never_a_pass() -> None:
    seen = replace(parity(OUTPUT).cases[0], smallest_fault=0.00123)
    report = with_cases(seen, UNMADE, BLIND, replace(BLIND, name="longer"))
    assert (report.verdict, report.not_judged) == (Verdict.PASS, 3)
    assert with_cases(UNMADE, BLIND).verdict is Verdict.NOT_JUDGED
    record = json.loads(to_json("validate", report))
    assert record["not_judged"] == 3
    assert [case["verdict"] for case in record["cases"]] == ["PASS", *["NOT_JUDGED"] * 3]
    assert record["cases"][0]["smallest_fault"] == 0.00123
    title, _, *rows, near, long = parity_lines(report)
    assert title.endswith("4 cases, 3 not judged")
    assert [row.split()[0] for row in rows] == ["PASS", *["NOT_JUDGED"] * 3]
    assert rows[0].endswith("0.12 %")
    assert rows[2].endswith("over 100 %")
    assert near == "not judged: near: nothing is near"
    assert long == "not judged: long, longer: a swap would not show"


def test_junit_skips_cases_that_prove_nothing() -> None:
    suite = ET.fromstring(parity_junit(with_cases(*parity(OUTPUT).cases, UNMADE, BLIND)))
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("3", "0", "2")
    reasons = [element.get("message") for element in suite.iter("skipped")]
    assert reasons == ["nothing is near", "a swap would not show"]


def test_latency_text() -> None:
    lines = latency_lines(LATENCY)
    assert "2 threads, 10 rounds of 300 ms after 500 ms, a processor" in lines[0]
    assert "0.500 [0.400, 0.600]" in lines[3]
    assert "m.engine: no GPU" in lines[4]


def test_artifact_text() -> None:
    lines = artifact_lines(onnx_artifact(Path("m.onnx")))
    assert "K=6 D=16 G=2, descriptor 96 (d*K+k), weights: untrained, seed 0" in lines[1]
    assert lines[2:] == [
        "  features float32 -> descriptor float32",
        "  logit step 2.4e-07 at features of norm 1",
        "  opset 18, oracle's reference: m.reference.npz",
        "  warning: cluster 3 is far away",
    ]
    engine = replace(engine_artifact(Path("m.engine")), versions={"tensorrt-rtx": "1.7.1"})
    assert "activations unknown" in artifact_lines(engine)[-2]


def test_junit_has_a_failure_and_a_skip_with_their_reasons() -> None:
    suite = ET.fromstring(parity_junit(parity(OUTPUT, FAILED)))
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("2", "1", "0")
    failure = suite.find("testcase/failure")
    assert failure is not None
    assert "in cluster 4, tolerance 1.000e-06" in failure.get("message", "")
    departure = Departure(case="a", tensor="descriptor", clusters=(1,), error=1.0, tolerance=0.1, advice="look")
    suite = ET.fromstring(parity_junit(replace(parity(OUTPUT, FAILED), departure=departure)))
    assert suite.findtext("system-out") == departure_line(departure)
    suite = ET.fromstring(parity_junit(parity(reason="no GPU")))
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("1", "0", "1")
    skipped = suite.find("testcase/skipped")
    assert skipped is not None
    assert skipped.get("message") == "no GPU"


def test_junit_of_a_latency_and_of_an_error() -> None:
    slow = CandidateLatency(name="s.onnx", verdict=Verdict.FAIL, reason="p99 is over")
    suite = ET.fromstring(latency_junit(replace(LATENCY, candidates=(*LATENCY.candidates, slow))))
    counts = [suite.get(name) for name in ("tests", "failures", "errors", "skipped")]
    assert counts == ["4", "1", "0", "1"]
    assert [case.get("message") for case in suite.findall("testcase/failure")] == ["p99 is over"]
    suite = ET.fromstring(error_junit("parity of m.onnx", ArtifactError("m.onnx is stale")))
    assert (suite.get("errors"), suite.get("tests"), suite.get("name")) == ("1", "1", "parity of m.onnx")
    error = suite.find("testcase/error")
    assert error is not None
    assert (error.get("type"), error.get("message")) == ("ArtifactError", "m.onnx is stale")


def test_another_number_of_judged_cases_fails() -> None:
    report = replace(parity(OUTPUT, OUTPUT), expected_cases=2)
    assert (report.verdict, report.miscounted) == (Verdict.PASS, "")
    for cases, expected in ((report.cases[:1], 2), (report.cases, 1), ((*report.cases[:1], UNMADE), 2)):
        shrunk = replace(report, cases=cases, expected_cases=expected)
        assert shrunk.verdict is Verdict.FAIL
        assert f"cases were judged, {expected} are expected" in "\n".join(parity_lines(shrunk))
        suite = ET.fromstring(parity_junit(shrunk))
        assert suite.get("failures") == "1"
    assert replace(parity(reason="no GPU"), expected_cases=2).verdict is Verdict.NOT_RUN


@pytest.fixture
def deployment() -> Deployment:
    steps = (
        Step(name="build", verdict=Verdict.NOT_RUN, reason="no | driver"),
        Step(name="parity", verdict=Verdict.PASS),
    )
    return Deployment(
        steps=steps, onnx=onnx_artifact(Path("m.onnx")), engine=None, parity=(parity(OUTPUT),), latency=LATENCY
    )


def test_steps_that_did_not_run_stand_last(deployment: Deployment) -> None:
    assert [row[0] for row in step_rows(deployment.steps)] == ["PASS", "NOT_RUN"]


def test_markdown_page(deployment: Deployment) -> None:
    page = markdown_page(deployment_page(deployment))
    assert page.startswith("# NOT_RUN: m.onnx\n")
    assert "| NOT_RUN | build | no \\| driver |" in page
    assert "## Parity: m.onnx against oracle" in page
    assert "| PASS | case 0 | 2 x 300 | 0 | descriptor |" in page
    assert "| NOT_RUN | m.engine: no GPU | - |" in page
