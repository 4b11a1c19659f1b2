"""The figures of a report, drawn with matplotlib. It owns their look, not the numbers nor the page around them.

Rules kept by every figure: measured jobs are drawn as raw points (hollow when oversubscribed), predictions as a dashed
line with open diamonds and the word "predicted", no error bars below six jobs, colours that colour-blind readers tell
apart (Okabe and Ito, 2008), axes with units.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any

import matplotlib
import matplotlib.lines
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from reports.points import PHASE_NAMES, PHASE_ORDER, Point, StudyView, paired
from reports.published import PublishedRun
from reports.wording import count_of

MEASURED_COLOUR = "#0072B2"
PREDICTED_COLOUR = "#D55E00"
PUBLISHED_COLOUR = "#009E73"
IDEAL_COLOUR = "#8a8f98"
TEXT_COLOUR = "#22262e"
PHASE_COLOURS = {
    "data": "#8a8f98", "FE": "#56B4E9", "FF": "#0072B2", "BF_BE": "#E69F00", "sync": "#D55E00",
    "optimizer": "#009E73", "other": "#d9dce1",
}  # fmt: skip
STYLE: dict[Any, Any] = {
    "font.family": "sans-serif", "font.size": 10.5, "axes.titlesize": 11.5, "axes.labelsize": 10.5,
    "xtick.labelsize": 10, "ytick.labelsize": 10, "legend.fontsize": 9.5, "legend.frameon": False,
    "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": "#b6bac2", "axes.linewidth": 0.8,
    "axes.labelcolor": TEXT_COLOUR, "text.color": TEXT_COLOUR, "xtick.color": "#5b616b", "ytick.color": "#5b616b",
    "axes.grid": True, "grid.color": "#eceef1", "grid.linewidth": 0.8, "axes.axisbelow": True,
    "svg.fonttype": "none", "hatch.linewidth": 0.6,
}  # fmt: skip
SIZE = (5.6, 3.7)  # inches: about 540 pixels wide, readable at phone width
PREDICTED_LINE: dict[str, Any] = {
    "color": PREDICTED_COLOUR, "linestyle": (0, (4, 2)), "linewidth": 1.4, "marker": "D", "markersize": 5,
    "markerfacecolor": "white", "markeredgecolor": PREDICTED_COLOUR, "zorder": 3,
}  # fmt: skip


def to_svg(figure: Figure, name: str) -> str:
    """The figure as an ``<svg>`` element for use inside a page: text as text, identifiers unique to ``name``."""
    stream = io.StringIO()
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'href="#', f'href="#{name}-', text)
    text = re.sub(r"url\(#", f"url(#{name}-", text)
    return re.sub(r"font: ([0-9.]+)px 'DejaVu Sans'[^;\"]*", r"font: \1px var(--sans)", text)


def _new_axes(size: tuple[float, float] = SIZE) -> tuple[Figure, Axes]:
    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.add_subplot()


def _ranks_axis(axes: Axes, ranks: Sequence[int], label: str = "ranks") -> None:
    """A logarithmic axis of base 2 with a tick at each given count."""
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator([float(count) for count in ranks]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.set_xlabel(label)
    axes.set_xlim(min(ranks) / 1.35, max(ranks) * 1.35)


def plain_log_axis(axis: Any, low: float, high: float) -> None:
    """Ticks at 1, 2 and 5 times powers of ten within two bounds, written as plain numbers."""
    ticks = [factor * 10.0**power for power in range(-9, 10) for factor in (1, 2, 5)]
    axis.set_major_locator(FixedLocator([tick for tick in ticks if low <= tick <= high]))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _draw_jobs(axes: Axes, x: float, values: Sequence[float], hollow: bool) -> None:
    """Raw measured values at one x, spread sideways a little so that equal ones stay visible."""
    middle = (len(values) - 1) / 2
    places = [x * 2 ** (0.045 * (number - middle)) for number in range(len(values))]
    axes.plot(
        places, list(values), linestyle="none", marker="o", markersize=6, color=MEASURED_COLOUR,
        markerfacecolor="white" if hollow else MEASURED_COLOUR, markeredgewidth=1.3, zorder=4,
    )  # fmt: skip


def _draw_interval(axes: Axes, x: float, low: float | None, high: float | None) -> None:
    """The confidence interval of a median; nothing where none exists (below six jobs)."""
    if low is not None and high is not None:
        axes.plot([x, x], [low, high], color=MEASURED_COLOUR, linewidth=1.6, solid_capstyle="butt", zorder=3)


def _measured_key(points: Sequence[Point]) -> list[Any]:
    """Legend entries for the kinds of measured points that occur."""
    style: dict[str, Any] = {"linestyle": "none", "marker": "o", "markersize": 6, "color": MEASURED_COLOUR}
    entries = []
    if any(point.jobs and not point.oversubscribed for point in points):
        entries.append(matplotlib.lines.Line2D([], [], label="measured, each job", **style))
    if any(point.jobs and point.oversubscribed for point in points):
        entries.append(
            matplotlib.lines.Line2D(
                [], [], label="measured, oversubscribed", markerfacecolor="white", markeredgewidth=1.3, **style
            )
        )
    return entries


def _predicted_key() -> Any:
    return matplotlib.lines.Line2D([], [], label="predicted", **PREDICTED_LINE)


def _ideal_key() -> Any:
    return matplotlib.lines.Line2D([], [], color=IDEAL_COLOUR, linewidth=1.2, label="ideal")


def _legend(axes: Axes, handles: Sequence[Any]) -> None:
    """A legend above the data area in rows of two, so that it never covers a point nor squeezes the axes."""
    figure = axes.get_figure()
    assert isinstance(figure, Figure), f"axes belong to {figure!r}"
    figure.legend(
        handles=list(handles), loc="outside upper left", ncols=2, handlelength=1.8, columnspacing=1.6,
        handletextpad=0.5,
    )  # fmt: skip


def efficiency_figure(view: StudyView) -> Figure:
    """Parallel efficiency of one study: jobs as points, prediction dashed, ideal as a line at 100 %."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _new_axes()
        axes.axhline(100, color=IDEAL_COLOUR, linewidth=1.2, zorder=2)
        tops = [100.0]
        for point in view.points:
            values = [100 * (view.efficiency_measured(point, value) or 0) for value in point.job_values_s]
            if view.efficiency_measured(point) is not None and values:
                _draw_jobs(axes, point.ranks, values, point.oversubscribed)
                tops += values
        line = [(point.ranks, view.efficiency_predicted(point)) for point in view.points]
        drawn = [(ranks, 100 * value) for ranks, value in line if value is not None]
        axes.plot([ranks for ranks, _ in drawn], [value for _, value in drawn], **PREDICTED_LINE)
        tops += [value for _, value in drawn]
        _ranks_axis(axes, [point.ranks for point in view.points])
        axes.set_ylim(0, 1.08 * max(tops))
        axes.set_ylabel(f"{view.mode} efficiency, %")
        _legend(axes, [*_measured_key(view.points), _predicted_key(), _ideal_key()])
        return figure


def step_time_figure(view: StudyView) -> Figure:
    """Step time against ranks, both logarithmic: jobs as points, prediction dashed, ideal from the base point."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _new_axes()
        for point in view.points:
            if point.measured is not None:
                _draw_jobs(axes, point.ranks, point.job_values_s, point.oversubscribed)
                _draw_interval(axes, point.ranks, point.measured.low, point.measured.high)
        times = [(point.ranks, point.predicted_s) for point in view.points]
        drawn = [(ranks, value) for ranks, value in times if value is not None]
        axes.plot([ranks for ranks, _ in drawn], [value for _, value in drawn], **PREDICTED_LINE)
        base_s = view.base.measured.median if view.base is not None and view.base.measured is not None else None
        counts = [point.ranks for point in view.points]
        handles = [*_measured_key(view.points), _predicted_key()]
        if base_s is not None:
            ideal = [base_s * (view.base_ranks / count if view.mode == "strong" else 1) for count in counts]
            axes.plot(counts, ideal, color=IDEAL_COLOUR, linewidth=1.2, zorder=2)
            handles.append(_ideal_key())
        _ranks_axis(axes, counts)
        if view.mode == "strong":
            axes.set_yscale("log")
            plain_log_axis(axes.yaxis, *axes.get_ylim())
        else:
            shown = [value for point in view.points for value in (*point.job_values_s, point.predicted_s or 0)]
            axes.set_ylim(0, 1.08 * max(shown, default=1))
        axes.set_ylabel("time of one step, s")
        _legend(axes, handles)
        return figure


def breakdown_figure(view: StudyView) -> Figure:
    """Where a step's time goes: stacked phases, the measured bar above the predicted (hatched) one of each point."""
    rows: list[tuple[str, dict[str, float], bool]] = []
    for point in view.points:
        mark = " *" if point.oversubscribed else ""
        ranks = f"{count_of(point.ranks, 'rank')}{mark}"
        if point.phases_measured():
            rows.append((f"{ranks}, measured", point.phases_measured(), False))
        if point.phases_predicted():
            rows.append((f"{ranks}, predicted", point.phases_predicted(), True))
    with matplotlib.rc_context(STYLE):
        figure, axes = _new_axes((SIZE[0], 1.25 + 0.36 * max(len(rows), 2)))
        place, places = 0.0, []
        for number, (_, phases, is_prediction) in enumerate(rows):
            place += 0.0 if number == 0 else (0.82 if is_prediction else 1.15)
            places.append(place)
            left = 0.0
            for phase in PHASE_ORDER:
                axes.barh(
                    place, phases.get(phase, 0.0), left=left, height=0.68, color=PHASE_COLOURS[phase],
                    hatch="////" if is_prediction else None, edgecolor="white", linewidth=0.5,
                )  # fmt: skip
                left += phases.get(phase, 0.0)
        axes.set_yticks(places, [label for label, _, _ in rows])
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("seconds of one step (hatched: predicted)")
        shown = [phase for phase in PHASE_ORDER if any(phases.get(phase, 0) > 0 for _, phases, _ in rows)]
        handles = [Patch(color=PHASE_COLOURS[phase], label=PHASE_NAMES[phase]) for phase in shown]
        figure.legend(handles=handles, loc="outside upper left", ncols=3, handlelength=1.0, columnspacing=1.2)
        return figure


def scatter_figure(views: Sequence[StudyView]) -> Figure:
    """Predicted against measured step time of every point, with the diagonal of a perfect prediction."""
    points = paired(views)
    with matplotlib.rc_context(STYLE):
        figure, axes = _new_axes((SIZE[0], 4.6))
        values = [value for point in points for value in (*point.job_values_s, point.predicted_s or 0)]
        low, high = min(values) / 1.4, max(values) * 1.4
        axes.fill_between([low, high], [0.8 * low, 0.8 * high], [1.2 * low, 1.2 * high], color="#eef1f5", zorder=1)
        axes.plot([low, high], [low, high], color=IDEAL_COLOUR, linewidth=1.2, zorder=2)
        markers = dict(zip(dict.fromkeys(point.study for point in points), ("o", "s", "^", "v", "P"), strict=False))
        for point in points:
            axes.plot(
                list(point.job_values_s), [point.predicted_s or 0.0] * len(point.jobs), linestyle="none",
                marker=markers.get(point.study, "X"), markersize=6.5, color=MEASURED_COLOUR, markeredgewidth=1.3,
                markerfacecolor="white" if point.oversubscribed else MEASURED_COLOUR, zorder=4,
            )  # fmt: skip
            axes.annotate(
                f"{point.ranks}", (max(point.job_values_s), point.predicted_s or 0), xytext=(7, -4),
                textcoords="offset points", fontsize=9, color="#5b616b",
            )  # fmt: skip
        for set_scale in (axes.set_xscale, axes.set_yscale):
            set_scale("log")
        for axis in (axes.xaxis, axes.yaxis):
            plain_log_axis(axis, low, high)
        axes.set_xlim(low, high)
        axes.set_ylim(low, high)
        axes.set_aspect("equal")
        axes.set_xlabel("measured time of one step, s (each job)")
        axes.set_ylabel("predicted time of one step, s")
        handles: list[Any] = [
            matplotlib.lines.Line2D([], [], linestyle="none", marker=marker, color=MEASURED_COLOUR, label=study)
            for study, marker in markers.items()
        ]
        handles.append(matplotlib.lines.Line2D([], [], color=IDEAL_COLOUR, linewidth=1.2, label="equal"))
        handles.append(Patch(color="#e3e7ed", label="within 20 %"))
        _legend(axes, handles)
        return figure


def _spread(counts: Sequence[int], most: int = 6) -> list[int]:
    """At most ``most`` of ascending counts, the last among them, so far apart that their labels do not touch."""
    least = (counts[-1] / counts[0]) ** (1 / most)
    chosen: list[int] = []
    for count in reversed(counts):
        if not chosen or chosen[-1] / count >= least:
            chosen.append(count)
    return chosen[::-1]


def continuation_figure(view: StudyView, published: PublishedRun | None) -> Figure:
    """Predicted weak or strong efficiency up to a full machine, the published value as a star."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _new_axes()
        axes.axhline(100, color=IDEAL_COLOUR, linewidth=1.2, zorder=2)
        line = [(point.ranks, view.efficiency_predicted(point)) for point in view.points]
        drawn = [(ranks, 100 * value) for ranks, value in line if value is not None]
        axes.plot([ranks for ranks, _ in drawn], [value for _, value in drawn], **PREDICTED_LINE)
        handles = [_predicted_key(), _ideal_key()]
        lows = [value for _, value in drawn]
        counts = [ranks for ranks, _ in drawn]
        if published is not None:
            star: dict[str, Any] = {"linestyle": "none", "marker": "*", "markersize": 13, "color": PUBLISHED_COLOUR}
            full = max(counts)
            axes.plot([full], [published.efficiency_percent(view.mode)], zorder=5, **star)
            handles.insert(1, matplotlib.lines.Line2D([], [], label="published", **star))
            lows.append(published.efficiency_percent(view.mode))
        _ranks_axis(axes, _spread(counts))
        axes.set_xlim(min(counts) / 1.5, max(counts) * 1.5)
        axes.set_ylim(max(0.0, 10 * ((min(lows) - 10) // 10)), 104)
        axes.set_ylabel(f"{view.mode} efficiency, %")
        _legend(axes, handles)
        return figure
