"""What a campaign lacks: random order, stop rule, budget, failures."""

import dataclasses

import pytest

from scaling_studies.cells import resolve_cells
from scaling_studies.executors import flux, lsf, pbs, slurm
from scaling_studies.executors.base import ENDED, UNKNOWN, JobStatus
from scaling_studies.outcomes import final_record
from scaling_studies.records import DONE, FAILED, PLANNED, PREDICTED, RUNNING, SUBMITTED
from scaling_studies.wanted import (
    FailuresInARow,
    affordable,
    expected_node_hours,
    failures_in_a_row,
    is_machine_fault,
    lacking,
    standing,
    target,
)
from tests.studies.file_scheduler import work_for
from tests.study_cases import data, strong, weak

CELLS = resolve_cells(weak(repeats=3), data()) + resolve_cells(strong(repeats=3), data())
HOUR = {"started_at": "2026-11-20T10:00:00+00:00", "ended_at": "2026-11-20T11:00:00+00:00"}


def record_of(cell, attempt, state=DONE, step_s=0.1, **changes):
    planned = work_for([cell]).planned(cell, changes.pop("repeat", attempt - 1))
    values = {"state": state, "attempt": attempt, "step_s": (step_s,) if state == DONE else ()}
    return dataclasses.replace(planned, **{**values, "reason": "" if state == DONE else "it broke", **changes})


def test_what_is_done_or_in_flight_is_not_lacking():
    cell = CELLS[0]
    records = [record_of(cell, 1), record_of(cell, 2, RUNNING, repeat=2), record_of(cell, 3, FAILED, repeat=1)]
    assert [(task.cell.id, task.repeat) for task in lacking([cell], records, 0)] == [(cell.id, 1)]
    now = standing([cell], records)
    assert (now.good, now.wanted, now.running, now.waiting) == (1, 3, 1, 0)


def test_the_order_is_random_by_seed_and_history_and_repeatable():
    def order(seed, records=()):
        return [(task.cell.id, task.repeat) for task in lacking(CELLS, list(records), seed)]

    assert len(order(1)) == 12
    assert order(1) == order(1)
    assert order(1) != order(2)
    assert sorted(order(1)) == sorted(order(2))
    failed = [record_of(CELLS[0], 1, FAILED)]
    assert order(1, failed) != order(1)  # drawn anew: what failed is not tried again at once for that reason
    firsts = {order(seed)[0] for seed in range(100)}
    assert len(firsts) == 12


def test_without_a_stop_rule_the_repeats_are_wanted():
    study = CELLS[0].study
    assert [target(study, [record_of(CELLS[0], number + 1) for number in range(done)]) for done in (0, 2, 3)] == [3] * 3


@pytest.mark.parametrize(
    ("spread", "expected"), [(0.0, 6), (0.5, 7)], ids=["narrow enough at once", "too wide: one more"]
)
def test_a_stop_rule_asks_for_more_until_the_interval_is_narrow(spread, expected):
    (cell, _) = resolve_cells(weak(repeats=6, stop_ci_percent=5.0, max_repeats=8), data())
    records = [record_of(cell, number + 1, step_s=0.1 * (1 + spread * number / 6)) for number in range(6)]
    assert target(cell.study, records) == expected
    assert target(cell.study, records[:4]) == 6
    wide = [record_of(cell, number + 1, step_s=0.1 * (1 + number)) for number in range(8)]
    assert target(cell.study, wide) == 8  # max_repeats
    assert len(lacking([cell], wide[:6], 0)) == 1


def test_failures_in_a_row_are_counted_since_the_last_good_attempt_those_of_the_machine_apart():
    cell = CELLS[0]
    records = [record_of(cell, 1, FAILED), record_of(cell, 2), record_of(cell, 3, FAILED), record_of(cell, 4, PLANNED)]
    assert failures_in_a_row(cell, records) == FailuresInARow(own=1)
    preempted = record_of(cell, 5, FAILED, reason="preempted: step 3")
    assert failures_in_a_row(cell, [*records, preempted]) == FailuresInARow(own=1, machine=1)
    stopped = record_of(cell, 6, FAILED, reason="stopped by the runner: step 3")
    assert failures_in_a_row(cell, [*records, preempted, stopped]) == FailuresInARow(own=1, machine=1)
    assert failures_in_a_row(cell, [*records, preempted, record_of(cell, 6)]) == FailuresInARow()
    assert failures_in_a_row(CELLS[1], records) == FailuresInARow()


@pytest.mark.parametrize(
    ("own", "machine", "words"),
    [(2, 4, ""), (3, 0, "3 failures in a row"), (0, 5, "5 faults of the machine"), (3, 5, "3 failures in a row")],
)
def test_each_kind_of_failure_has_a_limit_of_its_own(own, machine, words):
    found = FailuresInARow(own=own, machine=machine).too_many(weak(max_failures=3, max_machine_faults=5))
    assert found.startswith(words)
    assert bool(found) == bool(words)


@pytest.mark.parametrize(
    "status",
    [*(slurm._ended(state, "n[1-2]", "") for state in ("PREEMPTED", "NODE_FAIL", "BOOT_FAIL", "LAUNCH_FAILED")),
     *(pbs._status({"job_state": "F", "Exit_status": code}) for code in ("-20", "-11", "-1", "271")),
     *(lsf._status({"STAT": "EXIT", "EXIT_REASON": f"{word}: x"}) for word in ("TERM_PREEMPT", "TERM_RC_RECLAIM")),
     flux._status({"state": "INACTIVE", "result": "FAILED", "exception": {
         "occurred": True, "type": "node-failure", "note": "node failure on n8 (shell rank 3)"}}),
     JobStatus(state=UNKNOWN), JobStatus(state=UNKNOWN, reason="it was started on n1, not on n1 as it runs now"),
     JobStatus(state=ENDED)],
    ids=lambda status: status.reason or status.state,
)  # fmt: skip
def test_what_schedulers_say_of_the_machine_is_not_the_points_fault(status, tmp_path):
    attempt = record_of(CELLS[0], 1, RUNNING, job_id="7")
    failed = final_record(attempt, tmp_path, status, lambda record, folder: record)
    assert failed.state == FAILED
    assert is_machine_fault(failed), failed.reason


@pytest.mark.parametrize(
    "status",
    [slurm._ended("FAILED", "n1", "1:0"), slurm._ended("FAILED", "n1", "0:9"), slurm._ended("CANCELLED", "n1", ""),
     slurm._ended("TIMEOUT", "n1", ""), slurm._ended("OUT_OF_MEMORY", "n1", ""), slurm._ended("COMPLETED", "n1", ""),
     pbs._status({"job_state": "F", "Exit_status": "1"}), pbs._status({"job_state": "F"}),
     lsf._status({"STAT": "EXIT", "EXIT_REASON": "TERM_OWNER: job killed by owner"}),
     flux._status({"state": "INACTIVE", "result": "FAILED", "returncode": 1})],
    ids=lambda status: status.reason or status.outcome,
)  # fmt: skip
def test_what_a_program_or_a_person_did_counts_at_the_point(status, tmp_path):
    attempt = record_of(CELLS[0], 1, RUNNING, job_id="7")
    failed = final_record(attempt, tmp_path, status, lambda record, folder: record)
    assert failed.state != DONE
    assert not is_machine_fault(failed), failed.reason


def test_only_jobs_that_a_scheduler_has_are_under_way():
    cell = CELLS[0]
    claimed = record_of(cell, 1, PLANNED)
    now = standing([cell], [claimed])
    assert (now.waiting, now.unsubmitted, now.is_under_way) == (1, 1, False)
    for state in (SUBMITTED, RUNNING):
        assert standing([cell], [claimed, record_of(cell, 2, state, repeat=1)]).is_under_way


def test_a_budget_counts_failures_and_what_is_in_flight():
    (cell, _) = resolve_cells(weak(repeats=6, node_hours=4.5, time_out_s=7200.0), data())
    done, failed = record_of(cell, 1, **HOUR), record_of(cell, 2, FAILED, **HOUR)
    tasks = lacking([cell], [done, failed], 0)
    chosen, exhausted = affordable(tasks, [done, failed])
    assert len(chosen) == 2  # 2 of 4.5 hours are spent, one hour each as measured
    assert exhausted == ()
    open_one = record_of(cell, 3, PLANNED, repeat=5)
    assert len(affordable(tasks, [done, failed, open_one])[0]) == 1
    unknown = record_of(cell, 3, FAILED, started_at=HOUR["started_at"])  # nobody knows its end: at most its limit
    assert affordable(tasks, [done, failed, unknown]) == ([], ("w",))


def test_a_clock_that_went_backwards_costs_at_most_the_limit():
    (cell, _) = resolve_cells(weak(repeats=6, node_hours=3.0, time_out_s=7200.0), data())
    backwards = record_of(cell, 1, FAILED, started_at=HOUR["ended_at"], ended_at=HOUR["started_at"])
    tasks = lacking([cell], [backwards], 0)
    assert affordable(tasks, [backwards])[0] == []  # 2 of 3 hours may be spent, and a job takes at most 2


def test_without_a_budget_everything_is_affordable():
    tasks = lacking(CELLS, [], 0)
    assert affordable(tasks, []) == (tasks, ())


def test_what_an_attempt_costs_is_known_better_with_time():
    (cell, _) = resolve_cells(weak(time_out_s=7200.0), data())
    assert expected_node_hours(cell, []) == 2.0
    predicted = record_of(cell, 1, wall_s=720.0, source=PREDICTED)
    assert expected_node_hours(cell, [predicted]) == pytest.approx(0.2)
    assert expected_node_hours(cell, [predicted, record_of(cell, 1, **HOUR)]) == pytest.approx(1.0)
