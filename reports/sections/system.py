"""The system: machines, the devices that were used of them, their peaks and ceilings with sources, the software.

It owns these tables; the complete provenance of every run is a section of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

from reports import values, wording
from reports.campaign import Campaign
from reports.document import Block, Column, Heading, Section, Table, Text, Value
from reports.wording import layout_text
from scaling_studies.records import DONE, MEASURED, Ceiling, Record

SOFTWARE = ("operating_system", "devices", "clocks", "driver", "library_versions", "modules", "environment")
MOST_LEVELS = 4  # different values of one field that are shown


def sections(campaign: Campaign) -> tuple[Section, ...]:
    """One section where any record is good."""
    good = [record for record in campaign.records if record.state == DONE]
    records = sorted(good, key=lambda record: record.source)  # measured before predicted
    if not records:
        return ()
    blocks: list[Block] = [_machines(records)]
    ceilings = _ceilings(records)
    if ceilings.rows:
        blocks.append(ceilings)
    else:
        blocks.append(Text(text="Neither a peak nor a ceiling of any machine is on record: n/a.", style="note"))
    measured = [record for record in records if record.source == MEASURED]
    if measured:
        blocks += [Heading(text="What the runs found"), _software(measured)]
    return (Section(id="system", title="System", short="System", blocks=tuple(blocks)),)


def _machines(records: Sequence[Record]) -> Table:
    """One row for each machine and kind of result: the largest point on it."""
    columns = (
        Column(name="machine"), Column(name="results"),
        Column(name="largest point: ranks", numeric=True, csv_name="ranks"),
        Column(name="nodes", numeric=True, csv_name="nodes"), Column(name="model"), Column(name="dtype"),
        Column(name="layout of the largest point"),
    )  # fmt: skip
    largest: dict[tuple[str, str], Record] = {}
    for record in records:
        key = (record.machine, record.source)
        if key not in largest or record.ranks > largest[key].ranks:
            largest[key] = record
    rows = [
        (machine, Value(text=source, tone="measured" if source == MEASURED else "predicted"),
         values.count(record.ranks), values.count(record.nodes), record.model, record.dtype, layout_text(record.layout))
        for (machine, source), record in largest.items()
    ]  # fmt: skip
    return Table(name="machines-used", columns=columns, rows=tuple(rows), caption="Machines of this report.")


def _limits(record: Record) -> list[Ceiling]:
    """Peak and ceilings of a record as one list."""
    found = list(record.ceilings)
    peak = record.peak
    if peak is not None and not any(entry.value == peak.flops_per_s for entry in found):
        found.insert(0, Ceiling(value=peak.flops_per_s, unit="FLOP/s", name=peak.name, dtype=peak.dtype,
                                source=peak.source))  # fmt: skip
    return found


def _ceilings(records: Sequence[Record]) -> Table:
    """Peaks and ceilings of each machine: of the devices of its smallest and of its largest point."""
    columns = (
        Column(name="machine"), Column(name="ranks", numeric=True, csv_name="ranks"), Column(name="ceiling"),
        Column(name="of all devices used", numeric=True, csv_name="value_si"), Column(name="dtype"),
        Column(name="source"),
    )  # fmt: skip
    rows: list[tuple[Value | str, ...]] = []
    groups: list[int] = []
    for machine in dict.fromkeys(record.machine for record in records):
        own = sorted((record for record in records if record.machine == machine), key=lambda record: record.ranks)
        groups.append(len(rows))
        for record in own[:1] if own[0].ranks == own[-1].ranks else (own[0], own[-1]):
            rows += [
                (machine, values.count(record.ranks), entry.name, _rate(entry), entry.dtype or "–", entry.source)
                for entry in _limits(record)
            ]
    return Table(
        name="ceilings", columns=columns, rows=tuple(rows), groups=tuple(groups[1:]),
        caption="Peaks and ceilings that results are held against.",
        note="Of the devices that the ranks of the point use together, at the smallest and the largest point.",
    )  # fmt: skip


def _rate(entry: Ceiling) -> Value:
    text = wording.flops_rate(entry.value) if entry.unit == "FLOP/s" else wording.byte_rate(entry.value)
    return Value(text=text, number=entry.value)


def _plain(value: object) -> str:
    """A field in words; an empty list was looked up and found empty."""
    return "none" if value in ([], {}, ()) else wording.plain(value)


def _software(records: Sequence[Record]) -> Table:
    """Fields of the measured runs that describe hosts and software: every different value."""
    rows = []
    for name in SOFTWARE:
        found = list(dict.fromkeys(_plain(record.provenance.get(name)) for record in records))
        shown = " | ".join(found[:MOST_LEVELS])
        more = f" | and {len(found) - MOST_LEVELS} more" if len(found) > MOST_LEVELS else ""
        rows.append((name.replace("_", " "), shown + more))
    columns = (Column(name="what"), Column(name="found by the runs"))
    return Table(name="software", columns=columns, rows=tuple(rows), caption="Hosts and software of the measured runs.")
