"""The result of `precision`: the types in an FP16 graph with their reasons, and the error of each precision."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from netvlad_deploy.report.escape import markdown_text, printable
from netvlad_deploy.report.text import Table, distance_text, markdown_table, table
from netvlad_deploy.spec.graph_options import OperatorTypes
from netvlad_deploy.support.require import require

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

LEAST_DRAWN, NOT_FINITE_AT = 1e-16, 100.0
"""Places on the axis: the least one, where all smaller distances stand too, and that of a result that is not finite."""

STYLES: Mapping[str, tuple[str, str]] = {
    "fp32": ("o", "#4477aa"),
    "fp16": ("D", "#228833"),
    "fp16-wide-logits": ("s", "#ccbb44"),
    "plain fp16": ("X", "#ee6677"),
}
"""Marker and colour of each precision in the picture."""

SETTINGS: Final[Mapping[str, Any]] = {
    "svg.hashsalt": "netvlad-deploy",
    "svg.fonttype": "none",
    "font.size": 9,
    "text.parse_math": False,
}
"""Settings beside matplotlib's defaults: fixed ids and no math text, so that equal figures give equal bytes and a name
may hold a dollar sign."""


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


def precision_markdown(report: PrecisionReport, picture: str) -> str:
    """Return the report page in Markdown; `picture` is the name of the image file of the errors."""
    types = [
        (row.operator, str(row.half or ""), str(row.single or ""), REASONS.get(row.operator, ""))
        for row in report.operators
    ]
    return "\n".join(
        [
            f"# Precisions of {markdown_text(report.origin)}",
            "",
            f"![Worst 1 - cosine of each case and precision, on a logarithmic scale]({picture})",
            "",
            "Strict emulation on a CPU: every tensor is rounded to its type, and matrix products accumulate in FP32.",
            "No GPU took part. `plain fp16` is the layer exported after `module.half()`, for comparison.",
            "",
            *markdown_table(*precision_table(report)),
            "",
            *(f"Warning: {markdown_text(warning)}." for warning in report.warnings),
            "",
            "## The types of the FP16 graph",
            "",
            *markdown_table(("operator", "FP16", "FP32", "why"), types),
            "",
        ]
    )


def draw_precisions(report: PrecisionReport) -> bytes:
    """Return the picture as SVG: a row for each case, a mark for each precision; the same report gives the same bytes.

    Raises: MissingDependencyError without matplotlib.
    """
    cases = list(dict.fromkeys(figure.case for figure in report.cases))
    matplotlib = require("matplotlib", extra="report")
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # a `matplotlibrc` in the working folder could make matplotlib run LaTeX, a program
        matplotlib.rcParams.update(SETTINGS)
        figure = require("matplotlib.figure", extra="report").Figure(
            figsize=(9, 0.32 * len(cases) + 1.6), layout="constrained"
        )
        axes = figure.add_subplot()
        for precision in report.precisions:
            _draw_marks(axes, [each for each in report.cases if each.precision == precision], cases, precision)
        _draw_scale(axes, cases)
        axes.set_title(printable(f"Precisions of {report.origin}"), loc="left")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=len(report.precisions), frameon=False)
        stream = io.BytesIO()
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    return stream.getvalue()


def _draw_scale(axes: Any, cases: Sequence[str]) -> None:
    axes.set_xscale("log")
    axes.set_xlim(LEAST_DRAWN / 3, NOT_FINITE_AT * 5)
    axes.set_xticks([*(10.0**power for power in range(-16, 1, 2)), NOT_FINITE_AT])
    axes.set_xticklabels([*(f"1e{power}" for power in range(-16, 1, 2)), "NaN"])
    axes.axvspan(NOT_FINITE_AT / 4, NOT_FINITE_AT * 5, color="#ee6677", alpha=0.12, lw=0)
    axes.set_yticks(range(len(cases)), cases)
    axes.invert_yaxis()
    axes.grid(axis="both", color="#dddddd", lw=0.6)
    axes.set_axisbelow(True)
    axes.set_xlabel("worst 1 - cosine against float64 (left is better)")


def _draw_marks(axes: Any, figures: Sequence[CasePrecision], cases: Sequence[str], precision: str) -> None:
    marks = [
        (NOT_FINITE_AT if each.non_finite else max(LEAST_DRAWN, each.distance or 0), cases.index(each.case))
        for each in figures
        if each.non_finite or each.distance is not None
    ]
    marker, colour = STYLES[precision]
    x, y = [x for x, _ in marks], [y for _, y in marks]
    axes.scatter(x, y, s=34, zorder=3, linewidths=0, marker=marker, color=colour, label=precision)
