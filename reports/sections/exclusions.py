"""What the figures leave out and why: every attempt, prediction and file that does not count; planned beside shown."""

from __future__ import annotations

from collections import Counter

from reports import values
from reports.campaign import Campaign
from reports.document import Block, Column, Section, Table, Text, Value
from reports.document_checks import EXCLUSION_TABLE
from reports.points import Point
from reports.rules import declared_gaps
from reports.scaling_section import jobs_value
from reports.wording import count_of, not_ended, place, scaled_place
from scaling_studies.provenance import hosts
from scaling_studies.records import PREDICTED, Record

COLUMNS = (
    Column(name="study"),
    Column(name="point"),
    Column(name="attempt"),
    Column(name="state"),
    Column(name="hosts"),
    Column(name="reason"),
)
SHOWN_CHARACTERS = 80  # of a list of hosts
Row = tuple[Value | str, ...]


def sections(campaign: Campaign) -> tuple[Section, ...]:
    """One section, also where nothing was left out."""
    rows = [row for view in campaign.views for point in view.points for row in _of_point(point)]
    rows += [_undeclared(record) for record in campaign.folder.undeclared]
    rows += [("", "", f"file {name}", "refused", "", reason) for name, reason in campaign.folder.refused]
    blocks: list[Block] = [Text(text=_words(campaign, len(rows)))]
    if rows:
        blocks.append(Table(name=EXCLUSION_TABLE, columns=COLUMNS, rows=tuple(rows),
                            caption="Everything that does not count, with its reason."))  # fmt: skip
    if planned := _planned(campaign):
        blocks.append(planned)
    return (
        Section(id="left-out", title="Failures and exclusions", short="Left out", blocks=tuple(blocks)),
    )  # fmt: skip


def _of_point(point: Point) -> list[Row]:
    rows = [_row(point, record.tag, record) for record in point.excluded]
    if point.prediction is not None and point.predicted_s is None:
        rows.append(_row(point, "prediction", point.prediction))
    return rows


def _undeclared(record: Record) -> Row:
    """An attempt at a point that the declaration has dropped, whatever became of it."""
    reason = "its point is no longer declared" + (f"; {record.reason}" if record.reason else "")
    return (record.study, scaled_place(record.scaled, record.x), record.tag, record.state, _hosts(record), reason)


def _row(point: Point, name: str, record: Record) -> Row:
    bad = Value(text=record.state, tone="bad")
    return (point.study, place(point), name, bad, _hosts(record), record.reason)


def _hosts(record: Record) -> str:
    """Where an attempt ran, shortened; "n/a" where nobody knows. A prediction ran nowhere."""
    if record.source == PREDICTED:
        return ""
    found = hosts(record.provenance) or "n/a"
    return found if len(found) <= SHOWN_CHARACTERS else f"{found[:SHOWN_CHARACTERS]}..."


def _words(campaign: Campaign, number: int) -> str:
    ended = campaign.measured
    if not ended:
        left = f"{number:,} prediction{'s' * (number > 1)} or file{'s' * (number > 1)}"
        left = f"{left} {'is' if number == 1 else 'are'} listed below" if number else "no prediction failed"
        return f"No attempt has ended here; {left}."
    states = Counter(record.state for record in ended)
    counted = ", ".join(f"{number:,} {state}" for state, number in sorted(states.items()))
    waiting = f" {not_ended(len(campaign.open))}." if campaign.open else ""
    verb = "has" if len(ended) == 1 else "have"
    tail = "Those listed below do not count in any figure." if number else "All of them count."
    dropped = "".join(f" {line[0].upper()}{line[1:]}." for line in campaign.folder.undeclared_lines)
    return f"{count_of(len(ended), 'measured attempt')} {verb} ended: {counted}.{waiting}{dropped} {tail}"


def _planned(campaign: Campaign) -> Table | None:
    """Jobs planned and shown of every point; points that were declared and have no record are in it too."""
    rows: list[Row] = []
    for view in campaign.views:
        for point in view.points:
            if point.repeats_planned or point.jobs or point.excluded or point.open:
                rows.append((view.name, place(point), jobs_value(point), values.count(len(point.excluded)),
                             values.count(len(point.open)), _state(campaign, point)))  # fmt: skip
    for name, scaled, value in declared_gaps(campaign):
        rows.append((name, f"{value:g} {scaled}", "0", values.count(0), values.count(0), "no record"))
    columns = (Column(name="study"), Column(name="point"), Column(name="jobs counted of planned", numeric=True),
               Column(name="left out", numeric=True), Column(name="not ended", numeric=True),
               Column(name="state"))  # fmt: skip
    return Table(name="planned-and-shown", columns=columns, rows=tuple(rows), folded=True,
                 caption="Planned and shown.") if rows else None  # fmt: skip


def _state(campaign: Campaign, point: Point) -> str:
    if (more := len(point.jobs) - point.repeats_planned) >= 0:
        stops_by_interval = (campaign.declared or {}).get(point.study, {}).get("stop_ci_percent")
        return f"complete, {more} more than declared, all count" if more and not stops_by_interval else "complete"
    if not (point.jobs or point.excluded or point.open):
        return "predicted only"
    return "running" if point.open else "incomplete"
