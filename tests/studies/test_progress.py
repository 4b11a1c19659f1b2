"""Rows of the status: who is good, what is in flight, what it cost, by numbers one can check on paper."""

from datetime import UTC, datetime

import pytest

from scaling_studies.progress import attempt_node_hours, progress
from scaling_studies.records import FAILED, INVALID, PLANNED, RUNNING, SUBMITTED, TIMEOUT
from tests.record_sets import prediction, record

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
HALF_HOUR = {"started_at": "2026-11-23T10:00:00+00:00", "ended_at": "2026-11-23T10:30:00+00:00", "nodes": 4}
OPEN = {"step_s": (), "phase_s": {}, "wall_s": None}


def test_a_point_counts_good_failed_and_open_attempts_apart():
    rows = progress(
        [
            prediction(0.1, repeats_planned=6),
            record(attempt=1, **HALF_HOUR),
            record(attempt=2, state=TIMEOUT, reason="600 s are over", **OPEN, **HALF_HOUR),
            record(attempt=3, state=RUNNING, job_id="17", started_at="2026-11-23T11:00:00+00:00", nodes=4, **OPEN),
            record(attempt=4, state=SUBMITTED, job_id="18", submitted_at="2026-11-23T11:59:00+00:00", **OPEN),
            record(attempt=5, state=PLANNED, **OPEN),
        ],
        now=NOW,
    )
    (row,) = rows
    assert (row.good, row.wanted, row.failed, row.is_complete) == (1, 6, 1, False)
    assert row.states == {"DONE": 1, "TIMEOUT": 1, "RUNNING": 1, "SUBMITTED": 1, "PLANNED": 1}
    assert [(entry.state, entry.job_id, entry.age_s) for entry in row.in_flight] == [
        ("RUNNING", "17", 3600), ("SUBMITTED", "18", 60), ("PLANNED", "", None),
    ]  # fmt: skip
    assert row.node_hours == pytest.approx(2 + 2 + 4)  # two ended half hours and one running hour of 4 nodes
    assert row.last_failure == "TIMEOUT: 600 s are over"
    assert row.last_failed.endswith("-attempt02")


def test_the_last_failure_is_the_one_that_ended_last():
    early = record(attempt=2, state=FAILED, reason="early", **OPEN, **HALF_HOUR)
    late = record(attempt=1, state=INVALID, reason="late", **OPEN, **{**HALF_HOUR, "ended_at": "2026-11-23T11:00:00"})
    assert progress([late, early], now=NOW)[0].last_failure == "INVALID: late"
    lost = record(attempt=3, state=FAILED, reason="job lost", **OPEN, submitted_at="2026-11-23T11:30:00+00:00")
    assert progress([lost, late, early], now=NOW)[0].last_failure == "FAILED: job lost"


@pytest.mark.parametrize(
    ("changes", "node_hours"),
    [
        (HALF_HOUR, 2.0),
        ({**HALF_HOUR, "ended_at": "2026-11-23T09:00:00+00:00"}, None),  # the clock went backwards
        ({**HALF_HOUR, "nodes": None}, None),
        ({**HALF_HOUR, "started_at": "yesterday"}, None),
        ({**HALF_HOUR, "facts": {"job_s": 900.0}}, 1.0),  # the clock was set forward: the job's own clock was not
        ({"wall_s": 1800.0, "nodes": 2}, 1.0),  # no start on record: by the time of the process
        ({"state": FAILED, "reason": "never started", "step_s": (), "phase_s": {}}, 0.0),
    ],
    ids=["ended", "backwards", "no nodes", "malformed", "clock set", "wall", "never started"],
)
def test_node_hours_are_known_or_none(changes, node_hours):
    assert attempt_node_hours(record(**changes), NOW) == node_hours


def test_an_unknown_cost_is_counted_as_unknown_not_as_nothing():
    (row,) = progress([record(**{**HALF_HOUR, "nodes": None}), record(attempt=2, **HALF_HOUR)], now=NOW)
    assert (row.node_hours, row.untimed) == (2.0, 1)


def test_rows_come_by_study_and_size_and_leave_out_what_is_only_predicted():
    records = [
        prediction(0.1, study="late", ranks=4), prediction(0.1, study="late", ranks=2),
        prediction(0.1, study="alone", ranks=8, repeats_planned=0), record(study="first", ranks=1),
    ]  # fmt: skip
    assert [(row.study, row.x) for row in progress(records, now=NOW)] == [("late", 2), ("late", 4), ("first", 1)]


def test_a_stop_rule_changes_how_many_are_wanted():
    assert progress([record()], now=NOW, wanted={record().cell_id: 11})[0].wanted == 11
