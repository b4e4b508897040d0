"""Results for programs: JSON under a versioned schema, and parity as JUnit XML for a CI that shows test results."""

import json
import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

from netvlad_deploy.parity.heads import OutputParity, ParityReport
from netvlad_deploy.report.escape import unicode_text, xml_text
from netvlad_deploy.report.text import departure_line
from netvlad_deploy.spec.verdict import Verdict

SCHEMA_VERSION = 1
CHANGED_SCHEMAS = {"bench": 2, "deploy": 2}
"""Version of the layout of the JSON, which each result names in `schema`; and of the verbs whose layout has changed."""

DERIVED = ("verdict", "not_judged")
"""Properties of a result that stand in its JSON beside its fields."""


def to_json(verb: str, result: Any) -> str:
    """Return a result dataclass as JSON text; `schema` names the verb and the version of the layout."""
    version = CHANGED_SCHEMAS.get(verb, SCHEMA_VERSION)
    return json.dumps({"schema": f"netvlad-deploy/{verb}/{version}", **plain(result)}, indent=2)


def plain(value: Any) -> Any:
    """Return a value as JSON can hold it: dataclasses as dictionaries with DERIVED, NaN and infinity as None.

    >>> plain((Path("a.onnx"), float("nan"), 0.5))
    ['a.onnx', None, 0.5]
    """
    if is_dataclass(value) and not isinstance(value, type):
        record = {item.name: plain(getattr(value, item.name)) for item in fields(value)}
        return record | {name: plain(getattr(value, name)) for name in DERIVED if hasattr(value, name)}
    if isinstance(value, Mapping):
        return {unicode_text(str(key)): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, str | Path):
        return unicode_text(str(value))
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


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
    for attribute, tag in (("tests", "testcase"), ("failures", "failure"), ("skipped", "skipped")):
        suite.set(attribute, str(len(list(suite.iter(tag)))))
    return xml_text(suite)


def _failure(output: OutputParity) -> str:
    where = "" if output.worst_cluster is None else f" in cluster {output.worst_cluster}"
    return (
        f"error {output.worst_error:.3e}{where}, tolerance {output.tolerance:.3e}; "
        f"max abs {output.max_abs:.3e}, {output.non_finite} values not finite"
    )
