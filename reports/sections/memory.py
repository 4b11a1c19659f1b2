"""Memory of the fullest rank: measured, predicted with its parts, and the limit."""

from __future__ import annotations

from reports import figures_devices, values
from reports.campaign import Campaign
from reports.document import Block, Column, Heading, Section, Table, Text, Value
from reports.points import Point, StudyView
from reports.scaling_section import x_value
from reports.wording import NOT_MEASURED, binary_bytes, scaled_name, study_title, tag_of
from scaling_studies.records import MEMORY_LIMIT

LEAD = (
    "The largest memory that any rank of a job took at any time, the process itself included; for a point the largest "
    "of its jobs. The limit is a rank's share of the memory of its node, on a calibrated host less a reserve."
)


def sections(campaign: Campaign) -> tuple[Section, ...]:
    """One section; none where no memory is on record."""
    blocks: list[Block] = []
    for view in campaign.views:
        blocks += _study(view)
    if not blocks:
        return ()
    tag = NOT_MEASURED if campaign.is_predicted_only else ""
    return (
        Section(id="memory", title="Memory", short="Memory", blocks=(Text(text=LEAD), *blocks), tag=tag,
                tone="predicted" if tag else ""),
    )  # fmt: skip


def limit(point: Point) -> float | None:
    """What a rank may take [bytes], where the prediction says it."""
    found = point.prediction.facts.get(MEMORY_LIMIT) if point.prediction is not None else None
    return float(found) if isinstance(found, int | float) else None


def measured_bytes(point: Point) -> float | None:
    """The largest memory of any job of a point."""
    return max((float(job.memory_bytes) for job in point.jobs if job.memory_bytes), default=None)


def _study(view: StudyView) -> list[Block]:
    picture = figures_devices.memory(view, limit)
    if picture is None:
        return []
    tag = f" ({tag_of(view)})" if tag_of(view) else ""
    return [Heading(text=f"{study_title(view)}{tag}"), picture, _table(view)]


def _table(view: StudyView) -> Table:
    has_limit = any(limit(point) is not None for point in view.points)
    columns = [
        Column(name=scaled_name(view), numeric=True, csv_name=view.scaled),
        *([Column(name="measured", numeric=True, csv_name="memory_bytes")] if view.is_measured else []),
        Column(name="predicted", numeric=True, csv_name="predicted_memory_bytes"),
        *([Column(name="error", numeric=True, csv_name="error_percent")] if view.is_measured else []),
        *([Column(name="limit", numeric=True, csv_name="limit_bytes"),
           Column(name="of the limit", numeric=True, csv_name="percent_of_limit")] if has_limit else []),
        Column(name="largest predicted parts"),
    ]  # fmt: skip
    rows = []
    for point in view.points:
        own, guess, most = measured_bytes(point), _predicted_bytes(point), limit(point)
        row: list[Value | str] = [x_value(point)]
        row += [values.memory(own, "measured")] if view.is_measured else []
        row.append(values.memory(guess, "predicted"))
        row += [values.signed_percent(guess / own - 1 if own and guess else None)] if view.is_measured else []
        taken = own or guess
        row += [values.memory(most), values.percent(taken / most if taken and most else None)] if has_limit else []
        rows.append((*row, _largest_parts(point)))
    return Table(name=f"memory-{view.name}", columns=tuple(columns), rows=tuple(rows),
                 caption=f"Memory of the fullest rank at every point of {view.name}.",
                 note="Error is (predicted - measured) / measured." if view.is_measured else "")  # fmt: skip


def _predicted_bytes(point: Point) -> float | None:
    """Also of a prediction that failed because it does not fit."""
    needed = point.prediction.memory_bytes if point.prediction is not None else None
    return float(needed) if needed else None


def _largest_parts(point: Point, number: int = 2) -> str:
    parts = point.prediction.memory_parts if point.prediction is not None else {}
    largest = sorted(parts.items(), key=lambda part: -part[1])[:number]
    return ", ".join(f"{name} {binary_bytes(size)}" for name, size in largest) or "n/a"
