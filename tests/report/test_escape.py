"""Names that hold any character, at each edge."""

import json
import logging
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from netvlad_deploy.artifact import OnnxArtifact
from netvlad_deploy.report.deploy import Deployment, Step, deployment_page
from netvlad_deploy.report.escape import markdown_text, printable, unicode_text
from netvlad_deploy.report.evaluate import CandidateRecall, EvaluationReport, evaluation_page
from netvlad_deploy.report.html_page import html_page
from netvlad_deploy.report.junit import parity_junit
from netvlad_deploy.report.markdown_page import markdown_page
from netvlad_deploy.report.page import Photos
from netvlad_deploy.report.precision import CasePrecision, PrecisionReport, draw_precisions, precision_page
from netvlad_deploy.report.serialize import to_json
from netvlad_deploy.report.text import markdown_table
from netvlad_deploy.retrieval.recall import Recall
from netvlad_deploy.spec.items import Skipped
from netvlad_deploy.spec.verdict import Verdict
from tests.command import Command, error_of
from tests.report.test_reports import FAILED, LATENCY, OUTPUT, parity
from tests.test_artifact import onnx_artifact

EVIL = "a\x1b[31m\nb\x01\x9b\u202ec\udcff|`<img src=x>[y](z)*\ufffe&$\\frac$"
"""Escape codes, a line break, a new direction of text, no UTF-8, and signs of Markdown, HTML, XML and TeX."""


def shown(text: str) -> str:
    """Return the text, which must do nothing to a terminal, and be writable."""
    assert all(line.isprintable() for line in text.splitlines())
    return text.encode().decode()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Ünïcode 写真 📷.png", "Ünïcode 写真 📷.png"),
        ("a\x1b[31m\x07", "a\\x1b[31m\\x07"),
        ("two\nlines\r\u2028", "two\\nlines\\r\\u2028"),
        ("\u202egpj.exe", "\\u202egpj.exe"),
        ("\udcff", "\\udcff"),
    ],
)
def test_a_terminal_gets_one_line_that_does_nothing(text: str, expected: str) -> None:
    assert printable(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model_best.pth.tar", "model_best.pth.tar"),
        ("__init__", "\\_\\_init\\_\\_"),
        ("a|b`c`", "a\\|b\\`c\\`"),
        ("<b>[x](y)*z*\\", "\\<b>\\[x\\](y)\\*z\\*\\\\"),
        ("a\nb", "a\\\\nb"),
    ],
)
def test_markdown_shows_a_name_as_itself(text: str, expected: str) -> None:
    assert markdown_text(text) == expected


def test_a_cell_stays_a_cell() -> None:
    (row,) = markdown_table(("name",), [(EVIL,)])[2:]
    assert shown(row).replace("\\|", "").count("|") == 2
    assert "`" not in row.replace("\\`", "")


def test_json_is_text_for_every_reader() -> None:
    report = replace(parity(OUTPUT), candidate=EVIL)
    text = to_json("validate", report)
    assert text.isascii()
    assert json.loads(text)["candidate"] == EVIL.replace("\udcff", "\\udcff")
    assert "\\udcff" not in text.replace("\\\\udcff", "")
    assert unicode_text("写真 \x1b") == "写真 \x1b", "json escapes the rest"


def test_junit_is_xml() -> None:
    report = replace(parity(OUTPUT, FAILED), candidate=EVIL)
    suite = ET.fromstring(parity_junit(report))
    assert "\\x1b" in suite.get("name", "")
    reason = ET.fromstring(parity_junit(replace(parity(), reason=EVIL))).find("testcase/skipped")
    assert reason is not None
    assert "\\x01" in reason.get("message", "")


def test_every_page_can_be_written_and_has_no_html() -> None:
    figures = (CasePrecision(case="typical", precision="fp32", feature_norm=1.0, distance=1e-9, non_finite=0),)
    precision = PrecisionReport(
        origin=EVIL, precisions=("fp32",), operators=(), cases=figures, warnings=(f"warning of {EVIL}",)
    )
    shares = {1: 1.0, 5: 1.0, 10: 1.0}
    recall = Recall(recall=shares, recall_answerable=shares, mean_average_precision=1.0, queries=(), num_queries=0)
    one = CandidateRecall(name=EVIL, backend=None, precision="fp32", descriptor_size=4, images_per_s=1.0, found=recall)
    evaluation = EvaluationReport(
        queries=Path(EVIL),
        database=Path(EVIL),
        ground_truth=EVIL,
        alone=False,
        num_queries=1,
        num_images=1,
        without_right=(EVIL,),
        candidates=(one,),
        agreements=(),
        skipped=(Skipped(path=EVIL, reason="unreadable", detail=EVIL),),
    )
    artifact = replace(onnx_artifact(Path(f"{EVIL}.onnx")), origin=EVIL, warnings=(EVIL,))
    deployment = Deployment(
        steps=(Step(name="build", verdict=Verdict.NOT_RUN, reason=EVIL),),
        onnx=artifact,
        engine=None,
        parity=(replace(parity(OUTPUT), candidate=EVIL),),
        latency=LATENCY,
    )
    for page in (
        precision_page(precision, picture="p.svg", command=EVIL),
        evaluation_page(evaluation, (artifact,), (Photos((), EVIL, "m.png"),), command=EVIL),
        deployment_page(deployment, command=EVIL),
    ):
        outside_code = "".join(shown(markdown_page(page)).split("```")[::2])
        assert "<img" not in outside_code.replace("\\<img", "")
        assert outside_code.count("](") - outside_code.count("\\](") == outside_code.count("![")
        assert "<img" not in shown(html_page(page))
    picture = ET.fromstring(draw_precisions(precision))
    texts = [text.text for text in picture.iter("{http://www.w3.org/2000/svg}text")]
    assert texts.count(f"Precisions of {printable(EVIL)}") == 1
    HTMLParser().feed(draw_precisions(precision).decode())


@pytest.mark.export
def test_an_origin_of_escape_codes_does_not_reach_the_terminal(
    command: Command, exported: OnnxArtifact, tmp_path: Path
) -> None:
    from netvlad_deploy.export.onnx_model import export_onnx
    from tests.modules import make_module

    export_onnx(make_module(2, 4, 0), tmp_path / "m.onnx", origin="\x1b]0;owned\x07\x1b[2J.pth")
    for verb in ("inspect", "validate"):
        outcome = command(verb, "m.onnx")
        assert outcome.code == 0
        shown(outcome.out)
    outcome = command("inspect", "\x1b[31mnone\udcff.onnx")
    assert error_of(shown(outcome.err)) == "error: \\x1b[31mnone\\udcff.onnx is missing"


def test_a_log_message_is_one_line(command: Command, capfd: pytest.CaptureFixture[str]) -> None:
    command("inspect", "none.onnx")
    logging.getLogger("netvlad_deploy.test").warning("skipped %s", "a\nerror: \x1b[31mforged")
    assert capfd.readouterr().err == "skipped a\\nerror: \\x1b[31mforged\n"
