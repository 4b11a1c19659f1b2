"""This campaign held against an earlier one: what changed, shown by a test or not, and in which phase.

It owns table, figure and words; it does not own the comparison (``scaling_studies.regression``).
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib.lines import Line2D

from reports import values
from reports.campaign import Campaign
from reports.document import Block, Bullets, Column, Picture, Section, Table, Text, Tone, Value
from reports.drawing import INTERVAL_LINE, MEASURED_COLOUR, SIZE, SOFT_COLOUR, STYLE, interval_key, legend, new_axes
from reports.points import MERGED_PHASES, PHASE_NAMES
from reports.wording import count_of, listed, scaled_place, seconds, signed_percent
from scaling_studies.regression import CampaignChange, PhaseChange, PointChange, PointKey, compare_campaigns
from scaling_studies.statistics import LESS_TIME, MORE_TIME, SIGNIFICANCE, THRESHOLD

HOW = (
    "A point took more or less time only if both agree: a two-sided rank test over jobs (p below "
    f"{SIGNIFICANCE:g}) and medians more than {100 * THRESHOLD:g} % apart. Below six jobs at either side nothing is "
    "said. A phase is named as the cause if it passes the same test by itself and holds a tenth of the change or more."
)
TONES: dict[str, Tone] = {MORE_TIME: "bad", LESS_TIME: "good"}


def sections(campaign: Campaign) -> tuple[Section, ...]:
    """One section where an earlier campaign was named."""
    if campaign.earlier is None:
        return ()
    change = compare_campaigns(campaign.earlier.records, campaign.records)
    blocks: list[Block] = [Text(text=summary(change), style="lead")]
    if change.points:
        blocks += [_picture(change.points), _points_table(change.points)]
        phases = _phase_table(change.points)
        blocks += [phases] if phases.rows else []
    blocks += [Text(text=HOW, style="note"), *_differences(change), *_alone(change)]
    return (
        Section(id="regression", title="Against the earlier campaign", short="Regression", blocks=tuple(blocks)),
    )  # fmt: skip


def summary(change: CampaignChange) -> str:
    """How many points changed, and the largest change with its cause."""
    if not change.points:
        return "No point of the earlier campaign is in this one, so nothing can be compared."
    numbers = Counter(point.words for point in change.points)
    counts = "; ".join(f"{words}: {number}" for words, number in numbers.items())
    first = f"Of {count_of(len(change.points), 'point')} in both campaigns, {counts}."
    changed = [point for point in change.points if point.is_regression or point.is_improvement]
    if not changed:
        return first
    most = max(changed, key=lambda point: abs(point.comparison.change))
    return f"{first} The largest change is {where(most)}, {signed_percent(most.comparison.change)}{_because(most)}."


def where(point: PointChange) -> str:
    """A point with its study."""
    return f"{point.study} at {scaled_place(point.scaled, point.x)}"


def _because(point: PointChange) -> str:
    causes = [f"{phase_name(cause.phase)} ({_signed_time(cause.change_s)})" for cause in point.causes]
    return f", in {listed(causes)}" if causes else ", which no phase by itself explains"


def phase_name(phase: str) -> str:
    """A phase as reports call it; others as they are recorded."""
    return PHASE_NAMES.get(MERGED_PHASES.get(phase, phase), phase)


def _signed_time(value_s: float) -> str:
    text = seconds(abs(value_s))
    return text if text == seconds(0) else f"{'+' if value_s > 0 else '−'}{text}"


def _points_table(points: Sequence[PointChange]) -> Table:
    columns = (
        Column(name="point"), Column(name="earlier", numeric=True, csv_name="earlier_step_s"),
        Column(name="now", numeric=True, csv_name="step_s"),
        Column(name="change", numeric=True, csv_name="change_percent"),
        Column(name="95 % interval", numeric=True, csv_name="change_low_percent", csv_high="change_high_percent"),
        Column(name="jobs"), Column(name="rank test p", numeric=True, csv_name="p_value"), Column(name="verdict"),
        Column(name="cause"),
    )  # fmt: skip
    return Table(
        name="regression-points", columns=columns, rows=tuple(_row(point) for point in points),
        caption="Step time of each point against the earlier campaign.",
        note="Change is of medians; its interval is a joint bootstrap over the jobs of both campaigns.",
    )  # fmt: skip


def _row(point: PointChange) -> tuple[Value | str, ...]:
    comparison = point.comparison
    interval = comparison.change_interval
    verdict = f"{point.words}: {point.obstacle}" if point.obstacle else point.words
    return (
        where(point), values.time(statistics.median(point.old_s)), values.time(statistics.median(point.new_s)),
        values.signed_percent(comparison.change),
        values.percent_range(interval.low, interval.high) if interval is not None else Value(text="none"),
        f"{comparison.num_a} and {comparison.num_b}", values.plain(comparison.p_value),
        Value(text=verdict, tone=TONES.get(point.words, "")),
        listed([phase_name(cause.phase) for cause in point.causes]) or "–",
    )  # fmt: skip


def _phase_table(points: Sequence[PointChange]) -> Table:
    """Phases of the points that changed."""
    columns = (
        Column(name="point"), Column(name="phase"), Column(name="earlier", numeric=True, csv_name="earlier_s"),
        Column(name="now", numeric=True, csv_name="now_s"), Column(name="change", numeric=True, csv_name="change_s"),
        Column(name="share of the change", numeric=True, csv_name="share_percent"),
        Column(name="rank test p", numeric=True, csv_name="p_value"), Column(name="a cause"),
    )  # fmt: skip
    changed = [point for point in points if point.is_regression or point.is_improvement]
    rows = [
        (where(point), phase_name(phase.phase), values.time(phase.old_s), values.time(phase.new_s), _change(phase),
         values.percent(phase.share, digits=0), values.plain(phase.p_value), "yes" if phase.is_cause else "no")
        for point in changed for phase in point.phases
    ]  # fmt: skip
    groups = [index for index in range(1, len(rows)) if rows[index][0] != rows[index - 1][0]]
    return Table(
        name="regression-phases", columns=columns, rows=tuple(rows), groups=tuple(groups),
        caption="Phases of the points that changed, largest change first.",
    )  # fmt: skip


def _change(phase: PhaseChange) -> Value:
    return Value(text=_signed_time(phase.change_s), number=phase.change_s)


def _differences(change: CampaignChange) -> list[Block]:
    """What else is not as it was."""
    if not change.points:
        return []
    shared = change.shared_differences
    some = list(dict.fromkeys(text for point in change.points for text in point.differences if text not in shared))
    if not shared and not some:
        return [Text(text="Machine, executor, layout, code and libraries are as they were.")]
    items = (*shared, *(f"at some points: {text}" for text in some))
    return [Text(text="What else is not as it was, and may be why:"), Bullets(items=items)]


def _alone(change: CampaignChange) -> list[Block]:
    """Points that only one of the campaigns has."""
    found: list[Block] = []
    for keys, words in ((change.only_old, "the earlier campaign"), (change.only_new, "this campaign")):
        if keys:
            found.append(Text(text=f"Only in {words}: {listed([_key_words(key) for key in keys])}.", style="note"))
    return found


def _key_words(key: PointKey) -> str:
    study, _, _, scaled, x = key
    return f"{study} at {scaled_place(scaled, x)}"


def _picture(points: Sequence[PointChange]) -> Picture:
    """Every job of both campaigns as percent of the earlier median, one line of the figure for each point."""
    with matplotlib.rc_context(STYLE):
        figure, axes = new_axes((SIZE[0], 1.2 + 0.42 * max(2, len(points))))
        axes.axvspan(-100 * THRESHOLD, 100 * THRESHOLD, color="#eef1f5", zorder=1)
        for place, point in enumerate(points):
            base_s = statistics.median(point.old_s)
            for offset, times_s, colour in ((-0.16, point.old_s, SOFT_COLOUR), (0.16, point.new_s, MEASURED_COLOUR)):
                axes.plot(
                    [100 * (value / base_s - 1) for value in times_s], [place + offset] * len(times_s),
                    linestyle="none", marker="o", markersize=4.5, color=colour, zorder=4,
                )  # fmt: skip
            interval = point.comparison.change_interval
            if interval is not None:
                ends = [100 * interval.low, 100 * interval.high]
                axes.plot(ends, [place + 0.34] * 2, **{**INTERVAL_LINE, "marker": "|"})
        axes.set_yticks(range(len(points)), [where(point) for point in points])
        axes.set_ylim(len(points) - 0.4, -0.6)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("step time against the earlier median, %")
        dot: dict[str, Any] = {"linestyle": "none", "marker": "o", "markersize": 4.5}
        handles = [
            Line2D([], [], label="earlier, each job", color=SOFT_COLOUR, **dot),
            Line2D([], [], label="now, each job", color=MEASURED_COLOUR, **dot),
        ]
        handles += [interval_key()] if any(point.comparison.change_interval for point in points) else []
        legend(figure, handles, columns=3)
    return Picture(
        name="regression-changes", figure=figure, description="step times of both campaigns, in percent of the earlier",
        caption=f"Every job of both campaigns. The band is {100 * THRESHOLD:g} % to either side of the earlier median.",
        data=_drawn(points),
    )  # fmt: skip


def _drawn(points: Sequence[PointChange]) -> Table:
    columns = (
        Column(name="point"), Column(name="series"), Column(name="against the earlier median", numeric=True,
                                                            csv_name="change_percent"),
    )  # fmt: skip
    rows: list[tuple[Value | str, ...]] = []
    for point in points:
        base_s, interval = statistics.median(point.old_s), point.comparison.change_interval
        for series, times_s in (("earlier job", point.old_s), ("job", point.new_s)):
            rows += [(where(point), series, values.signed_percent(value / base_s - 1)) for value in times_s]
        if interval is not None:
            rows += [(where(point), f"interval, {name} end", values.signed_percent(value))
                     for name, value in (("low", interval.low), ("high", interval.high))]  # fmt: skip
    return Table(name="regression-changes-data", columns=columns, rows=tuple(rows))
