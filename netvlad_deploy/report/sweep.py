"""The result of a sweep: latency over the axes of the input or of the layer, as lines and as a page."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from netvlad_deploy.latency.scaling import Exponent
from netvlad_deploy.latency.sweep import Place, PointLatency, SweepPoint
from netvlad_deploy.report.page import Block, Figure, Grid, Page, Paragraph, Section
from netvlad_deploy.report.plots import Curves
from netvlad_deploy.report.text import Table, estimate_text, table
from netvlad_deploy.spec.verdict import Verdict

EXPLAINED = (
    "An exponent of 1 doubles the time where its axis is doubled. Least squares fit log(p50) as the sum of exponent * "
    "log(axis) over all points, with Student's 95 % interval of the residuals; a part of the time that does not grow "
    "lowers an exponent"
)
MOST_CURVES = 8
"""Most curves of a figure: more could not be told apart."""

UNFITTED = "No exponents: they need two points more than axes that vary, each apart from the others"


@dataclass(frozen=True, kw_only=True)
class SweepReport:
    """Latency at each point of a sweep.

    Args:
        subject: what was measured, in words.
        axes: the axes that were swept, by their names on the command line.
        file: the file that keeps the points, None if none does.
        kept: how many points stood in the file already, and were not measured again.
        exponents: how the time of each candidate grows with each axis; none where too few points say it.
    """

    subject: str
    axes: tuple[str, ...]
    file: Path | None
    kept: int
    points: tuple[SweepPoint, ...]
    exponents: tuple[Exponent, ...]

    @property
    def verdict(self) -> Verdict:
        """Return NOT_RUN if a candidate did not run at some point."""
        ran = (not each.reason for point in self.points for each in point.candidates)
        return Verdict.PASS if all(ran) else Verdict.NOT_RUN


def place_words(place: Place, axes: Sequence[str]) -> tuple[str, ...]:
    """Return the values of a point on some axes.

    >>> place_words(Place(batch=8, image_size=(480, 640), threads=2), ("batch", "image-size"))
    ('8', '480x640')
    """
    values = (getattr(place, name.replace("-", "_")) for name in axes)
    return tuple("x".join(map(str, value)) if isinstance(value, tuple) else str(value) for value in values)


def sweep_table(report: SweepReport) -> Table:
    """Return a row for each candidate at each point."""
    return (*report.axes, "candidate", "p50 ms", "p99 ms", "descriptors/s"), [
        (*place_words(point.place, report.axes), *_cells(each)) for point in report.points for each in point.candidates
    ]


def _cells(one: PointLatency) -> tuple[str, ...]:
    return (
        one.name + (f": {one.reason}" if one.reason else ""),
        estimate_text(one.percentiles_ms.get("p50")),
        estimate_text(one.percentiles_ms.get("p99")),
        estimate_text(one.throughput, ".0f"),
    )


def exponent_table(report: SweepReport) -> Table:
    """Return a row for each exponent."""
    return ("candidate", "axis", "exponent", "points"), [
        (one.candidate, one.axis, estimate_text(one.exponent, ".2f"), str(one.points)) for one in report.exponents
    ]


def sweep_lines(report: SweepReport) -> list[str]:
    """Return the lines of a sweep: a row for each point, and the exponents."""
    fitted = [*table(*exponent_table(report)), EXPLAINED] if report.exponents else [UNFITTED]
    return [_title(report), *table(*sweep_table(report)), *fitted]


def sweep_page(report: SweepReport) -> Page:
    """Return the page of a sweep."""
    growth: list[Block] = [Paragraph(f"{UNFITTED}.")]
    if report.exponents:
        growth = [Grid(*exponent_table(report)), Paragraph(f"{EXPLAINED}.")]
    return Page(
        title=f"Latency of {report.subject} over {', '.join(report.axes)}",
        verdict=report.verdict,
        headline=f"{_title(report)}.",
        facts=[
            (f"exponent in {one.axis} of {one.candidate}", estimate_text(one.exponent, ".2f"))
            for one in report.exponents
        ],
        sections=[
            Section("Latency", [*_figures(report), Grid(*sweep_table(report))]),
            Section("Growth", growth),
        ],
    )


def _figures(report: SweepReport) -> list[Figure]:
    """Return the curves over the axis of most values, one for each candidate and each place on the other axes."""
    values = {name: {place_words(point.place, (name,)) for point in report.points} for name in report.axes}
    along = max(report.axes, key=lambda name: len(values[name]))
    others = [name for name in report.axes if name != along]
    curves: dict[str, list[tuple[float, float]]] = {}
    for point in report.points:
        for number, each in enumerate(point.candidates):
            if "p50" in each.percentiles_ms:
                where = [f"{name} {word}" for name, word in zip(others, place_words(point.place, others), strict=True)]
                curve = curves.setdefault(", ".join([_numbered(report, number), *where]), [])
                curve.append((axis_value(point.place, along), each.percentiles_ms["p50"].value))
    if not curves:
        return []
    shown = {name: sorted(curve) for name, curve in list(curves.items())[:MOST_CURVES]}
    left_out = f" The first {MOST_CURVES} of {len(curves)} curves are drawn." if len(curves) > MOST_CURVES else ""
    unit = "pixels of an image" if along == "image-size" else along
    return [
        Figure(
            Curves(series=shown, label=unit),
            alt=f"The median time of a run in milliseconds over {unit}, of {len(shown)} curves",
            caption=f"The median time of a run in milliseconds, both axes logarithmic: a power is a straight line, and "
            f"as steep as its exponent.{left_out}",
        )
    ]


def axis_value(place: Place, axis: str) -> float:
    """Return the value of a point on an axis as a number: of a size of images its pixels.

    >>> axis_value(Place(batch=8, image_size=(480, 640), threads=2), "image-size")
    307200.0
    """
    value = getattr(place, axis.replace("-", "_"))
    return float(math.prod(value) if isinstance(value, tuple) else value)


def _numbered(report: SweepReport, number: int) -> str:
    """Return the name of a candidate, numbered where several have it."""
    names = [each.name for each in report.points[0].candidates]
    return names[number] if names.count(names[number]) == 1 else f"{number + 1}. {names[number]}"


def _title(report: SweepReport) -> str:
    kept = f", {report.kept} of them kept from {report.file}" if report.kept else ""
    return f"{report.subject}: {len(report.points)} points over {', '.join(report.axes)}{kept}"
