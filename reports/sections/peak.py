"""Percent of a named peak: over a step, over the training loop ("peak") and over the whole wall time ("sustained")."""

from __future__ import annotations

from reports import figures_devices, values
from reports.campaign import Campaign
from reports.document import Block, Bullets, Column, Heading, Section, Table, Text, Tone, Value
from reports.flop_rates import FlopRates, measured_rates, predicted_rates
from reports.points import Point, StudyView
from reports.scaling_section import x_value
from reports.wording import NOT_MEASURED, flops_rate, scaled_name, study_title, tag_of

LEAD = (
    "Model FLOPs (what the mathematics needs, without recomputation) over time, as a share of the peak named below "
    "each table: that of all the devices that the ranks use together. What is not known is n/a."
)
DEFINITIONS = (
    "typical step: FLOPs of a step over its median time after warm-up",
    "peak: FLOPs of all steps over the time of the training loop, warm-up included; start-up is not in it",
    "sustained: the same FLOPs over the wall time of the whole process, from its start to its end",
    "executed: as peak, of the FLOPs that are carried out: products made again by fused operators or recomputation "
    "included",
)
COLUMNS = (
    Column(name="result"),
    Column(name="model FLOPs of a step", numeric=True, csv_name="model_flops"),
    Column(name="FLOP rate, loop", numeric=True, csv_name="flops_per_s"),
    Column(name="typical step", numeric=True, csv_name="step_percent_of_peak"),
    Column(name="peak", numeric=True, csv_name="loop_percent_of_peak"),
    Column(name="sustained", numeric=True, csv_name="wall_percent_of_peak"),
    Column(name="executed", numeric=True, csv_name="executed_percent_of_peak"),
    Column(name="held against", numeric=True, csv_name="peak_flops_per_s"),
)


def sections(campaign: Campaign) -> tuple[Section, ...]:
    """One section: a table for each study, with the peaks and their sources."""
    blocks: list[Block] = [Text(text=LEAD), Bullets(items=DEFINITIONS)]
    for view in campaign.views:
        blocks += _study(view)
    tag = NOT_MEASURED if campaign.is_predicted_only else ""
    return (
        Section(id="peak", title="Percent of a named peak", short="Percent of peak", blocks=tuple(blocks), tag=tag,
                tone="predicted" if tag else ""),
    )  # fmt: skip


def _study(view: StudyView) -> list[Block]:
    found: list[tuple[Point, Tone, FlopRates]] = []
    for point in view.points:
        if point.jobs:
            found.append((point, "measured", measured_rates(point)))
        if point.prediction is not None:
            found.append((point, "predicted", predicted_rates(point)))
    if not found:
        return []
    blocks: list[Block] = [Heading(text=f"{study_title(view)}{f' ({tag_of(view)})' if tag_of(view) else ''}")]
    picture = figures_devices.percent_of_peak(view)
    if picture is not None:
        blocks.append(picture)
    column = Column(name=scaled_name(view), numeric=True, csv_name=view.scaled)
    rows = tuple((x_value(point), *_cells(kind, rates)) for point, kind, rates in found)
    blocks.append(
        Table(name=f"peak-{view.name}", columns=(column, *COLUMNS), rows=rows, note=_note(view, found),
              caption=f"Shares of the peak at every point of {view.name}.")
    )  # fmt: skip
    return blocks


def _cells(kind: Tone, rates: FlopRates) -> tuple[Value, ...]:
    shares = (rates.percent(rate) for rate in (rates.step, rates.peak, rates.sustained, rates.executed))
    flops = rates.model_flops
    ceiling = rates.ceiling.flops_per_s if rates.ceiling else None
    return (
        Value(text=str(kind), tone=kind),
        values.NOT_KNOWN if flops is None else Value(text=f"{flops:.3g}", number=flops),
        values.flops_rate(rates.peak, kind),
        *(values.percent(None if share is None else share / 100, kind) for share in shares),
        values.flops_rate(ceiling),
    )


def _note(view: StudyView, found: list[tuple[Point, Tone, FlopRates]]) -> str:
    """The peaks with dtype and source, each once, and what was withheld or not known."""
    sentences: dict[str, None] = {}
    for _, _, rates in found:
        if rates.ceiling is not None:
            peak = rates.ceiling
            name = peak.name.partition(" x ")[2] or peak.name
            sentences[f"Peak: {name}, {peak.dtype}; source: {peak.source}."] = None
    largest = max((rates.ceiling for _, _, rates in found if rates.ceiling), key=lambda peak: peak.flops_per_s,
                  default=None)  # fmt: skip
    if largest is not None:
        sentences[f"The largest: {largest.name}, {flops_rate(largest.flops_per_s)}."] = None
    for point, kind, rates in found:
        if rates.note:
            sentences[f"{point.x:g} {scaled_name(view)}, {kind}: {rates.note}."] = None
    return " ".join(sentences)
