"""The one table a reader takes away: every point with its jobs, time, interval, prediction, error and efficiency.

The Markdown summary and the LaTeX table print it; it owns the choice of columns, not the numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from reports import values
from reports.campaign import Campaign
from reports.document import Column, Table, Tone, Value
from reports.points import Point, Share, StudyView
from reports.samples import differs_in_peak, differs_in_work

COLUMNS = (
    Column(name="study"), Column(name="point", numeric=True, csv_name="x"), Column(name="jobs", numeric=True),
    Column(name="step time", numeric=True, tone="measured", csv_name="step_s"),
    Column(name="95 % interval", numeric=True, csv_name="step_s_low", csv_high="step_s_high"),
    Column(name="predicted", numeric=True, tone="predicted", csv_name="predicted_step_s"),
    Column(name="error", numeric=True, csv_name="error_percent"),
    Column(name="efficiency", numeric=True, tone="measured", csv_name="efficiency_percent"),
    Column(name="its interval", numeric=True, csv_name="efficiency_low_percent",
           csv_high="efficiency_high_percent"),
    Column(name="predicted efficiency", numeric=True, tone="predicted", csv_name="predicted_efficiency_percent"),
    Column(name="of peak", numeric=True, csv_name="percent_of_peak"),
)  # fmt: skip
NAME = "key"  # of the table
NONE = Value(text="–")


@dataclass(frozen=True, kw_only=True)
class KeyRow:
    """A line of the table and what it is about. is_predicted: nothing of it was measured."""

    view: StudyView
    point: Point
    is_predicted: bool
    cells: tuple[Value | str, ...]


def key_rows(campaign: Campaign, *, ends_only: bool = False) -> list[KeyRow]:
    """A line per point. ends_only: of studies that were only predicted, the base point and the largest alone."""
    rows = []
    for view in campaign.views:
        points = list(view.points)
        if ends_only and not view.is_measured and len(points) > 2:
            points = [point for point in points if point.is_base or point is points[-1]]
        rows += [
            KeyRow(view=view, point=point, is_predicted=not view.is_measured, cells=_cells(view, point))
            for point in points
        ]
    return rows


def filled_columns(rows: Sequence[KeyRow]) -> list[int]:
    """Indices of the columns in which any row says something; a predicted campaign has no error and no interval."""
    return [index for index in range(len(COLUMNS)) if any(row.cells[index] != NONE for row in rows)]


def key_table(campaign: Campaign, *, ends_only: bool = False) -> Table:
    """The same as a table, with all its columns."""
    rows = key_rows(campaign, ends_only=ends_only)
    starts = [index for index, row in enumerate(rows) if index and row.view is not rows[index - 1].view]
    return Table(name=NAME, columns=COLUMNS, rows=tuple(row.cells for row in rows), groups=tuple(starts))


def peak_words(campaign: Campaign) -> str:
    """What percentages of a peak are of, in a sentence: every peak by name, dtype and source; empty without one."""
    found: dict[str, None] = {}
    for point in (point for view in campaign.views for point in view.points):
        share, _ = _share(point)
        if share.percent is not None and share.peak is not None:
            name = share.peak.name.partition(" x ")[2] or share.peak.name
            found[f"{name}, {share.peak.dtype} ({share.peak.source})"] = None
    if not found:
        return ""
    return f"Of peak: model FLOPs of the typical step, as a share of the devices used together: {'; '.join(found)}."


def study_label(view: StudyView) -> str:
    """Name of a study, with its mode where the name does not say it."""
    return view.name if view.mode in view.name else f"{view.name} ({view.mode})"


def _cells(view: StudyView, point: Point) -> tuple[Value | str, ...]:
    measured, interval = point.measured, view.efficiency_interval(point)
    times = values.time(measured.median, "measured") if measured else NONE
    share, tone = _share(point)
    return (
        study_label(view),
        Value(text=f"{point.x:,g}{' *' if point.oversubscribed else ''}", number=point.x),
        _jobs(point) if view.is_measured else NONE,
        times,
        _interval(point),
        values.time(point.predicted_s, "predicted"),
        values.signed_percent(point.error) if view.is_measured else NONE,
        values.percent(view.efficiency_measured(point), "measured") if view.is_measured else NONE,
        values.percent_range(interval.low, interval.high) if interval else NONE,
        values.percent(view.efficiency_predicted(point), "predicted"),
        values.percent(None if share.percent is None else share.percent / 100, tone),
    )  # fmt: skip


def _jobs(point: Point) -> Value:
    return Value(text=f"{len(point.jobs)} of {point.repeats_planned}", number=len(point.jobs))


def _interval(point: Point) -> Value:
    """Interval of the median time, or why there is none."""
    if point.measured is None:
        return NONE
    low, high = point.measured.low, point.measured.high
    if low is None or high is None:
        return Value(text=f"no CI (n={len(point.jobs)})")
    return values.time_range(low, high)


def _share(point: Point) -> tuple[Share, Tone]:
    """Percent of peak, the measured one where the point was measured; withheld where its jobs differ in kind."""
    if not point.jobs:
        return point.share_predicted(), "predicted"
    if differs_in_work(point) or differs_in_peak(point):
        return Share(percent=None, peak=None, note="jobs differ in work or peak"), ""
    return point.share_measured(), "measured"
