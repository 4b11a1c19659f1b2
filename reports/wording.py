"""The words and number formats of a report. It does not own the numbers; it decides how they are said.

No sentence here says faster or slower: that needs a rank test and at least six jobs per point.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence
from typing import Any

from reports.points import Point, StudyView, paired

METHOD = (
    "A step is one optimizer step over one global batch: reading data, energy forward (FE), forces (FF), the double "
    "backward (BF and BE), gradient synchronisation and the optimizer. Its time is wall-clock time.",
    "The first steps of each job are recorded and left out (warm-up); a job counts with the median of the rest.",
    "The job is the sample, because steps inside one job are correlated. A point is the median of its jobs. A 95 % "
    "confidence interval of a median exists from six jobs on; below that the raw jobs are shown and no interval.",
    "Efficiency and speed-up are computed from median times, against the base point of the same study. Percent of "
    "peak uses model FLOPs (matrix products the mathematics needs, no recomputation).",
    "Jobs ran in random order. Points with more ranks than cores are oversubscribed: their ranks share cores, so "
    "neither their efficiency nor their prediction says anything about a machine with a core for every rank.",
    "A prediction error is (predicted - measured) / measured: plus means the run took less time than predicted, "
    "minus that it took more.",
)
BREAKDOWN_CAPTION = (
    "Where the time of one step goes, mean over ranks, median over steps and jobs. Solid: measured. Hatched: "
    "predicted. * oversubscribed."
)
SCATTER_CAPTION = (
    "Each mark is one job; the number beside a group is its ranks. On the line the prediction equals the measurement; "
    "above it the prediction is too long. Hollow: oversubscribed."
)


def seconds(value_s: float, *, unit: bool = True) -> str:
    """A time with three significant digits: milliseconds below one second."""
    if value_s < 1:
        return f"{1e3 * value_s:.3g}" + (" ms" if unit else "")
    return f"{value_s:.3g} s" if unit else f"{1e3 * value_s:.4g}"


def count_of(number: int, thing: str) -> str:
    """A number with its noun: 1 rank, 2 ranks."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def signed_percent(fraction: float) -> str:
    return f"{'+' if fraction >= 0 else '−'}{abs(100 * fraction):.1f} %"


def mebibytes(value_bytes: float) -> str:
    return f"{value_bytes / 2**20:,.0f} MiB" if value_bytes else "n/a"


def flops_rate(flops_per_s: float) -> str:
    """A FLOP rate with three significant digits and its prefix."""
    for scale, prefix in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G")):
        if flops_per_s >= scale:
            return f"{flops_per_s / scale:.3g} {prefix}FLOP/s"
    return f"{flops_per_s / 1e6:.3g} MFLOP/s"


def plain(value: Any) -> str:
    """A provenance value for people; what is missing is "n/a"."""
    if value is None or value in ("", [], {}):
        return "n/a"
    if isinstance(value, dict):
        return ", ".join(f"{name} {plain(entry)}" for name, entry in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(dict.fromkeys(plain(entry) for entry in value))
    return str(value)


def tied(text: str) -> str:
    """The text with numbers tied to their units, so that no line ends between the two."""
    return re.sub(r"(\d) (%|ms|s|ranks?|runs?|points?|MiB)(?!\w)", "\\1\u00a0\\2", text)


def _listed(items: Sequence[Any]) -> str:
    words = [str(item) for item in items]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def constant(view: StudyView) -> str:
    """What a study holds constant, and how the efficiency is defined."""
    if view.mode == "weak":
        return (
            "Weak scaling: every rank keeps the same structures, so the total work grows with the ranks. Ideal is a "
            f"constant step time; efficiency = T({view.base_ranks}) / T(N)."
        )
    factor = "" if view.base_ranks == 1 else f"{view.base_ranks} "
    return (
        "Strong scaling: the structures of a step stay the same and are shared by the ranks. Ideal is a step time of "
        f"1/N; efficiency = {factor}T({view.base_ranks}) / (N T(N))."
    )


def efficiency_caption(view: StudyView) -> str:
    base = view.base.measured if view.base else None
    absolute = f" = {seconds(base.median)}" if base else " (not measured)"
    return f"Efficiency against the {view.base_ranks}-rank point, T({view.base_ranks}){absolute}, also for each job."


def step_time_caption(view: StudyView) -> str:
    return f"Each point is the median of one job's steps; the ideal line starts at the {view.base_ranks}-rank median."


def continuation_caption(has_published: bool) -> str:
    star = " The star is the published value of the full machine." if has_published else ""
    return "Predicted, not measured." + star


def _quality(points: Sequence[Point]) -> str:
    """How far predictions were off on some points, with the worst one spelled out."""
    worst = max(points, key=lambda point: abs(point.error or 0))
    median = statistics.median(abs(point.error or 0) for point in points)
    measured_s = worst.measured.median if worst.measured else 0.0
    return (
        f"off by {100 * median:.0f} % in the median and by {100 * abs(worst.error or 0):.0f} % at most "
        f"({worst.study}, {count_of(worst.ranks, 'rank')}: predicted {seconds(worst.predicted_s or 0)}, "
        f"measured {seconds(measured_s)})"
    )


def headline(views: Sequence[StudyView]) -> list[tuple[str, str]]:
    """Three or four numbers for the head of the page: value, what it is."""
    measured_views = [view for view in views if view.is_measured]
    jobs = sum(len(point.jobs) for view in measured_views for point in view.points)
    result = [(f"{jobs}", "training runs counted"), (f"{sum(len(view.points) for view in measured_views)}", "points")]
    honest = paired(views, lambda point: not point.oversubscribed)
    if honest:
        median = statistics.median(abs(point.error or 0) for point in honest)
        result.append((f"{100 * median:.0f} %", "median error of the predicted step time (a core for every rank)"))
    left_out = sum(len(point.excluded) for view in measured_views for point in view.points)
    result.append((f"{left_out}", "left out, listed below"))
    return result


def summary(views: Sequence[StudyView]) -> list[str]:
    """The first section, for a reader who knows none of this: what was run, how good the prediction was."""
    measured_views = [view for view in views if view.is_measured and any(point.jobs for point in view.points)]
    paragraphs = []
    if measured_views:
        paragraphs += [_what_was_run(measured_views), *_how_good(measured_views)]
    else:
        paragraphs.append("No training run is recorded here: every number on this page is predicted.")
    for view in views:
        if not view.is_measured:
            paragraphs.append(_continuation_sentence(view))
    return paragraphs


def _what_was_run(views: Sequence[StudyView]) -> str:
    points = [point for view in views for point in view.points]
    jobs = [job for point in points for job in point.jobs]
    models = _listed(sorted({job.model for job in jobs}))
    machines = _listed(sorted({job.machine for job in jobs}))
    ranks = _listed(sorted({point.ranks for point in points if point.jobs}))
    modes = _listed([f"a {view.mode}-scaling study" for view in views])
    return (
        f"Janus trained the interatomic potential {models} on {machines} with {ranks} parallel processes (ranks): "
        f"{modes}, {count_of(len(jobs), 'training run')} that count. For every point it predicted the time of one "
        "training step from the model's size, the structures and a short calibration of the machine, without looking "
        "at these runs."
    )


def _how_good(views: Sequence[StudyView]) -> list[str]:
    honest = paired(views, lambda point: not point.oversubscribed)
    shared = paired(views, lambda point: point.oversubscribed)
    sentences = []
    if honest:
        number = f"the {len(honest)} points" if len(honest) > 1 else "the one point"
        sentences.append(f"On {number} with a core for every rank, predicted step times were {_quality(honest)}.")
    if shared:
        number = f"{len(shared)} points" if len(shared) > 1 else "one point"
        sentences.append(
            f"On {number} with more ranks than cores (drawn hollow) they were {_quality(shared)}; there the ranks "
            "take turns on the cores, which says little about a larger machine."
        )
    few = [point for view in views for point in view.points if point.jobs and len(point.jobs) < 6]
    if few:
        least = min(len(point.jobs) for point in few)
        sentences.append(
            f"Points rest on as few as {count_of(least, 'run')}: enough to see the size of things, too few for a "
            "confidence interval."
        )
    return sentences or ["No point is both measured and predicted, so nothing can be said about the prediction."]


def _continuation_sentence(view: StudyView) -> str:
    last = view.points[-1]
    efficiency = view.efficiency_predicted(last)
    record = last.any_record
    if efficiency is None:
        return f"The prediction for {record.model} on {record.machine} failed; the reason is listed below."
    return (
        f"The same model of time, continued to {record.model} on {count_of(last.ranks, 'rank')} of {record.machine}, "
        f"predicts a {view.mode} efficiency of {100 * efficiency:.1f} %. That is a prediction: nobody ran it here."
    )
