"""Weak scaling: constant work per rank. One section for each study."""

from __future__ import annotations

from reports import values
from reports.campaign import Campaign
from reports.document import Column, Section, Value
from reports.points import Point, StudyView
from reports.scaling_section import Extra, mode_sections


def sections(campaign: Campaign) -> tuple[Section, ...]:
    """Sections of the weak studies, measured ones first."""
    work = Column(name="work of a rank", numeric=True, csv_name="edges_and_angles_per_rank")
    return mode_sections(campaign, "weak", (Extra(column=work, value=_work_of_a_rank),))


def _work_of_a_rank(view: StudyView, point: Point, measured_s: float | None, predicted_s: float | None) -> Value:
    """Edges plus angles of the busiest rank in one step: what a weak study holds constant."""
    counts = point.any_record.counts_per_rank
    return values.count(max((entry.work for entry in counts), default=None))
