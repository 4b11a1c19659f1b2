"""What a campaign lacks: random order, stop rule, budget, failures."""

import dataclasses

import pytest

from scaling_studies.cells import resolve_cells
from scaling_studies.records import DONE, FAILED, PLANNED, PREDICTED, RUNNING
from scaling_studies.wanted import affordable, consecutive_failures, expected_node_hours, lacking, standing, target
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


def test_failures_in_a_row_are_counted_since_the_last_good_attempt():
    cell = CELLS[0]
    records = [record_of(cell, 1, FAILED), record_of(cell, 2), record_of(cell, 3, FAILED), record_of(cell, 4, PLANNED)]
    assert consecutive_failures(cell, records) == 1
    preempted = record_of(cell, 5, FAILED, reason="preempted: step 3")
    assert consecutive_failures(cell, [*records, preempted]) == 1
    assert consecutive_failures(CELLS[1], records) == 0


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
