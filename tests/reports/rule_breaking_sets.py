"""A campaign on which all twelve rules hold, and for each rule campaigns that break it by one change to its records."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from reports.campaign import Campaign
from scaling_studies.provenance import REQUIRED
from scaling_studies.records import FAILED, INVALID, MEASURED, Peak, RankTimes, Record, RecordFolder
from tests.record_sets import prediction, record

CLOCK = "A step is timed on every rank; its time is that of the slowest rank."
RANKS = (1, 2, 4)
JOBS = (0.1, 0.102, 0.099, 0.101, 0.1005, 0.0985)  # seconds; near enough to normal for a test of six values
GROWTH = {1: 1.0, 2: 1.05, 4: 1.12}
PROVENANCE = {name: f"{name} of the test" for name in REQUIRED}


def job(ranks: int, number: int, **changes: Any) -> Record:
    """Good job ``number`` of a point of the weak study; jobs of the points take turns."""
    step_s = JOBS[number] * GROWTH[ranks]
    steps = tuple(step_s * factor for factor in (0.99, 1.0, 1.01, 0.995, 1.005))
    values: dict[str, Any] = {
        "ranks": ranks, "attempt": number + 1, "repeat": number, "repeats_planned": len(JOBS), "step_s": steps,
        "clock": CLOCK, "oversubscribed": False, "executor": "local", "job_id": f"{100 * number + ranks}",
        "started_at": f"2026-11-20T{10 + number:02d}:0{ranks}:00+00:00", "provenance": dict(PROVENANCE),
        "loop_s": 0.42 + 5 * step_s, "wall_s": 3.0 + 5 * step_s,
        "rank_times": RankTimes(
            step_s=(step_s,) * ranks, busy_s=(0.9 * step_s,) * ranks, wait_s=(0.1 * step_s,) * ranks
        ),
    }  # fmt: skip
    return record(**{**values, **changes})


def guess(ranks: int, **changes: Any) -> Record:
    return prediction(0.097 * GROWTH[ranks], ranks=ranks, repeats_planned=len(JOBS), clock=CLOCK, **changes)


def clean_records() -> list[Record]:
    return [entry for ranks in RANKS for entry in (guess(ranks), *(job(ranks, number) for number in range(len(JOBS))))]


def campaign_of(
    records: list[Record],
    *,
    refused: tuple[tuple[str, str], ...] = (),
    undeclared: Sequence[Record] = (),
    **fields: Any,
) -> Campaign:
    folder = RecordFolder(records=tuple(records), refused=refused, undeclared=tuple(undeclared))
    return Campaign(folder=folder, **fields)


def clean() -> Campaign:
    """Three points, six jobs each in turns, all predicted, everything on record: nothing to object to."""
    return campaign_of(clean_records())


def changed(pick: Callable[[Record], bool], change: Callable[[Record], Record]) -> list[Record]:
    """The clean records with some of the measured ones changed."""
    return [change(entry) if entry.source == MEASURED and pick(entry) else entry for entry in clean_records()]


def with_fields(pick: Callable[[Record], bool], **fields: Any) -> Campaign:
    return campaign_of(changed(pick, lambda entry: replace(entry, **fields)))


def stretched(entry: Record, factor: float) -> Record:
    """The same job with all its times longer by a factor."""
    return replace(
        entry, step_s=tuple(factor * value for value in entry.step_s),
        phase_s={name: tuple(factor * value for value in values) for name, values in entry.phase_s.items()},
        loop_s=factor * (entry.loop_s or 0.0), wall_s=factor * (entry.wall_s or 0.0),
    )  # fmt: skip


def failed_base() -> Campaign:
    """Rule 1: no job of the base point counts."""
    return with_fields(lambda entry: entry.ranks == 1, state=FAILED, reason="exit code 1: out of time", step_s=(),
                       phase_s={})  # fmt: skip


def flattering_base() -> Campaign:
    """Rule 1: efficiencies refer to a larger point than the smallest one."""
    return campaign_of([replace(entry, base_ranks=2) for entry in clean_records()])


def vanished_point() -> Campaign:
    """Rule 2: a declared point of which there is no trace."""
    return replace(clean(), declared={"weak": {"mode": "weak", "ranks": [1, 2, 4, 8], "repeats": 6}})


def vanished_jobs() -> Campaign:
    """Rule 2: the two longest jobs of a point are gone without a word."""
    gone = {(4, 2), (4, 4)}
    return campaign_of([entry for entry in clean_records() if (entry.ranks, entry.attempt) not in gone])


def unfinished() -> Campaign:
    """Rule 2: a campaign that was stopped before all jobs had run."""
    return campaign_of([entry for entry in clean_records() if entry.ranks < 4 or entry.attempt < 5])


def dropped_point() -> Campaign:
    """Rule 2: the largest point was measured, then taken out of the declaration."""
    records = clean_records()
    return campaign_of(
        [entry for entry in records if entry.ranks < 4], undeclared=[entry for entry in records if entry.ranks == 4]
    )


def damaged_file() -> Campaign:
    """Rule 2: the record of one attempt cannot be read; another attempt took its place."""
    torn = job(2, 2)
    records = [entry for entry in clean_records() if entry.tag != torn.tag]
    again = job(2, 2, attempt=7, job_id="777")
    return campaign_of([*records, again], refused=((torn.file_name, "not a complete JSON document"),))


def mixed_work() -> Campaign:
    """Rule 3: two jobs of a point did half the work, so a rate from the median time belongs to none of them."""
    return with_fields(lambda entry: entry.ranks == 2 and entry.attempt > 4, model_flops=1e9)


def mixed_peaks() -> Campaign:
    """Rule 4: jobs of a point held against different peaks; one percentage for all would be a mean of ratios."""
    other = Peak(flops_per_s=400e9, name="sparse peak", dtype="float32", source="a brochure")
    return with_fields(lambda entry: entry.ranks == 2 and entry.attempt > 4, peak=other)


def too_few_jobs() -> Campaign:
    """Rules 5 and 7: five jobs per point, as planned: no interval and no rank test."""
    return campaign_of([replace(entry, repeats_planned=5) for entry in clean_records() if entry.attempt < 6])


def job_counted_twice() -> Campaign:
    """Rule 5: the record of one job copied as another attempt."""
    copied = job(2, 3)
    return campaign_of(changed(lambda entry: entry.ranks == 2 and entry.attempt == 5,
                               lambda entry: replace(entry, step_s=copied.step_s)))  # fmt: skip


def two_humps() -> Campaign:
    """Rule 6: half of a point's jobs took twice as long; mean and standard deviation describe no job."""
    return campaign_of(changed(lambda entry: entry.ranks == 4 and entry.attempt % 2 == 0,
                               lambda entry: stretched(entry, 2.0)))  # fmt: skip


def one_after_the_other() -> Campaign:
    """Rule 7: all jobs of a point ran before those of the next."""

    def moved(entry: Record) -> Record:
        return replace(entry, started_at=f"2026-11-2{entry.ranks}T{entry.attempt:02d}:00:00+00:00")

    return campaign_of(changed(lambda entry: True, moved))


def drifting_machine() -> Campaign:
    """Rule 7: each job takes longer than the one before, at every point."""
    return campaign_of(changed(lambda entry: True, lambda entry: stretched(entry, 1 + 0.02 * entry.attempt)))


def heavy_tail() -> Campaign:
    """Rule 8: one step in five takes three times as long; the median does not notice."""

    def tailed(entry: Record) -> Record:
        return replace(entry, step_s=(*entry.step_s[:4], 3 * entry.step_s[4]), loop_s=1.5, wall_s=4.0)

    return campaign_of(changed(lambda entry: entry.ranks == 4, tailed))


def provenance_lost() -> Campaign:
    """Rule 9: a job that does not say on what code it ran."""

    def forgetful(entry: Record) -> Record:
        return replace(entry, provenance={**entry.provenance, REQUIRED[0]: None})

    return campaign_of(changed(lambda entry: entry.ranks == 2 and entry.attempt == 3, forgetful))


def factor_changed() -> Campaign:
    """Rule 9: some jobs of a point ran on another machine."""
    return with_fields(lambda entry: entry.ranks == 2 and entry.attempt > 3, machine="another host")


def shrinking_work() -> Campaign:
    """Rule 9: a weak study whose ranks have less to do at the largest point, so that it seems to scale."""
    return campaign_of([replace(entry, model_flops=2e9) if entry.ranks == 4 else entry for entry in clean_records()])


def at_the_same_time() -> Campaign:
    """Rule 9: two jobs shared the host."""

    def long(entry: Record) -> Record:
        return replace(entry, ended_at="2026-11-20T10:02:30+00:00") if entry.attempt == 1 else entry

    return campaign_of(changed(lambda entry: True, long))


def loop_too_short() -> Campaign:
    """Rule 10: a training loop shorter than its steps, which would raise the rate over the loop."""
    return with_fields(lambda entry: entry.ranks == 4 and entry.attempt == 2, loop_s=0.2)


def phases_too_long() -> Campaign:
    """Rule 10: the phases of a step together take longer than the step."""

    def doubled(entry: Record) -> Record:
        phases = {name: tuple(2 * value for value in times) for name, times in entry.phase_s.items()}
        return replace(entry, phase_s=phases) if entry.ranks == 4 else entry

    return campaign_of(changed(lambda entry: True, doubled))


def other_threads_at_the_base() -> Campaign:
    """Rule 9: the base point ran with another number of threads."""
    environment = {"OMP_NUM_THREADS": "1"}
    return with_fields(lambda entry: entry.ranks == 1, provenance={**PROVENANCE, "environment": environment})


def left_out_by_hand() -> Campaign:
    """Rule 2: a finished attempt was declared invalid."""
    return campaign_of([*clean_records(), job(4, 0, attempt=7, job_id="7", state=INVALID, reason="looked long")])


def one_allocation() -> Campaign:
    """Rule 5: all jobs of a point ran one after the other in one allocation."""
    return with_fields(lambda entry: entry.ranks == 2, job_id="4711")


def two_clocks() -> Campaign:
    """Rule 10: one point was timed by another clock."""
    return with_fields(lambda entry: entry.ranks == 4, clock="Mean over the ranks.")


def no_clock() -> Campaign:
    """Rule 10: nobody knows what the time of a step is."""
    return with_fields(lambda entry: True, clock="")


def no_bound() -> Campaign:
    """Rule 11: neither predictions nor a peak."""
    return campaign_of([replace(entry, peak=None) for entry in clean_records() if entry.source == MEASURED])


def above_the_peak() -> Campaign:
    """Rule 11: more FLOP/s than the peak has: a wrong peak."""
    wrong = Peak(flops_per_s=1e9, name="wrong peak", dtype="float32", source="a typing error")
    return with_fields(lambda entry: entry.ranks == 4, peak=wrong)


def peak_of_another_dtype() -> Campaign:
    """Rule 11: a run in float32 held against the lower peak of float64."""
    other = Peak(flops_per_s=25e9, name="matrix product, float64", dtype="float64", source="janus calibrate")
    return with_fields(lambda entry: entry.ranks == 4, peak=other)


def inflated_flops() -> Campaign:
    """Rule 11: model FLOPs above the executed ones, as if the mathematics needed more than was done."""
    return with_fields(lambda entry: entry.ranks == 2, executed_flops=1.5e9)


def bound_that_is_none() -> Campaign:
    """Rule 11: the predicted bound lies below what was measured."""
    slow = [replace(entry, step_s=(0.2,), phase_s={}) if entry.source != MEASURED and entry.ranks == 4 else entry
            for entry in clean_records()]  # fmt: skip
    return campaign_of(slow)


def mixed_models() -> Campaign:
    """Rule 12: a line through points of two models."""
    return campaign_of(
        [replace(entry, model="matris-small") if entry.ranks == 4 else entry for entry in clean_records()]
    )


def gap_in_the_line() -> Campaign:
    """Rule 12: the prediction failed between two others."""
    lost = guess(2, state=FAILED, reason="no rates for 2 ranks")
    return campaign_of([lost if entry.source != MEASURED and entry.ranks == 2 else entry for entry in clean_records()])


# rule, campaign, verdict, words of the evidence
BREAKING: tuple[tuple[int, Callable[[], Campaign], str, str], ...] = (
    (1, failed_base, "broken", "no job that counts, so efficiencies are withheld (n/a): weak at 1 rank"),
    (1, flattering_base, "flagged", "a base larger than the smallest point flatters: weak at 2 ranks"),
    (2, vanished_point, "broken", "a declared point of which no record says what became of it: weak at 8"),
    (2, vanished_jobs, "broken", "no record says what became of an attempt: weak at 4 ranks, attempt 2 and 4"),
    (2, unfinished, "flagged", "the campaign is not finished: weak at 4 ranks, 4 of 6"),
    (2, dropped_point, "flagged", "measured points that the declaration has dropped since: study weak at ranks = 4"),
    (2, damaged_file, "flagged", "files that could not be read: weak-ranks00002-weak0002-attempt03.json"),
    (
        2,
        left_out_by_hand,
        "flagged",
        "attempts that have times are left out, each listed with its reason: weak-ranks00004",
    ),
    (3, mixed_work, "broken", "rates are withheld (n/a): weak at 2 ranks, 1e+09 to 2e+09 FLOPs a step"),
    (
        4,
        mixed_peaks,
        "broken",
        "percent of peak is withheld (n/a): weak at 2 ranks, matrix product, one core and sparse",
    ),
    (5, too_few_jobs, "flagged", "no interval exists below 6 jobs, the raw jobs are shown instead: weak at 1 rank (5)"),
    (5, job_counted_twice, "broken", "the same as another job, so intervals are too narrow: weak-ranks00002"),
    (5, one_allocation, "flagged", "several jobs in one allocation, so they are not independent: weak at 2 ranks"),
    (6, two_humps, "flagged", "jobs are not normally distributed, so no standard deviation is given: weak at 4 ranks"),
    (7, one_after_the_other, "broken", "all jobs of a point ran before those of the next"),
    (7, too_few_jobs, "flagged", "too few jobs for a rank test, so nothing is said of differences: weak at 1 rank"),
    (7, drifting_machine, "flagged", "jobs relative to their points rising by"),
    (8, heavy_tail, "flagged", "the median hides a tail: a long run costs the mean: weak at 4 ranks, median"),
    (9, provenance_lost, "broken", f"provenance is missing: weak at 2 ranks, {REQUIRED[0]}"),
    (9, factor_changed, "broken", "should be the same: weak at 2 ranks, machine: testhost and another host"),
    (
        9,
        shrinking_work,
        "broken",
        "not what a study of its mode holds constant (efficiency: n/a): weak at 4 ranks, 0.50 times",
    ),
    (9, at_the_same_time, "flagged", "at the same time on the same hosts, so each may have slowed the other: weak"),
    (9, other_threads_at_the_base, "flagged", "so its effect looks like scaling: environment of weak"),
    (10, phases_too_long, "broken", "phases, steps, loop or process are longer than what holds them: weak-ranks00004"),
    (10, loop_too_short, "broken", "phases, steps, loop or process are longer than what holds them: weak-ranks00004"),
    (10, two_clocks, "broken", "several clocks in one study, so efficiencies between them are withheld (n/a): weak"),
    (10, no_clock, "broken", "jobs without a definition of their clock: weak"),
    (11, no_bound, "flagged", "neither a prediction nor a peak to hold it against: weak at 1 rank"),
    (11, above_the_peak, "broken", "measured FLOP rate above the peak"),
    (11, peak_of_another_dtype, "broken", "percent of peak is withheld (n/a): weak at 4 ranks, peak in float64, run"),
    (
        11,
        inflated_flops,
        "broken",
        "percent of peak is withheld (n/a): weak at 2 ranks, more model FLOPs than executed",
    ),
    (11, bound_that_is_none, "flagged", "measured above its predicted bound, which is then no bound: weak at 4 ranks"),
    (12, mixed_models, "broken", "one line would join points of different model: weak, matris-tiny and matris-small"),
    (12, gap_in_the_line, "flagged", "without a prediction inside a line, which has a gap there: weak at 2 ranks"),
)
