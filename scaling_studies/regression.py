"""A campaign held against an earlier one: which points changed, by how much, and in which phase.

It owns matching points and naming the phases that caused a change; it does not own the tests (``statistics``) nor what
is shown (``reports``). Only measured jobs count. Points are the same when study, mode, model and what is scaled are; a
point whose work, clock or number format differs is not compared, and says so.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scaling_studies.records import DONE, MEASURED, Record
from scaling_studies.statistics import (
    LESS_TIME,
    MIN_SAMPLES_FOR_INTERVAL,
    MORE_TIME,
    SIGNIFICANCE,
    THRESHOLD,
    Comparison,
    compare,
    job_step_s,
    rank_test,
)

OUTSIDE = "outside any phase"
CAUSE_SHARE = 0.1  # assumed: a phase with less of the change than this is not called a cause
WORK_TOLERANCE = 0.01  # as of studies: relative difference of the work of a rank
NOT_COMPARABLE = "not comparable"

DECIDING = (  # provenance that may explain a change
    "code_version", "library_versions", "resolved_config", "environment", "modules", "operating_system", "driver",
    "transport", "launcher", "threads_per_rank",
)  # fmt: skip
NOT_DECIDING = ("resolved_config.data.path",)

PointKey = tuple[str, str, str, str, float]  # study, mode, model, what is scaled, its value


@dataclass(frozen=True, kw_only=True)
class PhaseChange:
    """One phase of a point: medians over jobs [s], their difference, its share of the whole change.

    share: None where the whole did not change; p_value: of the rank test over jobs, None below six jobs at either side.
    """

    phase: str
    old_s: float
    new_s: float
    share: float | None
    p_value: float | None

    @property
    def change_s(self) -> float:
        return self.new_s - self.old_s

    @property
    def is_cause(self) -> bool:
        """Whether its own rank test passes and it holds at least a tenth of the change, in the same direction."""
        return self.p_value is not None and self.p_value < SIGNIFICANCE and (self.share or 0.0) >= CAUSE_SHARE


@dataclass(frozen=True, kw_only=True)
class PointChange:
    """One point in both campaigns. old_s, new_s: step time of each job [s].

    obstacle: why the two cannot be compared, "" where they can; differences: what else is not as it was, in words.
    phases: largest change first.
    """

    study: str
    mode: str
    model: str
    scaled: str
    x: float
    old_s: tuple[float, ...]
    new_s: tuple[float, ...]
    comparison: Comparison
    obstacle: str
    differences: tuple[str, ...]
    phases: tuple[PhaseChange, ...]

    @property
    def words(self) -> str:
        return NOT_COMPARABLE if self.obstacle else self.comparison.words

    @property
    def is_regression(self) -> bool:
        return self.words == MORE_TIME

    @property
    def is_improvement(self) -> bool:
        return self.words == LESS_TIME

    @property
    def causes(self) -> tuple[PhaseChange, ...]:
        """The phases that caused the change, largest first; none where no change is shown."""
        if not (self.is_regression or self.is_improvement):
            return ()
        return tuple(phase for phase in self.phases if phase.is_cause)


@dataclass(frozen=True, kw_only=True)
class CampaignChange:
    """points: in both campaigns, in order of the new one; only_old, only_new: points with good jobs in one of them."""

    points: tuple[PointChange, ...]
    only_old: tuple[PointKey, ...]
    only_new: tuple[PointKey, ...]

    @property
    def regressions(self) -> tuple[PointChange, ...]:
        return tuple(point for point in self.points if point.is_regression)

    @property
    def shared_differences(self) -> tuple[str, ...]:
        """What else is not as it was, at every point alike."""
        first = self.points[0].differences if self.points else ()
        return tuple(text for text in first if all(text in point.differences for point in self.points))


def compare_campaigns(
    old: Iterable[Record], new: Iterable[Record], *, threshold: float = THRESHOLD
) -> CampaignChange:  # fmt: skip
    """All points of two campaigns. threshold: smallest relative change of interest, as of ``statistics.compare``."""
    olds, news = _points(old), _points(new)
    both = [key for key in news if key in olds]
    return CampaignChange(
        points=tuple(_point_change(key, olds[key], news[key], threshold) for key in both),
        only_old=tuple(key for key in olds if key not in news),
        only_new=tuple(key for key in news if key not in olds),
    )


def _points(records: Iterable[Record]) -> dict[PointKey, list[Record]]:
    """Good measured jobs by point, in order of study and of what is scaled."""
    good = [record for record in records if record.source == MEASURED and record.state == DONE]
    points: dict[PointKey, list[Record]] = {}
    for record in sorted(good, key=_key):
        points.setdefault(_key(record), []).append(record)
    return points


def _key(record: Record) -> PointKey:
    return record.study, record.mode, record.model, record.scaled, record.x


def _point_change(key: PointKey, old: Sequence[Record], new: Sequence[Record], threshold: float) -> PointChange:
    study, mode, model, scaled, x = key
    old_s, new_s = (tuple(job_step_s(job.step_s) for job in jobs) for jobs in (old, new))
    return PointChange(
        study=study, mode=mode, model=model, scaled=scaled, x=x, old_s=old_s, new_s=new_s,
        comparison=compare(old_s, new_s, threshold=threshold), obstacle=_obstacle(old, new),
        differences=_differences(old[0], new[0]), phases=_phase_changes(old, new),
    )  # fmt: skip


def _phase_changes(old: Sequence[Record], new: Sequence[Record]) -> tuple[PhaseChange, ...]:
    whole_s = statistics.median(job_step_s(job.step_s) for job in new)
    whole_s -= statistics.median(job_step_s(job.step_s) for job in old)
    olds, news = ([_job_phases(job) for job in jobs] for jobs in (old, new))
    if not all((*olds, *news)):
        return ()  # jobs without phases on record: nothing can be told apart
    changes = []
    for name in dict.fromkeys(name for phases in (*olds, *news) for name in phases):
        a, b = ([phases.get(name, 0.0) for phases in side] for side in (olds, news))
        old_s, new_s = statistics.median(a), statistics.median(b)
        enough = min(len(a), len(b)) >= MIN_SAMPLES_FOR_INTERVAL
        changes.append(PhaseChange(
            phase=name, old_s=old_s, new_s=new_s, share=(new_s - old_s) / whole_s if whole_s else None,
            p_value=rank_test(a, b) if enough else None,
        ))  # fmt: skip
    return tuple(sorted(changes, key=lambda change: -abs(change.change_s)))


def _job_phases(job: Record) -> dict[str, float]:
    """Phase -> median over the steps of one job [s]; what no phase claims is ``OUTSIDE``. Empty without phases."""
    phases = {name: statistics.median(times) for name, times in job.phase_s.items() if times}
    return {**phases, OUTSIDE: job_step_s(job.step_s) - sum(phases.values())} if phases else {}


def _obstacle(old: Sequence[Record], new: Sequence[Record]) -> str:
    """Why jobs of two campaigns do not measure the same thing, "" where they do."""
    for campaign, jobs in (("earlier", old), ("new", new)):
        if len({job.cell_id for job in jobs}) > 1:
            return f"the {campaign} campaign has jobs of two cells at this point"
    for name in ("dtype", "clock", "ranks"):
        before, now = getattr(old[0], name), getattr(new[0], name)
        if before != now:
            return f"{name} was {before!r}, is {now!r}"
    before, now = ([counts.work for counts in side.counts_per_rank] for side in (old[0], new[0]))
    if len(before) != len(now) or any(abs(b - a) > WORK_TOLERANCE * a for a, b in zip(before, now, strict=True)):
        return f"the work of the ranks differs: {sum(before):,} edges and angles a step, now {sum(now):,}"
    return ""


def _differences(old: Record, new: Record) -> tuple[str, ...]:
    """What is not as it was and may be why."""
    before, now = _facts(old), _facts(new)
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    return tuple(f"{name}: {before.get(name, 'n/a')}, now {now.get(name, 'n/a')}" for name in names)


def _facts(record: Record) -> dict[str, Any]:
    """Name -> value of all that decides a time beside the point itself, as far as it is on record."""
    facts = {name: getattr(record, name) for name in ("machine", "executor", "oversubscribed")}
    facts |= dict(_flat("layout", record.layout))
    for name in DECIDING:
        facts |= dict(_flat(name, record.provenance.get(name)))
    return {name: value for name, value in facts.items() if value is not None and name not in NOT_DECIDING}


def _flat(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Nested mappings as dotted names."""
    if isinstance(value, Mapping):
        for inner, entry in value.items():
            yield from _flat(f"{name}.{inner}", entry)
    else:
        yield name, value
