"""Variability, imbalance, exclusions, methodology and provenance: what the records say, nothing that they do not."""

import dataclasses

import pytest

from reports import samples
from reports.campaign import Campaign
from reports.points import arrange
from reports.sections import exclusions, imbalance, methodology, provenance, variability
from scaling_studies.provenance import REQUIRED
from scaling_studies.records import FAILED, RUNNING, RankTimes, RecordFolder
from tests.record_sets import campaign, continuation, counts, prediction, record, six_jobs
from tests.reports import rule_breaking_sets as sets
from tests.reports.blocks import campaign_of, column, numbers, picture_of, table_of, texts, words


def test_small_variations_are_not_rounded_to_nothing():
    assert variability.percent_with_digits(0.00123) == "0.12 %"
    assert variability.percent_with_digits(0.0000456) == "0.0046 %"
    assert variability.percent_with_digits(0.25) == "25 %"
    table = table_of(variability.sections(sets.clean()), "variability-jobs-weak")
    assert set(column(table, "variation")) == {"1.3 %"}


def test_percentiles_are_order_statistics():
    assert samples.percentile([3, 1, 2, 4], 0.5) == 2
    assert samples.percentile(range(1, 101), 0.95) == 95
    assert samples.percentile([7], 0.95) == 7
    tail = samples.step_tail([record(step_s=(1.0, 1.0, 1.0, 5.0))])
    assert (tail.median_s, tail.mean_s, tail.p95_s, tail.longest_s) == (1.0, 2.0, 5.0, 5.0)


def test_a_drift_of_the_machine_is_found_over_all_points():
    drifting = sets.changed(lambda entry: True, lambda entry: sets.stretched(entry, 1 + 0.03 * entry.attempt))
    sections = variability.sections(campaign_of(drifting))
    assert "Drift over the whole campaign, 18 jobs relative to their points: rising by" in words(sections)
    assert ", p below 0.0001)." in words(sections)
    assert "no trend shown" in words(variability.sections(sets.clean()))
    rows = picture_of(sections, "order-of-jobs").data.rows
    assert [row[0].number for row in rows] == list(range(1, 19))


def test_a_sure_trend_too_small_to_count_is_not_called_none():
    jobs = [record(step_s=(0.1 * (1 + 0.001 * number),) * 3, attempt=number, started_at=f"2026-11-22T1{number}:00:00")
            for number in range(1, 9)]  # fmt: skip
    said = column(table_of(variability.sections(campaign_of(jobs)), "variability-jobs-weak"), "trend in time")
    assert said == ["rising, but by less than the 2 % that count (+0.6 %)"]


def test_without_start_times_nothing_is_said_of_the_order():
    sections = variability.sections(campaign_of(campaign()))
    assert set(column(table_of(sections, "variability-jobs-weak"), "trend in time")) == {"start times not recorded"}
    assert not any(getattr(block, "name", "") == "order-of-jobs" for block in sections[0].blocks)


def test_jobs_in_blocks_are_told_from_jobs_that_took_turns():
    assert [samples.ran_in_blocks(arrange(make().records)[0]) for make in (sets.clean, sets.one_after_the_other)] == [
        False, True,
    ]  # fmt: skip
    assert samples.ran_in_blocks(arrange(campaign())[0]) is None


def test_imbalance_is_largest_over_mean():
    times = RankTimes(step_s=(1.0, 1.0), busy_s=(1.0, 0.6), wait_s=(0.0, 0.4))
    uneven = (*counts(1, edges=1000), *counts(1, edges=3000))  # work of 4000 and 6000
    found = record(ranks=2, base_ranks=2, rank_times=times, counts_per_rank=uneven, step_s=(1.0,), phase_s={},
                   expert_rows_per_rank=(100.0, 300.0))  # fmt: skip
    sections = imbalance.sections(campaign_of([found]))
    table = table_of(sections, "imbalance-weak")
    assert numbers(table, "work, largest over mean") == [pytest.approx(1.2)]
    assert numbers(table, "working time, slowest over mean") == [pytest.approx(1.25)]
    assert numbers(table, "waiting, mean rank") == [pytest.approx(0.2)]
    assert numbers(table, "of the step") == [pytest.approx(20.0)]
    assert numbers(table, "expert rows, largest over mean") == [pytest.approx(1.5)]
    data = picture_of(sections, "weak-ranks").data
    (folded,) = imbalance.sections(campaign_of([prediction(0.1, expert_rows_per_rank=(1.0,), counts_per_rank=())]))
    assert [entry.name for entry in table_of([folded], "imbalance-weak").columns] == [
        "ranks", "expert rows, largest over mean",
    ]  # fmt: skip
    assert numbers(data, "value") == [1.0, 0.6, 0.0, 0.4, 4000.0, 6000.0, 100.0, 300.0]


def test_many_ranks_are_drawn_sorted_and_all_kept_as_data():
    many = 200
    times = RankTimes(
        step_s=(1.0,) * many, busy_s=tuple(1 - 0.001 * rank for rank in range(many)), wait_s=(0.0,) * many
    )
    found = record(ranks=many, base_ranks=many, rank_times=times, oversubscribed=False)
    picture = picture_of(imbalance.sections(campaign_of([found])), "weak-ranks")
    assert column(picture.data, "series").count("working, measured") == many
    assert picture.figure.axes[-1].get_xlabel() == "ranks, sorted"


def test_nothing_known_of_single_ranks_is_no_section():
    assert imbalance.sections(campaign_of([record(rank_times=None, counts_per_rank=())])) == ()


def test_everything_left_out_is_listed_with_its_reason():
    folder = RecordFolder(records=tuple(campaign()), refused=(("torn.json", "not a complete JSON document"),))
    sections = exclusions.sections(Campaign(folder=folder))
    rows = texts(table_of(sections, "exclusions"))
    assert rows[0] == ["weak", "2 ranks", "weak-ranks00002-weak0002-attempt03", "FAILED", "testhost",
                       "exit code 1: rank 1 ran out of <memory>"]  # fmt: skip
    assert rows[1][2:] == ["file torn.json", "refused", "", "not a complete JSON document"]
    assert words(sections).startswith("13 measured attempts have ended: 12 DONE, 1 FAILED.")
    assert words(exclusions.sections(campaign_of([record()]))).startswith("1 measured attempt has ended: 1 DONE.")


def test_planned_stands_beside_shown_and_names_points_without_a_record():
    records = [*sets.clean_records(), sets.job(4, 0, attempt=9, state=RUNNING, step_s=(), phase_s={}, rank_times=None)]
    declared = {"weak": {"mode": "weak", "ranks": [1, 2, 4, 8]}}
    table = table_of(exclusions.sections(campaign_of(records, declared=declared)), "planned-and-shown")
    assert column(table, "state") == ["complete", "complete", "complete", "no record"]
    assert numbers(table, "not ended") == [0, 0, 1, 0]
    assert column(table, "point")[-1] == "8 ranks"


def test_more_jobs_than_declared_are_named_and_all_count():
    declared = {"weak": {"mode": "weak", "ranks": [1, 2, 4], "repeats": 4}}
    records = [dataclasses.replace(entry, repeats_planned=4) for entry in sets.clean_records()]
    table = table_of(exclusions.sections(campaign_of(records, declared=declared)), "planned-and-shown")
    assert column(table, "jobs counted of planned") == ["6 of 4"] * 3
    assert column(table, "state") == ["complete, 2 more than declared, all count"] * 3
    declared["weak"]["stop_ci_percent"] = 5.0
    table = table_of(exclusions.sections(campaign_of(records, declared=declared)), "planned-and-shown")
    assert column(table, "state") == ["complete"] * 3


def test_attempts_at_points_that_are_no_longer_declared_are_listed():
    gone = (record(ranks=2), record(ranks=2, attempt=2, state=FAILED, reason="a node failed", step_s=(), phase_s={}))
    sections = exclusions.sections(Campaign(folder=RecordFolder(records=(record(),), refused=(), undeclared=gone)))
    assert texts(table_of(sections, "exclusions")) == [
        ["weak", "2 ranks", gone[0].tag, "DONE", "testhost", "its point is no longer declared"],
        ["weak", "2 ranks", gone[1].tag, "FAILED", "testhost", "its point is no longer declared; a node failed"],
    ]
    assert "Study weak at ranks = 2 is no longer declared and left out: 1 DONE, 1 FAILED." in words(sections)


def test_a_failed_prediction_is_left_out_with_its_reason():
    rows = texts(table_of(exclusions.sections(sets.gap_in_the_line()), "exclusions"))
    lost = [prediction(0.1, ranks=ranks, state=FAILED, reason="no rates") for ranks in (1, 2)]
    assert "2 predictions or files are listed below." in words(exclusions.sections(campaign_of(lost)))
    assert rows == [["weak", "2 ranks", "prediction", "FAILED", "", "no rates for 2 ranks"]]


@pytest.mark.parametrize(
    ("known", "shown"),
    [({}, "n/a"), ({"node_list": "unknown", "host": "n7"}, "n7"), ({"node_list": "n" * 200}, "n" * 80 + "...")],
)
def test_hosts_of_a_failure_are_shown_as_far_as_they_are_known(known, shown):
    failed = record(attempt=3, state=FAILED, reason="a node failed", provenance=known, step_s=(), phase_s={})
    assert texts(table_of(exclusions.sections(campaign_of([record(), failed])), "exclusions"))[0][4] == shown


def test_methods_are_those_of_the_records():
    said = words(methodology.sections(sets.clean()))
    assert f"Clock: {sets.CLOCK}" in said
    assert "Each job ran 2 warm-up steps, recorded and left out, and 5 steps that count" in said
    assert "executor: local" in said
    assert "Order of the jobs of weak: jobs of different points took turns" in said
    assert "all jobs of a point ran before those of the next" in words(methodology.sections(sets.one_after_the_other()))
    assert "Clock: not recorded (n/a)." in words(methodology.sections(sets.no_clock()))


def test_bases_have_their_absolute_time():
    table = table_of(methodology.sections(campaign_of([*continuation(), *six_jobs()])), "base-points")
    assert numbers(table, "time of its step") == [pytest.approx(0.10125), pytest.approx(0.405), 8.0]
    assert column(table, "result") == ["measured", "measured", "predicted"]


def test_assumptions_of_predictions_are_listed_once():
    table = table_of(methodology.sections(campaign_of(continuation())), "assumptions")
    assert texts(table) == [["lineshine", "assumed: full bisection"]]


def test_a_field_that_differs_shows_its_values():
    changed = sets.changed(
        lambda entry: entry.attempt == 2,
        lambda entry: dataclasses.replace(entry, provenance={**entry.provenance, "host": "node7", "modules": []}),
    )
    sections = provenance.sections(campaign_of(changed))
    rows = {row[0]: row for row in texts(table_of(sections, "provenance"))}
    assert rows["host"][1] == "host of the test (15 jobs) | node7 (3 jobs)"
    assert rows["modules"][1].endswith("none (3 jobs)")
    assert {name.replace("_", " ") for name in REQUIRED} <= set(rows)
    factors = {row[0]: row[1:] for row in texts(table_of(sections, "factors"))}
    assert factors["ranks"] == ["3", "varied on purpose", "1; 2; 4"]
    assert factors["host"] == ["2", "differed", "host of the test; node7"]
    assert factors["model"] == ["1", "constant", "matris-tiny"]


def test_of_configurations_that_differ_the_settings_that_do_are_shown():
    def configured(entry):
        config = {"batch": {"structures": 2 * entry.ranks, "max_work": 5}, "model": "matris-tiny"}
        return dataclasses.replace(entry, provenance={**entry.provenance, "resolved_config": config})

    sections = provenance.sections(campaign_of(sets.changed(lambda entry: True, configured)))
    (row,) = [row for row in texts(table_of(sections, "provenance")) if row[0] == "resolved config"]
    assert row[1:3] == ["differs in batch.structures: 2 | 4 | 8 (2 settings the same)", "3"]


def test_missing_provenance_is_a_warning_and_never_unknown():
    sections = provenance.sections(sets.provenance_lost())
    assert f"Not recorded, so those jobs cannot be reproduced from this report: {REQUIRED[0]} (1 job)" in words(
        sections
    )
    assert sections[0].blocks[0].style == "warning"


def test_long_values_are_cut_in_the_table():
    long = sets.changed(
        lambda entry: True,
        lambda entry: dataclasses.replace(entry, provenance={**entry.provenance, "resolved_config": {"x": "y" * 999}}),
    )
    rows = {row[0]: row for row in texts(table_of(provenance.sections(campaign_of(long)), "provenance"))}
    assert rows["resolved config"][1].endswith("...")
    assert len(rows["resolved config"][1]) < 500
