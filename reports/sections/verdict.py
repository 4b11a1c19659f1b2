"""The verdict: what came out in a paragraph for a reader who knows none of this, and the table of points.

It owns these words; the numbers are those of the other sections, the attribute table is in ``attributes``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from reports import values
from reports.attributes import attribute_table
from reports.campaign import Campaign
from reports.document import Block, Bullets, Section, Table, Text, Value
from reports.key_table import key_table, peak_words
from reports.losses import limit_sentence, measured_losses
from reports.points import StudyView, paired
from reports.published import published_run
from reports.scaling_section import OVERSUBSCRIBED_NOTE, last_measured
from reports.sections import regression
from reports.sections.prediction import quality_sentence
from reports.wording import base_place, count_of, listed, not_ended, percent, place, seconds
from scaling_studies.records import Record
from scaling_studies.regression import compare_campaigns
from scaling_studies.statistics import MIN_SAMPLES_FOR_INTERVAL

MOST_STUDIES = 4  # told one by one in the paragraph
MODE_WORDS = {
    "weak": "Weak scaling, where every rank keeps its work,",
    "strong": "Strong scaling, where all ranks share one batch,",
    "throughput": "Throughput, with more structures on the same ranks,",
}
WIDE_BASE = 0.2  # assumed: jobs of a base point further apart than so much of their median make efficiencies uncertain
LEFT_TO_STUDIES = "95 % interval"  # column of the key table that the studies' own tables have too


def sections(campaign: Campaign) -> tuple[Section, ...]:
    """One section, always."""
    blocks: list[Block] = [Text(text=paragraph(campaign), style="lead")]
    blocks += [Text(text=words, style="warning") for words in _warnings(campaign)]
    if len(campaign.measured_views) > MOST_STUDIES:
        blocks.append(
            Bullets(items=tuple(words for view in campaign.measured_views if (words := _how_it_scaled(view))))
        )
    blocks += [_every_point(campaign), attribute_table(campaign)]
    return (Section(id="verdict", title="Verdict", short="Verdict", blocks=tuple(blocks)),)


def paragraph(campaign: Campaign) -> str:
    """What ran, how it scaled, what limits it, how good the prediction was: one paragraph."""
    if campaign.is_predicted_only:
        return " ".join([_what_was_predicted(campaign), *_machines_reached(campaign.views)])
    views = [view for view in campaign.measured_views if any(point.jobs for point in view.points)]
    if not views:
        return "No attempt has given a measurement that counts; the reasons are listed under failures and exclusions."
    sentences = [_what_was_run(views), *_scaling(views), _limit(views)]
    points = paired(campaign.views)
    sentences.append(quality_sentence(points) if points else "Nothing was predicted beside these runs.")
    sentences += _machines_reached(campaign.predicted_views)
    if campaign.earlier is not None:
        change = compare_campaigns(campaign.earlier.records, campaign.records)
        sentences.append(f"Against the earlier campaign: {regression.summary(change)}")
    return " ".join(sentence for sentence in sentences if sentence)


def _jobs(views: Sequence[StudyView]) -> list[Record]:
    return [job for view in views for point in view.points for job in point.jobs]


def _names(records: Sequence[Record], field: str) -> str:
    return listed(list(dict.fromkeys(str(getattr(record, field)) for record in records)))


def _what_was_run(views: Sequence[StudyView]) -> str:
    jobs = _jobs(views)
    ranks = listed([f"{count:,}" for count in sorted({job.ranks for job in jobs})])
    word = "parallel process" if ranks == "1" else "parallel processes"
    return (
        f"Janus trained the interatomic potential {_names(jobs, 'model')} on {_names(jobs, 'machine')} with {ranks} "
        f"{word} (ranks); {count_of(len(jobs), 'training run')} count."
    )


def _scaling(views: Sequence[StudyView]) -> list[str]:
    """How each study scaled; of many studies the lowest and the highest, the others stand in a list below."""
    found = [(efficiency, _how_it_scaled(view)) for view in views if (efficiency := _last_efficiency(view)) is not None]
    if len(found) <= MOST_STUDIES:
        return [words for _, words in found]
    lowest, highest = min(found), max(found)
    return [f"Of {len(found)} studies, the one that ends lowest and the one that ends highest:", lowest[1], highest[1]]


def _last_efficiency(view: StudyView) -> float | None:
    """Efficiency where a measured study ends; None where that is not known or is the base point itself."""
    point = last_measured(view)
    return None if point is None or point.is_base else view.efficiency_measured(point)


def _how_it_scaled(view: StudyView) -> str:
    """The efficiency of one measured study where it ends, in a sentence; empty where there is none."""
    point, efficiency = last_measured(view), _last_efficiency(view)
    if point is None or efficiency is None:
        return ""
    predicted, interval = view.efficiency_predicted(point), view.efficiency_interval(point)
    notes = [f"95 % interval {values.percent_range(interval.low, interval.high, 0).text}"] if interval else []
    notes += [f"predicted {percent(predicted, 0)}"] if predicted is not None else []
    beside = f" ({', '.join(notes)})" if notes else ""
    shared = [other for other in view.points if other.jobs and other.oversubscribed and other is not point]
    aside = f"; {listed([place(other) for other in shared])} share cores and are left out here" if shared else ""
    if point.oversubscribed:
        aside = "; its ranks share cores, which says little about a larger machine"
    start = f"{MODE_WORDS[view.mode]}{'' if view.name == view.mode else f' ({view.name})'}"
    return f"{start} reaches {_result(view, efficiency)}{beside} at {place(point)}{aside}."


def _machines_reached(views: Sequence[StudyView]) -> list[str]:
    """Where the studies of each machine and model end that were only predicted, in a sentence each."""
    ends: dict[tuple[str, str], list[str]] = {}
    for view in views:
        known = [point for point in view.points if view.efficiency_predicted(point) is not None and not point.is_base]
        if known:
            point, efficiency = known[-1], view.efficiency_predicted(known[-1]) or 0.0
            words = f"{_result(view, efficiency)} at {place(point)} (against {base_place(view)})"
            ends.setdefault((point.any_record.model, point.any_record.machine), []).append(words)
    return [f"Predicted, not run here: {model} on {machine} would reach {listed(words)}.{_as_published(machine, model)}"
            for (model, machine), words in ends.items()]  # fmt: skip


def _as_published(machine: str, model: str) -> str:
    """What others published for this model on this machine, in a sentence; empty where nothing was."""
    run = published_run(machine, model)
    if run is None:
        return ""
    weak, strong = run.weak_efficiency_percent, run.strong_efficiency_percent
    return f" Published by its authors, with other jobs and base points: weak {weak:.1f} %, strong {strong:.1f} %."


def _result(view: StudyView, efficiency: float) -> str:
    """An efficiency in words."""
    if view.mode == "throughput":
        return f"{percent(efficiency, 0)} of the structures per second of {base_place(view)}"
    return f"{percent(efficiency, 0)} {'' if view.is_measured else f'{view.mode} '}efficiency"


def _limit(views: Sequence[StudyView]) -> str:
    """What limits the study that loses most."""
    found: list[tuple[float, str]] = []
    for view in views:
        point = last_measured(view)
        efficiency = view.efficiency_measured(point) if point is not None else None
        if point is not None and efficiency is not None and not point.is_base:
            sentence = limit_sentence(point, measured_losses(view, point), is_predicted=False)
            found.append((efficiency, sentence.replace("At ", f"In {view.name}, at ", 1)))
    return min(found)[1] if found else ""


def _what_was_predicted(campaign: Campaign) -> str:
    records = [point.prediction for view in campaign.views for point in view.points if point.prediction is not None]
    if not records:
        return "No attempt has ended and nothing is predicted: there is no result yet."
    start = "No attempt has ended yet" if campaign.open else "No training run is recorded here"
    return (
        f"{start}: every number is predicted, for {_names(records, 'model')} on "
        f"{_names(records, 'machine')}, from the model's size, its structures and what is known of the machine."
    )


def _warnings(campaign: Campaign) -> list[str]:
    """What a reader must know before using a number."""
    points = [point for view in campaign.measured_views for point in view.points]
    found = []
    few = [point for point in points if 0 < len(point.jobs) < MIN_SAMPLES_FOR_INTERVAL]
    if few:
        least = min(len(point.jobs) for point in few)
        found.append(
            f"{len(few)} of {count_of(len(points), 'point')} rest on fewer than six jobs (as few as {least}): enough "
            "to see the size of things, too few for a confidence interval or a comparison."
        )
    found += [words for view in campaign.measured_views if (words := _uncertain_base(view))]
    none = [f"{point.study} at {place(point)}" for point in points if not point.jobs]
    if none:
        found.append(f"No job counts for {listed(none)}.")
    if campaign.open:
        found.append(f"The campaign is not finished: {not_ended(len(campaign.open))}.")
    return found


def _uncertain_base(view: StudyView) -> str:
    """What is to be said where the jobs of the base point, which every efficiency refers to, scatter."""
    base = view.base
    if base is None or base.measured is None or len(view.points) < 2:
        return ""
    shortest_s, longest_s = min(base.job_values_s), max(base.job_values_s)
    if longest_s - shortest_s <= WIDE_BASE * base.measured.median:
        return ""
    return (
        f"The base point of {view.name} ({base_place(view)}) is uncertain: its jobs took from {seconds(shortest_s)} to "
        f"{seconds(longest_s)} a step, median {seconds(base.measured.median)}. Every efficiency of the study refers to "
        "this median and is as uncertain; one above 100 % may be no more than that."
    )


def _every_point(campaign: Campaign) -> Table:
    """The table of points without empty columns: every measured point, and the ends of what was only predicted."""
    table = key_table(campaign, ends_only=True)
    kept = [
        place for place, column in enumerate(table.columns)
        if column.name != LEFT_TO_STUDIES
        and (not column.numeric or any(_number(row[place]) is not None for row in table.rows))
    ]  # fmt: skip
    ends = "the first and the last point of each predicted study"
    caption = ends[0].upper() + ends[1:]
    if not campaign.is_predicted_only:
        caption = f"Every measured point{f', and {ends}' if campaign.predicted_views else ''}"
    notes = [words for words in (peak_words(campaign),) if words]
    if not campaign.is_predicted_only:
        notes.append("Error is (predicted - measured) / measured of the step time.")
    if any(point.oversubscribed for view in campaign.views for point in view.points):
        notes.append(OVERSUBSCRIBED_NOTE)
    return dataclasses.replace(
        table, columns=tuple(table.columns[place] for place in kept), caption=f"{caption}.", note=" ".join(notes),
        rows=tuple(tuple(row[place] for place in kept) for row in table.rows),
    )  # fmt: skip


def _number(cell: Value | str) -> float | None:
    return cell.number if isinstance(cell, Value) else None
