"""The twelve rules for reporting performance of Hoefler and Belli, each checked by code against records and report.

Source: T. Hoefler and R. Belli, Scientific Benchmarking of Parallel Computing Systems, SC15. It owns the verdicts; it
does not own withholding values (sections ask ``samples``) nor showing verdicts (``sections.rules``).

kept: nothing in the records speaks against it. flagged: kept only by saying so, as the evidence does. broken: reading
the numbers named in the evidence in the usual way would mislead. not applicable: nothing that the rule is about.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from reports import document_checks, samples, wording
from reports.campaign import Campaign
from reports.document import Document
from reports.points import SUPERLINEAR, Point, StudyView
from reports.wording import count_of, listed, seconds
from scaling_studies.records import Record
from scaling_studies.statistics import MIN_SAMPLES_FOR_INTERVAL

State = Literal["kept", "flagged", "broken", "not applicable"]
KEPT: State = "kept"
FLAGGED: State = "flagged"
BROKEN: State = "broken"
NOT_APPLICABLE: State = "not applicable"
SEVERITY: tuple[State, ...] = (BROKEN, FLAGGED, KEPT, NOT_APPLICABLE)
TITLES = (
    "Speed-up: say what the base is and give its absolute performance",
    "Give the reason for every subset: of points, of jobs, of the machine",
    "Summarise costs by their mean or median, rates only through their costs",
    "Do not summarise ratios; summarise what they are made of",
    "Say what is deterministic; give confidence intervals for the rest",
    "Do not assume a normal distribution without a check",
    "Compare nondeterministic values by sound statistics",
    "Ask whether a median is the right measure; percentiles may matter",
    "Document all factors, their levels and the complete set-up",
    "Parallel times: say how they are measured, synchronised and summarised",
    "Show upper bounds of the performance",
    "Plot what is needed; connect points only where a line has a meaning",
)
FIXED_FACTORS = ("model", "dtype", "machine", "layout", "executor", "nodes", "counts_per_rank")
SHORTEST_LOOP = 0.9  # assumed: of its steps together, each by its slowest rank; a shorter loop contradicts them
SHOWN = 4  # places named in a piece of evidence before it counts the rest
NOT_MEASURED = "nothing was measured that it could be about"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What was found about one rule: sentences of evidence, the weightiest first."""

    number: int
    title: str
    state: State
    evidence: tuple[str, ...]


class _Findings:
    """Gathers what speaks against one rule; the same finding about several places becomes one sentence."""

    def __init__(self) -> None:
        self._found: dict[State, dict[str, list[str]]] = {BROKEN: {}, FLAGGED: {}}

    def add(self, state: State, finding: str, where: str | Iterable[str] = ()) -> None:
        """Note a finding, true at one place or at several."""
        places = self._found[state].setdefault(finding, [])
        places += [where] if isinstance(where, str) else where

    def verdict(
        self, number: int, *, kept: Iterable[str] = (), always: Iterable[str] = (), applicable: bool = True
    ) -> Verdict:
        """broken before flagged. kept: what holds where nothing was found; always: what holds in any case."""
        state = next((state for state in (BROKEN, FLAGGED) if self._found[state]), KEPT)
        if state == KEPT and not applicable:
            return Verdict(number=number, title=TITLES[number - 1], state=NOT_APPLICABLE, evidence=(NOT_MEASURED,))
        found = [_sentence(*entry) for kind in (BROKEN, FLAGGED) for entry in self._found[kind].items()]
        evidence = (*found, *(kept if state == KEPT else ()), *always)
        return Verdict(number=number, title=TITLES[number - 1], state=state, evidence=evidence)


def _sentence(finding: str, places: Sequence[str]) -> str:
    return f"{finding}: {few(places)}" if places else finding


def place(point: Point) -> str:
    """A point in words: its study and where it lies there."""
    return f"{point.study} at {wording.place(point)}"


def few(places: Sequence[str]) -> str:
    """The first places, and how many more there are."""
    shown = "; ".join(places[:SHOWN])
    return shown if len(places) <= SHOWN else f"{shown}; and {len(places) - SHOWN} more"


def _all_points(campaign: Campaign) -> list[Point]:
    return [point for view in campaign.views for point in view.points]


def _measured_points(campaign: Campaign) -> list[Point]:
    return [point for point in _all_points(campaign) if point.jobs]


def base_of_speed_up(campaign: Campaign, document: Document | None = None) -> Verdict:
    """Rule 1. Broken: ratios without a base that has a time, or none printed. Flagged: a base that flatters."""
    found, bases = _Findings(), []
    views = [view for view in campaign.views if len(view.points) > 1]
    for view in views:
        base = view.base
        base_s = None if base is None else _base_time(view, base)
        if base is None or base_s is None:
            kind = "job that counts" if view.is_measured else "prediction"
            finding = f"the base point has no {kind}, so efficiencies are withheld (n/a)"
            found.add(BROKEN, finding, place(base) if base else f"{view.name}, base {view.base_x:g}")
            continue
        if base is not view.points[0]:
            found.add(FLAGGED, "a base larger than the smallest point flatters", place(base))
        if base.oversubscribed:
            found.add(FLAGGED, "a base with more ranks than cores flatters", place(base))
        bases.append(f"{place(base)} ({seconds(base_s)}, {'measured' if view.is_measured else 'predicted'})")
    names = [view.name for view in views]
    if document is not None and (lacking := document_checks.studies_without_base_time(document, names)):
        found.add(BROKEN, "the report gives no absolute time of the base", lacking)
    always = [f"bases, the parallel program itself and no serial one: {few(bases)}"] if bases else []
    return found.verdict(1, always=always, applicable=bool(views))


def _base_time(view: StudyView, base: Point) -> float | None:
    """Absolute step time of the base point [s]: measured in a measured study, else predicted."""
    if view.is_measured:
        return base.measured.median if base.measured else None
    return base.predicted_s


def _missing_jobs(found: _Findings, point: Point, damaged: Sequence[str]) -> None:
    """A point with fewer jobs than planned, or without a record of an attempt that its numbers show there was.

    damaged: names of files that could not be read; their attempts are accounted for.
    """
    numbers = samples.missing_attempts((*point.jobs, *point.excluded, *point.open))
    gone = [number for number in numbers if not any(f"{point.cell_id}-attempt{number:02d}" in name for name in damaged)]
    if gone:
        where = f"{place(point)}, attempt {listed(gone)}"
        found.add(BROKEN, "no record says what became of an attempt", where)
    if len(point.jobs) >= point.repeats_planned:
        return
    counted = f"{place(point)}, {len(point.jobs)} of {point.repeats_planned}"
    if point.excluded and not point.open:
        found.add(FLAGGED, "planned jobs are missing, attempts at them do not count", counted)
    else:
        found.add(FLAGGED, "the campaign is not finished", counted)


def declared_gaps(campaign: Campaign) -> list[tuple[str, str, float]]:
    """(study, what it scales, value) of declared points without any record."""
    gaps = []
    for name, declared in (campaign.declared or {}).items():
        scaled = "structures_per_rank" if declared.get("mode") == "throughput" else "ranks"
        present = {record.x for record in campaign.records if record.study == name}
        wanted = declared.get(scaled)
        found = wanted if isinstance(wanted, list | tuple) else []
        gaps += [(name, scaled.replace("_", " "), float(value)) for value in found if float(value) not in present]
    return gaps


def _held_against_declaration(found: _Findings, campaign: Campaign) -> None:
    """Declared points without any record; points with more jobs than were declared."""
    if absent := [f"{name} at {value:g} {scaled}" for name, scaled, value in declared_gaps(campaign)]:
        found.add(BROKEN, "a declared point of which no record says what became of it", absent)
    for name, declared in (campaign.declared or {}).items():
        points = [point for view in campaign.views if view.name == name for point in view.points]
        stop = declared.get("max_repeats") if declared.get("stop_ci_percent") else declared.get("repeats")
        more = [place(point) for point in points if isinstance(stop, int) and len(point.jobs) > stop]
        if more:
            found.add(FLAGGED, "more jobs than declared, all of which count", more)


def subsets_have_reasons(campaign: Campaign, document: Document | None = None) -> Verdict:
    """Rule 2. Broken: declared points or attempts without a record. Flagged: fewer jobs than planned, or more,
    points that were measured and then dropped.
    """
    found = _Findings()
    points = _all_points(campaign)
    damaged = [name for name, _ in campaign.folder.refused]
    for point in points:
        if campaign.measured_views or point.open:
            _missing_jobs(found, point, damaged)
        if point.prediction is not None and point.predicted_s is None:
            found.add(FLAGGED, "points without a prediction, each listed with its reason", place(point))
    _held_against_declaration(found, campaign)
    if damaged:
        found.add(FLAGGED, "files that could not be read", damaged)
    if dropped := campaign.folder.undeclared_lines:
        found.add(FLAGGED, "measured points that the declaration has dropped since", dropped)
    left_out = [record for point in points for record in point.excluded]
    if finished := [record.tag for record in left_out if record.step_s]:
        found.add(FLAGGED, "attempts that have times are left out, each listed with its reason", finished)
    if document is not None and (unlisted := document_checks.unlisted_attempts(document, left_out)):
        found.add(BROKEN, "the report does not list what it leaves out", unlisted)
    always = []
    if campaign.measured_views:
        jobs = count_of(sum(len(point.jobs) for point in points), "job")
        left = f"{count_of(len(left_out), 'attempt')} left out"
        always.append(f"{jobs} counted, {left}{' and listed under Failures and exclusions' if left_out else ''}")
    return found.verdict(2, always=always, applicable=bool(campaign.measured_views) or campaign.declared is not None)


def rates_from_costs(campaign: Campaign, document: Document | None = None) -> Verdict:
    """Rule 3. Broken: jobs of one point that did different work, so that no rate follows from their median time."""
    found = _Findings()
    for point in _measured_points(campaign):
        if samples.differs_in_work(point):
            work = samples.works(point.jobs)
            found.add(
                BROKEN, "jobs of one point did different work, so rates are withheld (n/a)",
                f"{place(point)}, {min(work):.4g} to {max(work):.4g} FLOPs a step",
            )  # fmt: skip
    kept = ["times are costs and summarised by their median; every rate is the work of a step over that median time"]
    return found.verdict(3, kept=kept)


def ratios_not_summarised(campaign: Campaign, document: Document | None = None) -> Verdict:
    """Rule 4. Broken: one percentage for jobs held against different peaks, which would be a mean of ratios."""
    found = _Findings()
    for point in _measured_points(campaign):
        if samples.differs_in_peak(point):
            names = " and ".join(sorted({job.peak.name if job.peak else "none" for job in point.jobs}))
            found.add(
                BROKEN, "jobs of one point are held against different peaks, so percent of peak is withheld (n/a)",
                f"{place(point)}, {names}",
            )  # fmt: skip
    kept = ["each efficiency and each percentage is one ratio of medians; no mean of ratios is formed"]
    return found.verdict(4, kept=kept)


def intervals_or_deterministic(campaign: Campaign, document: Document | None = None) -> Verdict:
    """Rule 5. Broken: a job counted twice, which narrows the interval. Flagged: too few jobs for an interval."""
    found, full = _Findings(), 0
    for point in _measured_points(campaign):
        if twice := samples.repeated_jobs(point.jobs):
            tags = [job.tag for job in twice]
            found.add(BROKEN, "the same as another job, so intervals are too narrow", tags)
        if samples.share_an_allocation(point.jobs):
            found.add(FLAGGED, "several jobs in one allocation, so they are not independent", place(point))
        if len(point.jobs) < MIN_SAMPLES_FOR_INTERVAL:
            finding = f"no interval exists below {MIN_SAMPLES_FOR_INTERVAL} jobs, the raw jobs are shown instead"
            found.add(FLAGGED, finding, f"{place(point)} ({len(point.jobs)})")
        else:
            full += 1
    always = []
    if full:
        always.append(f"{count_of(full, 'point')} with a 95 % order-statistic interval of the median")
    if any(point.prediction for point in _all_points(campaign)):
        always.append("predictions are deterministic: the same input gives the same value")
    return found.verdict(5, always=always)


def normality_not_assumed(campaign: Campaign, document: Document | None = None) -> Verdict:
    """Rule 6. Flagged: jobs that are not normally distributed (no spread is given). Broken: a report that uses "±"."""
    found, tested = _Findings(), 0
    for point in _measured_points(campaign):
        p = samples.normality_p(point.job_values_s)
        tested += p is not None
        if samples.is_not_normal(point.job_values_s):
            finding = "jobs are not normally distributed, so no standard deviation is given"
            found.add(FLAGGED, finding, f"{place(point)} (Shapiro-Wilk p = {p:.2g})")
    if document is not None and (places := document_checks.normal_theory(document)):
        found.add(BROKEN, "± or a standard error stands in the report", places)
    always = [f"medians, order statistics and rank tests only; Shapiro-Wilk test made at {count_of(tested, 'point')}"]
    return found.verdict(6, always=always, applicable=bool(_measured_points(campaign)))


def compared_soundly(campaign: Campaign, document: Document | None = None) -> Verdict:
    """Rule 7. Broken: points measured one after the other, or words without a test. Flagged: too few jobs."""
    found = _Findings()
    views = [view for view in campaign.measured_views if sum(bool(point.jobs) for point in view.points) > 1]
    for view in views:
        in_blocks = samples.ran_in_blocks(view)
        few_jobs = [place(point) for point in view.points if 0 < len(point.jobs) < MIN_SAMPLES_FOR_INTERVAL]
        if in_blocks:
            finding = "all jobs of a point ran before those of the next, so a drift would look like scaling"
            found.add(BROKEN, finding, view.name)
        if few_jobs:
            found.add(FLAGGED, "too few jobs for a rank test, so nothing is said of differences", few_jobs)
        elif in_blocks is None:
            found.add(FLAGGED, "the order of the jobs is not on record", view.name)
    drift = samples.drift(views)
    if drift.shown:
        finding = "the machine drifted, which the order of the jobs spreads over all points but does not remove"
        found.add(FLAGGED, finding, f"jobs relative to their points {drift.words} in time")
    if document is not None:
        for where, word in document_checks.comparing_words(document):
            found.add(BROKEN, "words of comparison without a test", f"{word!r} in {where}")
    kept = ["the jobs of the points took turns"] if views else []
    always = ["words of comparison need a rank test and a practical threshold"]
    return found.verdict(7, kept=kept, always=always, applicable=bool(views) or campaign.earlier is not None)


def right_measure(campaign: Campaign, document: Document | None = None) -> Verdict:
    """Rule 8. Flagged: steps with a tail that the median hides, or one step alone, which has no percentile."""
    found, points = _Findings(), _measured_points(campaign)
    for point in points:
        tail = samples.step_tail(point.jobs)
        if tail is None:
            continue
        if all(len(job.step_s) == 1 for job in point.jobs):
            found.add(FLAGGED, "one step per job, so percentiles of steps are not known", place(point))
        elif tail.is_heavy:
            found.add(
                FLAGGED, "the median hides a tail: a long run costs the mean",
                f"{place(point)}, median {seconds(tail.median_s)}, mean {seconds(tail.mean_s)}, 95th percentile "
                f"{seconds(tail.p95_s)}",
            )  # fmt: skip
    always = ["95th percentile and longest step, and the slowest rank, are shown under Variability"]
    return found.verdict(8, always=always, applicable=bool(points))


def factors_documented(campaign: Campaign, document: Document | None = None) -> Verdict:
    """Rule 9. Broken: provenance missing, or a factor that differs among jobs of one point. Flagged: code versions."""
    found, points = _Findings(), _measured_points(campaign)
    versions: dict[str, None] = {}
    for point in points:
        if gaps := list(dict.fromkeys(name for own in samples.provenance_gaps(point.jobs) for name in own)):
            found.add(BROKEN, "provenance is missing", f"{place(point)}, {', '.join(gaps[:SHOWN])}")
        for name, levels in samples.differing(point.jobs, FIXED_FACTORS).items():
            shown = " and ".join(level if len(level) < 40 else f"{level[:40]}..." for level in levels)
            found.add(BROKEN, "jobs of one point differ in what should be the same", f"{place(point)}, {name}: {shown}")
        versions |= dict.fromkeys(str(job.provenance.get("code_version")) for job in point.jobs)
    for view in campaign.views:
        for point in view.points:
            if not view.same_work(point):
                times = f"{place(point)}, {view.work_against_base(point) or 0.0:.2f} times what the base point asks for"
                found.add(BROKEN, "the work is not what a study of its mode holds constant (efficiency: n/a)", times)
    for view in campaign.measured_views:
        for name in samples.confounded(view):
            finding = "differs between points and never within one, so its effect looks like scaling"
            found.add(FLAGGED, finding, f"{name.replace('_', ' ')} of {view.name}")
    if pairs := samples.overlapping(points):
        found.add(FLAGGED, "jobs ran at the same time on the same hosts, so each may have slowed the other", pairs)
    if len(versions) > 1:
        found.add(FLAGGED, "jobs of several versions of the trainer", list(versions))
    always = []
    if points:
        always.append("factors and their levels are in the factor table under Provenance")
    if any(point.prediction for point in _all_points(campaign)):
        always.append("predictions name their machine file and its assumptions under Method")
    return found.verdict(9, always=always)


def parallel_time_defined(campaign: Campaign, document: Document | None = None) -> Verdict:
    """Rule 10. Broken: no definition of the clock, or several in one study, or warm-ups that differ in length."""
    found = _Findings()
    clocks: dict[str, None] = {}
    for view in campaign.measured_views:
        jobs = [job for point in view.points for job in point.jobs]
        own = dict.fromkeys(job.clock for job in jobs)
        clocks |= own
        if "" in own:
            found.add(BROKEN, "jobs without a definition of their clock", view.name)
        if len(own) > 1:
            found.add(BROKEN, "several clocks in one study, so efficiencies between them are withheld (n/a)", view.name)
        if len({len(job.warm_up_step_s) for job in jobs}) > 1:
            found.add(BROKEN, "jobs of one study leave out different numbers of warm-up steps", view.name)
        if short := [job.tag for job in jobs if _contradicts_its_steps(job)]:
            found.add(BROKEN, "phases, steps, loop or process are longer than what holds them", short)
        if blind := [job.tag for job in jobs if job.ranks > 1 and job.rank_times is None]:
            found.add(FLAGGED, "times of the single ranks are not on record", blind)
    always = [f"clock: {clock}" for clock in clocks if clock]
    always.append("a job counts with the median of its steps after warm-up, a point with the median of its jobs")
    return found.verdict(10, always=always, applicable=bool(clocks))


def _contradicts_its_steps(job: Record) -> bool:
    """Whether phases, steps, loop and process do not fit into one another."""
    steps_s = sum(job.warm_up_step_s) + sum(job.step_s)
    if sum(sum(times) for times in job.phase_s.values()) * SHORTEST_LOOP > sum(job.step_s):
        return True
    short_loop = job.loop_s is not None and job.loop_s < SHORTEST_LOOP * steps_s
    return short_loop or (job.wall_s is not None and job.loop_s is not None and job.wall_s < job.loop_s)


def bounds_shown(campaign: Campaign, document: Document | None = None) -> Verdict:
    """Rule 11. Broken: a value above its bound (withheld). Flagged: no prediction and no peak, or above the ideal."""
    found, bounded = _Findings(), 0
    for view in campaign.views:
        for point in view.points:
            has_bound = point.predicted_s is not None or any(job.peak for job in point.jobs)
            bounded += has_bound
            if point.jobs and not has_bound:
                found.add(FLAGGED, "neither a prediction nor a peak to hold it against", place(point))
            for kind, share in (("measured", point.share_measured()), ("predicted", point.share_predicted())):
                if share.percent is None and share.peak is not None:
                    finding = f"{kind} FLOP rate above the peak, so a number is wrong and it is withheld (n/a)"
                    found.add(BROKEN, finding, place(point))
            if reasons := samples.peak_objections(point):
                found.add(BROKEN, "percent of peak is withheld (n/a)", f"{place(point)}, {listed(reasons)}")
            ratio = view.efficiency_measured(point)
            bound, interval = view.efficiency_bound(point), view.efficiency_interval(point)
            least = interval.low if interval is not None else ratio
            if ratio is not None and least is not None and bound is not None and not point.is_base and least > bound:
                finding = "measured above its predicted bound, which is then no bound"
                found.add(FLAGGED, finding, f"{place(point)}, {100 * ratio:.1f} against {100 * bound:.1f} %")
            if view.mode != "throughput" and ratio is not None and ratio > SUPERLINEAR:
                found.add(FLAGGED, "efficiency above the ideal needs a reason", f"{place(point)}, {100 * ratio:.0f} %")
    always = [f"{count_of(bounded, 'point')} with a prediction or a named peak beside the ideal line"]
    return found.verdict(11, always=always)


def lines_have_meaning(campaign: Campaign, document: Document | None = None) -> Verdict:
    """Rule 12. Broken: one line through points of different models, or a figure without its numbers.

    Flagged: a point without a value inside a line.
    """
    found = _Findings()
    for view in campaign.views:
        records = [record for point in view.points for record in (*point.jobs, point.prediction) if record is not None]
        for name, values in samples.differing(records, ("model", "dtype", "machine")).items():
            finding = f"one line would join points of different {name}"
            found.add(BROKEN, finding, f"{view.name}, {' and '.join(values)}")
        if gaps := _gaps(view):
            found.add(FLAGGED, "points without a prediction inside a line, which has a gap there", gaps)
    if document is not None:
        for fault in document_checks.picture_faults(document):
            found.add(BROKEN, fault)
    kept = ["lines run along ranks or structures per rank alone"]
    always = ["every job is drawn, and the numbers lie beside each figure"]
    return found.verdict(12, kept=kept, always=always)


def _gaps(view: StudyView) -> list[str]:
    """Points without a prediction between points that have one."""
    known = [number for number, point in enumerate(view.points) if point.predicted_s is not None]
    inside = view.points[known[0] : known[-1]] if known else ()
    return [place(point) for point in inside if point.predicted_s is None]


RULES: tuple[Callable[[Campaign, Document | None], Verdict], ...] = (
    base_of_speed_up, subsets_have_reasons, rates_from_costs, ratios_not_summarised, intervals_or_deterministic,
    normality_not_assumed, compared_soundly, right_measure, factors_documented, parallel_time_defined, bounds_shown,
    lines_have_meaning,
)  # fmt: skip


def verdicts(campaign: Campaign, document: Document | None = None) -> tuple[Verdict, ...]:
    """All twelve, in order of the rules. document: what was made of the campaign; without it the records alone."""
    return tuple(rule(campaign, document) for rule in RULES)
