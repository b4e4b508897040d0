"""Compare a runner of several heads with the oracle of each: one report, whose cases have the names of their heads."""

from collections.abc import Mapping
from dataclasses import replace

from netvlad_deploy.errors import ParityError
from netvlad_deploy.oracle.equations import ReferenceParameters
from netvlad_deploy.parity.heads import ParityReport, compare
from netvlad_deploy.runner import Runner
from netvlad_deploy.runtime.one_head import OneHead
from netvlad_deploy.spec.layer import HeadsSpec
from netvlad_deploy.spec.verdict import Verdict


def compare_heads(
    candidate: Runner, parameters: Mapping[str, ReferenceParameters], *, against: Runner | None = None
) -> ParityReport:
    """Return the report of all heads, each compared with its own oracle, or with the same head of `against`.

    A head that passes does not pass for another: the verdict is PASS only if it is that of every head.

    Raises: ParityError as `compare`, or if `against` has other heads.
    """
    theirs = None if against is None else against.spec
    if against is not None and not (isinstance(theirs, HeadsSpec) and set(theirs.heads) == set(parameters)):
        raise ParityError(f"{against.name} has not the heads {', '.join(parameters)}: compare two that have the same")
    reports = {
        name: compare(OneHead(candidate, name), each, against=None if against is None else OneHead(against, name))
        for name, each in parameters.items()
    }
    departures = [
        replace(report.departure, case=_named(name, report.departure.case))
        for name, report in reports.items()
        if report.departure is not None
    ]
    return ParityReport(
        candidate=candidate.name,
        reference="oracle" if against is None else against.name,
        precision=candidate.precision,
        cases=tuple(
            replace(case, name=_named(name, case.name)) for name, report in reports.items() for case in report.cases
        ),
        departure=departures[0] if departures else None,
        unseen="; ".join(filter(None, (_doubt(name, report) for name, report in reports.items()))),
    )


def _named(head: str, case: str) -> str:
    return f"{head}: {case}"


def _doubt(head: str, report: ParityReport) -> str:
    """Return the reason why a head is not proved, empty if it is."""
    if report.unseen:
        return f"head {head}: {report.unseen}"
    return f"head {head}: no case proves anything" if report.verdict is Verdict.NOT_JUDGED else ""
