"""Sections of the studies and of efficiencies: numbers on paper, and nothing invented where there is none."""

import dataclasses

import pytest

from reports.points import arrange
from reports.scaling_section import points_table
from reports.sections import efficiency, strong, throughput, weak
from reports.sections.efficiency import efficiency_table, serial_share
from reports.tables_csv import table_csv
from scaling_studies.records import RUNNING
from tests.record_sets import campaign, continuation, jobs, prediction, record, six_jobs
from tests.record_sets import throughput as throughput_records
from tests.reports.blocks import campaign_of, column, numbers, table_of, texts, words


@pytest.fixture(scope="module")
def full():
    return campaign_of([*six_jobs(), *throughput_records(), *continuation()])


def test_each_study_has_a_section_and_predicted_ones_are_marked(full):
    made = [*weak.sections(full), *strong.sections(full), *throughput.sections(full)]
    assert [(section.id, section.tag) for section in made] == [
        ("study-weak", ""), ("study-full-machine", "predicted, not measured"), ("study-strong", ""),
        ("study-batch", ""),
    ]  # fmt: skip


def test_the_weak_table_has_medians_intervals_and_words_of_the_rank_test(full):
    table = table_of(weak.sections(full), "weak-points")
    assert numbers(table, "measured") == pytest.approx([0.10125, 0.111375, 0.131625])
    assert column(table, "95 % interval")[0] == "100 ms to 102 ms"
    assert column(table, "against base") == ["base", "took more time", "took more time"]
    assert numbers(table, "work of a rank") == [4000, 4000, 4000]


def test_below_six_jobs_there_is_no_interval_no_comparison_and_it_says_so():
    made = weak.sections(campaign_of(campaign()))
    table = table_of(made, "weak-points")
    assert column(table, "95 % interval") == ["none (n = 2)"] * 3
    assert column(table, "against base") == ["base", "too few jobs to say", "too few jobs to say"]
    assert "fewer than six jobs (as few as 2)" in words(made)
    assert column(table, "ranks") == ["1", "2", "4 *"]


def test_layouts_are_shown_where_they_differ_from_point_to_point():
    shared = {"unit": 2, "replicas": 1, "shard_degree": 2, "graph_degree": 1, "expert_degree": 1}
    made = [record(), record(ranks=2, layout=shared)]
    table = table_of(weak.sections(campaign_of(made)), "weak-points")
    assert column(table, "layout") == [
        "1 replica of one rank",
        "1 replica of units of 2 ranks (shard 2, graph 1, expert 1)",
    ]
    plain = table_of(weak.sections(campaign_of([record(), record(ranks=2)])), "weak-points")
    assert "layout" not in [entry.name for entry in plain.columns]


def test_speed_up_and_structures_per_day_come_from_medians(full):
    table = table_of(strong.sections(full), "strong-points")
    assert numbers(table, "speed-up") == pytest.approx([1, 0.4 / 0.22, 0.4 / 0.13])
    assert numbers(table, "structures per day")[0] == pytest.approx(8 * 86_400 / 0.405)


def test_rates_of_a_throughput_study_are_structures_over_the_median_time(full):
    table = table_of(throughput.sections(full), "batch-points")
    assert numbers(table, "structures/s") == pytest.approx(
        [2 * x / (1.0125 * (0.04 + 0.03 * x)) for x in (1, 2, 4, 8)]
    )  # fmt: skip
    assert numbers(table, "atoms/s") == pytest.approx([30 * rate for rate in numbers(table, "structures/s")])


def test_jobs_that_did_different_work_have_no_rate():
    made = [record(mode="strong", model_flops=flops, attempt=number)
            for number, flops in ((1, 1e9), (2, 3e9))]  # fmt: skip
    table = table_of(strong.sections(campaign_of([*made, *jobs(0.06, 2, mode="strong", ranks=2)])), "weak-points")
    assert column(table, "structures per day")[0] == "n/a"
    assert numbers(table, "structures per day")[1] is not None


def test_the_outcome_names_efficiency_interval_prediction_bound_and_what_limits(full):
    said = words(weak.sections(full)[:1])
    assert "At 4 ranks the weak efficiency is 76.9 % (95 % interval 75.8 to 77.9 %, predicted 76.9 %" in said
    assert "predicted without communication 85.5 %" in said
    assert "What limits it is BF + BE, double backward: 13.7 ms, 45 % of that." in said


def test_a_study_that_is_not_finished_or_lacks_its_base_says_so():
    waiting = record(ranks=2, attempt=9, state=RUNNING, step_s=(), phase_s={})
    said = words(weak.sections(campaign_of([record(ranks=2), waiting])))
    assert "Not finished: 1 of 2 planned jobs count so far, 1 attempt has not ended." in said
    assert "The base point (1 rank) has no job that counts, so no efficiency is given." in said


def test_efficiencies_stand_beside_ideal_bound_and_prediction(full):
    table = table_of(efficiency.sections(full), "strong-efficiencies")
    assert numbers(table, "measured") == pytest.approx([100, 100 * 0.4 / 0.44, 100 * 0.4 / 0.52])
    assert column(table, "95 % interval") == ["base", "89.6 to 92.0 %", "75.8 to 77.9 %"]
    assert numbers(table, "bound") == pytest.approx([value / 0.9 for value in numbers(table, "predicted")])
    assert column(table, "ideal") == ["100 %"] * 3


def test_the_serial_share_is_that_of_karp_and_flatt(full):
    (view,) = [view for view in full.views if view.name == "strong"]
    speed_up = 0.4 / 0.13
    wanted = (1 / speed_up - 1 / 4) / (1 - 1 / 4)
    assert serial_share(view, view.points[2]) == pytest.approx(wanted)
    assert serial_share(view, view.points[0]) is None
    amdahl = {1: 1.0, 2: 0.55, 4: 0.325, 8: 0.2125}  # a tenth of the work is serial
    (exact,) = arrange(
        [record(mode="strong", ranks=ranks, step_s=(time,) * 3, model_flops=1e9) for ranks, time in amdahl.items()]
    )
    assert [serial_share(exact, point) for point in exact.points[1:]] == pytest.approx([0.1] * 3)


def test_intervals_have_both_ends_in_the_csv_and_predicted_values_say_so(full):
    weak, line = (next(view for view in full.views if view.name == name) for name in ("weak", "full-machine"))
    head, first, *_ = table_csv(points_table(weak)).splitlines()
    cells = dict(zip(head.split(","), first.split(","), strict=True))
    measured = weak.points[0].measured
    assert [float(cells["step_s_low"]), float(cells["step_s_high"])] == [measured.low, measured.high]
    rows = table_csv(efficiency_table(weak)).splitlines()
    assert "efficiency_low_percent,efficiency_high_percent" in rows[0]
    assert rows[1].split(",")[2:4] == ["base", ""]
    names = table_csv(points_table(line)).splitlines()[0].split(",")
    assert all(name.startswith("predicted_") for name in names if name.endswith(("_s", "_percent")))


def test_an_efficiency_above_the_ideal_asks_for_a_reason():
    said = words(weak.sections(campaign_of([record(), record(ranks=2, step_s=(0.08,) * 3)])))
    assert "the weak efficiency is 125.0 %" in said
    assert "More than 100 % needs a reason" in said


def test_predicted_studies_have_a_section_of_their_own_that_is_marked(full):
    made = efficiency.sections(full)
    assert [(section.id, section.tag) for section in made] == [
        ("efficiency", ""), ("efficiency-predicted", "predicted, not measured"),
    ]  # fmt: skip
    table = table_of(made, "full-machine-efficiencies")
    assert [entry.name for entry in table.columns] == ["ranks", "ideal", "bound", "predicted"]
    assert numbers(table, "predicted")[-1] == pytest.approx(100 / 1.084)


def test_no_bound_is_claimed_where_causes_are_not_recorded():
    made = [dataclasses.replace(prediction(0.1 * ranks, ranks=ranks), phase_cause_s={}) for ranks in (1, 2)]
    sections = efficiency.sections(campaign_of(made))
    assert column(table_of(sections, "weak-efficiencies"), "bound") == ["n/a", "n/a"]
    assert "No bound is given" in words(sections)


def test_one_point_alone_has_no_efficiency_section():
    assert efficiency.sections(campaign_of([record(), prediction(0.1)])) == ()
    assert texts(table_of(weak.sections(campaign_of([record()])), "weak-points"))[0][0] == "1"
