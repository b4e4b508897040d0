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
            element = ET.SubElement(suite, "testcase", classname=f"parity.{output.output}", name=case.name)
            if output.verdict is Verdict.FAIL:
                ET.SubElement(element, "failure", message=_failure(output))
            elif output.verdict is Verdict.NOT_JUDGED:
                ET.SubElement(element, "skipped", message=case.reason)
        if not case.outputs:
            element = ET.SubElement(suite, "testcase", classname="parity", name=case.name)
            ET.SubElement(element, "skipped", message=case.reason)
    if report.departure is not None:
        ET.SubElement(suite, "system-out").text = departure_line(report.departure)
    if reason := report.reason or report.unseen:
        element = ET.SubElement(suite, "testcase", classname="parity", name="all cases")
        ET.SubElement(element, "skipped", message=reason)
    if report.miscounted:
        element = ET.SubElement(suite, "testcase", classname="parity", name="number of cases")
        ET.SubElement(element, "failure", message=report.miscounted)
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
        element = ET.SubElement(suite, "testcase", classname="latency", name=one.name)
        if one.verdict is not Verdict.PASS:
            tag = "failure" if one.verdict is Verdict.FAIL else "skipped"
            ET.SubElement(element, tag, message=one.reason)
    return _text(suite)


def error_junit(subject: str, error: Exception) -> str:
    """Return JUnit XML with the error that ended a verb; `subject` says in words what was to be done."""
    suite = ET.Element("testsuite", name=subject)
    element = ET.SubElement(suite, "testcase", classname="netvlad-deploy", name=subject)
    ET.SubElement(element, "error", type=type(error).__name__, message=str(error))
    return _text(suite)


def _text(suite: ET.Element) -> str:
    """Return the XML of a suite, with its counts."""
    counts = {"tests": "testcase", "failures": "failure", "errors": "error", "skipped": "skipped"}
    for attribute, tag in counts.items():
        suite.set(attribute, str(len(list(suite.iter(tag)))))
    return xml_text(suite)
