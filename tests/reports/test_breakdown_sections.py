"""Where time goes and what a prediction missed: losses add up, the limiting term is named, errors are summarised."""

import dataclasses

import pytest

from reports.losses import REST, limit_sentence, measured_losses, predicted_losses
from reports.points import arrange
from reports.sections import breakdown, prediction
from scaling_studies.records import MEASURED
from tests.record_sets import campaign, continuation, jobs, longer_sync, record, six_jobs
from tests.record_sets import prediction as predicted
from tests.reports.blocks import campaign_of, column, numbers, table_of, texts, words


def test_losses_add_up_to_the_loss_of_the_step_and_name_the_largest():
    weak, _ = arrange(longer_sync(0.05))
    point = weak.points[2]
    parts = measured_losses(weak, point)
    lost_s = point.measured.median - weak.base.measured.median
    assert sum(part.lost_s for part in parts) == pytest.approx(lost_s, rel=0.02)
    assert parts[0].name == "gradient sync, waiting"
    assert "What limits it is gradient sync, waiting" in limit_sentence(point, parts, is_predicted=False)


def test_ideal_parts_of_a_strong_study_shrink_with_the_ranks():
    _, strong = arrange(six_jobs())
    (forward,) = [part for part in measured_losses(strong, strong.points[2]) if part.name.startswith("FE")]
    assert forward.ideal_s == pytest.approx(forward.base_s / 4)


def test_a_point_on_its_ideal_has_no_limit_and_one_beyond_it_says_where():
    (even,) = arrange([record(), record(ranks=2)])
    assert "nothing limits it" in limit_sentence(even.points[1], measured_losses(even, even.points[1]),
                                                 is_predicted=False)  # fmt: skip
    (super_ideal,) = arrange([record(), record(ranks=2, step_s=(0.08, 0.08, 0.08))])
    point = super_ideal.points[1]
    said = limit_sentence(point, measured_losses(super_ideal, point), is_predicted=False)
    assert "20 ms shorter than the ideal 100 ms, most of all in BF + BE, double backward (9 ms less)" in said


def test_measured_losses_add_up_to_the_loss_of_the_step_where_medians_of_phases_do_not():
    uneven = {"FE": (0.05, 0.06, 0.02), "FF": (0.05, 0.02, 0.07)}  # medians 0.05 and 0.05 of a step of 0.09
    base = record(step_s=(0.10, 0.08, 0.09), phase_s=uneven)
    (view,) = arrange([base, record(ranks=2, step_s=(0.1, 0.1, 0.1), phase_s={"FE": (0.03,) * 3, "FF": (0.07,) * 3})])
    parts = measured_losses(view, view.points[1])
    assert sum(part.lost_s for part in parts) == pytest.approx(0.1 - 0.09)
    assert (parts[-1].name, parts[-1].lost_s) == (REST, pytest.approx(0.01))
    said = limit_sentence(view.points[1], parts, is_predicted=False)
    assert "10 ms on top of the ideal 90 ms. What limits it is FF, forces: 20 ms" in said


def test_predicted_losses_are_by_cause_where_known_else_by_phase():
    weak, _ = arrange(campaign())
    assert {part.name for part in predicted_losses(weak, weak.points[1])} >= {
        "products",
        "gradient sums",
        "waiting",
    }
    plain = [dataclasses.replace(one, phase_cause_s={}) for one in campaign()]
    weak, _ = arrange(plain)
    assert {part.name for part in predicted_losses(weak, weak.points[1])} >= {"FF, forces", "optimizer"}


def test_the_phase_table_shows_measured_beside_predicted_with_wait_and_communication():
    table = table_of(breakdown.sections(campaign_of(six_jobs())), "weak-phase-times")
    assert column(table, "result") == ["measured", "predicted"] * 3
    assert numbers(table, "BF + BE")[:2] == pytest.approx([0.45 * 0.10125, 0.45 * 0.095])
    assert numbers(table, "communication")[1] == pytest.approx(0.05 * 0.095)
    assert numbers(table, "waiting")[4] == pytest.approx(0.03 * 0.13, rel=0.03)


def test_the_text_names_the_limiting_term_measured_and_predicted_and_the_wait():
    said = words(breakdown.sections(campaign_of(six_jobs())))
    assert "At 4 ranks the measured step takes 30.4 ms on top of the ideal 101 ms" in said
    assert "a rank waits for others 3.95 ms of a step" in said
    assert "the predicted step takes 28.5 ms on top of the ideal 95 ms. What limits it is products" in said


def test_predicted_studies_are_apart_and_studies_without_phases_are_left_out():
    made = breakdown.sections(campaign_of([*six_jobs(), *continuation()]))
    assert [(section.id, section.tag) for section in made] == [
        ("breakdown", ""), ("breakdown-predicted", "predicted, not measured"),
    ]  # fmt: skip
    assert breakdown.sections(campaign_of([record(phase_s={})])) == ()


def test_errors_are_summarised_apart_for_points_whose_ranks_share_cores():
    table = table_of(prediction.sections(campaign_of(campaign())), "prediction-errors")
    errors = [0.095 / 0.102 - 1, 0.105 / 0.1115 - 1, 0.38 / 0.405 - 1, 0.2 / 0.215 - 1]
    assert column(table, "points") == ["a core for every rank", "oversubscribed: ranks share cores"]
    assert numbers(table, "number") == [4, 2]
    assert numbers(table, "bias")[0] == pytest.approx(100 * (errors[0] + errors[2]) / 2, abs=0.5)
    assert numbers(table, "p90")[0] == pytest.approx(100 * max(abs(error) for error in errors))
    assert numbers(table, "largest")[0] == pytest.approx(100 * min(errors))
    assert numbers(table, "median")[0] == pytest.approx(
        50 * sum(sorted(abs(error) for error in errors)[1:3])
    )  # fmt: skip


def test_a_prediction_inside_the_jobs_interval_is_told_from_one_outside():
    inside = [*jobs(0.1, 6), predicted(0.101)]
    outside = [*jobs(0.2, 6, ranks=2), predicted(0.15, ranks=2)]
    few = [*jobs(0.3, 3, ranks=4), predicted(0.3, ranks=4)]
    table = table_of(prediction.sections(campaign_of([*inside, *outside, *few])), "prediction-points")
    assert column(table, "within the jobs' 95 % interval") == ["yes", "no", "no interval (n = 3)"]


def test_phase_errors_leave_out_phases_too_small_to_judge():
    names = [row[0] for row in texts(table_of(prediction.sections(campaign_of(campaign())), "prediction-phases"))]
    assert "FF, forces" in names
    assert "outside any phase" not in names  # 1 % of a step


def test_nothing_is_said_about_predictions_where_none_can_be_held_against_a_run():
    assert prediction.sections(campaign_of([record()])) == ()
    assert prediction.sections(campaign_of(continuation())) == ()
    assert all(one.source != MEASURED for one in continuation())
