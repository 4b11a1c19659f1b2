"""How evenly work, time and expert rows fall on the ranks of each point."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from reports import figures_spread, values
from reports.campaign import Campaign
from reports.document import Block, Column, Heading, Picture, Section, Table, Text
from reports.drawing import MEASURED_COLOUR, PREDICTED_COLOUR
from reports.points import Point, StudyView
from reports.scaling_section import last_measured, x_value
from reports.wording import NOT_MEASURED, place, scaled_name, study_title, tag_of
from scaling_studies.records import Record

LEAD = (
    "Work is directed edges plus angles, known before the run. A rank that has done its part waits for the others: "
    "largest over mean is what the slowest rank costs all of them. Rows of the experts are those that the "
    "experts of a rank work on, known from the composition."
)
WORK_COLOUR, ROWS_COLOUR = "#009E73", "#E69F00"


def sections(campaign: Campaign) -> tuple[Section, ...]:
    """One section; none where nothing is known of single ranks."""
    blocks: list[Block] = []
    for view in campaign.views:
        blocks += _study(view)
    if not blocks:
        return ()
    tag = NOT_MEASURED if campaign.is_predicted_only else ""
    return (
        Section(id="imbalance", title="Imbalance of ranks and experts", short="Imbalance", tag=tag,
                blocks=(Text(text=LEAD), *blocks), tone="predicted" if tag else ""),
    )  # fmt: skip


def _study(view: StudyView) -> list[Block]:
    rows = tuple(_row(point) for point in view.points if _is_known(point))
    if not rows:
        return []
    columns = (
        Column(name=scaled_name(view), numeric=True, csv_name=view.scaled),
        Column(name="work, largest over mean", numeric=True, csv_name="work_largest_over_mean"),
        Column(name="working time, slowest over mean", numeric=True, csv_name="busy_largest_over_mean"),
        Column(name="waiting, mean rank", numeric=True, csv_name="wait_s"),
        Column(name="of the step", numeric=True, csv_name="wait_percent"),
        Column(name="expert rows, largest over mean", numeric=True, csv_name="rows_largest_over_mean"),
    )  # fmt: skip
    kept = [index for index in range(len(columns)) if any(row[index].number is not None for row in rows)]
    table = Table(name=f"imbalance-{view.name}", columns=tuple(columns[index] for index in kept),
                  rows=tuple(tuple(row[index] for index in kept) for row in rows),
                  note=f"{'Times: median over jobs. ' if view.is_measured else ''}1 is perfect balance.",
                  caption=f"Balance of the ranks at every point of {view.name}.")  # fmt: skip
    tag = f" ({tag_of(view)})" if tag_of(view) else ""
    picture = _picture(view)
    return [Heading(text=f"{study_title(view)}{tag}"), *([picture] if picture else []), table]


def _is_known(point: Point) -> bool:
    record = _described(point)
    return bool(record.counts_per_rank or record.expert_rows_per_rank or _ranks(point, "busy_s"))


def _described(point: Point) -> Record:
    """The record to read work and expert rows from: of a job that counts, else the prediction."""
    return point.jobs[0] if point.jobs else point.prediction or point.any_record


def _ranks(point: Point, name: str) -> list[float]:
    """Seconds of each rank in a step, median over the jobs; empty where not recorded."""
    known = [getattr(job.rank_times, name) for job in point.jobs if job.rank_times is not None]
    if not known or len({len(times) for times in known}) > 1:
        return []
    return [statistics.median(times) for times in zip(*known, strict=True)]


def largest_over_mean(numbers: Sequence[float]) -> float | None:
    """1 for perfect balance; None for nothing."""
    return max(numbers) / mean if numbers and (mean := statistics.fmean(numbers)) else None


def _expert_rows(point: Point) -> tuple[float, ...]:
    """Of a job where it is recorded, else of the prediction: both know it from the composition."""
    found = _described(point).expert_rows_per_rank
    return found or (point.prediction.expert_rows_per_rank if point.prediction is not None else ())


def _row(point: Point) -> tuple[values.Value, ...]:
    works = [float(counts.work) for counts in _described(point).counts_per_rank]
    waits = _ranks(point, "wait_s")
    wait_s = statistics.fmean(waits) if waits else None
    share = wait_s / point.measured.median if wait_s is not None and point.measured is not None else None
    return (
        x_value(point), _ratio(largest_over_mean(works)), _ratio(largest_over_mean(_ranks(point, "busy_s"))),
        values.time(wait_s, "measured"), values.percent(share, "measured"),
        _ratio(largest_over_mean(_expert_rows(point))),
    )  # fmt: skip


def _ratio(number: float | None) -> values.Value:
    return values.NOT_KNOWN if number is None else values.Value(text=f"{number:.3f}", number=number)


def _picture(view: StudyView) -> Picture | None:
    """The ranks of the largest point: of the measured ones, else of the predicted ones."""
    point = last_measured(view) or view.points[-1]
    if point.ranks < 2:
        return None
    series = (
        ("seconds of a step", "working", MEASURED_COLOUR, _ranks(point, "busy_s"), "measured"),
        ("seconds of a step", "waiting", PREDICTED_COLOUR, _ranks(point, "wait_s"), "measured"),
        ("edges + angles", "work", WORK_COLOUR, [entry.work for entry in _described(point).counts_per_rank], "counted"),
        ("rows", "expert rows", ROWS_COLOUR, _expert_rows(point), "from the composition"),
    )  # fmt: skip
    tag = " Predicted, not measured." if not view.is_measured else ""
    return figures_spread.ranks_of_point(view.name, f"Ranks of {view.name} at {place(point)}.", series, tag=tag)
