"""Verdict and system: true sentences for every kind of campaign, attributes, peaks with their sources."""

import pytest

from reports.attributes import attribute_table
from reports.sections import system, verdict
from scaling_studies.records import FAILED, RUNNING, RecordFolder
from tests.record_sets import campaign, continuation, longer_sync, prediction, record, six_jobs, throughput
from tests.reports.blocks import campaign_of, column, numbers, table_of, texts, words


def test_the_paragraph_says_what_ran_how_it_scaled_what_limits_and_how_good_the_prediction_was():
    said = verdict.paragraph(campaign_of([*six_jobs(), *throughput()]))
    assert "trained the interatomic potential matris-tiny on testhost with 1, 2 and 4 parallel processes" in said
    assert "60 training runs count" in said
    assert "Weak scaling, where every rank keeps its work, reaches 77 % efficiency (95 % interval 76 to 78 %, " in said
    assert "predicted 77 %) at 4 ranks." in said
    assert (
        "reaches 200 % of the structures per second of 1 structure per rank (95 % interval 197 to 203 %, pred" in said
    )
    assert "What limits it is BF + BE, double backward" in said
    assert "off by 6.2 % in the median" in said


def test_points_whose_ranks_share_cores_do_not_make_the_verdict():
    said = verdict.paragraph(campaign_of(campaign()))
    assert "reaches 91 % efficiency (predicted 90 %) at 2 ranks; 4 ranks share cores and are left out here" in said
    assert "Over 4 points with a core for every rank" in said


def test_published_values_stand_beside_what_is_predicted_for_the_same_machine():
    said = verdict.paragraph(campaign_of(continuation()))
    assert (
        "Predicted, not run here: matris-moe-l on lineshine would reach 92 % weak efficiency at 131,072 ranks" in said
    )
    assert "Published by its authors, with other jobs and base points: weak 90.3 %, strong 50.6 %." in said


def test_a_base_point_whose_jobs_scatter_is_warned_about():
    base = [record(step_s=(0.1 * factor,) * 3, attempt=number) for number, factor in enumerate((1, 1.3, 0.9), 1)]
    said = words(verdict.sections(campaign_of([*base, record(ranks=2)])))
    assert "The base point of weak (1 rank) is uncertain: its jobs took from 90 ms to 130 ms a step" in said
    assert "is uncertain" not in words(verdict.sections(campaign_of(six_jobs())))


def test_a_change_against_an_earlier_campaign_is_part_of_the_verdict():
    earlier = RecordFolder(records=tuple(six_jobs()), refused=())
    said = verdict.paragraph(campaign_of(longer_sync(), earlier=earlier))
    assert "Against the earlier campaign: Of 6 points in both campaigns, no difference shown: 5" in said
    assert "in gradient sync, waiting (+20 ms)" in said


def test_few_jobs_missing_points_and_open_attempts_are_warned_about():
    waiting = record(ranks=2, attempt=2, state=RUNNING, step_s=(), phase_s={})
    failed = record(ranks=2, state=FAILED, reason="no", step_s=(), phase_s={})
    said = words(verdict.sections(campaign_of([record(), failed, waiting])))
    assert "1 of 2 points rest on fewer than six jobs (as few as 1)" in said
    assert "No job counts for weak at 2 ranks." in said
    assert "The campaign is not finished: 1 attempt" in said


@pytest.mark.parametrize(
    ("records", "start"),
    [
        (continuation(), "No training run is recorded here: every number is predicted, for matris-moe-l on lineshine"),
        ([record(state=FAILED, reason="no", step_s=(), phase_s={})], "No attempt has given a measurement that counts"),
        ([record(state=RUNNING, step_s=(), phase_s={})], "No attempt has ended and nothing is predicted"),
        ([record(state=RUNNING, step_s=(), phase_s={}), prediction(0.1)], "No attempt has ended yet: every number is"),
        ([record()], "Janus trained the interatomic potential matris-tiny on testhost with 1 parallel process (ranks)"),
    ],
    ids=["predicted", "failed", "running", "running and predicted", "one job"],
)
def test_every_kind_of_campaign_has_a_true_paragraph(records, start):
    assert verdict.paragraph(campaign_of(records)).startswith(start)


def test_of_many_studies_the_lowest_and_the_highest_are_told_and_all_are_listed():
    made = []
    for number in range(6):
        name = f"weak-{number}"
        made += [record(study=name), record(study=name, ranks=2, step_s=(0.1 + 0.01 * number,) * 3)]
    said = verdict.paragraph(campaign_of(made))
    assert "Of 6 studies" in said
    assert "(weak-0)" in said
    assert "(weak-5)" in said
    assert "(weak-3)" not in said
    assert "(weak-3)" in words(verdict.sections(campaign_of(made)))


def test_the_attribute_table_tells_measured_from_predicted():
    made = campaign_of([*six_jobs(), *continuation()])
    attributes = dict(texts(attribute_table(made)))
    assert attributes["Category of achievement"].startswith(
        "Scalability: weak scaling and strong scaling (measured); weak scaling (predicted, not measured)"
    )
    assert attributes["Precision reported"] == "float32"
    assert "measured up to 4 ranks on 1 node of testhost" in attributes["System scale"]
    assert "predicted up to 131,072 ranks on 8,192 nodes of lineshine" in attributes["System scale"]
    assert attributes["Measurement mechanism"].startswith("Timers: 108 steps")
    alone = dict(texts(attribute_table(campaign_of(continuation()))))
    assert alone["Measurement mechanism"].startswith("None: nothing was measured")
    assert "measured up to" not in alone["System scale"]


def test_the_table_of_points_drops_columns_without_a_number():
    predicted = table_of(verdict.sections(campaign_of(continuation())), "key")
    assert [entry.name for entry in predicted.columns] == ["study", "point", "predicted", "predicted efficiency"]
    assert column(predicted, "point") == ["8", "131,072"]
    mixed = table_of(verdict.sections(campaign_of([*six_jobs(), *continuation()])), "key")
    assert column(mixed, "point")[-2:] == ["8", "131,072"]
    assert len(mixed.rows) == 8


def test_peaks_and_ceilings_name_devices_dtype_and_source_and_are_not_listed_twice():
    made = system.sections(campaign_of([*six_jobs(), *continuation()]))
    table = table_of(made, "ceilings")
    rows = texts(table)
    assert rows[0] == ["testhost", "1", "matrix product", "50 GFLOP/s", "float32", "measured by janus calibrate"]
    assert [row[:4] for row in rows if row[0] == "lineshine"] == [
        ["lineshine", "8", "NUMA domain FP32", "121 TFLOP/s"],
        ["lineshine", "131,072", "NUMA domain FP32", "1.98 EFLOP/s"],
    ]
    assert numbers(table, "of all devices used")[0] == 50e9


def test_the_system_shows_every_different_value_and_none_for_what_is_empty():
    made = [record(provenance={"driver": driver, "modules": []}, attempt=number + 1)
            for number, driver in enumerate(("550.1", "560.2"))]  # fmt: skip
    table = dict(texts(table_of(system.sections(campaign_of(made)), "software")))
    assert table["driver"] == "550.1 | 560.2"
    assert table["modules"] == "none"
    assert table["clocks"] == "n/a"


def test_machines_without_a_peak_say_so_and_layouts_are_told_in_words():
    made = system.sections(campaign_of([prediction(0.1, peak=None, ceilings=())]))
    assert "Neither a peak nor a ceiling" in words(made)
    assert column(table_of(made, "machines-used"), "layout of the largest point") == ["1 replica of one rank"]
    assert system.sections(campaign_of([record(state=FAILED, reason="no", step_s=(), phase_s={})])) == ()
