"""The figures of the scaling sections, each with its numbers. It owns what they show, not their look (``drawing``).

Each function gives a finished ``Picture`` whose data holds every number that is drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from reports import values
from reports.document import Column, Picture, Table, Value
from reports.drawing import (
    BOUND_LINE,
    CAUSE_COLOURS,
    IDEAL_COLOUR,
    IDEAL_LINE,
    MEASURED_COLOUR,
    OTHERS_COLOUR,
    PHASE_COLOURS,
    PREDICTED_LINE,
    SIZE,
    SOFT_COLOUR,
    STYLE,
    bound_key,
    draw_interval,
    draw_jobs,
    draw_line,
    ideal_key,
    interval_key,
    legend,
    measured_key,
    new_axes,
    plain_log_axis,
    predicted_key,
    scaled_axis,
)
from reports.points import CAUSE_NAMES, PHASE_NAMES, PHASE_ORDER, Point, StudyView, paired
from reports.samples import differs_in_work
from reports.wording import base_place, place, scaled_name, seconds

MOST_CAUSES = 9  # drawn one by one, the rest as one
OTHERS = "others"
LEAST_LOG_RANGE = 4.0  # a throughput or weak figure whose values span more has a logarithmic axis

Pairs = list[tuple[float, float | None]]


def series_table(name: str, view: StudyView, quantity: Column, rows: Sequence[tuple[Value | str, ...]]) -> Table:
    """Numbers of a figure over what a study scales: series, x, attempt, value and the ends of its interval."""
    columns = (
        Column(name="series"), Column(name=scaled_name(view), numeric=True, csv_name=view.scaled),
        Column(name="attempt", numeric=True), quantity,
        Column(name="interval, low end", numeric=True, csv_name=f"{quantity.csv_name}_low"),
        Column(name="interval, high end", numeric=True, csv_name=f"{quantity.csv_name}_high"),
    )  # fmt: skip
    return Table(name=name, columns=columns, rows=tuple(rows))


def _series_rows(series: str, pairs: Pairs, cell: Callable[[float | None], Value]) -> list[tuple[Value | str, ...]]:
    return [(series, values.plain(x), "", cell(value), "", "") for x, value in pairs if value is not None]


def _job_rows(
    view: StudyView, shown: Callable[[Point, float], float | None], cell: Callable[[float | None], Value]
) -> list[tuple[Value | str, ...]]:
    """One row for each job: its value as drawn."""
    rows: list[tuple[Value | str, ...]] = []
    for point in view.points:
        label = "measured, oversubscribed" if point.oversubscribed else "measured"
        for job, value_s in zip(point.jobs, point.job_values_s, strict=True):
            drawn = shown(point, value_s)
            if drawn is not None:
                rows.append((label, values.plain(point.x), values.count(job.attempt), cell(drawn), "", ""))
    return rows


def _base_measured_s(view: StudyView) -> float | None:
    return view.base.measured.median if view.base is not None and view.base.measured is not None else None


def _base_s(view: StudyView) -> float | None:
    """Time of the base point, measured where it was, else predicted [s]."""
    predicted_s = view.base.predicted_s if view.base is not None else None
    return _base_measured_s(view) or (None if view.is_measured else predicted_s)


def _xs(view: StudyView) -> list[float]:
    return [point.x for point in view.points]


def step_time(view: StudyView) -> Picture:
    """Step time over what is scaled: jobs, their interval, prediction, and the ideal from the base point."""
    base_s = _base_s(view)
    predicted: Pairs = [(point.x, point.predicted_s) for point in view.points]
    known = [point for point in view.points if point.jobs or point.predicted_s is not None]
    ideal: Pairs = [(point.x, view.ideal_s(point, base_s)) for point in known] if base_s is not None else []
    rows = _job_rows(view, lambda point, value_s: value_s, values.time)
    for point in view.points:
        if point.measured is not None and point.measured.low is not None:
            cells = (values.time(point.measured.median), values.time(point.measured.low),
                     values.time(point.measured.high))  # fmt: skip
            rows.append(("median of jobs and its 95 % interval", values.plain(point.x), "", *cells))
    rows += _series_rows("predicted", predicted, values.time) + _series_rows("ideal", ideal, values.time)
    with matplotlib.rc_context(STYLE):
        figure, axes = new_axes()
        for point in view.points:
            draw_jobs(axes, point.x, point.job_values_s, hollow=point.oversubscribed, points=len(view.points))
            if point.measured is not None:
                draw_interval(axes, point.x, point.measured.low, point.measured.high)
        handles: list[Any] = measured_key(view.points)
        if any(point.measured is not None and point.measured.low is not None for point in view.points):
            handles.append(interval_key())
        handles += [predicted_key()] if draw_line(axes, predicted, PREDICTED_LINE) else []
        handles += [ideal_key()] if draw_line(axes, ideal, IDEAL_LINE) else []
        scaled_axis(axes, _xs(view), scaled_name(view))
        _time_axis(axes, [row[3].number for row in rows if isinstance(row[3], Value) and row[3].number], view)
        legend(figure, handles)
    start = (
        f"the ideal line goes through the base point, {base_place(view)}"
        if base_s is not None
        else "no ideal line: no base"
    )
    return Picture(
        name=f"{view.name}-time", figure=figure,
        description=f"time of one step against {scaled_name(view)}: {_ends(view)}",
        caption=f"Time of one step. {_marks(view)}; {start}.",
        data=series_table(f"{view.name}-time-data", view, Column(name="time of one step", numeric=True,
                                                                 csv_name="step_s"), rows),
    )  # fmt: skip


def _ends(view: StudyView) -> str:
    """First and last time of a study in words, for who cannot see them drawn."""
    found = []
    for kind, pairs in (
        ("measured", [(point, point.measured.median) for point in view.points if point.measured is not None]),
        ("predicted", [(point, point.predicted_s) for point in view.points if point.predicted_s is not None]),
    ):
        if pairs:
            ends = pairs if len(pairs) == 1 else (pairs[0], pairs[-1])
            found.append(f"{kind} {' and '.join(f'{seconds(time_s)} at {place(point)}' for point, time_s in ends)}")
    return "; ".join(found) or "no time is known"


def _marks(view: StudyView) -> str:
    return "Each mark is the median of one job's steps" if view.is_measured else "Predicted, not measured"


def _time_axis(axes: Any, shown: Sequence[float], view: StudyView) -> None:
    """Seconds from zero, or logarithmic where the study divides the work or the values span much."""
    axes.set_ylabel("time of one step, s")
    if not shown:
        return
    low, high = min(shown), max(shown)
    if view.mode != "weak" or high / low > LEAST_LOG_RANGE:
        axes.set_yscale("log")
        axes.set_ylim(low / 1.25, high * 1.25)
        plain_log_axis(axes.yaxis, low / 1.25, high * 1.25)
    else:
        axes.set_ylim(0, 1.08 * high)


def efficiency(view: StudyView) -> Picture:
    """Efficiency: jobs, intervals where they exist, ideal, the bound without communication, and the prediction."""
    predicted: Pairs = [(point.x, view.efficiency_predicted(point)) for point in view.points]
    bound: Pairs = [(point.x, view.efficiency_bound(point)) for point in view.points]
    rows = _job_rows(view, view.efficiency_measured, values.percent)
    intervals = {point.x: view.efficiency_interval(point) for point in view.points}
    for point in view.points:
        interval = intervals[point.x]
        if interval is not None:
            cells = (values.percent(view.efficiency_measured(point)), values.percent(interval.low),
                     values.percent(interval.high))  # fmt: skip
            rows.append(("of medians, with its 95 % interval", values.plain(point.x), "", *cells))
    rows += _series_rows("predicted", predicted, values.percent)
    rows += _series_rows("bound without communication (predicted)", bound, values.percent)
    rows += _series_rows("ideal", [(x, 1.0) for x in _xs(view)], values.percent)
    with matplotlib.rc_context(STYLE):
        figure, axes = new_axes()
        axes.axhline(100, **IDEAL_LINE)
        for point in view.points:
            drawn = [view.efficiency_measured(point, value_s) for value_s in point.job_values_s]
            shares = [100 * value for value in drawn if value is not None]
            draw_jobs(axes, point.x, shares, hollow=point.oversubscribed, points=len(view.points))
            interval = intervals[point.x]
            if interval is not None:
                draw_interval(axes, point.x, 100 * interval.low, 100 * interval.high)
        handles: list[Any] = measured_key(view.points) if view.efficiency_known else []
        handles += [interval_key()] if any(intervals.values()) else []
        handles += [predicted_key()] if draw_line(axes, _percents(predicted), PREDICTED_LINE) else []
        handles += [bound_key()] if draw_line(axes, _percents(bound), BOUND_LINE) else []
        scaled_axis(axes, _xs(view), scaled_name(view))
        shown = [cell.number for row in rows for cell in row[3:] if isinstance(cell, Value) and cell.number is not None]
        _percent_axis(axes, shown, zero=view.is_measured)
        axes.set_ylabel("efficiency, %" if view.mode != "throughput" else "structures/s relative to base, %")
        legend(figure, [*handles, ideal_key()])
    name = "Efficiency" if view.mode != "throughput" else "Rate of structures"
    base_s = _base_s(view)
    absolute = f", where a step takes {seconds(base_s)}" if base_s is not None else " (not measured: no efficiency)"
    return Picture(
        name=f"{view.name}-efficiency", figure=figure, description=f"efficiency against {scaled_name(view)}",
        caption=f"{name} against {base_place(view)}{absolute}. "
        f"{'Each mark is one job against the base median' if view.is_measured else 'Predicted, not measured'}.",
        data=series_table(f"{view.name}-efficiency-data", view, Column(name="efficiency", numeric=True,
                                                                       csv_name="efficiency_percent"), rows),
    )  # fmt: skip


def _percents(pairs: Pairs) -> Pairs:
    return [(x, None if value is None else 100 * value) for x, value in pairs]


def _percent_axis(axes: Any, shown: Sequence[float], *, zero: bool) -> None:
    """From zero where runs were measured; predictions, close to 100 %, from a tenth below the least."""
    low = 0.0 if zero else max(0.0, 10 * ((min(shown) - 5) // 10))
    axes.set_ylim(low, max(shown) + 0.05 * (max(shown) - low))


def rate(view: StudyView) -> Picture | None:
    """Structures per second over what is scaled: jobs, and the prediction; None where structures are not known.

    Points whose jobs did different work have no rate.
    """

    def shown(point: Point, value_s: float) -> float | None:
        structures = point.any_record.structures
        return structures / value_s if structures and not differs_in_work(point) else None

    predicted: Pairs = [
        (point.x, None if point.predicted_s is None else shown(point, point.predicted_s)) for point in view.points
    ]
    rows = _job_rows(view, shown, values.plain) + _series_rows("predicted", predicted, values.plain)
    if not rows:
        return None
    with matplotlib.rc_context(STYLE):
        figure, axes = new_axes()
        for point in view.points:
            drawn = [shown(point, value_s) for value_s in point.job_values_s]
            kept = [value for value in drawn if value is not None]
            draw_jobs(axes, point.x, kept, hollow=point.oversubscribed, points=len(view.points))
        handles: list[Any] = measured_key(view.points)
        handles += [predicted_key()] if draw_line(axes, predicted, PREDICTED_LINE) else []
        scaled_axis(axes, _xs(view), scaled_name(view))
        numbers = [row[3].number for row in rows if isinstance(row[3], Value) and row[3].number is not None]
        axes.set_ylim(0, 1.08 * max(numbers, default=1))
        axes.set_ylabel("structures per second")
        legend(figure, handles)
    return Picture(
        name=f"{view.name}-rate", figure=figure, description=f"structures per second against {scaled_name(view)}",
        caption=f"Structures per second of all ranks. {_marks(view)}, turned into a rate.",
        data=series_table(f"{view.name}-rate-data", view, Column(name="structures per second", numeric=True,
                                                                 csv_name="structures_per_s"), rows),
    )  # fmt: skip


def _bars(
    rows: Sequence[tuple[str, dict[str, float], bool]], order: Sequence[str], colours: dict[str, str],
    names: dict[str, str], label: str, ideal: float | None,
) -> Figure:  # fmt: skip
    """Stacked horizontal bars (label, part -> length, hatched), the hatched one close below its solid one."""
    with matplotlib.rc_context(STYLE):
        figure, axes = new_axes((SIZE[0], 1.3 + 0.34 * max(len(rows), 2)))
        place_y, places = 0.0, []
        pairs = len({is_prediction for _, _, is_prediction in rows}) > 1
        for number, (_, parts, is_prediction) in enumerate(rows):
            place_y += 0.0 if number == 0 else (0.82 if is_prediction and pairs else 1.15 if pairs else 0.95)
            places.append(place_y)
            left = 0.0
            for part in order:
                axes.barh(
                    place_y, parts.get(part, 0.0), left=left, height=0.68, color=colours[part],
                    hatch="////" if is_prediction else None, edgecolor="white", linewidth=0.5,
                )  # fmt: skip
                left += parts.get(part, 0.0)
        if ideal is not None:
            axes.axvline(ideal, **{**IDEAL_LINE, "zorder": 5, "color": "#22262e", "linewidth": 1.0})
        axes.set_yticks(places, [text for text, _, _ in rows])
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.set_xlabel(label)
        handles = [Patch(color=colours[part], label=names.get(part, part)) for part in order]
        columns = 2 if max(len(names.get(part, part)) for part in order) > 18 else 3
        legend(figure, handles, columns=columns)
        return figure


def _scale(view: StudyView, point: Point) -> float:
    """What seconds of a bar are multiplied by: 1, or 100 / ideal step where the ideal changes from point to point."""
    base_s = _base_s(view)
    if view.mode == "weak" or base_s is None:
        return 1.0
    return 100 / view.ideal_s(point, base_s)


def _bar_label(view: StudyView, hatched: bool) -> tuple[str, float | None]:
    """Label of the bars' axis, and where the ideal lies on it."""
    note = " (hatched: predicted)" if hatched else ""
    base_s = _base_s(view)
    if view.mode == "weak" or base_s is None:
        return f"seconds of one step{note}", base_s
    return f"% of the ideal step{note}", 100.0


def _parts_table(
    name: str, view: StudyView, kind: str, csv_name: str, rows: Sequence[tuple[str, Point, dict[str, float]]],
    names: dict[str, str],
) -> Table:  # fmt: skip
    """Seconds of each part of each bar, and the length drawn where it is another."""
    columns = (
        Column(name="result"), Column(name=scaled_name(view), numeric=True, csv_name=view.scaled), Column(name=kind),
        Column(name="time in a step", numeric=True, csv_name=csv_name),
        Column(name="% of the ideal step", numeric=True, csv_name="percent_of_ideal"),
    )  # fmt: skip
    base_s = _base_s(view)
    cells = [
        (result, values.plain(point.x), names.get(part, part), values.time(value_s),
         values.NOT_KNOWN if base_s is None else values.percent(value_s / view.ideal_s(point, base_s)))
        for result, point, parts in rows for part, value_s in parts.items()
    ]  # fmt: skip
    return Table(name=name, columns=columns, rows=tuple(cells))


def phases(view: StudyView) -> Picture | None:
    """Phases of a step, the measured bar above the predicted one of each point; None where no phase is known."""
    found: list[tuple[str, Point, dict[str, float]]] = []
    for point in view.points:
        found += [
            (result, point, parts)
            for result, parts in (("measured", point.phases_measured()), ("predicted", point.phases_predicted()))
            if parts
        ]
    if not found:
        return None
    both = len({result for result, _, _ in found}) > 1
    rows = []
    for result, point, parts in found:
        scale = _scale(view, point)
        text = f"{place(point)}{' *' if point.oversubscribed else ''}{f', {result}' if both else ''}"
        rows.append((text, {part: scale * value_s for part, value_s in parts.items()}, result == "predicted"))
    order = [phase for phase in PHASE_ORDER if any(parts.get(phase, 0) > 0 for _, parts, _ in rows)]
    label, ideal = _bar_label(view, both)
    starred = " * oversubscribed." if any(point.oversubscribed for _, point, _ in found) else ""
    return Picture(
        name=f"{view.name}-phases", figure=_bars(rows, order, PHASE_COLOURS, PHASE_NAMES, label, ideal),
        description="phases of one step as stacked bars, one bar for each point and result",
        caption="Phases of one step, mean over ranks, median over steps and jobs"
        f"{'' if view.is_measured else '; predicted, not measured'}. The upright line is the ideal step.{starred}",
        data=_parts_table(f"{view.name}-phases-data", view, "phase", "phase_s", found, PHASE_NAMES),
    )  # fmt: skip


def causes(view: StudyView) -> Picture | None:
    """Predicted causes of a step's seconds, over all phases; None where the predictions do not record them."""
    found = [("predicted", point, point.causes_predicted()) for point in view.points if point.causes_predicted()]
    if not found:
        return None
    largest: dict[str, float] = {}
    for _, point, parts in found:
        for cause, value_s in parts.items():
            largest[cause] = max(largest.get(cause, 0.0), _scale(view, point) * value_s)
    shown = [cause for cause in sorted(largest, key=lambda name: -largest[name])[:MOST_CAUSES] if largest[cause] > 0]
    bars: list[tuple[str, dict[str, float], bool]] = []
    for _, point, parts in found:
        scale, bar = _scale(view, point), dict.fromkeys(shown, 0.0)
        for cause, value_s in parts.items():
            part = cause if cause in bar else OTHERS
            bar[part] = bar.get(part, 0.0) + scale * value_s
        bars.append((place(point), bar, True))
    known = [*CAUSE_COLOURS, *sorted(set(shown) - set(CAUSE_COLOURS)), OTHERS]
    order = [cause for cause in known if any(bar.get(cause, 0.0) > 0 for _, bar, _ in bars)]
    colours = {cause: CAUSE_COLOURS.get(cause, OTHERS_COLOUR) for cause in order}
    label, ideal = _bar_label(view, False)
    shares = [(result, point, {cause: value_s for cause, value_s in parts.items() if value_s})
              for result, point, parts in found]  # fmt: skip
    return Picture(
        name=f"{view.name}-causes", figure=_bars(bars, order, colours, CAUSE_NAMES, label, ideal),
        description="predicted seconds of one step by cause as stacked bars, one for each point",
        caption="Predicted causes of the seconds of one step, over all phases; communication is what is not hidden "
        "behind computing. Predicted, not measured. The upright line is the ideal step.",
        data=_parts_table(f"{view.name}-causes-data", view, "cause", "cause_s", shares, CAUSE_NAMES),
    )  # fmt: skip


def scatter(views: Sequence[StudyView]) -> Picture | None:
    """Predicted against measured step time of every point, with the diagonal of a perfect prediction."""
    points = paired(views)
    if not points:
        return None
    with matplotlib.rc_context(STYLE):
        figure, axes = new_axes((SIZE[0], 4.6))
        shown = [value for point in points for value in (*point.job_values_s, point.predicted_s or 0)]
        low, high = min(shown) / 1.4, max(shown) * 1.4
        axes.fill_between([low, high], [0.8 * low, 0.8 * high], [1.2 * low, 1.2 * high], color="#eef1f5", zorder=1)
        axes.plot([low, high], [low, high], **IDEAL_LINE)
        markers = _study_markers(points)
        for point in points:
            axes.plot(
                list(point.job_values_s), [point.predicted_s or 0.0] * len(point.jobs), linestyle="none",
                marker=markers[point.study], markersize=6.5, color=MEASURED_COLOUR, markeredgewidth=1.3,
                markerfacecolor="white" if point.oversubscribed else MEASURED_COLOUR, zorder=4,
            )  # fmt: skip
            axes.annotate(
                f"{point.x:g}", (max(point.job_values_s), point.predicted_s or 0), xytext=(7, -4),
                textcoords="offset points", fontsize=9, color=SOFT_COLOUR,
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
            Line2D([], [], linestyle="none", marker=marker, color=MEASURED_COLOUR, label=study)
            for study, marker in markers.items()
        ]
        handles.append(Line2D([], [], color=IDEAL_COLOUR, linewidth=1.2, label="equal"))
        handles.append(Patch(color="#e3e7ed", label="within 20 %"))
        legend(figure, handles, columns=3)
    hollow = " Hollow: oversubscribed." if any(point.oversubscribed for point in points) else ""
    return Picture(
        name="prediction-scatter", figure=figure, description="predicted against measured time of one step",
        caption="Each mark is one job; the number beside a group is its ranks (or structures per rank). On the line "
        f"the prediction equals the measurement; above it the prediction is too long.{hollow}",
        data=_scatter_table(points),
    )  # fmt: skip


def _study_markers(points: Sequence[Point]) -> dict[str, str]:
    shapes = ("o", "s", "^", "v", "P", "D", "<", ">", "p", "h", "*", "d")
    studies = list(dict.fromkeys(point.study for point in points))
    return {study: shapes[number % len(shapes)] for number, study in enumerate(studies)}


def _scatter_table(points: Sequence[Point]) -> Table:
    columns = (
        Column(name="study"), Column(name="scaled"), Column(name="x", numeric=True),
        Column(name="attempt", numeric=True),
        Column(name="measured", numeric=True, csv_name="measured_s"),
        Column(name="predicted", numeric=True, csv_name="predicted_s"), Column(name="oversubscribed"),
    )  # fmt: skip
    rows = [
        (point.study, scaled_name(point), values.plain(point.x), values.count(job.attempt), values.time(value_s),
         values.time(point.predicted_s), "yes" if point.oversubscribed else "no")
        for point in points for job, value_s in zip(point.jobs, point.job_values_s, strict=True)
    ]  # fmt: skip
    return Table(name="prediction-scatter-data", columns=columns, rows=tuple(rows))
