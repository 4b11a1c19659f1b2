"""Strong scaling: constant total work, shared by more ranks. One section for each study."""

from __future__ import annotations

from reports import values
from reports.campaign import Campaign
from reports.document import Column, Section, Value
from reports.points import Point, StudyView
from reports.samples import differs_in_work
from reports.scaling_section import Extra, mode_sections
from scaling_studies import ratios

DAY_S = 86_400


def sections(campaign: Campaign) -> tuple[Section, ...]:
    """Sections of the strong studies, measured ones first."""
    extras = (
        Extra(column=Column(name="speed-up", numeric=True, csv_name="speed_up"), value=_speed_up),
        Extra(column=Column(name="structures per day", numeric=True, csv_name="structures_per_day"), value=_per_day),
    )
    return mode_sections(campaign, "strong", extras)


def _speed_up(view: StudyView, point: Point, measured_s: float | None, predicted_s: float | None) -> Value:
    """T(base) / T(N): of measured medians where the study was measured, else of predictions."""
    base = view.base
    if view.is_measured:
        base_s, own_s = (base.measured.median if base and base.measured else None), measured_s
    else:
        base_s, own_s = (base.predicted_s if base else None), predicted_s
    if base_s is None or own_s is None:
        return values.NOT_KNOWN
    speed_up = ratios.speed_up(base_s, own_s)
    text = f"{speed_up:,.0f}" if speed_up >= 100 else f"{speed_up:.2f}"
    return Value(text=text, number=speed_up, tone="" if view.is_measured else "predicted")


def _per_day(view: StudyView, point: Point, measured_s: float | None, predicted_s: float | None) -> Value:
    """Structures trained on in a day of steps: science per day."""
    step_s = measured_s if view.is_measured else predicted_s
    structures = point.any_record.structures
    if step_s is None or not structures or differs_in_work(point):
        return values.NOT_KNOWN
    return values.plain(structures * DAY_S / step_s, "" if view.is_measured else "predicted")
