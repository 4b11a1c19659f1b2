"""Efficiency of every point: measured with intervals, beside the ideal, the bound without communication, and predicted.

It owns the table and the words on what each line means; figures of the studies are in their own sections.
"""

from __future__ import annotations

from collections.abc import Sequence

from reports import values
from reports.campaign import Campaign
from reports.document import Block, Bullets, Column, Section, Table, Text, Value
from reports.key_table import study_label
from reports.points import Point, StudyView
from reports.scaling_section import OVERSUBSCRIBED_NOTE, x_value
from reports.wording import NOT_MEASURED, base_place, scaled_name

MEANINGS = (
    "Ideal is 100 %: the step time of the base point, scaled as the study says.",
    "The bound is the predicted step with no communication and no waiting, held against the base point as predicted "
    "(communication included). Between it and the prediction lies what communication costs, between it and the ideal "
    "work that does not shrink with the ranks. A bound above 100 % means that the base point itself communicates. It "
    "is predicted: a measured value above it means that the prediction takes too long there.",
    "The prediction comes from the machine's calibration, the model and the structures; it uses none of these runs.",
)
INTERVAL_MEANING = (
    "Intervals are percentiles of a joint bootstrap over jobs: those of the base point and of the point are drawn "
    "together, seeded. The base is common to all points of a study, so their intervals are not independent. Below six "
    "jobs at either there is none."
)
SERIAL_MEANING = (
    "Serial share is that of Karp and Flatt (1990), worked out at each point from its own measured speed-up: it "
    "describes the measurement and predicts nothing. If it stays the same from point to point Amdahl's law describes "
    "the study; if it grows, overheads grow with the ranks; above 100 % added ranks cost more than they bring."
)


def sections(campaign: Campaign) -> tuple[Section, ...]:
    """One section for what was measured and one for what was only predicted."""
    made: list[Section] = []
    for views, ident, title, tag in (
        (campaign.measured_views, "efficiency", "Efficiency: measured, bound and predicted", ""),
        (campaign.predicted_views, "efficiency-predicted", "Efficiency of predicted studies", NOT_MEASURED),
    ):
        known = [view for view in views if len(view.points) > 1]
        if known:
            short = "Efficiency" if not tag else "Efficiency, predicted"
            made.append(
                Section(
                    id=ident, title=title, short=short, tag=tag, tone="predicted" if tag else "",
                    blocks=_blocks(known, measured=not tag, explained=bool(made)),
                )
            )  # fmt: skip
    return tuple(made)


def _blocks(views: Sequence[StudyView], *, measured: bool, explained: bool) -> tuple[Block, ...]:
    """Tables, and what their columns mean unless that was explained before."""
    meanings = [MEANINGS[0], MEANINGS[1]]
    if measured:
        meanings += [MEANINGS[2], INTERVAL_MEANING]
        meanings += [SERIAL_MEANING] if any(view.mode == "strong" for view in views) else []
    blocks: list[Block] = [efficiency_table(view) for view in views]
    if not any(view.efficiency_bound(point) is not None for view in views for point in view.points):
        words = "No bound is given: the predictions do not record what each second is spent on."
        blocks.insert(0, Text(text=words, style="note"))
    return tuple(blocks if explained else [*blocks, Bullets(items=tuple(meanings))])


def efficiency_table(view: StudyView) -> Table:
    """One row for each point, efficiencies in percent."""
    measured = view.is_measured
    columns = [
        Column(name=scaled_name(view), numeric=True, csv_name=view.scaled),
        *([Column(name="measured", numeric=True, tone="measured", csv_name="efficiency_percent"),
           Column(name="95 % interval", numeric=True, csv_name="efficiency_low_percent",
                  csv_high="efficiency_high_percent")] if measured else []),
        Column(name="ideal", numeric=True, csv_name="ideal_percent"),
        Column(name="bound", numeric=True, tone="predicted", csv_name="bound_percent"),
        Column(name="predicted", numeric=True, tone="predicted", csv_name="predicted_efficiency_percent"),
        *([Column(name="serial share", numeric=True, csv_name="serial_share_percent")]
          if measured and view.mode == "strong" else []),
    ]  # fmt: skip
    starred = any(point.oversubscribed for point in view.points)
    return Table(
        name=f"{view.name}-efficiencies", columns=tuple(columns),
        rows=tuple(tuple(_row(view, point)) for point in view.points), note=OVERSUBSCRIBED_NOTE if starred else "",
        caption=f"Efficiency of {study_label(view)} against {base_place(view)}"
        f"{'' if measured else ', predicted, not measured'}.",
    )  # fmt: skip


def _row(view: StudyView, point: Point) -> list[Value | str]:
    cells: list[Value | str] = [x_value(point)]
    if view.is_measured:
        cells += [values.percent(view.efficiency_measured(point), "measured"), _interval(view, point)]
    cells += [
        values.percent(1.0, digits=0), values.percent(view.efficiency_bound(point), "predicted"),
        values.percent(view.efficiency_predicted(point), "predicted"),
    ]  # fmt: skip
    if view.is_measured and view.mode == "strong":
        cells.append(values.percent(serial_share(view, point)))
    return cells


def _interval(view: StudyView, point: Point) -> Value | str:
    if point.is_base and point.jobs:
        return "base"
    if not point.jobs or not view.efficiency_known:
        return values.NOT_KNOWN
    interval = view.efficiency_interval(point)
    if interval is not None:
        return values.percent_range(interval.low, interval.high)
    least = min(len(point.jobs), len(view.base.jobs) if view.base is not None else 0)
    return f"none (n = {least})"


def serial_share(view: StudyView, point: Point) -> float | None:
    """Karp and Flatt's experimentally determined serial fraction, with the base point as the unit of processors.

    e = (1/S - 1/p) / (1 - 1/p), S = T(base)/T(N), p = N/N(base). None at the base point and where not measured.
    Source: A. H. Karp and H. P. Flatt, Comm. ACM 33 (1990) 539.
    """
    efficiency, processors = view.efficiency_measured(point), point.x / view.base_x
    if efficiency is None or processors == 1:
        return None
    speed_up = efficiency * processors
    return (1 / speed_up - 1 / processors) / (1 - 1 / processors)
