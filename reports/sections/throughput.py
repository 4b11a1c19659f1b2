"""Throughput: constant ranks, more structures for each. One section for each study."""

from __future__ import annotations

from reports import values
from reports.campaign import Campaign
from reports.document import Column, Section, Value
from reports.points import Point, StudyView
from reports.samples import differs_in_work
from reports.scaling_section import Extra, mode_sections


def sections(campaign: Campaign) -> tuple[Section, ...]:
    """Sections of the throughput studies, measured ones first."""
    extras = (
        Extra(column=Column(name="structures/s", numeric=True, csv_name="structures_per_s"), value=_structures_per_s),
        Extra(column=Column(name="atoms/s", numeric=True, csv_name="atoms_per_s"), value=_atoms_per_s),
    )
    return mode_sections(campaign, "throughput", extras, rate=True)


def _rate(
    view: StudyView, point: Point, number: int, measured_s: float | None, predicted_s: float | None
) -> Value:  # fmt: skip
    """A rate from the median time, which is a cost: never a mean of rates. n/a where jobs did different work."""
    step_s = measured_s if view.is_measured else predicted_s
    if step_s is None or not number or differs_in_work(point):
        return values.NOT_KNOWN
    return values.plain(number / step_s, "" if view.is_measured else "predicted")


def _structures_per_s(view: StudyView, point: Point, measured_s: float | None, predicted_s: float | None) -> Value:
    return _rate(view, point, point.any_record.structures, measured_s, predicted_s)


def _atoms_per_s(view: StudyView, point: Point, measured_s: float | None, predicted_s: float | None) -> Value:
    atoms = sum(entry.atoms for entry in point.any_record.counts_per_rank)
    return _rate(view, point, atoms, measured_s, predicted_s)
