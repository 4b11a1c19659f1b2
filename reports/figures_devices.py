"""The figures about devices: percent of peak, roofline, memory, and beside published values. Their look is ``drawing``.

Each function gives a finished ``Picture`` whose data holds every number that is drawn, or None where there is none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, NullLocator

from reports import flop_rates, values
from reports.document import Column, Picture, Value
from reports.drawing import (
    IDEAL_LINE,
    MEASURED_COLOUR,
    MEASURED_MARK,
    PHASE_COLOURS,
    PREDICTED_COLOUR,
    PREDICTED_LINE,
    PUBLISHED_COLOUR,
    SIZE,
    SOFT_COLOUR,
    STYLE,
    draw_jobs,
    draw_line,
    legend,
    measured_key,
    new_axes,
    plain_log_axis,
    scaled_axis,
)
from reports.figure_data import Row, data_table, numeric
from reports.points import PHASE_NAMES, PHASE_ORDER, Point, StudyView
from reports.wording import flops_rate, place, scaled_name
from scaling_studies.records import Ceiling, Record

PART_COLOURS = {  # of memory; the same in every figure
    "parameters": "#009E73", "gradients": "#E69F00", "moments": "#56B4E9", "activations": "#0072B2",
    "gathered": "#CC79A7", "process": "#8a8f98", "all parts": "#5b616b", "other parts": "#d9dce1",
}  # fmt: skip
MORE_COLOURS = ("#b8a000", "#7a3e9d")  # of parts without one of their own
MOST_PARTS = 7  # the rest is drawn as one
LEAST_PART = 0.01  # of the largest memory: smaller parts are drawn as one
FAR_LIMIT = 2.0  # a limit further away than so many times the largest memory would leave no room for what is used
SUSTAINED_COLOUR = "#56B4E9"


def _percents(point: Point, rate: Callable[[Record], float | None]) -> list[tuple[Record, float]]:
    """Percent of peak of each job of a point that has one."""
    rates = flop_rates.measured_rates(point)
    found = []
    for job in point.jobs:
        own = rate(job)
        share = rates.percent(own) if rates.note == "" and own is not None else None
        if share is not None:
            found.append((job, share))
    return found


def percent_of_peak(view: StudyView) -> Picture | None:
    """Percent of peak of each job over the loop and over the whole wall time, and the predicted ones."""
    kinds: tuple[tuple[str, str, Callable[[Record], float | None]], ...] = (
        ("peak", MEASURED_COLOUR, flop_rates.loop_rate), ("sustained", SUSTAINED_COLOUR, flop_rates.wall_rate),
    )  # fmt: skip
    predicted = {point.x: flop_rates.predicted_rates(point) for point in view.points}
    lines = {
        "peak": [(x, rates.percent(rates.peak)) for x, rates in predicted.items()],
        "sustained": [(x, rates.percent(rates.sustained)) for x, rates in predicted.items()],
    }
    rows: list[Row] = []
    with matplotlib.rc_context(STYLE):
        figure, axes = new_axes()
        handles: list[Any] = []
        for name, colour, rate in kinds:
            marks = 0
            for point in view.points:
                shares = _percents(point, rate)
                marks += len(shares)
                draw_jobs(axes, point.x, [share for _, share in shares], hollow=point.oversubscribed, colour=colour)
                rows += [
                    (f"{name}, measured", values.plain(point.x), values.count(job.attempt), values.percent(share / 100))
                    for job, share in shares
                ]
            handles += (
                [Line2D([], [], label=f"{name}, each job", **{**MEASURED_MARK, "color": colour})] if marks else []
            )
            style = {**PREDICTED_LINE, "marker": "D" if name == "peak" else "s"}
            if draw_line(axes, lines[name], style):
                handles.append(Line2D([], [], label=f"{name}, predicted", **style))
            rows += [
                (f"{name}, predicted", values.plain(x), "", values.percent(share / 100))
                for x, share in lines[name] if share is not None
            ]  # fmt: skip
        if not rows:
            return None
        scaled_axis(axes, [point.x for point in view.points], scaled_name(view))
        axes.set_ylim(0, 1.1 * max(row[3].number or 0 for row in rows if isinstance(row[3], Value)))
        axes.set_ylabel("% of the named peak")
        legend(figure, handles)
    columns = (Column(name="series"), numeric(scaled_name(view), view.scaled), numeric("attempt", "attempt"),
               numeric("percent of peak", "percent_of_peak"))  # fmt: skip
    hollow = " Hollow: oversubscribed." if any(point.oversubscribed for point in view.points) else ""
    return Picture(
        name=f"{view.name}-peak", figure=figure, description=f"percent of peak against {scaled_name(view)}",
        caption="Model FLOPs as a share of the named peak: over the training loop (peak) and over the whole wall time "
        f"(sustained).{_predicted_words(view)}{hollow}",
        data=data_table(f"{view.name}-peak", columns, rows),
    )  # fmt: skip


def _predicted_words(view: StudyView) -> str:
    return "" if view.is_measured else " Predicted, not measured."


def roofline(
    name: str, title: str, ceilings: Sequence[Ceiling], marks: Sequence[tuple[str, str, float, float]], *, tag: str
) -> Picture | None:
    """Achieved FLOP rate of phases against their intensity, below the ceilings.

    marks: (phase, "measured" or "predicted", intensity [FLOP/byte], rate [FLOP/s]).
    """
    compute = [ceiling for ceiling in ceilings if ceiling.unit == "FLOP/s"]
    memory = [ceiling for ceiling in ceilings if ceiling.unit == "byte/s"]
    if not marks or not compute or not memory:
        return None
    low = min(intensity for *_, intensity, _ in marks) / 3
    knee = max(top.value for top in compute) / min(slope.value for slope in memory)
    high = 3 * max(knee, *(intensity for *_, intensity, _ in marks))
    rows: list[Row] = []
    with matplotlib.rc_context(STYLE):
        figure, axes = new_axes((SIZE[0], 4.0))
        for slope in memory:
            for top in compute:
                corner = top.value / slope.value
                corners = [(low, low * slope.value), (corner, top.value), (high, top.value)]
                axes.plot([x for x, _ in corners], [y for _, y in corners], **IDEAL_LINE)
                rows += [(f"ceiling: {top.name}, {slope.name}", "", *_pair(x, y)) for x, y in corners]
        for phase, kind, intensity, rate in marks:
            colour = PHASE_COLOURS.get(phase, SOFT_COLOUR)
            solid = kind == "measured"
            axes.plot(
                [intensity], [rate], linestyle="none", marker="o" if solid else "D", markersize=8 if solid else 7,
                color=colour, markerfacecolor=colour if solid else "white", markeredgewidth=1.6, zorder=4,
            )  # fmt: skip
            rows.append((PHASE_NAMES.get(phase, phase), kind, *_pair(intensity, rate)))
        _log_axes(axes, low, high, [rate for *_, rate in marks] + [top.value for top in compute])
        for top in compute:
            axes.annotate(
                f"{top.name}, {top.dtype}", (high, top.value), xytext=(-2, 4), textcoords="offset points", ha="right",
                fontsize=9, color=SOFT_COLOUR,
            )  # fmt: skip
        axes.set_xlabel("FLOPs per byte of memory moved")
        legend(figure, _phase_key(marks), columns=3)
    columns = (Column(name="series"), Column(name="result"), numeric("intensity, FLOP/byte", "flop_per_byte"),
               numeric("rate", "flops_per_s"))  # fmt: skip
    return Picture(
        name=f"{name}-roofline", figure=figure, description="FLOP rate of each phase against its FLOPs per byte",
        caption=f"Phases of a step below their ceilings, {title}: the slope is memory, the level computing.{tag}",
        data=data_table(f"{name}-roofline", columns, rows),
    )  # fmt: skip


def _pair(intensity: float, rate: float) -> tuple[Value, Value]:
    return values.plain(intensity), values.flops_rate(rate)


def _log_axes(axes: Axes, low: float, high: float, rates: Sequence[float]) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(low, high)
    axes.set_ylim(min(rates) / 3, max(rates) * 3)
    plain_log_axis(axes.xaxis, low, high)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: flops_rate(value)))
    axes.yaxis.set_minor_locator(NullLocator())


def _phase_key(marks: Sequence[tuple[str, str, float, float]]) -> list[Any]:
    """Colours of the phases that occur, and the two kinds of marks."""
    shown = [phase for phase in PHASE_ORDER if any(mark[0] == phase for mark in marks)]
    keys: list[Any] = [Patch(color=PHASE_COLOURS[phase], label=PHASE_NAMES[phase]) for phase in shown]
    style: dict[str, Any] = {"linestyle": "none", "color": SOFT_COLOUR, "markeredgewidth": 1.6}
    if any(kind == "measured" for _, kind, *_ in marks):
        keys.append(Line2D([], [], marker="o", label="measured", **style))
    if any(kind == "predicted" for _, kind, *_ in marks):
        keys.append(Line2D([], [], marker="D", markerfacecolor="white", label="predicted", **style))
    return keys


def memory(view: StudyView, limit_of: Callable[[Point], float | None]) -> Picture | None:
    """Memory of the fullest rank: predicted parts as hatched bars, jobs as marks on them, the limit where known."""
    points = [point for point in view.points if _most_memory(point)]
    if not points:
        return None
    parts = {point.x: _parts(point) for point in points}
    totals: dict[str, float] = {}
    for own in parts.values():
        for part, size in own.items():
            totals[part] = max(totals.get(part, 0.0), size)
    largest = max(_most_memory(point) for point in points)
    order = sorted(totals, key=lambda part: -totals[part])
    shown = [part for part in order[:MOST_PARTS] if totals[part] >= LEAST_PART * largest]
    rest = [part for part in order if part not in shown]
    names = [*shown, *(["other parts"] if rest else [])]
    unnamed = [part for part in names if part not in PART_COLOURS]
    colours = {part: MORE_COLOURS[number % len(MORE_COLOURS)] for number, part in enumerate(unnamed)} | PART_COLOURS
    rows: list[Row] = []
    with matplotlib.rc_context(STYLE):
        figure, axes = new_axes((SIZE[0], 1.5 + 0.42 * max(len(points), 2)))
        for place_y, point in enumerate(points):
            left = 0.0
            bar = {part: parts[point.x].get(part, 0.0) for part in shown}
            if rest:
                bar["other parts"] = sum(parts[point.x].get(part, 0.0) for part in rest)
            for part, size in bar.items():
                axes.barh(place_y, _gib(size), left=_gib(left), height=0.6, color=colours[part], hatch="////",
                          edgecolor="white", linewidth=0.5)  # fmt: skip
                left += size
            rows += [
                (place(point), f"predicted: {part}", "", values.memory(size)) for part, size in bar.items() if size
            ]
            limit = limit_of(point)
            near = limit is not None and limit < FAR_LIMIT * largest
            rows += _memory_marks(axes, place_y, point, limit if near else None)
        axes.set_yticks(range(len(points)), [place(point) for point in points])
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.set_xlim(0, None)
        axes.set_xlabel("memory of the fullest rank, GiB (hatched: predicted)")
        handles: list[Any] = [
            Patch(facecolor=colours[part], hatch="////", edgecolor="white", label=part) for part in names
        ]
        handles += measured_key(points)
        if any(row[1] == "limit" for row in rows):
            handles.append(Line2D([], [], color=PREDICTED_COLOUR, linewidth=2, label="limit"))
        legend(figure, handles, columns=3)
    columns = (Column(name="point"), Column(name="series"), numeric("attempt", "attempt"),
               numeric("memory", "memory_bytes"))  # fmt: skip
    return Picture(
        name=f"{view.name}-memory", figure=figure, description="memory of the fullest rank at each point, by part",
        caption=f"Memory of the fullest rank.{_predicted_words(view)}{_limit_words(points, limit_of, largest)}",
        data=data_table(f"{view.name}-memory", columns, rows), wide=True,
    )  # fmt: skip


def _limit_words(points: Sequence[Point], limit_of: Callable[[Point], float | None], largest: float) -> str:
    """Where limits are that are not drawn because they are far away."""
    limits = [limit for point in points if (limit := limit_of(point)) is not None and limit >= FAR_LIMIT * largest]
    return f" Limits further away than {FAR_LIMIT:g} times the largest value are not drawn." if limits else ""


def _memory_marks(axes: Axes, place_y: float, point: Point, limit: float | None) -> list[Row]:
    """The jobs of a point and its limit, drawn on its bar; their rows of data."""
    jobs = [(job, float(job.memory_bytes)) for job in point.jobs if job.memory_bytes]
    face: dict[str, Any] = {"markerfacecolor": "white"} if point.oversubscribed else {}
    axes.plot([_gib(size) for _, size in jobs], [place_y] * len(jobs), **MEASURED_MARK, **face, zorder=4)
    rows: list[Row] = [(place(point), "measured", values.count(job.attempt), values.memory(size)) for job, size in jobs]
    if limit is not None:
        axes.plot([_gib(limit)] * 2, [place_y - 0.36, place_y + 0.36], color=PREDICTED_COLOUR, linewidth=2, zorder=3)
        rows.append((place(point), "limit", "", values.memory(limit)))
    return rows


def _gib(value_bytes: float) -> float:
    return value_bytes / 2**30


def _most_memory(point: Point) -> float:
    """The largest memory of a point, measured or predicted [bytes]; 0 where none is on record."""
    records = [record for record in (*point.jobs, point.prediction) if record is not None]
    return max((float(record.memory_bytes or 0) for record in records), default=0.0)


def _parts(point: Point) -> dict[str, float]:
    """Predicted parts of a point's memory [bytes]; the whole as one part where the parts are not recorded."""
    prediction = point.prediction
    if prediction is None or not prediction.memory_bytes:
        return {}
    return dict(prediction.memory_parts) or {"all parts": float(prediction.memory_bytes)}


def beside_published(entries: Sequence[tuple[str, dict[str, float]]], name: str, title: str) -> Picture | None:
    """Percentages of a machine side by side: (quantity, result -> percent); None where nothing is to compare."""
    kinds: tuple[tuple[str, str, str, float], ...] = (
        ("measured", MEASURED_COLOUR, "o", 7), ("predicted", PREDICTED_COLOUR, "D", 7),
        ("published", PUBLISHED_COLOUR, "*", 13),
    )  # fmt: skip
    if not any(set(found) - {"published"} for _, found in entries):
        return None
    rows: list[Row] = []
    with matplotlib.rc_context(STYLE):
        figure, axes = new_axes((SIZE[0], 1.2 + 0.42 * len(entries)))
        handles = []
        for kind, colour, marker, size in kinds:
            shown = [(found[kind], y) for y, (_, found) in enumerate(entries) if kind in found]
            style: dict[str, Any] = {"linestyle": "none", "marker": marker, "markersize": size, "color": colour}
            style |= {"markerfacecolor": "white", "markeredgewidth": 1.4} if kind == "predicted" else {}
            if shown:
                axes.plot([value for value, _ in shown], [y for _, y in shown], zorder=4, **style)
                handles.append(Line2D([], [], label=kind, **style))
            rows += [(entries[y][0], kind, values.percent(value / 100)) for value, y in shown]
        axes.set_yticks(range(len(entries)), [entry[0] for entry in entries])
        axes.set_ylim(len(entries) - 0.5, -0.5)
        axes.set_xlim(0, 104)
        axes.set_xlabel("%")
        legend(figure, handles, columns=3)
    columns = (Column(name="quantity"), Column(name="result"), numeric("percent", "percent"))
    return Picture(
        name=f"{name}-beside-published", figure=figure, description="percentages of a machine, by result",
        caption=title, data=data_table(f"{name}-beside-published", columns, rows),
    )  # fmt: skip
