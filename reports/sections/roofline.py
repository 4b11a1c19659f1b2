"""Phases of a step below the ceilings of the devices: FLOP rate against FLOPs per byte of memory moved."""

from __future__ import annotations

from collections.abc import Sequence

from reports import figures_devices, values
from reports.campaign import Campaign
from reports.document import Block, Column, Heading, Picture, Section, Table, Text, Tone, Value
from reports.points import MERGED_PHASES, PHASE_ORDER, Point, StudyView
from reports.scaling_section import x_value
from reports.wording import NOT_MEASURED, byte_rate, flops_rate, place, scaled_name, study_title, tag_of
from scaling_studies.records import Ceiling, PhaseWorkload, Record

LEAD = (
    "Executed FLOPs (what is made again included) and bytes of a phase are worked out by formula from the counts of "
    "the run, all ranks together; the rate is these FLOPs over the phase's time. A mark far below both ceilings spends "
    "its time in something else: waiting, launching, communicating. Above 100 % of a memory limit, caches served part "
    "of the bytes; above a compute limit the share is withheld (n/a)."
)
COLUMNS = (
    Column(name="phase"),
    Column(name="result"),
    Column(name="executed FLOPs", numeric=True, csv_name="executed_flops"),
    Column(name="bytes", numeric=True, csv_name="bytes"),
    Column(name="FLOPs per byte", numeric=True, csv_name="flop_per_byte"),
    Column(name="rate", numeric=True, csv_name="flops_per_s"),
    Column(name="limited by"),
    Column(name="of that limit", numeric=True, csv_name="percent_of_limit"),
)
Mark = tuple[str, Tone, PhaseWorkload, float]  # phase, result, work of the phase, rate [FLOP/s]


def sections(campaign: Campaign) -> tuple[Section, ...]:
    """One section; none where no record knows work and ceilings of its phases."""
    blocks: list[Block] = []
    for view in campaign.views:
        blocks += _study(view)
    if not blocks:
        return ()
    tag = NOT_MEASURED if campaign.is_predicted_only else ""
    return (
        Section(id="roofline", title="Roofline of each phase", short="Roofline", tag=tag,
                blocks=(Text(text=LEAD), *blocks), tone="predicted" if tag else ""),
    )  # fmt: skip


def _study(view: StudyView) -> list[Block]:
    found = [(point, marks) for point in view.points if (marks := marks_of(point))]
    if not found:
        return []
    first = next(((point, marks) for point, marks in found if not point.oversubscribed), found[0])
    rows = [(x_value(point), *_cells(mark, _used(point.any_record))) for point, marks in found for mark in marks]
    column = Column(name=scaled_name(view), numeric=True, csv_name=view.scaled)
    table = Table(name=f"roofline-{view.name}", columns=(column, *COLUMNS), rows=tuple(rows), folded=True,
                  caption=f"Phases of every point of {view.name} against their limits.",
                  note=_sources(_used(first[0].any_record)), groups=_groups(found))  # fmt: skip
    tag = f" ({tag_of(view)})" if tag_of(view) else ""
    picture = _picture(view, *first)
    return [Heading(text=f"{study_title(view)}{tag}"), *([picture] if picture else []), table]


def _groups(found: Sequence[tuple[Point, Sequence[Mark]]]) -> tuple[int, ...]:
    """Rows at which another point begins."""
    ends, end = [], 0
    for _, marks in found:
        end += len(marks)
        ends.append(end)
    return tuple(ends[:-1])


def _picture(view: StudyView, point: Point, marks: Sequence[Mark]) -> Picture | None:
    """The smallest point with a core for every rank: there communication hides least of what the kernels do."""
    drawn = [
        (phase, str(kind), work.flops / work.bytes, rate) for phase, kind, work, rate in marks if work.bytes and rate
    ]
    tag = " Predicted, not measured." if not view.is_measured else ""
    return figures_devices.roofline(
        view.name, f"{view.name} at {place(point)}", _used(point.any_record), drawn, tag=tag
    )  # fmt: skip


def _used(record: Record) -> list[Ceiling]:
    """Ceilings that bind the record's run: memory's, and the compute ceiling of its dtype."""
    return [ceiling for ceiling in record.ceilings if ceiling.unit == "byte/s" or ceiling.dtype == record.dtype]


def marks_of(point: Point) -> list[Mark]:
    """Phases of a point with work and time: measured and predicted; none where ceilings or work are not on record."""
    found: list[Mark] = []
    results: tuple[tuple[Tone, Record | None, dict[str, float]], ...] = (
        ("measured", point.jobs[0] if point.jobs else None, point.phases_measured()),
        ("predicted", point.prediction, point.phases_predicted()),
    )
    for kind, record, times in results:
        if record is None or not record.ceilings:
            continue
        works = _merged(record.workload)
        found += [
            (phase, kind, works[phase], works[phase].flops / times[phase])
            for phase in PHASE_ORDER if phase in works and works[phase].flops and times.get(phase)
        ]  # fmt: skip
    return found


def _merged(workload: dict[str, PhaseWorkload]) -> dict[str, PhaseWorkload]:
    """Work by the phases that a report shows."""
    merged: dict[str, PhaseWorkload] = {}
    for phase, work in workload.items():
        name = MERGED_PHASES.get(phase, phase)
        before = merged.get(name, PhaseWorkload(flops=0.0, bytes=0.0))
        merged[name] = PhaseWorkload(flops=before.flops + work.flops, bytes=before.bytes + work.bytes)
    return merged


def limit_of(work: PhaseWorkload, ceilings: Sequence[Ceiling]) -> tuple[str, float] | None:
    """(what limits the phase, FLOP/s it allows): the lower of compute and of memory at the phase's intensity."""
    limits = []
    for ceiling in ceilings:
        if ceiling.unit == "FLOP/s":
            limits.append(("computing", ceiling.value))
        elif work.bytes:
            limits.append(("memory", ceiling.value * work.flops / work.bytes))
    return min(limits, key=lambda limit: limit[1]) if limits else None


def _cells(mark: Mark, ceilings: Sequence[Ceiling]) -> tuple[Value | str, ...]:
    phase, kind, work, rate = mark
    limit = limit_of(work, ceilings)
    return (
        phase.replace("_", " + "), Value(text=str(kind), tone=kind),
        Value(text=f"{work.flops:.3g}", number=work.flops), Value(text=f"{work.bytes:.3g}", number=work.bytes),
        values.plain(work.flops / work.bytes if work.bytes else None), values.flops_rate(rate, kind),
        limit[0] if limit else "n/a", _share(rate, limit, ceilings, kind),
    )  # fmt: skip


def _share(rate: float, limit: tuple[str, float] | None, ceilings: Sequence[Ceiling], kind: Tone) -> Value:
    """A rate as a share of its limit; withheld above a compute ceiling, which nothing can exceed."""
    compute = [ceiling.value for ceiling in ceilings if ceiling.unit == "FLOP/s"]
    if limit is None or (compute and rate > min(compute)):
        return values.NOT_KNOWN
    return values.percent(rate / limit[1], kind)


def _sources(ceilings: Sequence[Ceiling]) -> str:
    """The ceilings with their sources."""
    return " ".join(
        f"{ceiling.name}{f' ({ceiling.dtype})' if ceiling.unit == 'FLOP/s' else ''}: "
        f"{flops_rate(ceiling.value) if ceiling.unit == 'FLOP/s' else byte_rate(ceiling.value)}, {ceiling.source}."
        for ceiling in ceilings
    )
