"""The result of `precision`: the types in an FP16 graph with their reasons, and the error of each precision."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from netvlad_deploy.report.artifacts import repeat_section
from netvlad_deploy.report.page import Block, Figure, Grid, Page, Paragraph, Section
from netvlad_deploy.report.plots import Dots, draw
from netvlad_deploy.report.text import Table, distance_text, table
from netvlad_deploy.spec.graph_options import OperatorTypes

REASONS: Mapping[str, str] = {
    "MatMul": "both products: columns of L1 norm at most 1, and weights that sum to 1, cannot overflow",
    "Gemm": "projection: rows of L2 norm at most 1 times a vector of length 1 cannot overflow; gating stays FP32",
    "ReduceMax": "softmax: the largest logit of a row, over the clusters",
    "Exp": "softmax: an assignment of 1e-12 is 0 in FP16, though intra-normalisation scales its cluster to norm 1",
    "ReduceSum": "sums of assignments and of squares: FP16 squares overflow above 255 and vanish below 2.4e-4",
    "Sqrt": "both norms, from those sums",
    "Max": "clamps: 1e-12 is 0 in FP16, and an empty cluster would be 0/0",
    "Div": "softmax, weights of the mean, both normalisations",
    "Sub": "softmax, and the residual: next to a centroid it is a small difference of large numbers",
    "Mul": "column scale 2^s, squares of the norms, centroids times the sum of the rounded weights",
    "Sigmoid": "gating",
    "Add": "bias: FP16 logits near 224 are 0.125 apart",
}
"""Reason for the type in which each operator computes, by operator."""

LEAST_DRAWN: Final = 1e-16
"""Least distance on the axis, where all smaller ones stand, too."""

PICTURE_IN: Final = 9.0
"""Width in inches of the picture beside the report."""

PLAIN_HALF: Final = "plain fp16"
"""Name of the precision of `module.half()`."""


@dataclass(frozen=True, kw_only=True)
class CasePrecision:
    """Distance of one precision from the oracle in one case.

    `distance` is the worst 1 - cosine of the finite descriptors, None if there is none or all are near zero;
    `non_finite` counts descriptors with NaN or infinity. `feature_norm` is the largest norm of a local descriptor.
    """

    case: str
    precision: str
    feature_norm: float
    distance: float | None
    non_finite: int


@dataclass(frozen=True, kw_only=True)
class PrecisionReport:
    """The error of each precision for these weights.

    `origin` says in words where the weights come from. The precision `plain fp16` is the layer exported after
    `module.half()`, for comparison. `operators` are those of the FP16 graph.
    """

    origin: str
    precisions: tuple[str, ...]
    operators: tuple[OperatorTypes, ...]
    cases: tuple[CasePrecision, ...]
    warnings: tuple[str, ...]


def precision_table(report: PrecisionReport) -> Table:
    """Return a row for each case: the largest norm of a local descriptor, then 1-cos in each precision."""
    cells: dict[tuple[str, float], list[str]] = {}
    for figure in report.cases:
        cell = f"{figure.non_finite} not finite" if figure.non_finite else distance_text(figure.distance, "near zero")
        cells.setdefault((figure.case, figure.feature_norm), []).append(cell)
    rows = [(case, f"{norm:.3g}", *row) for (case, norm), row in cells.items()]
    return ("worst 1-cos", "feature norm", *report.precisions), rows


def precision_lines(report: PrecisionReport) -> list[str]:
    """Return the lines that `precision` prints: the table of all cases, and the warnings."""
    warnings = [f"warning: {warning}" for warning in report.warnings]
    return [report.origin, *table(*precision_table(report)), *warnings]


def precision_page(report: PrecisionReport, *, picture: str = "", command: str = "") -> Page:
    """Return the page of a comparison; `picture` is the name of the file of the errors, `command` the typed line."""
    types = [
        (row.operator, str(row.half or ""), str(row.single or ""), REASONS.get(row.operator, ""))
        for row in report.operators
    ]
    method = (
        "Strict emulation on a CPU: every tensor is rounded to its type, and matrix products accumulate in FP32. No "
        f"GPU took part. {PLAIN_HALF} is the layer exported after module.half(), for comparison."
    )
    blocks: list[Block] = [
        Figure(
            _dots(report),
            alt=f"Worst 1 - cosine of each case and precision, on a logarithmic scale: {_worst_words(report)}",
            caption="Left is better: a mark is the worst distance of a case from float64.",
            file=picture,
        ),
        Paragraph(method),
        Grid(*precision_table(report)),
    ]
    return Page(
        title=f"Precisions of {report.origin}",
        headline=f"Worst distance from float64, 1 - cosine: {_worst_words(report)}.",
        sections=(
            Section("Cases", (*blocks, *(Paragraph(f"Warning: {warning}.") for warning in report.warnings))),
            Section("The types of the FP16 graph", (Grid(("operator", "FP16", "FP32", "why"), types),)),
            repeat_section((), command=command),
        ),
    )


def _worst_words(report: PrecisionReport) -> str:
    """Return the worst of each precision, and in how many cases it is not finite."""
    said = []
    for precision in report.precisions:
        cases = [case for case in report.cases if case.precision == precision]
        lost = sum(case.non_finite > 0 for case in cases)
        worst = max((case.distance for case in cases if case.distance is not None), default=None)
        said.append(
            f"{precision} " + (f"not finite in {lost} of {len(cases)} cases" if lost else distance_text(worst, "none"))
        )
    return ", ".join(said)


def _dots(report: PrecisionReport) -> Dots:
    cases = tuple(dict.fromkeys(figure.case for figure in report.cases))
    found = {
        (figure.case, figure.precision): math.inf if figure.non_finite else figure.distance for figure in report.cases
    }
    series = {name: tuple(found.get((case, name)) for case in cases) for name in report.precisions}
    return Dots(rows=cases, series=series, label="worst 1 - cosine against float64 (left is better)", least=LEAST_DRAWN)


def draw_precisions(report: PrecisionReport) -> bytes:
    """Return the picture as SVG: a row for each case, a mark for each precision; the same report gives the same bytes.

    Raises: MissingDependencyError without matplotlib.
    """
    return draw(_dots(report), width_in=PICTURE_IN, title=f"Precisions of {report.origin}").encode()
