"""The result of `precision`: the types in an FP16 graph with their reasons, and the error of each precision."""

from collections.abc import Mapping
from dataclasses import dataclass

from netvlad_deploy.parity.precisions import CasePrecision
from netvlad_deploy.report.escape import markdown_text
from netvlad_deploy.report.picture import draw_distances
from netvlad_deploy.report.text import distance_text, markdown_table, table
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


@dataclass(frozen=True, kw_only=True)
class PrecisionReport:
    """The error of each precision for these weights.

    Args:
        origin: where the weights come from, in words.
        precisions: names of the precisions; `plain fp16` is the layer exported after `module.half()`, for comparison.
        operators: number of FP16 and FP32 results of each operator of the FP16 graph.
        cases: the error of each case in each precision.
        warnings: sentences about the weights.
    """

    origin: str
    precisions: tuple[str, ...]
    operators: tuple[OperatorTypes, ...]
    cases: tuple[CasePrecision, ...]
    warnings: tuple[str, ...]


def precision_rows(report: PrecisionReport) -> list[tuple[str, ...]]:
    """Return a row for each case: the largest norm of a local descriptor, then 1-cos in each precision."""
    cells: dict[tuple[str, float], list[str]] = {}
    for figure in report.cases:
        cell = f"{figure.non_finite} not finite" if figure.non_finite else distance_text(figure.distance, "near zero")
        cells.setdefault((figure.case, figure.feature_norm), []).append(cell)
    return [(case, f"{norm:.3g}", *row) for (case, norm), row in cells.items()]


def precision_header(report: PrecisionReport) -> tuple[str, ...]:
    """Return the column names of `precision_rows`."""
    return ("worst 1-cos", "feature norm", *report.precisions)


def precision_lines(report: PrecisionReport) -> list[str]:
    """Return the lines that `precision` prints: the table of all cases, and the warnings."""
    warnings = [f"warning: {warning}" for warning in report.warnings]
    return [report.origin, *table(precision_header(report), precision_rows(report)), *warnings]


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
            *markdown_table(precision_header(report), precision_rows(report)),
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
    """Return the picture as SVG; the same report gives the same bytes.

    Raises: MissingDependencyError without matplotlib.
    """
    return draw_distances(f"Precisions of {report.origin}", report.precisions, report.cases)
