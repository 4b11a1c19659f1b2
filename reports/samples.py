"""What the jobs of a point tell beyond their median: tails, shape, order, and whether they may be summarised at all.

It owns these looks at raw values, which the rules and the section on variability share; it does not own medians and
intervals (``scaling_studies.statistics``) nor what is said about them.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from reports.points import Point, StudyView, peak_objection
from scaling_studies.provenance import REQUIRED, missing
from scaling_studies.records import Record
from scaling_studies.statistics import MIN_SAMPLES_FOR_INTERVAL, Trend, job_step_s, order_effect

NORMALITY_LEVEL = 0.01  # below this p of the Shapiro-Wilk test jobs are said not to be normally distributed
TAIL_FACTOR = 1.5  # assumed: a 95th percentile this far above the median is a tail that the median hides
MEAN_EXCESS = 0.1  # assumed: so is a mean step this much longer than the median step
CONFOUNDING = ("executor", "environment", "library_versions", "operating_system", "driver", "code_version")
SAME_WORK = 0.01  # relative difference up to which jobs of a point did the same work, as a study's work_tolerance


@dataclass(frozen=True, kw_only=True)
class StepTail:
    """Steps of all jobs of a point, pooled [s]. p95: the smallest step that 95 % of the steps do not exceed."""

    num_steps: int
    mean_s: float
    median_s: float
    p95_s: float
    longest_s: float

    @property
    def is_heavy(self) -> bool:
        """Whether the median says too little: see TAIL_FACTOR and MEAN_EXCESS."""
        return self.p95_s > TAIL_FACTOR * self.median_s or self.mean_s > (1 + MEAN_EXCESS) * self.median_s


def percentile(values: Sequence[float], share: float) -> float:
    """The order statistic that at least ``share`` of the values do not exceed (nearest rank, nothing interpolated)."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def step_tail(jobs: Sequence[Record]) -> StepTail | None:
    """The pooled steps of some jobs, None without any."""
    steps = [value for job in jobs for value in job.step_s]
    if not steps:
        return None
    return StepTail(
        num_steps=len(steps), mean_s=statistics.fmean(steps), median_s=statistics.median(steps),
        p95_s=percentile(steps, 0.95), longest_s=max(steps),
    )  # fmt: skip


def variation(values: Sequence[float]) -> float | None:
    """Standard deviation over mean, None for fewer than two values."""
    return statistics.stdev(values) / statistics.fmean(values) if len(values) > 1 else None


def normality_p(values: Sequence[float]) -> float | None:
    """p of the Shapiro-Wilk test that the values come from a normal distribution; None below six or without spread.

    Source: Shapiro and Wilk, Biometrika 52 (1965), as implemented in scipy.stats.
    """
    if len(values) < MIN_SAMPLES_FOR_INTERVAL or min(values) == max(values):
        return None
    from scipy.stats import shapiro

    return float(shapiro(values).pvalue)


def is_not_normal(values: Sequence[float]) -> bool:
    """Whether normality is refuted: then a standard deviation describes nothing and is withheld."""
    p = normality_p(values)
    return p is not None and p < NORMALITY_LEVEL


def repeated_jobs(jobs: Sequence[Record]) -> list[Record]:
    """Jobs with the same steps as an earlier one of the list, or that are the same job: one sample, not two."""
    seen: set[object] = set()
    found = []
    for job in jobs:
        keys: list[object] = [job.step_s] if len(job.step_s) > 1 else []
        if job.job_id and job.started_at:
            keys.append((job.executor, job.job_id, job.started_at))
        if any(key in seen for key in keys):
            found.append(job)
        seen.update(keys)
    return found


def share_an_allocation(jobs: Sequence[Record]) -> bool:
    """Whether two jobs have one job id, that is, ran in the same allocation of a scheduler."""
    known = [(job.executor, job.job_id) for job in jobs if job.job_id]
    return len(set(known)) < len(known)


def confounded(view: StudyView) -> list[str]:
    """Factors of CONFOUNDING that are the same in all jobs of each point and differ from point to point."""
    found = []
    groups = [point.jobs for point in view.points if point.jobs]
    for name in CONFOUNDING:
        levels = [{repr(job.executor if name == "executor" else job.provenance.get(name)) for job in jobs}
                  for jobs in groups]  # fmt: skip
        if all(len(own) == 1 for own in levels) and len(set.union(set(), *levels)) > 1:
            found.append(name)
    return found


def missing_attempts(attempts: Sequence[Record]) -> list[int]:
    """Numbers of attempts at one cell that no record has: they are counted from 1 without gaps."""
    numbers = {record.attempt for record in attempts}
    return [number for number in range(1, max(numbers, default=0)) if number not in numbers]


def by_start(jobs: Sequence[Record]) -> list[Record]:
    """The jobs in the order in which they began; empty when that of any is not recorded."""
    if any(job.started_at is None for job in jobs):
        return []
    return sorted(jobs, key=lambda job: job.started_at or "")


def ran_in_blocks(view: StudyView) -> bool | None:
    """Whether each point's jobs ran one after the other, so that a drift of the machine would look like scaling.

    None where nothing can be said: one point, fewer than three jobs each, or start times not recorded.
    """
    points = [point for point in view.points if point.jobs]
    order = by_start([job for point in points for job in point.jobs])
    if len(points) < 2 or min(len(point.jobs) for point in points) < 3 or not order:
        return None
    cells = [job.cell_id for job in order]
    changes = sum(one != other for one, other in itertools.pairwise(cells))
    return changes == len(points) - 1


def drift(views: Sequence[StudyView]) -> Trend:
    """Whether all jobs together, each relative to the median of its point, rise or fall with time."""
    pairs = [
        (job_step_s(job.step_s) / point.measured.median, job.started_at)
        for view in views for point in view.points if point.measured is not None and len(point.jobs) > 1
        for job in point.jobs if job.started_at
    ]  # fmt: skip
    return order_effect([share for share, _ in pairs], [began for _, began in pairs])


def works(jobs: Sequence[Record]) -> list[float]:
    """Model FLOPs of a step of each job that knows them."""
    return [job.model_flops for job in jobs if job.model_flops is not None]


def differs_in_work(point: Point) -> bool:
    """Whether the jobs of a point did different work: then no rate can be had from their median time."""
    found = works(point.jobs)
    return bool(found) and max(found) - min(found) > SAME_WORK * max(found)


def differs_in_peak(point: Point) -> bool:
    """Whether the jobs of a point are held against different peaks: then no percentage stands for all of them."""
    return len({(job.peak.flops_per_s, job.peak.dtype) if job.peak else None for job in point.jobs}) > 1


def peak_objections(point: Point) -> list[str]:
    """Why runs and prediction of a point cannot be held against their peaks, each reason once."""
    records = [record for record in (*point.jobs, point.prediction) if record is not None]
    return [reason for reason in dict.fromkeys(peak_objection(record) for record in records) if reason]


def overlapping(points: Sequence[Point]) -> list[str]:
    """Pairs of jobs of these points that ran at the same time on a host of both, as far as both are on record."""
    spans: list[tuple[str, str, set[str], str]] = []
    for job in (job for point in points for job in point.jobs):
        hosts = job.provenance.get("node_list")
        names = {hosts} if isinstance(hosts, str) else set(hosts) if isinstance(hosts, list | tuple) else set()
        if job.started_at and job.ended_at:
            spans.append((job.started_at, job.ended_at, names, job.tag))
    spans.sort(key=lambda span: span[:2])
    found: list[str] = []
    running: list[tuple[str, str, set[str], str]] = []
    for span in spans:
        running = [other for other in running if other[1] > span[0]]
        found += [f"{other[3]} and {span[3]}" for other in running if other[2] & span[2]]
        running.append(span)
    return found


def provenance_gaps(jobs: Sequence[Record]) -> list[tuple[str, ...]]:
    """Required fields of provenance that each job lacks. Equal values are looked at once: placements are long."""
    known: dict[tuple[str, str], tuple[str, ...]] = {}
    found = []
    for job in jobs:
        gaps: list[str] = []
        for name in REQUIRED:
            value = job.provenance.get(name)
            key = (name, repr(value))
            if key not in known:
                known[key] = tuple(gap for gap in missing({name: value}) if gap.partition(".")[0] == name)
            gaps += known[key]
        found.append(tuple(gaps))
    return found


def differing(records: Sequence[Record], names: Sequence[str]) -> dict[str, Counter[str]]:
    """Of the named fields, those that differ among the records: name -> how often each value (as text) occurs."""
    found = {name: Counter(str(getattr(record, name)) for record in records) for name in names}
    return {name: values for name, values in found.items() if len(values) > 1}
