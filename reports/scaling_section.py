"""The section of one scaling study: its question, figures and table of points. Weak, strong and throughput share it.

It owns this layout; what differs between the modes is in ``sections/weak``, ``strong`` and ``throughput``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from reports import figures, values
from reports.campaign import Campaign
from reports.document import Block, Column, Section, Table, Text, Value
from reports.losses import limit_sentence, measured_losses, predicted_losses
from reports.points import SUPERLINEAR, Point, StudyView
from reports.wording import (
    base_place,
    constant,
    interval_note,
    layout_text,
    not_ended,
    place,
    scaled_name,
    seconds,
    study_title,
    tag_of,
)
from scaling_studies.statistics import compare

OVERSUBSCRIBED_NOTE = "* oversubscribed: more ranks than cores, drawn hollow; it says little about a larger machine."

PREDICTED_COLUMNS = (
    Column(name="efficiency", numeric=True, tone="predicted", csv_name="predicted_efficiency_percent"),
    Column(name="communication", numeric=True, csv_name="predicted_communication_s"),
    Column(name="waiting", numeric=True, csv_name="predicted_wait_s"),
)
SUPERLINEAR_NOTE = "More than 100 % needs a reason: caches that hold a smaller share, or a base point that ran badly."


@dataclass(frozen=True, kw_only=True)
class Extra:
    """A column that only one mode has: its value for a point and its step time [s], measured or predicted."""

    column: Column
    value: Callable[[StudyView, Point, float | None, float | None], Value]


def mode_sections(
    campaign: Campaign, mode: str, extras: Sequence[Extra] = (), *, rate: bool = False
) -> tuple[Section, ...]:
    """One section for each study of a mode. rate: show structures per second beside the step time."""
    return tuple(_section(view, extras, rate=rate) for view in campaign.views if view.mode == mode)


def _section(view: StudyView, extras: Sequence[Extra], *, rate: bool) -> Section:
    pictures = [figures.step_time(view), figures.rate(view) if rate else figures.efficiency(view)]
    blocks: list[Block] = [
        Text(text=view.question, style="question"), Text(text=constant(view)), *(_result(view)),
        *(picture for picture in pictures if picture is not None), points_table(view, extras),
    ]  # fmt: skip
    return Section(
        id=f"study-{view.name}", title=study_title(view), short=study_title(view), blocks=tuple(blocks),
        tag=tag_of(view), tone="" if view.is_measured else "predicted",
    )  # fmt: skip


def _result(view: StudyView) -> list[Block]:
    """What came out, in words, and what is missing of it."""
    found: list[Block] = [Text(text=sentence) for sentence in (outcome(view),) if sentence]
    open_jobs = sum(len(point.open) for point in view.points)
    if open_jobs:
        good = sum(len(point.jobs) for point in view.points)
        wanted = sum(point.repeats_planned for point in view.points)
        words = f"Not finished: {good} of {wanted} planned jobs count so far, {not_ended(open_jobs)}."
        found.append(Text(text=words, style="warning"))
    if view.is_measured and not view.efficiency_known:
        words = f"The base point ({base_place(view)}) has no job that counts, so no efficiency is given."
        found.append(Text(text=words, style="warning"))
    note = interval_note(view.points)
    return [*found, *([Text(text=note, style="note")] if note else [])]


def last_measured(view: StudyView) -> Point | None:
    """The largest measured point with a core for every rank, of others the largest; None without a job."""
    measured = [point for point in view.points if point.jobs]
    fair = [point for point in measured if not point.oversubscribed]
    found = fair or measured
    return found[-1] if found else None


def efficiency_name(view: StudyView) -> str:
    return "rate of structures relative to the base" if view.mode == "throughput" else f"{view.mode} efficiency"


def outcome(view: StudyView) -> str:
    """The result at the largest point in two or three sentences; empty where there is none."""
    if not view.is_measured:
        return _predicted_outcome(view)
    point, base = last_measured(view), view.base
    if point is None or point.measured is None or base is None or base.measured is None or point.is_base:
        return ""
    hollow = ", where ranks share cores," if point.oversubscribed else ""
    words = (
        f"At {place(point)}{hollow} the {efficiency_name(view)} is {measured_efficiency(view, point)}: a step takes "
        f"{seconds(point.measured.median)}, and {seconds(base.measured.median)} at the base, {base_place(view)}."
    )
    limit = limit_sentence(point, measured_losses(view, point), is_predicted=False)
    above = (
        SUPERLINEAR_NOTE if view.mode != "throughput" and (view.efficiency_measured(point) or 0) > SUPERLINEAR else ""
    )
    return " ".join(part for part in (words, limit, above) if part)


def measured_efficiency(view: StudyView, point: Point) -> str:
    """A measured efficiency with its interval, the prediction and the bound beside it; "n/a" without a base."""
    efficiency = view.efficiency_measured(point)
    if efficiency is None:
        return "n/a"
    interval, bound = view.efficiency_interval(point), view.efficiency_bound(point)
    predicted = view.efficiency_predicted(point)
    notes = [f"95 % interval {100 * interval.low:.1f} to {100 * interval.high:.1f} %"] if interval is not None else []
    notes += [f"predicted {100 * predicted:.1f} %"] if predicted is not None else []
    if bound is not None and view.mode != "throughput":
        notes.append(f"predicted without communication {100 * bound:.1f} %")
    return f"{100 * efficiency:.1f} %" + (f" ({', '.join(notes)})" if notes else "")


def _predicted_outcome(view: StudyView) -> str:
    known = [point for point in view.points if view.efficiency_predicted(point) is not None]
    if not known:
        return "The prediction failed; the reason is listed under failures and exclusions."
    point = known[-1]
    efficiency = view.efficiency_predicted(point) or 0.0
    words = (
        f"Predicted, not measured: at {place(point)} of {point.any_record.machine} the {efficiency_name(view)} is "
        f"{100 * efficiency:.1f} % against {base_place(view)}."
    )
    limit = limit_sentence(point, predicted_losses(view, point), is_predicted=True)
    return " ".join(part for part in (words, limit) if part)


def points_table(view: StudyView, extras: Sequence[Extra] = ()) -> Table:
    """One row for each point: what ran, its time, interval, prediction and error; predicted alone where nothing ran."""
    measured = view.is_measured
    known = any(point.any_record.structures for point in view.points)
    extras = [extra for extra in extras if any(_extra(extra, view, point).number is not None for point in view.points)]
    columns = [
        Column(name=scaled_name(view), numeric=True, csv_name=view.scaled),
        *([Column(name="nodes", numeric=True, csv_name="nodes")] if _nodes_known(view) else []),
        *([Column(name="structures", numeric=True, csv_name="structures_per_step")] if known else []),
        *([Column(name="measured", numeric=True, tone="measured", csv_name="step_s"),
           Column(name="95 % interval", csv_name="step_s_low", csv_high="step_s_high"),
           Column(name="jobs")] if measured else []),
        Column(name="predicted", numeric=True, tone="predicted", csv_name="predicted_step_s"),
        *([Column(name="error", numeric=True, csv_name="error_percent")] if measured else []),
        *([] if measured else PREDICTED_COLUMNS),
        *(_named(extra.column, measured=measured) for extra in extras),
        *([Column(name="layout")] if layouts_matter(view) else []),
        *([Column(name="against base")] if measured and view.mode == "weak" else []),
    ]  # fmt: skip
    rows = [tuple(_row(view, point, extras, structures=known)) for point in view.points]
    starred = any(point.oversubscribed for point in view.points)
    words = "measured beside predicted" if measured else "predicted, not measured"
    notes = [OVERSUBSCRIBED_NOTE] if starred else []
    if any(point.predicted_s is None and point.prediction is not None for point in view.points):
        notes.append("n/a: no prediction was possible; the reason is under failures and exclusions.")
    if not measured:
        notes.append("Communication is what is not hidden behind computing; waiting is for ranks with more to do.")
    else:
        notes.append("Structures are of one step, all ranks together; error is (predicted - measured) / measured.")
    return Table(
        name=f"{view.name}-points", columns=tuple(columns), rows=tuple(rows), note=" ".join(notes),
        caption=f"Points of {view.name}, {words}.",
    )  # fmt: skip


def _named(column: Column, *, measured: bool) -> Column:
    """A column whose name in the CSV says where its values were predicted."""
    return column if measured else dataclasses.replace(column, csv_name=f"predicted_{column.csv_name}")


def layouts_matter(view: StudyView) -> bool:
    """Whether a measured study shares structures among ranks, or its points differ in more than their replicas."""
    layouts = [{**point.any_record.layout, "replicas": 0} for point in view.points]
    return any(layout != layouts[0] for layout in layouts) or (view.is_measured and layouts[0].get("unit", 1) != 1)


def _nodes_known(view: StudyView) -> bool:
    return any(_nodes(point) is not None for point in view.points)


def _nodes(point: Point) -> int | None:
    found = [record.nodes for record in (*point.jobs, point.prediction) if record is not None and record.nodes]
    return found[0] if found else None


def x_value(point: Point) -> Value:
    """What is scaled at a point, starred where ranks share cores."""
    return Value(text=f"{point.x:,.0f}{' *' if point.oversubscribed else ''}", number=point.x)


def jobs_value(point: Point) -> Value:
    return Value(text=f"{len(point.jobs)} of {point.repeats_planned}", number=len(point.jobs))


def interval_value(point: Point) -> Value | str:
    """The interval of the median in words, or why there is none."""
    measured = point.measured
    if measured is None:
        return "no job counts"
    if measured.low is None or measured.high is None:
        return f"none (n = {len(point.jobs)})"
    return values.time_range(measured.low, measured.high)


def _predicted_cells(view: StudyView, point: Point) -> list[Value]:
    """What a study that was only predicted shows beside its times."""
    lost = (point.exposed_predicted_s, point.wait_predicted_s)
    return [values.percent(view.efficiency_predicted(point), "predicted"), *(values.time(part) for part in lost)]


def _extra(extra: Extra, view: StudyView, point: Point) -> Value:
    return extra.value(view, point, point.measured.median if point.measured is not None else None, point.predicted_s)


def _row(view: StudyView, point: Point, extras: Sequence[Extra], *, structures: bool) -> list[Value | str]:
    measured_s = point.measured.median if point.measured is not None else None
    cells: list[Value | str] = [x_value(point)]
    cells += [values.count(_nodes(point))] if _nodes_known(view) else []
    cells += [values.count(point.any_record.structures or None)] if structures else []
    if view.is_measured:
        cells += [values.time(measured_s, "measured"), interval_value(point), jobs_value(point)]
    cells.append(values.time(point.predicted_s, "predicted"))
    cells += [values.signed_percent(point.error)] if view.is_measured else _predicted_cells(view, point)
    cells += [_extra(extra, view, point) for extra in extras]
    cells += [layout_text(point.any_record.layout)] if layouts_matter(view) else []
    if view.is_measured and view.mode == "weak":
        cells.append(against(view.base, point))
    return cells


def against(earlier: Point | None, point: Point) -> str:
    """A point's jobs held against another's, in the words of the rank test and the threshold."""
    if earlier is None or not earlier.jobs or not point.jobs:
        return "n/a"
    return "base" if earlier is point else compare(earlier.job_values_s, point.job_values_s).words
