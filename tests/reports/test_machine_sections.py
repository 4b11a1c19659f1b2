"""Percent of peak, roofline, memory, the paper's machines: values by hand, unknown ones n/a, predicted ones marked."""

import dataclasses

import pytest

from reports.flop_rates import measured_rates, predicted_rates
from reports.points import arrange
from reports.published import PUBLISHED_RUNS
from reports.sections import machines, memory, peak, roofline
from scaling_studies.records import MEMORY_LIMIT, Ceiling, Peak, PhaseWorkload
from tests.record_sets import campaign, ceilings, continuation, record, six_jobs, throughput
from tests.record_sets import prediction as predicted
from tests.reports.blocks import campaign_of, column, numbers, picture_of, table_of, texts, words

REAL_PEAK = 151e12  # so that the hand-made full machine stays below it


def full_machine(**changes):
    """The hand-made predictions with a peak they can reach."""
    return [
        dataclasses.replace(entry, peak=dataclasses.replace(entry.peak, flops_per_s=REAL_PEAK * entry.ranks), **changes)
        for entry in continuation()
    ]


def test_rates_follow_their_definitions():
    (view,) = arrange([record(loop_s=1.0, wall_s=4.0, attempt=number) for number in (1, 2)])
    rates = measured_rates(view.points[0])  # 1e9 FLOPs a step, 2 warm-up steps and 3 that count
    assert rates.peak == pytest.approx(5 * 1e9 / 1.0)
    assert rates.sustained == pytest.approx(5 * 1e9 / 4.0)
    assert rates.step == pytest.approx(1e9 / 0.1)
    assert rates.executed == pytest.approx(1.2 * rates.peak)
    assert rates.percent(rates.peak) == pytest.approx(10.0)  # of 50 GFLOP/s


def test_rates_of_several_jobs_come_from_their_median_cost_not_from_a_mean_of_rates():
    jobs = [record(loop_s=loop_s, attempt=number) for number, loop_s in enumerate((1.0, 2.0, 4.0), 1)]
    (view,) = arrange(jobs)
    assert measured_rates(view.points[0]).peak == pytest.approx(5 * 1e9 / 2.0)


def test_a_predicted_rate_over_the_loop_is_that_of_its_step_and_sustained_needs_a_wall_time():
    (view,) = arrange([predicted(0.1, loop_s=None, wall_s=None)])
    rates = predicted_rates(view.points[0])
    assert rates.peak == rates.step == pytest.approx(1e10)
    assert rates.sustained is None
    (view,) = arrange([predicted(0.1, loop_s=1.0, wall_s=1.25)])
    assert predicted_rates(view.points[0]).sustained == pytest.approx(0.8e10)


def test_percent_of_peak_names_peak_dtype_source_and_devices():
    peaked = Peak(flops_per_s=100e9, name="2 x matrix product, one core", dtype="float32", source="measured here")
    sections = peak.sections(campaign_of([record(ranks=2, base_ranks=2, peak=peaked)]))
    table = table_of(sections, "peak-weak")
    assert "Peak: matrix product, one core, float32; source: measured here." in table.note
    assert "The largest: 2 x matrix product, one core, 100 GFLOP/s." in table.note
    assert numbers(table, "held against") == [100e9]


@pytest.mark.parametrize(
    ("changes", "why"), [({"peak": None}, "peak not known"), ({"model_flops": None}, "FLOPs not known")]
)
def test_unknown_peaks_and_flops_are_not_guessed(changes, why):
    sections = peak.sections(campaign_of([record(**changes)]))
    table = table_of(sections, "peak-weak")
    for name in ("typical step", "peak", "sustained", "executed"):
        assert column(table, name) == ["n/a"]
    assert f"1 ranks, measured: {why}." in table.note


def test_the_figure_of_peaks_draws_every_job_twice_and_the_predictions():
    picture = picture_of(peak.sections(campaign_of(campaign())), "weak-peak")
    kinds = column(picture.data, "series")
    assert [kinds.count(kind) for kind in ("peak, measured", "sustained, measured", "peak, predicted")] == [6, 6, 3]


def test_phases_are_held_against_the_lower_of_both_limits():
    table = table_of(roofline.sections(campaign_of(six_jobs())), "roofline-weak")
    (forward,) = [row for row in texts(table) if row[:3] == ["1", "FE", "measured"]]
    assert forward[5] == "2"  # FLOPs per byte: below 5, where 10 GB/s and 50 GFLOP/s meet
    assert forward[7] == "memory"
    place = texts(table).index(forward)
    own_rate = 0.2e9 / (0.15 * numbers_of_median())
    assert numbers(table, "rate")[place] == pytest.approx(own_rate, rel=0.02)
    assert numbers(table, "of that limit")[place] == pytest.approx(100 * own_rate / 20e9, rel=0.02)


def numbers_of_median() -> float:
    """Median step of the hand-made base point [s]."""
    return arrange(six_jobs())[0].points[0].measured.median


def test_a_phase_above_a_compute_ceiling_has_no_share():
    low = (Ceiling(value=1e6, unit="FLOP/s", name="wrong", dtype="float32", source="a typing error"),
           Ceiling(value=1e12, unit="byte/s", name="memory", dtype="", source="a table"))  # fmt: skip
    table = table_of(roofline.sections(campaign_of([record(ceilings=low)])), "roofline-weak")
    assert set(column(table, "of that limit")) == {"n/a"}


def test_a_run_without_a_compute_ceiling_of_its_dtype_is_held_against_memory():
    other = [dataclasses.replace(entry, dtype="float64") if entry.unit == "FLOP/s" else entry for entry in ceilings(1)]
    table = table_of(roofline.sections(campaign_of([record(ceilings=tuple(other))])), "roofline-weak")
    assert set(column(table, "limited by")) == {"memory"}
    assert all(number is not None for number in numbers(table, "of that limit"))


def test_work_by_the_predictor_s_phases_is_merged_into_those_of_the_trainer():
    parts = {"BF": PhaseWorkload(flops=1e8, bytes=1e8), "BE": PhaseWorkload(flops=3e8, bytes=1e8)}
    table = table_of(roofline.sections(campaign_of([record(workload=parts)])), "roofline-weak")
    assert numbers(table, "FLOPs per byte") == [2.0]


@pytest.mark.parametrize("changes", [{"ceilings": ()}, {"workload": {}}, {"phase_s": {}}])
def test_no_roofline_where_something_of_it_is_not_known(changes):
    assert roofline.sections(campaign_of([record(**changes)])) == ()


def test_memory_is_measured_beside_predicted_and_its_limit():
    guess = predicted(0.1, memory_bytes=330 * 2**20, facts={MEMORY_LIMIT: 500 * 2**20})
    sections = memory.sections(campaign_of([record(), record(attempt=2, memory_bytes=310 * 2**20), guess]))
    table = table_of(sections, "memory-weak")
    assert numbers(table, "measured") == [310 * 2**20]
    assert numbers(table, "error") == [pytest.approx(100 * (330 / 310 - 1))]
    assert numbers(table, "of the limit") == [pytest.approx(100 * 310 / 500)]
    assert column(table, "largest predicted parts") == ["activations 200 MiB, parameters 80 MiB"]
    data = picture_of(sections, "weak-memory").data
    assert column(data, "series") == [
        "predicted: activations",
        "predicted: parameters",
        "measured",
        "measured",
        "limit",
    ]


def test_a_limit_far_away_is_not_drawn_but_said():
    guess = predicted(0.1, memory_bytes=330 * 2**20, facts={MEMORY_LIMIT: 64 * 2**30})
    sections = memory.sections(campaign_of([record(), guess]))
    picture = picture_of(sections, "weak-memory")
    assert "limit" not in column(picture.data, "series")
    assert "Limits further away than 2 times the largest value are not drawn." in picture.caption
    assert column(table_of(sections, "memory-weak"), "limit") == ["64.0 GiB"]


def test_memory_without_any_record_of_it_is_no_section():
    assert memory.sections(campaign_of([record(memory_bytes=None)])) == ()


def test_memory_of_a_prediction_that_does_not_fit_is_shown():
    full = dataclasses.replace(
        predicted(0.1), state="OOM", reason="will not fit", step_s=(), phase_s={}, memory_bytes=2**36
    )
    assert column(table_of(memory.sections(campaign_of([full])), "memory-weak"), "predicted") == ["64.0 GiB"]


def test_every_section_of_a_predicted_campaign_is_marked():
    found = campaign_of(full_machine())
    for module in (peak, roofline, memory, machines):
        for section in module.sections(found):
            assert (section.tag, section.tone) == ("predicted, not measured", "predicted")
            assert "measured beside" not in words([section])


def test_predictions_stand_beside_what_was_published():
    sections = machines.sections(campaign_of([*full_machine(), *six_jobs()]))
    table = table_of(sections, "machines")
    names = [entry.name for entry in table.columns]
    assert names == [
        "quantity",
        "testhost, measured",
        "lineshine, predicted",
        "lineshine, published",
        "cnis, published",
    ]
    rows = {row[0]: row[1:] for row in texts(table)}
    assert rows["weak efficiency"] == ["76.9 %", "92.3 %", "90.30 %", "93.78 %"]
    assert rows["strong efficiency"] == ["76.9 %", "n/a", "50.60 %", "53.93 %"]
    assert rows["of the peak, training loop"][2:] == ["24.41 %", "35.52 %"]
    drawn = picture_of(sections, "lineshine-beside-published").data
    assert set(column(drawn, "result")) == {"predicted", "published"}


def test_what_is_published_is_consistent_in_itself():
    for run in PUBLISHED_RUNS:
        by_loop, by_wall = (
            rate / (share / 100)
            for rate, share in (
                (run.flops_per_s, run.percent_of_peak), (run.sustained_flops_per_s, run.sustained_percent_of_peak),
            )
        )  # fmt: skip
        assert by_loop == pytest.approx(by_wall, rel=0.05)  # two digits of the first rate are published


@pytest.mark.parametrize("records", [throughput(), campaign(), [record(state="FAILED", reason="no", step_s=())]])
def test_thin_and_other_campaigns_make_these_sections_too(records):
    for module in (peak, roofline, memory, machines):
        module.sections(campaign_of([dataclasses.replace(entry, phase_s={}) for entry in records]))
