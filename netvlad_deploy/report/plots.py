"""The figures of a report as data, and how matplotlib draws them: a row for each label, the axis from left to right.

A figure is narrow enough for a phone. Its colours are those of PALETTE, which a page exchanges for variables, so that
one drawing serves light and dark.
"""

import io
import itertools
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias, TypeVar

from netvlad_deploy.report.escape import printable
from netvlad_deploy.support.require import require

PALETTE: Final[Mapping[str, tuple[str, str]]] = {
    "paper": ("#ffffff", "#10151b"),
    "card": ("#f5f7f9", "#181f27"),
    "ink": ("#1b2127", "#e7eaee"),
    "pale": ("#56606b", "#a5aeb9"),
    "line": ("#d5dbe1", "#343d48"),
    "pass": ("#17713a", "#56d38a"),
    "fail": ("#b42318", "#ff8f85"),
    "doubt": ("#855600", "#e5b84f"),
    "first": ("#2b63a8", "#7fb5f5"),
    "second": ("#a84e0c", "#f2a56b"),
    "third": ("#6b46b0", "#c3a5f7"),
    "fourth": ("#0d6e6a", "#5fd6cc"),
}
"""Colours by name, on light and on dark paper."""

SERIES: Final = (("first", "o"), ("second", "D"), ("third", "s"), ("fourth", "X"))
"""Colour and marker of each series, by its place."""

WIDTH_IN, ROW_IN, FRAME_IN = 5.0, 0.25, 1.0
"""Inches: the width of a figure, a row of it, and what stands above and below the rows."""

POINTS, LETTER_POINTS = 72, 6.5
"""Points of an inch, and of a letter."""

LONGEST_LABEL: Final = 26
MOST_COLUMNS: Final = 64
"""Most characters of a label, and most columns of a heat map: more are gathered."""

LEAST_HEAT: Final = 1e-4
"""Where the colours of a heat map begin; a ten-thousandth of a tolerance is as good as none."""

OVER: Final = "#ff2d2d"
"""Colour of a cell over the tolerance. A heat map keeps its colours: it is a picture, on light and on dark paper."""

RC: Final[Mapping[str, Any]] = {"svg.fonttype": "none", "font.size": 10.5, "text.parse_math": False}
"""Settings beside matplotlib's defaults: text stays text, and a name may hold a dollar sign."""


@dataclass(frozen=True, kw_only=True)
class Dots:
    """Marks on a logarithmic axis: by series a value for each row, infinity for one that is not finite, or None.

    Values below `least` stand there; `line` is what they are compared with.
    """

    rows: Sequence[str]
    series: Mapping[str, Sequence[float | None]]
    label: str
    least: float = 1e-16
    line: float | None = None


@dataclass(frozen=True, kw_only=True)
class Heat:
    """A coloured cell for each ratio of an error to its tolerance: a row of columns for each label, above 1 in red."""

    rows: Sequence[str]
    ratios: Sequence[Sequence[float]]
    label: str


@dataclass(frozen=True, kw_only=True)
class Intervals:
    """A value with the ends of its interval for each label, on an axis with a line at 1."""

    rows: Sequence[tuple[str, float, float, float]]
    label: str


@dataclass(frozen=True, kw_only=True)
class Boxes:
    """A distribution for each label, as quantiles that are evenly apart, the first 0 % and the last 100 %."""

    rows: Sequence[tuple[str, Sequence[float]]]
    label: str


@dataclass(frozen=True, kw_only=True)
class Curves:
    """Points (x, y) above 0 for each series, joined, on logarithmic axes: a power is a straight line.

    `rows` are none: the figure is as high as that many rows.
    """

    series: Mapping[str, Sequence[tuple[float, float]]]
    label: str
    rows: Sequence[str] = ("",) * 9


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """A drawing that was made elsewhere: an `<svg>` in the light colours of PALETTE."""

    svg: str


Points = TypeVar("Points")
Plot: TypeAlias = Dots | Heat | Intervals | Boxes | Curves | Drawn


def draw(plot: Plot, *, width_in: float = WIDTH_IN, title: str = "") -> str:
    """Return a figure as an SVG document in the light colours; the same figure always gives the same text.

    Raises: MissingDependencyError without matplotlib.
    """
    if isinstance(plot, Drawn):
        return plot.svg
    matplotlib = require("matplotlib", extra="report")
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # text stays text: the reader's font has it
        matplotlib.rcdefaults()  # a `matplotlibrc` in the working folder could make matplotlib run LaTeX, a program
        matplotlib.rcParams.update({**RC, **_colours(), "svg.hashsalt": "netvlad-deploy"})
        lines = len(plot.rows) + (len(plot.series) if isinstance(plot, Dots | Curves) else 0) + bool(title)
        size = width_in, ROW_IN * lines + FRAME_IN
        figure = require("matplotlib.figure", extra="report").Figure(figsize=size, layout="constrained")
        axes = figure.add_subplot()
        _DRAWERS[type(plot)](axes, plot)
        if title:
            axes.set_title(printable(title), loc="left")
        stream = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(stream, format="svg", metadata=nothing, transparent=not title)
    return stream.getvalue()


def inline(svg: str, prefix: str) -> str:
    """Return an SVG document as a part of a page: its ids begin with `prefix`, its colours are the page's variables.

    >>> inline('<?xml version="1.0"?><svg width="9pt" height="9pt"><g id="a" style="fill: #1b2127"/></svg>', "f1")
    '<svg><g id="f1-a" style="fill: var(--ink)"/></svg>'
    """
    svg = svg[svg.index("<svg") :].strip()
    svg = re.sub(r"<style.*?</style>|<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' (?:width|height)="[\d.]+pt"', "", svg, count=2)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}-", svg)
    svg = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font-size: \1", svg)
    names = {light: name for name, (light, _) in PALETTE.items()}
    return re.sub("|".join(names), lambda match: f"var(--{names[match[0]]})", svg)


def _colours() -> dict[str, Any]:
    ink, pale, line = (PALETTE[name][0] for name in ("ink", "pale", "line"))
    return {
        **dict.fromkeys(("text.color", "axes.labelcolor"), ink),
        **dict.fromkeys(("xtick.labelcolor", "ytick.labelcolor"), ink),
        **dict.fromkeys(("xtick.color", "ytick.color"), pale),
        **dict.fromkeys(("axes.edgecolor", "grid.color"), line),
        **dict.fromkeys(("axes.spines.top", "axes.spines.right", "axes.spines.left"), False),
        "grid.linewidth": 0.6,
        "axes.axisbelow": True,
        "ytick.major.size": 0,
        "legend.frameon": False,
    }


def _label_rows(axes: Any, rows: Sequence[str], label: str) -> None:
    """Write the labels, the first at the top, and what the axis shows."""
    axes.set_yticks(range(len(rows)), [_label(row) for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlabel(label)
    axes.grid(axis="x")


def _label(text: str) -> str:
    """Return a text as one line, of a long one its end: names of files differ there."""
    line = printable(text)
    return line if len(line) <= LONGEST_LABEL else "…" + line[1 - LONGEST_LABEL :]


def _painted(series: Mapping[str, Points]) -> Iterator[tuple[tuple[str, Points], tuple[str, str]]]:
    """Yield each series by its name with its colour and marker."""
    looks = itertools.cycle((PALETTE[colour][0], marker) for colour, marker in SERIES)
    return zip(series.items(), looks, strict=False)


def _line_at(axes: Any, place: float) -> None:
    axes.axvline(place, color=PALETTE["fail"][0], lw=1.2, zorder=2)


def _draw_dots(axes: Any, plot: Dots) -> None:
    axes.set_xscale("log")
    values = [value for series in plot.series.values() for value in series if value is not None]
    finite = [max(value, plot.least) for value in values if math.isfinite(value)] + ([plot.line] if plot.line else [])
    low, high = (math.floor(math.log10(min(finite, default=1))), math.ceil(math.log10(max(finite, default=1))))
    high = max(high, low + 1)
    edge = 10.0 ** (high + max(1, (high - low) / 10))
    for (name, series), (colour, marker) in _painted(plot.series):
        marks = [
            (max(value, plot.least) if math.isfinite(value) else edge, row)
            for row, value in enumerate(series)
            if value is not None
        ]
        x, y = [x for x, _ in marks], [y for _, y in marks]
        axes.scatter(x, y, s=30, zorder=3, lw=0, marker=marker, color=colour, label=_label(name), clip_on=False)
    _label_rows(axes, plot.rows, plot.label)
    step = max(1, math.ceil((high - low) / (1.4 * axes.figure.get_figwidth())))
    ticks = [10.0**power for power in range(high, low - 1, -step)]
    names = [f"1e{power}" if power else "1" for power in range(high, low - 1, -step)]
    beyond = any(not math.isfinite(value) for value in values)
    if beyond:
        axes.axvspan(edge / 10**0.4, edge * 10**0.4, color=PALETTE["fail"][0], alpha=0.14, lw=0)
    axes.set_xticks([*ticks, edge] if beyond else ticks, [*names, "NaN"] if beyond else names)
    axes.minorticks_off()
    axes.set_xlim(10.0 ** (low - 0.2), edge * 10**0.4 if beyond else 10.0 ** (high + 0.3))
    if plot.line is not None:
        _line_at(axes, plot.line)
    if len(plot.series) > 1:
        room = axes.figure.get_figwidth() * POINTS
        columns = max(1, int(room / (LETTER_POINTS * max(len(_label(name)) for name in plot.series) + 40)))
        axes.figure.legend(loc="outside upper left", handletextpad=0.2, ncols=columns)


def _draw_heat(axes: Any, plot: Heat) -> None:
    most = max(map(len, plot.ratios))
    gathered = -(-most // MOST_COLUMNS)
    cells = [[max(row[place : place + gathered]) for place in range(0, most, gathered)] for row in plot.ratios]
    colours = require("matplotlib", extra="report").colormaps["viridis"].with_extremes(over=OVER)
    scale = require("matplotlib.colors", extra="report").LogNorm(LEAST_HEAT, 1)
    shown = [[min(max(cell, LEAST_HEAT), 1e9) for cell in row] for row in cells]
    extent = (0, most, len(cells) - 0.5, -0.5)
    image = axes.imshow(shown, cmap=colours, norm=scale, aspect="auto", interpolation="none", extent=extent)
    _label_rows(axes, plot.rows, plot.label + (f", {gathered} in a cell" if gathered > 1 else ""))
    axes.grid(visible=False)
    bar = axes.figure.colorbar(image, ax=axes, extend="max", fraction=0.05, pad=0.02)
    bar.outline.set_visible(False)
    bar.ax.minorticks_off()
    bar.set_ticks([1e-4, 1e-2, 1], labels=["1e-4", "1e-2", "1"])


def _draw_intervals(axes: Any, plot: Intervals) -> None:
    for place, (_, value, low, high) in enumerate(plot.rows):
        paint = PALETTE["first"][0]
        axes.plot([low, high], [place, place], color=paint, lw=2.5, solid_capstyle="butt")
        axes.plot([value], [place], color=paint, marker="s", ms=6.5, mew=0)
    _label_rows(axes, [name for name, *_ in plot.rows], plot.label)
    ends = [1.0, *(end for _, _, low, high in plot.rows for end in (low, high))]
    if max(ends) > 10 * min(ends) > 0:
        _log_scale(axes, min(ends), max(ends))
    else:
        axes.set_xlim(min(ends) - 0.1 * (max(ends) - min(ends) or 1), max(ends) + 0.1 * (max(ends) - min(ends) or 1))
    _line_at(axes, 1)


def _draw_boxes(axes: Any, plot: Boxes) -> None:
    stats = [
        {
            "med": quantile(row, 0.5),
            "q1": quantile(row, 0.25),
            "q3": quantile(row, 0.75),
            "whislo": row[0],
            "whishi": quantile(row, 0.98),
            "fliers": [row[-1]],
        }
        for _, row in plot.rows
    ]
    lines = {"color": PALETTE["pale"][0]}
    axes.bxp(
        stats,
        positions=range(len(stats)),
        orientation="horizontal",
        widths=0.5,
        patch_artist=True,
        boxprops={"facecolor": PALETTE["first"][0], "edgecolor": "none"},
        medianprops={"color": PALETTE["paper"][0], "lw": 2},
        whiskerprops=lines,
        capprops=lines,
        flierprops={"marker": "|", "markeredgecolor": PALETTE["pale"][0]},
    )
    _label_rows(axes, [name for name, _ in plot.rows], plot.label)
    ends = [end for _, row in plot.rows for end in (row[0], row[-1])]
    if max(ends) > 5 * min(ends) > 0:
        _log_scale(axes, min(ends), max(ends))


def _draw_curves(axes: Any, plot: Curves) -> None:
    for (name, points), (colour, marker) in _painted(plot.series):
        x, y = zip(*points, strict=True)
        axes.plot(x, y, color=colour, marker=marker, ms=5.5, mew=0, lw=1.5, label=_label(name))
    places = sorted({x for points in plot.series.values() for x, _ in points})
    times = [y for points in plot.series.values() for _, y in points]
    _log_scale(axes, min(times), max(times), "y")
    _log_scale(axes, places[0], places[-1])
    axes.set_xticks(places, [f"{place:g}" for place in places])
    axes.set_xlabel(plot.label)
    axes.grid()
    if len(plot.series) > 1:
        axes.figure.legend(loc="outside upper left", handletextpad=0.2)


def _log_scale(axes: Any, low: float, high: float, axis: str = "x") -> None:
    """Make an axis logarithmic, with ticks at 1, 2 and 5 of each decade, or at 1 alone where there are many."""
    decades = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    digits = (1, 2, 5) if math.log10(high / low) < 1.7 else (1,)
    ticks = [digit * 10.0**power for power in decades for digit in digits]
    axes.set(**{f"{axis}scale": "log"})
    getattr(axes, f"set_{axis}ticks")(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set(**{f"{axis}lim": (low / 1.3, high * 1.3)})


def quantile(quantiles: Sequence[float], share: float) -> float:
    """Return a quantile of evenly spaced ones, by a straight line between its neighbours.

    >>> quantile((1.0, 2.0, 4.0), 0.75)
    3.0
    """
    place = share * (len(quantiles) - 1)
    below = min(int(place), len(quantiles) - 2)
    return quantiles[below] + (place - below) * (quantiles[below + 1] - quantiles[below])


_DRAWERS: Final[Mapping[type, Any]] = {
    Dots: _draw_dots,
    Heat: _draw_heat,
    Intervals: _draw_intervals,
    Boxes: _draw_boxes,
    Curves: _draw_curves,
}
