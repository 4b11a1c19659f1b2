"""How times were taken and summarised, as the records themselves say it, and what the predictions assume."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from reports import values
from reports.campaign import Campaign
from reports.document import Block, Bullets, Column, Heading, Section, Table, Text, Tone, Value
from reports.document_checks import BASE_TABLE
from reports.points import StudyView
from reports.samples import ran_in_blocks
from reports.wording import base_place, constant, count_of, listed
from scaling_studies.records import PREDICTED, Record
from scaling_studies.statistics import BOOTSTRAP_DRAWS, MIN_SAMPLES_FOR_INTERVAL, SIGNIFICANCE, THRESHOLD

STATISTICS = (
    "The job is the sample, because steps inside one job are correlated. "
    f"From {MIN_SAMPLES_FOR_INTERVAL} jobs on a point has a 95 % interval of its median from order statistics, without "
    "assuming a distribution; below that the raw jobs are shown and no interval.",
    "Efficiency is a ratio of medians. Its interval is a joint bootstrap over the jobs of the point and of the base "
    f"({BOOTSTRAP_DRAWS:,} draws, seeded); the base is common to all points of a study, so their intervals are not "
    "independent.",
    f"Words of comparison are used only where a two-sided Mann-Whitney rank test is below p = {SIGNIFICANCE:g} and the "
    f"medians differ by more than {100 * THRESHOLD:g} %.",
)
PREDICTION = (
    "A prediction is made from the model's size, the structures and a machine file, before and without the runs it is "
    "held against. Its error is (predicted - measured) / measured."
)
FLOPS = (
    "Model FLOPs are counted by formula from the shapes and the structures of the run: what the mathematics needs. "
    "Executed FLOPs add the products that fused operators and recomputation make again. A percentage of a peak uses "
    "model FLOPs unless it says executed."
)


def sections(campaign: Campaign) -> tuple[Section, ...]:
    """One section."""
    blocks: list[Block] = [Bullets(items=tuple(_items(campaign)))]
    if campaign.views:
        blocks += [Heading(text="Base points and what was held constant"), _bases(campaign)]
    assumptions = _assumptions(campaign.records)
    if assumptions:
        columns = (Column(name="machine"), Column(name="assumption"))
        blocks += [
            Heading(text="Assumptions of the predictions"),
            Text(text="Numbers and simplifications that nobody measured here, as the machine files name them."),
            Table(
                name="assumptions", columns=columns, rows=assumptions, folded=True, caption="Assumptions, by machine."
            ),
        ]
    return (Section(id="method", title="How this was measured and counted", short="Method", blocks=tuple(blocks)),)


def _items(campaign: Campaign) -> Iterable[str]:
    jobs = [job for view in campaign.measured_views for point in view.points for job in point.jobs]
    if jobs:
        yield from _measuring(jobs)
        yield from _order(campaign.measured_views)
        yield from STATISTICS
    else:
        yield "Nothing was measured here."
    predictions = [record for record in campaign.records if record.source == PREDICTED]
    if predictions:
        yield f"{PREDICTION} Method: {listed(_texts(record.method for record in predictions))}."
    yield FLOPS


def _texts(found: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(text for text in found if text))


def _measuring(jobs: Sequence[Record]) -> Iterable[str]:
    """Clock, warm-up, repeats and order of the jobs that count, read from their records."""
    clocks = _texts(job.clock for job in jobs)
    yield f"Clock: {' Or: '.join(clocks)}" if clocks else "Clock: not recorded (n/a)."
    warm_ups = sorted({len(job.warm_up_step_s) for job in jobs})
    steps = sorted({len(job.step_s) for job in jobs})
    yield (
        f"Each job ran {listed(warm_ups)} warm-up steps, recorded and left out, and {listed(steps)} steps that count. "
        "A job counts with the median of these, a point with the median of its jobs."
    )
    executors = listed(_texts(job.executor for job in jobs)) or "n/a"
    yield (
        f"{count_of(len(jobs), 'job')} count, each started for itself (executor: {executors}; obtained by: "
        f"{listed(_texts(job.method for job in jobs))})."
    )
    if any(job.oversubscribed for job in jobs):
        yield (
            "Points with more ranks than cores are oversubscribed: their ranks share cores, so they say little about "
            "a machine with a core for every rank. They are drawn hollow and kept out of summaries."
        )


def _order(views: Sequence[StudyView]) -> Iterable[str]:
    """In what order the jobs ran, by their start times."""
    found: dict[bool | None, list[str]] = {}
    for view in views:
        if any(point.jobs for point in view.points):
            found.setdefault(ran_in_blocks(view), []).append(view.name)
    for in_blocks, words in (
        (False, "jobs of different points took turns, so a drift of the machine falls on all of them"),
        (True, "all jobs of a point ran before those of the next, so a drift of the machine would look like scaling"),
        (None, "too few jobs or no start times, so nothing can be said of their order"),
    ):
        if in_blocks in found:
            yield f"Order of the jobs of {listed(found[in_blocks])}: {words}."


def _bases(campaign: Campaign) -> Table:
    columns = (
        Column(name="study"), Column(name="base point"),
        Column(name="time of its step", numeric=True, csv_name="base_step_s"), Column(name="result"),
        Column(name="what is constant, what is ideal"),
    )  # fmt: skip
    return Table(
        name=BASE_TABLE, columns=columns, rows=tuple(_base_row(view) for view in campaign.views),
        caption="The point that each study's efficiencies refer to, with the time of its step.",
        note="The base is the parallel program itself on the ranks named, not a serial program of its own.",
    )  # fmt: skip


def _base_row(view: StudyView) -> tuple[Value | str, ...]:
    base = view.base
    base_s = None
    if base is not None:
        base_s = (base.measured.median if base.measured else None) if view.is_measured else base.predicted_s
    kind: Tone = "measured" if view.is_measured else "predicted"
    return (view.name, base_place(view), values.time(base_s, kind), str(kind), constant(view))


def _assumptions(records: Sequence[Record]) -> tuple[tuple[str, str], ...]:
    """(machine, assumption), each once."""
    found: dict[tuple[str, str], None] = {}
    for record in records:
        for text in record.facts.get("assumptions", []):
            found[(record.machine, str(text))] = None
    return tuple(found)
