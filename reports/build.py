"""A campaign made into a document: the sections in their order, the head, and the list of what can be downloaded.

It owns the order and what must be said everywhere of a report without a measurement; the content of each section is a
module of ``reports.sections``.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections import Counter
from collections.abc import Sequence

from reports.campaign import Campaign
from reports.document import Column, Document, Picture, Section, Table, Text, Value
from reports.html import DATA_SECTION
from reports.points import paired
from reports.sections import (
    breakdown,
    efficiency,
    exclusions,
    imbalance,
    machines,
    memory,
    methodology,
    peak,
    prediction,
    provenance,
    regression,
    roofline,
    rules,
    strong,
    system,
    throughput,
    training,
    variability,
    verdict,
    weak,
)
from reports.wording import NOT_MEASURED

BEFORE_RULES = (
    verdict, system, weak, strong, throughput, efficiency, breakdown, peak, roofline, memory, variability, prediction,
    imbalance, regression, exclusions, machines, training, methodology,
)  # fmt: skip
BANNER = "Predicted, not measured: no run is on record here. Every number is a prediction or is published."


def build_document(campaign: Campaign, *, title: str, written_at: str) -> Document:
    """The whole report. Raises UserError where records contradict one another."""
    before = tuple(section for module in BEFORE_RULES for section in module.sections(campaign))
    after = provenance.sections(campaign)
    document = Document(
        title=title, lead=_lead(campaign), headline=_headline(campaign), sections=(*before, *after),
        written_at=written_at,
    )  # fmt: skip
    checked = rules.sections(campaign, document)  # the rules read what the report says
    document = dataclasses.replace(
        document, sections=(*before, *checked, *after), lead=(*document.lead, *_broken_rules(checked))
    )
    document = dataclasses.replace(document, sections=(*document.sections, _data_section(document)))
    _require_unique_names(document)
    return _marked_predicted(document) if campaign.is_predicted_only else document


def _broken_rules(checked: Sequence[Section]) -> list[str]:
    """What is said at the head where a rule of honest reporting is broken."""
    return [
        f"Rules of honest reporting are broken here. {block.text} See the section {section.title}."
        for section in checked
        for block in section.blocks
        if isinstance(block, Text) and block.style == "warning"
    ]


def _lead(campaign: Campaign) -> tuple[str, ...]:
    """How the report is to be read."""
    if campaign.is_predicted_only:
        return ("Every number here is predicted (orange) or was published by others (green). Nothing was measured.",)
    return (
        "Every point of the campaign, measured beside predicted. Blue is measured, orange predicted, green published "
        "by others; every job is drawn; what is not known says n/a.",
    )


def _headline(campaign: Campaign) -> tuple[tuple[str, str], ...]:
    """Three or four numbers for the head of the report: value, what it is."""
    if campaign.is_predicted_only:
        records = [point.prediction for view in campaign.views for point in view.points if point.predicted_s]
        models = len({record.model for record in records if record})
        machines = len({record.machine for record in records if record})
        ranks = max((record.ranks for record in records if record), default=0)
        return (
            (f"{len(records)}", "predicted points"), (f"{models}", "model" if models == 1 else "models"),
            (f"{machines}", "machine" if machines == 1 else "machines"), (f"{ranks:,}", "ranks at most"),
        )  # fmt: skip
    points = [point for view in campaign.measured_views for point in view.points]
    jobs = sum(len(point.jobs) for point in points)
    numbers = [(f"{jobs:,}", "training runs counted"), (f"{len(points):,}", "points")]
    fair = paired(campaign.views, lambda point: not point.oversubscribed)
    if fair:
        median = statistics.median(abs(point.error or 0) for point in fair)
        numbers.append((f"{100 * median:.1f} %", "median error of the predicted step time (a core for every rank)"))
    left_out = sum(len(point.excluded) for point in points)
    words = "attempt left out, listed with its reason" if left_out == 1 else "attempts left out, listed with reasons"
    return (*numbers, (f"{left_out:,}", words if left_out else "attempts left out"))


def _data_section(document: Document) -> Section:
    """What the report's numbers are called as files."""
    labels = document.labels()
    rows = []
    for section in document.sections:
        for block in section.blocks:
            if isinstance(block, Picture):
                rows.append(_file_row(block.data, f"Numbers of {labels[block.name].lower()}"))
            elif isinstance(block, Table) and block.caption:
                rows.append(_file_row(block, f"{labels[block.name]}: {block.caption}"))
            elif isinstance(block, Table):
                rows.append(_file_row(block, f"Section {section.title}: {block.name.replace('-', ' ')}"))
    columns = (Column(name="file"), Column(name="what"), Column(name="rows", numeric=True))
    listing = Table(name="files", columns=columns, rows=tuple(rows), folded=True,
                    caption="Every table, and the numbers of every figure, as CSV in SI units.")  # fmt: skip
    text = (
        "All numbers of this report are files too: a CSV per table and figure, an SVG per figure, attempts.csv with a "
        "line for every attempt and prediction, and records.jsonl with all that was recorded, raw step times included."
    )
    return Section(id=DATA_SECTION, title="Data", short="Data", blocks=(Text(text=text), listing))


def _file_row(table: Table, words: str) -> tuple[Value | str, ...]:
    return (f"{table.name}.csv", words, Value(text=f"{len(table.rows):,}", number=len(table.rows)))


def _marked_predicted(document: Document) -> Document:
    """The document with the mark at its head and at every section."""
    sections = tuple(
        dataclasses.replace(section, tag=section.tag or NOT_MEASURED, tone=section.tone or "predicted")
        for section in document.sections
    )
    return dataclasses.replace(document, sections=sections, banner=BANNER, kicker=f"Janus · {NOT_MEASURED}")


def _require_unique_names(document: Document) -> None:
    for what, names in (
        ("section", [section.id for section in document.sections]),
        ("table", [table.name for table in document.tables()]),
        ("figure", [picture.name for picture in document.pictures()]),
    ):
        twice = [name for name, number in Counter(names).items() if number > 1]
        assert not twice, f"two blocks of kind {what} are called {twice}"
