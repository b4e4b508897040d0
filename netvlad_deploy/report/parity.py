"""The page of `validate`, and the sections on parity of other pages."""

from collections.abc import Sequence

from netvlad_deploy.artifact import AnyArtifact
from netvlad_deploy.parity.heads import CaseParity, ParityReport
from netvlad_deploy.parity.localise import Departure
from netvlad_deploy.report.artifacts import artifact_section, repeat_section
from netvlad_deploy.report.page import Block, Figure, Grid, Page, Paragraph, Section
from netvlad_deploy.report.plots import Dots, Heat
from netvlad_deploy.report.text import departure_line, listed, not_judged_lines, parity_table, retrieval_table, sentence
from netvlad_deploy.spec.layer import AGGREGATE, DESCRIPTOR, STAGES
from netvlad_deploy.spec.verdict import Verdict

LEAST_RATIO = 1e-6
"""Ratios of an error to its tolerance below this are drawn there."""

MOST_FAILED = 4
"""Most names of cases that a headline lists."""

STAGES_OF_A_PROJECTION = (*STAGES[:-1], AGGREGATE, DESCRIPTOR)


def parity_page(report: ParityReport, artifact: AnyArtifact, *, graph: Block | None = None, command: str = "") -> Page:
    """Return the page of a comparison; `graph` is the drawing of its graph, `command` the line that made it."""
    return Page(
        title=f"Parity of {report.candidate}",
        verdict=report.verdict,
        headline=parity_headline(report),
        facts=parity_facts(report),
        sections=(
            *parity_sections([report]),
            artifact_section(artifact, graph),
            repeat_section([artifact], command=command),
        ),
    )


def parity_headline(report: ParityReport) -> str:
    """Return the outcome of a comparison in a sentence."""
    pair = f"{report.candidate} and {_reference_words(report)}"
    if report.verdict is Verdict.NOT_RUN:
        return f"{report.candidate} could not run here: {report.reason}."
    if report.verdict is Verdict.NOT_JUDGED:
        return f"No case could show a fault of {report.candidate}, so nothing is proven."
    if report.miscounted and not any(case.verdict is Verdict.FAIL for case in report.cases):
        return f"The number of cases is wrong: {report.miscounted}."
    if report.verdict is Verdict.FAIL:
        failed = [case.name for case in report.cases if case.verdict is Verdict.FAIL]
        names = listed(failed, MOST_FAILED)
        return f"{pair} do not agree: {len(failed)} of {len(report.cases)} cases are over their tolerance ({names})."
    judged = len(report.cases) - report.not_judged
    doubt = f"; {report.not_judged} more prove nothing" if report.not_judged else ""
    return f"{pair} agree: in {judged} cases no error exceeds {_worst(report.cases):.2g} of its tolerance{doubt}."


def _reference_words(report: ParityReport) -> str:
    return "the float64 oracle" if report.reference == "oracle" else report.reference


def parity_facts(report: ParityReport) -> tuple[tuple[str, str], ...]:
    """Return the figures of a comparison that matter most; none if it did not run."""
    if not report.cases:
        return ()
    cosines = [output.cosine_min for case in report.cases for output in case.outputs if output.cosine_min is not None]
    passed = sum(case.verdict is Verdict.PASS for case in report.cases)
    return (
        ("worst error over tolerance", f"{_worst(report.cases):.2g}"),
        ("worst 1 - cosine", f"{max(0.0, 1 - min(cosines)):.1e}" if cosines else "-"),
        ("cases that pass", f"{passed} of {len(report.cases)}"),
    )


def _worst(cases: Sequence[CaseParity]) -> float:
    return max((output.worst_ratio for case in cases for output in case.outputs), default=0.0)


def parity_sections(reports: Sequence[ParityReport]) -> list[Section]:
    """Return a section for each comparison; the first shows the errors of all of them."""
    sections = []
    for place, report in enumerate(reports):
        blocks: list[Block] = [_error_figure(reports)] if place == 0 and any(each.cases for each in reports) else []
        sections.append(
            Section(f"Parity: {report.candidate} against {report.reference}", (*blocks, *_comparison(report)))
        )
    return sections


def _comparison(report: ParityReport) -> list[Block]:
    """Return what a comparison found, or why it did not run."""
    if report.reason:
        return [Paragraph(f"Not run: {report.reason}")]
    blocks: list[Block] = [*_heat_figure(report), Grid(*parity_table(report))]
    blocks += [Paragraph(sentence(report.miscounted))] if report.miscounted else []
    blocks += [Paragraph(sentence(line)) for line in not_judged_lines(report)]
    if report.departure:
        blocks += [Paragraph(sentence(departure_line(report.departure))), *_stages(report.departure)]
    return blocks + ([Grid(*retrieval_table(report))] if report.retrieval else [])


def _error_figure(reports: Sequence[ParityReport]) -> Figure:
    """Return the figure of the worst error of each case over its tolerance, a series for each comparison."""
    names = tuple(dict.fromkeys(case.name for report in reports for case in report.cases))
    series = {}
    for report in reports:
        worst = {case.name: _worst([case]) for case in report.cases if case.outputs}
        if worst:
            series[f"{report.candidate}, {report.precision}"] = tuple(worst.get(name) for name in names)
    ran = [report for report in reports if report.cases]
    said = "; ".join(f"{report.candidate} at most {_worst(report.cases):.2g}" for report in ran)
    return Figure(
        Dots(rows=names, series=series, label="worst error over its tolerance", least=LEAST_RATIO, line=1.0),
        alt=f"Worst error of {len(names)} cases over its tolerance, which is at 1: {said}",
        caption="A mark left of the line is within tolerance, which a rounding-error model gives for each case.",
    )


def _heat_figure(report: ParityReport) -> list[Figure]:
    """Return the figure of the errors of all clusters, none where a descriptor has no clusters."""
    found = {
        case.name: output.cluster_ratios
        for case in report.cases
        for output in case.outputs
        if output.output.startswith(DESCRIPTOR) and output.cluster_ratios
    }
    if not found:
        return []
    clusters = max(map(len, found.values()))
    over = sum(ratio > 1 for ratios in found.values() for ratio in ratios)
    return [
        Figure(
            Heat(rows=tuple(found), ratios=tuple(found.values()), label="cluster"),
            alt=f"Error of each of {clusters} clusters of {report.candidate} in {len(found)} cases over its tolerance: "
            f"{over} are over it",
            caption="Each cluster is judged by itself: a cell is its error over its tolerance, red if over it. A "
            "column that stands out is a cluster to look at.",
        )
    ]


def _stages(departure: Departure) -> list[Grid]:
    """Return the stages of the layer in order, and what is known of each; none if no stage departs."""
    order = STAGES_OF_A_PROJECTION if departure.tensor == AGGREGATE else STAGES
    if departure.tensor not in order:
        return []
    first = order.index(departure.tensor)
    said = ("within its tolerance, or not shown by this file", "the first to depart", "made of what departed")
    states = [said[0]] * first + [said[1]] + [said[2]] * (len(order) - first - 1)
    return [Grid(("stage", "state"), list(zip(order, states, strict=True)))]
