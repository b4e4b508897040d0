"""Results as JUnit XML, for a CI that shows test results: parity, latency, and the error that came before either."""

from xml.etree import ElementTree as ET

from netvlad_deploy.latency.results import LatencyReport
from netvlad_deploy.parity.heads import OutputParity, ParityReport
from netvlad_deploy.report.escape import xml_text
from netvlad_deploy.report.text import departure_line
from netvlad_deploy.spec.verdict import Verdict


def parity_junit(report: ParityReport) -> str:
    """Return JUnit XML: a test case for each output of each case, and the tensor where a failure first departs.

    Cases that are NOT_RUN or NOT_JUDGED are skipped, with their reasons.
    """
    suite = ET.Element("testsuite", name=f"parity of {report.candidate} against {report.reference}")
    for case in report.cases:
        for output in case.outputs:
            name = f"parity.{output.output}"
            if output.verdict is Verdict.FAIL:
                _case(suite, name, case.name, "failure", _failure(output))
            else:
                _case(suite, name, case.name, "skipped", case.reason if output.verdict is Verdict.NOT_JUDGED else None)
        if not case.outputs:
            _case(suite, "parity", case.name, "skipped", case.reason)
    if report.departure is not None:
        ET.SubElement(suite, "system-out").text = departure_line(report.departure)
    if reason := report.reason or report.unseen:
        _case(suite, "parity", "all cases", "skipped", reason)
    if report.miscounted:
        _case(suite, "parity", "number of cases", "failure", report.miscounted)
    return _text(suite)


def _failure(output: OutputParity) -> str:
    where = "" if output.worst_cluster is None else f" in cluster {output.worst_cluster}"
    return (
        f"error {output.worst_error:.3e}{where}, tolerance {output.tolerance:.3e}; "
        f"max abs {output.max_abs:.3e}, {output.non_finite} values not finite"
    )


def latency_junit(report: LatencyReport) -> str:
    """Return JUnit XML: a test case for each candidate, failed by a budget or baseline, or skipped as NOT_RUN."""
    suite = ET.Element("testsuite", name="latency")
    for one in report.candidates:
        tag = "failure" if one.verdict is Verdict.FAIL else "skipped"
        _case(suite, "latency", one.name, tag, None if one.verdict is Verdict.PASS else one.reason)
    return _text(suite)


def error_junit(subject: str, error: Exception) -> str:
    """Return JUnit XML with the error that ended a verb; `subject` says in words what was to be done."""
    suite = ET.Element("testsuite", name=subject)
    _case(suite, "netvlad-deploy", subject, "error", str(error), type=type(error).__name__)
    return _text(suite)


def _case(suite: ET.Element, group: str, name: str, tag: str, message: str | None, **more: str) -> None:
    """Add a test case to a suite, and to it a failure, error or skip with its message; a pass has None."""
    element = ET.SubElement(suite, "testcase", classname=group, name=name)
    if message is not None:
        ET.SubElement(element, tag, {"message": message, **more})


def _text(suite: ET.Element) -> str:
    """Return the XML of a suite, with its counts."""
    counts = {"tests": "testcase", "failures": "failure", "errors": "error", "skipped": "skipped"}
    for attribute, tag in counts.items():
        suite.set(attribute, str(len(list(suite.iter(tag)))))
    return xml_text(suite)
