"""The figures about spread: jobs in order, steps of jobs, single ranks. Their look is ``drawing``.

Each function gives a finished ``Picture`` whose data holds every number that is drawn, or None where there is none.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from reports import samples, values
from reports.document import Column, Picture
from reports.drawing import (
    IDEAL_LINE,
    MEASURED_COLOUR,
    MEASURED_MARK,
    SIZE,
    STYLE,
    draw_jobs,
    legend,
    measured_key,
    new_axes,
    scaled_axis,
    spread_places,
)
from reports.figure_data import Row, data_table, numeric
from reports.points import StudyView
from reports.wording import place, scaled_name

MOST_BARS = 64  # ranks drawn one by one; of more ranks the sorted curve is drawn


def order_of_jobs(views: Sequence[StudyView]) -> Picture | None:
    """Each job's step time relative to the median of its point, in the order in which the jobs began."""
    points = {point.cell_id: point for view in views for point in view.points if len(point.jobs) > 1}
    order = samples.by_start([job for point in points.values() for job in point.jobs])
    if not order:
        return None
    drawn = []
    for number, job in enumerate(order, 1):
        point = points[job.cell_id]
        assert point.measured is not None, f"{point.cell_id} has {len(point.jobs)} jobs and no median"
        drawn.append((number, job, point, statistics.median(job.step_s) / point.measured.median))
    with matplotlib.rc_context(STYLE):
        figure, axes = new_axes((1.6 * SIZE[0], 3.2))
        axes.axhline(100, **IDEAL_LINE)
        for hollow in (False, True):
            own = [(number, 100 * share) for number, _, point, share in drawn if point.oversubscribed == hollow]
            face: dict[str, Any] = {"markerfacecolor": "white"} if hollow else {}
            axes.plot([number for number, _ in own], [share for _, share in own], **MEASURED_MARK, **face, zorder=3)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("jobs in the order in which they began")
        axes.set_ylabel("% of the median\nof the job's point")
        legend(
            figure, [*measured_key(list(points.values())), Line2D([], [], label="median of the point", **IDEAL_LINE)], 3
        )
    columns = (numeric("number", "number"), Column(name="study"), Column(name="point"), numeric("attempt", "attempt"),
               Column(name="began"), numeric("relative to the median", "percent_of_median"))  # fmt: skip
    rows: list[Row] = [
        (values.count(number), job.study, place(point), values.count(job.attempt), job.started_at or "n/a",
         values.percent(share))
        for number, job, point, share in drawn
    ]  # fmt: skip
    return Picture(
        name="order-of-jobs", figure=figure, description="step time of each job, relative to its point, in time order",
        caption="Every job against the median of its point, in the order in which they began. A slope would be a drift "
        "of the machine.",
        data=data_table("order-of-jobs", columns, rows), wide=True,
    )  # fmt: skip


def spread_of_steps(view: StudyView) -> Picture | None:
    """Each job as a line from its shortest to its longest step, relative to its point, with a mark at its median."""
    points = [(point, point.measured.median) for point in view.points if point.measured is not None]
    if not points:
        return None
    rows: list[Row] = []
    style: dict[str, Any] = {"color": MEASURED_COLOUR, "linewidth": 1.2, "alpha": 0.6}
    with matplotlib.rc_context(STYLE):
        figure, axes = new_axes()
        axes.axhline(100, **IDEAL_LINE)
        for point, typical_s in points:
            steps_s = [(min(job.step_s), statistics.median(job.step_s), max(job.step_s)) for job in point.jobs]
            low, middle, high = ([100 * value_s / typical_s for value_s in part] for part in zip(*steps_s, strict=True))
            axes.vlines(spread_places(point.x, len(point.jobs)), low, high, zorder=2, **style)
            draw_jobs(axes, point.x, middle, hollow=point.oversubscribed, points=len(points))
            for job, job_steps_s in zip(point.jobs, steps_s, strict=True):
                rows.append((values.plain(point.x), values.count(job.attempt), values.count(len(job.step_s)),
                             *(values.time(value_s) for value_s in job_steps_s), values.time(typical_s)))  # fmt: skip
        scaled_axis(axes, [point.x for point, _ in points], scaled_name(view))
        axes.set_ylabel("step, % of the point's median")
        keys: list[Any] = measured_key([point for point, _ in points])
        legend(figure, [*keys, Line2D([], [], label="shortest to longest step", **style)])
    columns = (
        numeric(scaled_name(view), view.scaled), numeric("attempt", "attempt"), numeric("steps", "steps"),
        numeric("shortest", "shortest_s"), numeric("median", "median_s"), numeric("longest", "longest_s"),
        numeric("median of the point", "point_median_s"),
    )  # fmt: skip
    return Picture(
        name=f"{view.name}-steps", figure=figure, description=f"range of step times of each job by {scaled_name(view)}",
        caption="Steps after warm-up relative to the median of their point: each job from its shortest to its longest "
        "step, the mark at its median.",
        data=data_table(f"{view.name}-steps", columns, rows),
    )  # fmt: skip


def ranks_of_point(
    name: str, title: str, series: Sequence[tuple[str, str, str, Sequence[float], str]], *, tag: str = ""
) -> Picture | None:
    """Values of the single ranks, one panel for each quantity, a stacked one for series of the same quantity.

    series: (quantity with unit, series, colour, value of each rank, "measured" or "planned"). Up to MOST_BARS ranks are
    bars in order; more are curves over the ranks sorted by the panel's sum.
    """
    panels: dict[str, list[tuple[str, str, Sequence[float], str]]] = {}
    for quantity, label, colour, numbers, kind in series:
        if numbers:
            panels.setdefault(quantity, []).append((label, colour, numbers, kind))
    if not panels:
        return None
    rows: list[Row] = []
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(SIZE[0], 0.9 + 1.75 * len(panels)), layout="constrained")
        all_axes = figure.subplots(len(panels), 1, squeeze=False)[:, 0]
        handles: list[Any] = []
        for axes, (quantity, stack) in zip(all_axes, panels.items(), strict=True):
            _draw_ranks(axes, stack)
            axes.set_ylabel(quantity)
            for label, colour, numbers, kind in stack:
                handles.append(Patch(color=colour, label=f"{label}, {kind}"))
                rows += [(quantity, f"{label}, {kind}", values.count(rank), values.plain(number))
                         for rank, number in enumerate(numbers)]  # fmt: skip
        many = max(len(stack[0][2]) for stack in panels.values()) > MOST_BARS
        all_axes[-1].set_xlabel("ranks, sorted" if many else "rank")
        legend(figure, handles)
    columns = (Column(name="quantity"), Column(name="series"), numeric("rank", "rank"), numeric("value", "value"))
    return Picture(
        name=f"{name}-ranks", figure=figure, description="values of each rank", caption=f"{title}{tag}",
        data=data_table(f"{name}-ranks", columns, rows),
    )  # fmt: skip


def _draw_ranks(axes: Axes, stack: Sequence[tuple[str, str, Sequence[float], str]]) -> None:
    """Stacked bars of each rank, or filled curves over the sorted ranks where there are many."""
    num_ranks = len(stack[0][2])
    order = list(range(num_ranks))
    if num_ranks > MOST_BARS:
        order.sort(key=lambda rank: sum(numbers[rank] for _, _, numbers, _ in stack))
    bottom = [0.0] * num_ranks
    for _, colour, numbers, _ in stack:
        heights = [numbers[rank] for rank in order]
        top = [low + height for low, height in zip(bottom, heights, strict=True)]
        if num_ranks > MOST_BARS:
            axes.fill_between(range(num_ranks), bottom, top, color=colour, linewidth=0)
        else:
            axes.bar(range(num_ranks), heights, bottom=bottom, color=colour, width=0.72)
        bottom = top
    axes.grid(axis="x", visible=False)
    axes.set_ylim(0, 1.08 * max(bottom))
    if num_ranks <= 16:
        axes.set_xticks(range(num_ranks))
