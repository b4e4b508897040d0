"""The page of `bench`, and the section on latency of other pages."""

from collections.abc import Sequence

from netvlad_deploy.artifact import AnyArtifact
from netvlad_deploy.latency.results import CandidateLatency, Estimate, LatencyReport
from netvlad_deploy.report.artifacts import repeat_section
from netvlad_deploy.report.page import Block, Figure, Grid, Page, Paragraph, Section
from netvlad_deploy.report.plots import Boxes, Intervals
from netvlad_deploy.report.text import (
    candidate_notes,
    device_lines,
    estimate_text,
    latency_table,
    latency_title,
    regression_lines,
    sentence,
)
from netvlad_deploy.spec.verdict import Verdict

INTERVALS = (
    "Brackets are 95 % intervals, those of time ratios 99 %. The time ratio is over the first row, round by round."
)
"""What the table's brackets hold, in words."""


def bench_page(report: LatencyReport, artifacts: Sequence[AnyArtifact], *, command: str = "") -> Page:
    """Return the page of a latency measurement; `command` is the line that made it."""
    return Page(
        title=f"Latency of {', '.join(one.name for one in report.candidates)}",
        verdict=report.verdict,
        headline=latency_headline(report),
        facts=latency_facts(report),
        sections=(latency_section(report), repeat_section(artifacts, command=command, versions=False)),
    )


def latency_headline(report: LatencyReport) -> str:
    """Return the outcome in a sentence: a broken budget, else the fastest candidate: nobody can pick the limit."""
    broken = [f"{one.name}: {one.reason}" for one in report.candidates if one.verdict is Verdict.FAIL]
    if broken:
        return f"Too slow: {'; '.join(broken)}."
    ran = [one for one in report.candidates if one.p50_ms is not None and one.name != report.limit]
    if not ran:
        return "Nothing could be timed here."
    fastest = min(ran, key=lambda one: one.p50_ms or 0.0)
    said = f"{fastest.name} takes {_milliseconds(fastest, 'p50')} at p50 and {_milliseconds(fastest, 'p99')} at p99"
    first = report.candidates[0]
    if fastest.ratio is None or fastest is first:
        return f"{said}."
    return f"{said}: {_ratio_words(fastest.ratio)} {first.name}."


def _ratio_words(ratio: Estimate) -> str:
    """Return what a ratio of times says, and only as much as its interval allows."""
    if ratio.low <= 1 <= ratio.high:
        return f"no difference is shown ({estimate_text(ratio, '.2f')} of its time) from"
    return f"{estimate_text(ratio, '.2f')} times the time of"


def latency_facts(report: LatencyReport) -> tuple[tuple[str, str], ...]:
    """Return the median of each candidate that ran."""
    ran = [one for one in report.candidates if one.p50_ms is not None]
    return tuple((f"p50 of {one.name}", _milliseconds(one, "p50")) for one in ran)


def _milliseconds(one: CandidateLatency, percentile: str) -> str:
    estimate = one.percentiles_ms.get(percentile)
    return "-" if estimate is None else f"{estimate.value:.3g} ms"


def latency_section(report: LatencyReport) -> Section:
    """Return the section on latency: distributions, ratios, the table, what makes it doubtful, the machine."""
    conditions = [f"{one.name}: {one.conditions}." for one in report.candidates if one.conditions]
    blocks: list[Block] = [Paragraph(sentence(latency_title(report))), *_figures(report), Grid(*latency_table(report))]
    blocks += [Paragraph(INTERVALS)]
    lines = (*map(sentence, (*regression_lines(report), *report.advice)), *candidate_notes(report))
    blocks += [Paragraph(line) for line in lines]
    blocks += [Paragraph(f"{line}.") for line in device_lines(report)] or [Paragraph(line) for line in conditions]
    blocks.append(Grid(("machine", "value"), sorted(report.machine.items())))
    if state := list(dict.fromkeys((*report.before, *report.after))):
        rows = [(name, report.before.get(name, "-"), report.after.get(name, "-")) for name in state]
        blocks.append(Grid(("state of the machine", "before", "after"), rows))
    return Section("Latency", blocks)


def _figures(report: LatencyReport) -> list[Figure]:
    figures = []
    timed = [(one.name, one.quantiles_ms) for one in report.candidates if len(one.quantiles_ms) > 1]
    if timed:
        medians = "; ".join(f"{one.name} {_milliseconds(one, 'p50')}" for one in report.candidates if one.quantiles_ms)
        figures.append(
            Figure(
                Boxes(rows=timed, label="milliseconds of one run"),
                alt=f"Distribution of the times of {len(timed)} candidates, in the middle {medians}",
                caption="A box holds the middle half of the runs and has a gap at the median; whiskers reach from the "
                "fastest run to 98 % of them, a mark stands at the slowest.",
            )
        )
    first = report.candidates[0].name
    figures += _ratio_figure(report, "ratio", f"time over that of {first}")
    return figures + _ratio_figure(report, "over_limit", "time over the limit's")


def _ratio_figure(report: LatencyReport, field: str, label: str) -> list[Figure]:
    """Return the figure of one kind of ratio, none where it was not measured."""
    found: dict[str, Estimate] = {
        one.name: ratio for one in report.candidates if (ratio := getattr(one, field)) is not None
    }
    if not found:
        return []
    said = "; ".join(f"{name} {estimate_text(ratio, '.2f')}" for name, ratio in found.items())
    limit = f" The limit is {report.limit}." if field == "over_limit" and report.limit else ""
    return [
        Figure(
            Intervals(rows=[(name, each.value, each.low, each.high) for name, each in found.items()], label=label),
            alt=f"{label[0].upper()}{label[1:]}: {said}",
            caption="Left of the line at 1 is faster. A bar is the 99 % interval of the ratio of rounds: one that "
            f"touches the line shows no difference.{limit}",
        )
    ]
