"""The picture of a precision report: a row for each case, a mark for each precision."""

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

from netvlad_deploy.parity.precisions import CasePrecision
from netvlad_deploy.report.escape import printable
from netvlad_deploy.support.require import require

LEAST_DRAWN, NOT_FINITE_AT = 1e-16, 100.0
"""Places on the axis: of all distances up to the first, zero included, and of a result that is not finite."""

COLOURS: Mapping[str, str] = {
    "fp32": "#4477aa",
    "fp16": "#228833",
    "fp16-wide-logits": "#ccbb44",
    "plain fp16": "#ee6677",
}
MARKERS: Mapping[str, str] = {"fp32": "o", "fp16": "D", "fp16-wide-logits": "s", "plain fp16": "X"}

SETTINGS: Final[Mapping[str, Any]] = {
    "svg.hashsalt": "netvlad-deploy",
    "svg.fonttype": "none",
    "font.size": 9,
    "text.parse_math": False,
}
"""Settings beside matplotlib's defaults: fixed ids and no math text, so that equal figures give equal bytes and a name
may hold a dollar sign."""


def draw_distances(title: str, precisions: Sequence[str], figures: Sequence[CasePrecision]) -> bytes:
    """Return the picture as SVG; a case that is near zero in the oracle has no mark.

    Raises: MissingDependencyError without matplotlib.
    """
    cases = list(dict.fromkeys(figure.case for figure in figures))
    with _own_settings():
        figure = require("matplotlib.figure", extra="report").Figure(
            figsize=(9, 0.32 * len(cases) + 1.6), layout="constrained"
        )
        axes = figure.add_subplot()
        for precision in precisions:
            _draw_marks(axes, [each for each in figures if each.precision == precision], cases, precision)
        _draw_scale(axes, cases)
        axes.set_title(printable(title), loc="left")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=len(precisions), frameon=False)
        stream = io.BytesIO()
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    return stream.getvalue()


@contextmanager
def _own_settings() -> Iterator[None]:
    """Draw with SETTINGS only: a `matplotlibrc` in the working folder could make matplotlib run LaTeX, a program."""
    matplotlib = require("matplotlib", extra="report")
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(SETTINGS)
        yield


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
    style = {"marker": MARKERS[precision], "color": COLOURS[precision], "label": precision}
    axes.scatter([x for x, _ in marks], [y for _, y in marks], s=34, zorder=3, linewidths=0, **style)
