"""The look of figures: style, colours, axes, marks, legends. It does not own what a figure shows (``figures``).

Rules kept by every figure: measured jobs are drawn as raw points (hollow when oversubscribed), predictions as a dashed
line with open diamonds and the word "predicted", no error bars below six jobs, colours that colour-blind readers tell
apart (Okabe and Ito, 2008), axes with units, lines only over an ordered numeric axis and never across a missing value.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from reports.points import Point

MEASURED_COLOUR = "#0072B2"
PREDICTED_COLOUR = "#D55E00"
PUBLISHED_COLOUR = "#009E73"
BOUND_COLOUR = "#7a3e9d"
IDEAL_COLOUR = "#8a8f98"
TEXT_COLOUR = "#22262e"
SOFT_COLOUR = "#5b616b"
PHASE_COLOURS = {
    "data": "#8a8f98", "FE": "#56B4E9", "FF": "#0072B2", "BF_BE": "#E69F00", "sync": "#D55E00",
    "optimizer": "#009E73", "other": "#d9dce1",
}  # fmt: skip
CAUSE_COLOURS = {  # computing blue, data grey, communication orange: in the order in which they are stacked
    "products": "#0072B2", "grouped products": "#00507d", "operators": "#56B4E9", "plain traffic": "#8ecdf0",
    "fresh memory": "#b9e2f7", "launches": "#2f8f9d", "batch": "#6d7279", "packing": "#8a8f98", "planning": "#a6abb3",
    "loader": "#c3c7cd", "memory tiers": "#b8a000", "gathers": "#a84300", "scatters": "#D55E00", "halos": "#E69F00",
    "exchanges": "#f2b84b", "group sums": "#e07b2f", "gradient sums": "#f08d57", "small sums": "#ffd28a",
    "wait": "#CC79A7", "optimizer": "#009E73", "outside": "#d9dce1",
}  # fmt: skip
OTHERS_COLOUR = "#7a3e9d"
STYLE: dict[Any, Any] = {
    "font.family": "sans-serif", "font.size": 10.5, "axes.titlesize": 11.5, "axes.labelsize": 10.5,
    "xtick.labelsize": 10, "ytick.labelsize": 10, "legend.fontsize": 9.5, "legend.frameon": False,
    "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": "#b6bac2", "axes.linewidth": 0.8,
    "axes.labelcolor": TEXT_COLOUR, "text.color": TEXT_COLOUR, "xtick.color": SOFT_COLOUR, "ytick.color": SOFT_COLOUR,
    "axes.grid": True, "grid.color": "#eceef1", "grid.linewidth": 0.8, "axes.axisbelow": True,
    "svg.fonttype": "none", "hatch.linewidth": 0.6,
}  # fmt: skip
SIZE = (5.6, 3.7)  # inches: about 540 pixels wide, readable at phone width
PREDICTED_LINE: dict[str, Any] = {
    "color": PREDICTED_COLOUR, "linestyle": (0, (4, 2)), "linewidth": 1.4, "marker": "D", "markersize": 5,
    "markerfacecolor": "white", "markeredgecolor": PREDICTED_COLOUR, "zorder": 3,
}  # fmt: skip
MEASURED_MARK: dict[str, Any] = {"linestyle": "none", "marker": "o", "markersize": 6, "color": MEASURED_COLOUR}
BOUND_LINE: dict[str, Any] = {"color": BOUND_COLOUR, "linestyle": (0, (1, 1.6)), "linewidth": 1.6, "zorder": 2.5}
INTERVAL_LINE: dict[str, Any] = {
    "color": MEASURED_COLOUR, "linewidth": 1.4, "marker": "_", "markersize": 7, "markeredgewidth": 1.4, "zorder": 3,
}  # fmt: skip
IDEAL_LINE: dict[str, Any] = {"color": IDEAL_COLOUR, "linewidth": 1.2, "zorder": 2}
MOST_LABELS = 6  # on one axis


def new_axes(size: tuple[float, float] = SIZE) -> tuple[Figure, Axes]:
    """An empty figure with one pair of axes; call it, and draw, inside ``rc_context(STYLE)``."""
    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.add_subplot()


def spread_labels(values: Sequence[float], most: int = MOST_LABELS) -> list[float]:
    """At most ``most`` of ascending values, both ends among them, so far apart that their labels do not touch."""
    if len(values) <= most and values[-1] < 1000:
        return list(values)
    least = (values[-1] / values[0]) ** (1 / most)
    chosen: list[float] = []
    for value in reversed(values):
        if not chosen or chosen[-1] / value >= least:
            chosen.append(value)
    if chosen[-1] != values[0]:
        chosen[-1 if len(chosen) > 1 else len(chosen) :] = [values[0]]
    return chosen[::-1]


def scaled_axis(axes: Axes, values: Sequence[float], label: str) -> None:
    """The x axis of a study: logarithmic of base 2, a tick at each point (of many points, at some)."""
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(spread_labels(sorted(values))))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.set_xlabel(label)
    margin = 1.35 * (max(values) / min(values)) ** 0.03
    axes.set_xlim(min(values) / margin, max(values) * margin)


def plain_log_axis(axis: Any, low: float, high: float) -> None:
    """Ticks at 1, 2 and 5 times powers of ten within two bounds (powers alone over many), as plain numbers."""
    factors = (1, 2, 5) if math.log10(high / low) < 3 else (1,)
    ticks = [factor * 10.0**power for power in range(-12, 19) for factor in factors]
    axis.set_major_locator(FixedLocator([tick for tick in ticks if low <= tick <= high]))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1e4 else f"{value:g}"))


def spread_places(x: float, number: int) -> list[float]:
    """So many places around one x of a logarithmic axis, one for each of several jobs."""
    width, middle = min(0.045, 0.36 / max(1, number)), (number - 1) / 2
    return [x * 2 ** (width * (place - middle)) for place in range(number)]


def draw_jobs(
    axes: Axes, x: float, values: Sequence[float], *, hollow: bool, points: int = 4, colour: str = MEASURED_COLOUR
) -> None:
    """Raw measured values at one x of a logarithmic axis, spread sideways a little so that equal ones stay visible.

    points: how many points the axis has; with more of them marks are smaller and closer.
    """
    size = 6.0 if len(values) <= 8 and points <= 8 else 4.5
    axes.plot(
        spread_places(x, len(values)), list(values), linestyle="none", marker="o", markersize=size, color=colour,
        markerfacecolor="white" if hollow else colour, markeredgewidth=1.2, zorder=4,
    )  # fmt: skip


def draw_interval(axes: Axes, x: float, low: float | None, high: float | None) -> None:
    """The confidence interval of a median beside its jobs; nothing where none exists (below six jobs)."""
    if low is not None and high is not None:
        place = x * 2**-0.24
        axes.plot([place, place], [low, high], **INTERVAL_LINE)


def draw_line(axes: Axes, pairs: Sequence[tuple[float, float | None]], style: dict[str, Any]) -> bool:
    """A line through (x, value) with a gap at each missing value. Returns whether there was any value."""
    if all(value is None for _, value in pairs):
        return False
    values = [math.nan if value is None else value for _, value in pairs]
    axes.plot([x for x, _ in pairs], values, **style)
    return True


def measured_key(points: Sequence[Point]) -> list[Line2D]:
    """Legend entries for the kinds of measured points that occur."""
    entries = []
    if any(point.jobs and not point.oversubscribed for point in points):
        entries.append(Line2D([], [], label="measured, each job", **MEASURED_MARK))
    if any(point.jobs and point.oversubscribed for point in points):
        label = "measured, oversubscribed"
        entries.append(Line2D([], [], label=label, markerfacecolor="white", markeredgewidth=1.3, **MEASURED_MARK))
    return entries


def interval_key() -> Line2D:
    return Line2D([], [], label="95 % interval", **INTERVAL_LINE)


def predicted_key() -> Line2D:
    return Line2D([], [], label="predicted", **PREDICTED_LINE)


def ideal_key() -> Line2D:
    return Line2D([], [], label="ideal", **IDEAL_LINE)


def bound_key() -> Line2D:
    return Line2D([], [], label="bound: no communication", **BOUND_LINE)


def legend(figure: Figure, handles: Sequence[Any], columns: int = 2) -> None:
    """A legend above the data area, so that it never covers a point nor squeezes the axes."""
    if handles:
        figure.legend(
            handles=list(handles), loc="outside upper left", ncols=columns, handlelength=1.8, columnspacing=1.6,
            handletextpad=0.5,
        )  # fmt: skip
