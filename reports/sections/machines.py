"""What is measured and predicted here beside the full machines of the paper, as published (``reports.published``)."""

from __future__ import annotations

from dataclasses import dataclass

from reports import figures_devices, values
from reports.campaign import Campaign
from reports.document import Block, Column, Heading, Section, Table, Text, Tone
from reports.flop_rates import FlopRates, measured_rates, predicted_rates
from reports.points import Point, StudyView
from reports.published import PUBLISHED_RUNS, PublishedRun
from reports.scaling_section import last_measured
from reports.wording import NOT_MEASURED, listed, place

QUANTITIES = (
    ("peak FLOP rate, training loop", "peak_rate"), ("of the peak, training loop", "peak_percent"),
    ("sustained FLOP rate, whole wall time", "sustained_rate"), ("of the peak, sustained", "sustained_percent"),
    ("weak efficiency", "weak_percent"), ("strong efficiency", "strong_percent"),
)  # fmt: skip
PERCENTAGES = ("peak_percent", "sustained_percent", "weak_percent", "strong_percent")
LEAD = (
    "The published values are of the authors' own runs on the full machines; base point, batch and data of them are "
    "not published, so columns side by side need not describe the same job. A small host and a full machine differ in "
    "everything; they share a table so that definitions can be compared, not results."
)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One column: a machine with a model, measured, predicted or published. found: quantity -> value or percent."""

    name: str
    kind: Tone
    what: str
    found: dict[str, float]


def sections(campaign: Campaign) -> tuple[Section, ...]:
    """One section: a table of all machines, and a figure for each one of the paper that is predicted here."""
    entries = _entries(campaign)
    blocks: list[Block] = [Text(text=LEAD), _table(entries)]
    for run in PUBLISHED_RUNS:
        own = [entry for entry in entries if entry.name == run.machine]
        rows = [
            (label, {str(entry.kind): entry.found[key] for entry in own if key in entry.found})
            for label, key in QUANTITIES if key in PERCENTAGES
        ]  # fmt: skip
        kinds = listed([str(entry.kind) for entry in own])
        caption = f"{run.model} on {run.machine}: {kinds}. Nothing of it was run here."
        picture = figures_devices.beside_published(rows, run.machine, caption)
        if picture is not None:
            blocks += [Heading(text=f"{run.model} on {run.machine} ({NOT_MEASURED})"), picture]
    tag = NOT_MEASURED if campaign.is_predicted_only else ""
    return (
        Section(id="machines", title="Beside the machines of the paper", short="Paper's machines", tag=tag,
                blocks=tuple(blocks), tone="predicted" if tag else ""),
    )  # fmt: skip


def _entries(campaign: Campaign) -> list[Entry]:
    """Measured machines first, then each machine of the paper: predicted here, published."""
    entries = _own(campaign, "measured")
    predicted = _own(campaign, "predicted")
    known = {run.machine for run in PUBLISHED_RUNS}
    entries += [entry for entry in predicted if entry.name not in known]
    for run in PUBLISHED_RUNS:
        entries += [entry for entry in predicted if entry.name == run.machine]
        entries.append(_published(run))
    return entries


def _own(campaign: Campaign, kind: Tone) -> list[Entry]:
    """One entry for each machine and model of the studies that were measured, or only predicted."""
    views = campaign.measured_views if kind == "measured" else campaign.predicted_views
    groups: dict[tuple[str, str], list[StudyView]] = {}
    for view in views:
        point = _end(view)
        if point is not None and view.mode != "throughput":
            groups.setdefault((point.any_record.machine, point.model), []).append(view)
    return [_entry(machine, model, kind, own) for (machine, model), own in groups.items()]


def _end(view: StudyView) -> Point | None:
    """The point a study is judged by: the largest measured one with a core for every rank, or the largest predicted."""
    if view.is_measured:
        return last_measured(view)
    known = [point for point in view.points if point.predicted_s is not None]
    return known[-1] if known else None


def _entry(machine: str, model: str, kind: Tone, views: list[StudyView]) -> Entry:
    found: dict[str, float] = {}
    places = []
    for view in views:
        point = _end(view)
        if point is None:
            continue
        places.append(f"{view.mode} to {place(point)}")
        ratio = view.efficiency_measured(point) if kind == "measured" else view.efficiency_predicted(point)
        if ratio is not None and not point.is_base:
            found.setdefault(f"{view.mode}_percent", 100 * ratio)
        if view.mode == "weak" or "peak_rate" not in found:
            found |= _rates(measured_rates(point) if kind == "measured" else predicted_rates(point))
    return Entry(name=machine, kind=kind, what=f"{model}, {', '.join(places)}", found=found)


def _rates(rates: FlopRates) -> dict[str, float]:
    """What is known of the rates: the keys of QUANTITIES."""
    found = {
        "peak_rate": rates.peak, "peak_percent": rates.percent(rates.peak), "sustained_rate": rates.sustained,
        "sustained_percent": rates.percent(rates.sustained),
    }  # fmt: skip
    return {key: value for key, value in found.items() if value is not None}


def _published(run: PublishedRun) -> Entry:
    found = {
        "peak_rate": run.flops_per_s, "peak_percent": run.percent_of_peak,
        "sustained_rate": run.sustained_flops_per_s, "sustained_percent": run.sustained_percent_of_peak,
        "weak_percent": run.weak_efficiency_percent, "strong_percent": run.strong_efficiency_percent,
    }  # fmt: skip
    what = f"{run.model}, {run.num_devices:,} x {run.device}"
    return Entry(name=run.machine, kind="published", what=what, found=found)


def _table(entries: list[Entry]) -> Table:
    columns = [Column(name="quantity")]
    columns += [
        Column(name=f"{entry.name}, {entry.kind}", numeric=True, tone=entry.kind, csv_name=f"{entry.name}_{entry.kind}")
        for entry in entries
    ]
    rows: list[tuple[values.Value | str, ...]] = [("of what", *(values.Value(text=entry.what) for entry in entries))]
    for label, key in QUANTITIES:
        cells = []
        for entry in entries:
            value = entry.found.get(key)
            if key not in PERCENTAGES:
                cells.append(values.flops_rate(value, entry.kind))
                continue
            digits = 2 if entry.kind == "published" else 1
            cells.append(values.percent(None if value is None else value / 100, entry.kind, digits))
        rows.append((label, *cells))
    sources = " ".join(dict.fromkeys(f"Published: {run.source}." for run in PUBLISHED_RUNS))
    return Table(name="machines", columns=tuple(columns), rows=tuple(rows), note=sources,
                 caption="Measured and predicted here, and as published.")  # fmt: skip
