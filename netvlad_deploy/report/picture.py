"""The picture of a precision report, written as SVG: a row for each case, a mark for each precision.

No drawing library takes part, so none has to be installed, and no settings of the machine have a say.
"""

import math
from collections.abc import Iterator, Mapping
from html import escape
from typing import Final

from netvlad_deploy.measurement.precision import CasePrecision
from netvlad_deploy.report.escape import printable

LIMIT, NOT_FINITE = 1e-16, 100.0
"""Where a distance of zero stands, and NaN."""

LEAST, MOST = LIMIT / 3, NOT_FINITE * 5
"""The ends of the scale."""

PLOT: Final = 620
ROW: Final = 22
TITLE: Final = 44
FOOT: Final = 76
LETTER: Final = 6.4
"""Lengths in pixels: of the scale, of a row, above and below them, and the usual width of a letter."""

SIZE: Final = 4.5
"""Half the width of a mark, in pixels."""

COLOURS: Mapping[str, str] = {
    "fp32": "#4477aa",
    "fp16": "#228833",
    "fp16-wide-logits": "#ccbb44",
    "plain fp16": "#ee6677",
}
SHAPES: Mapping[str, str] = {
    "fp32": "M-1,0A1,1 0 1 0 1,0A1,1 0 1 0 -1,0Z",
    "fp16": "M0,-1.2L1.2,0L0,1.2L-1.2,0Z",
    "fp16-wide-logits": "M-0.9,-0.9H0.9V0.9H-0.9Z",
    "plain fp16": "M0,-0.5L0.6,-1.1L1.1,-0.6L0.5,0L1.1,0.6L0.6,1.1L0,0.5L-0.6,1.1L-1.1,0.6L-0.5,0L-1.1,-0.6L-0.6,-1.1Z",
}


def draw_distances(title: str, precisions: tuple[str, ...], figures: tuple[CasePrecision, ...]) -> str:
    """Return the picture; what is near zero in the oracle has no mark. The same figures give the same text."""
    cases = list(dict.fromkeys(figure.case for figure in figures))
    left = round(LETTER * max(map(len, cases), default=0)) + 24
    width, height = left + PLOT + 16, TITLE + ROW * len(cases) + FOOT
    places = {case: TITLE + ROW * number + ROW // 2 for number, case in enumerate(cases)}
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="12" fill="#222222">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        _text(left, 24, title, size=15),
        *_grid(left, places),
        *_marks(left, places, precisions, figures),
        *_legend(left, height, precisions),
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def _place(left: int, value: float) -> float:
    """Return how far right a distance stands."""
    return left + PLOT * math.log(value / LEAST) / math.log(MOST / LEAST)


def _grid(left: int, places: Mapping[str, int]) -> Iterator[str]:
    """Yield the scale and the names of the cases, and pale red behind what is not finite."""
    bottom = TITLE + ROW * len(places)
    start = _place(left, NOT_FINITE / 4)
    yield (
        f'<rect x="{start:.1f}" y="{TITLE}" width="{left + PLOT - start:.1f}" height="{bottom - TITLE}" '
        'fill="#ee6677" fill-opacity="0.12"/>'
    )
    ticks = [*((10.0**power, f"1e{power}") for power in range(-16, 1, 2)), (NOT_FINITE, "NaN")]
    for value, label in ticks:
        x = _place(left, value)
        yield f'<path d="M{x:.1f},{TITLE}V{bottom}" stroke="#dddddd"/>'
        yield _text(x, bottom + 18, label, anchor="middle")
    yield _text(left + PLOT / 2, bottom + 38, "worst 1 - cosine against float64 (left is better)", anchor="middle")
    for case, y in places.items():
        yield f'<path d="M{left},{y}H{left + PLOT}" stroke="#dddddd"/>'
        yield _text(left - 8, y + 4, case, anchor="end")
    yield f'<rect x="{left}" y="{TITLE}" width="{PLOT}" height="{bottom - TITLE}" fill="none" stroke="#222222"/>'


def _marks(
    left: int, places: Mapping[str, int], precisions: tuple[str, ...], figures: tuple[CasePrecision, ...]
) -> Iterator[str]:
    for precision in precisions:
        for figure in figures:
            if figure.precision == precision and (figure.non_finite or figure.distance is not None):
                value = NOT_FINITE if figure.non_finite else max(LIMIT, figure.distance or 0)
                yield _mark(_place(left, value), places[figure.case], precision)


def _legend(left: int, height: int, precisions: tuple[str, ...]) -> Iterator[str]:
    x = float(left)
    for precision in precisions:
        yield _mark(x + SIZE, height - 16, precision)
        yield _text(x + 16, height - 12, precision)
        x += LETTER * len(precision) + 48


def _mark(x: float, y: float, precision: str) -> str:
    return (
        f'<path d="{SHAPES[precision]}" transform="translate({x:.1f},{y:.1f}) scale({SIZE})" '
        f'fill="{COLOURS[precision]}"/>'
    )


def _text(x: float, y: float, text: str, *, anchor: str = "start", size: int = 12) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}">{escape(printable(text))}</text>'
