"""Records arranged as points: values by hand, exclusions kept, nonsense refused."""

import dataclasses

import pytest

from janus.errors import UserError
from perfmodel import step_time
from reports import points
from reports.points import arrange, paired
from scaling_studies.records import FAILED, PLANNED, RUNNING, STUDY_PLACE, Peak
from tests.record_sets import campaign, continuation, jobs, prediction, record, six_jobs, throughput
from tests.reports.blocks import campaign_of


def test_points_carry_medians_errors_and_efficiencies_of_hand_made_records():
    weak, strong = arrange(campaign())
    assert [point.ranks for point in weak.points] == [1, 2, 4]
    first, second, fourth = weak.points
    assert first.measured.median == pytest.approx(0.102)  # of the jobs 0.100 and 0.104
    assert first.error == pytest.approx(0.095 / 0.102 - 1)
    assert weak.efficiency_measured(second) == pytest.approx(0.102 / 0.1115)
    assert weak.efficiency_predicted(second) == pytest.approx(0.095 / 0.105)
    assert strong.efficiency_measured(strong.points[1]) == pytest.approx(0.405 / (2 * 0.215))
    assert (first.oversubscribed, fourth.oversubscribed) == (False, True)
    assert first.share_measured().percent == pytest.approx(100 * 1e9 / 0.102 / 50e9)


def test_points_of_a_throughput_study_lie_at_structures_per_rank():
    (view,) = arrange(throughput())
    assert [point.x for point in view.points] == [1, 2, 4, 8]
    assert {point.ranks for point in view.points} == {2}
    last = view.points[-1]
    base_s, last_s = view.base.measured.median, last.measured.median
    assert view.efficiency_measured(last) == pytest.approx((8 / last_s) / (1 / base_s))
    assert view.ideal_s(last, 1.0) == 8


def test_intervals_of_efficiencies_exist_from_six_jobs_at_both_points_and_hold_the_median():
    weak, _ = arrange(six_jobs())
    interval = weak.efficiency_interval(weak.points[2])
    assert interval.low < weak.efficiency_measured(weak.points[2]) < interval.high
    assert weak.efficiency_interval(weak.points[0]) is None  # the base is 1 by definition
    (few,) = arrange([*jobs(0.1, 6), *jobs(0.11, 5, ranks=2)])
    assert few.efficiency_interval(few.points[1]) is None


def test_the_interval_of_a_strong_study_is_of_its_efficiency_not_of_the_speed_up():
    _, strong = arrange(six_jobs())
    last = strong.points[2]
    interval = strong.efficiency_interval(last)
    assert interval.low < strong.efficiency_measured(last) < interval.high < 1


def test_failures_stay_with_their_point_and_out_of_its_median():
    weak, _ = arrange(campaign())
    second = weak.points[1]
    assert len(second.jobs) == 2
    assert [entry.reason for entry in second.excluded] == ["exit code 1: rank 1 ran out of <memory>"]


def test_attempts_that_have_not_ended_are_neither_jobs_nor_excluded():
    made = [record(), *(record(state=state, attempt=number, step_s=(), phase_s={})
                        for number, state in ((2, PLANNED), (3, RUNNING)))]  # fmt: skip
    (view,) = arrange(made)
    (point,) = view.points
    assert (len(point.jobs), len(point.excluded), len(point.open)) == (1, 0, 2)
    (waiting,) = arrange(made[1:])
    assert not waiting.is_measured
    assert waiting.points[0].any_record.state == PLANNED


def test_phases_sum_to_the_step_and_predicted_names_are_merged():
    weak, _ = arrange(campaign())
    point = weak.points[0]
    measured, predicted = point.phases_measured(), point.phases_predicted()
    assert sum(measured.values()) == pytest.approx(point.measured.median, rel=0.02)
    assert predicted["BF_BE"] == pytest.approx(0.45 * 0.095)
    assert sum(predicted.values()) == pytest.approx(0.095)


def test_causes_add_up_to_the_step_and_the_bound_leaves_out_what_ranks_cost_each_other():
    weak, _ = arrange(campaign())
    point = weak.points[0]
    causes = point.causes_predicted()
    assert sum(causes.values()) == pytest.approx(0.095)
    assert next(iter(causes)) == "products"
    assert point.exposed_predicted_s == pytest.approx(0.05 * 0.095)
    assert point.wait_predicted_s == pytest.approx(0.05 * 0.095)
    assert point.bound_s == pytest.approx(0.9 * 0.095)
    assert weak.efficiency_bound(weak.points[1]) == pytest.approx(0.095 / (0.9 * 0.105))


def test_without_causes_there_is_no_bound():
    (view,) = arrange([dataclasses.replace(prediction(0.1), phase_cause_s={})])
    (point,) = view.points
    assert (point.bound_s, point.exposed_predicted_s, view.efficiency_bound(point)) == (None, None, None)


def test_causes_of_communication_are_those_of_the_predictor():
    assert points.COMMUNICATION_CAUSES == step_time.COMMUNICATION_CAUSES
    assert points.WAIT_CAUSE in step_time.CAUSES


def test_the_measured_wait_is_the_mean_over_ranks():
    weak, _ = arrange(six_jobs())
    base_s = weak.points[2].jobs[0].step_s[0]
    assert weak.points[2].wait_measured_s == pytest.approx(0.03 * base_s, rel=0.03)  # ranks wait 0, 2, 4, 6 %
    (view,) = arrange([record(rank_times=None)])
    assert view.points[0].wait_measured_s is None


def test_unknown_peak_and_impossible_percentages_are_not_shown():
    (view,) = arrange([record(peak=None), prediction(0.1, model_flops=None)])
    assert view.points[0].share_measured().percent is None
    assert view.points[0].share_measured().note == "peak not known"
    assert view.points[0].share_predicted().note == "FLOPs not known"
    tiny = Peak(flops_per_s=1e6, name="wrong peak", dtype="float32", source="a typing error")
    (view,) = arrange([record(peak=tiny)])
    assert view.points[0].share_measured().percent is None
    assert "above 100 %" in view.points[0].share_measured().note


def test_a_study_without_its_base_point_has_no_efficiency():
    (view,) = arrange([record(ranks=2)])
    assert view.efficiency_measured(view.points[0]) is None
    assert not view.efficiency_known


def test_a_failed_prediction_gives_no_number():
    (view,) = arrange([record(), prediction(0.1, state=FAILED, reason="no rates for 3 ranks")])
    assert view.points[0].predicted_s is None
    assert view.points[0].error is None


def test_measured_studies_come_first_and_only_they_are_paired():
    views = arrange([*continuation(), *campaign()])
    assert [view.name for view in views] == ["weak", "strong", "full-machine"]
    assert [view.is_measured for view in views] == [True, True, False]
    assert len(paired(views)) == 6
    assert len(paired(views, lambda point: point.oversubscribed)) == 2


def test_studies_of_one_mode_come_as_declared_else_as_they_were_named():
    records = [record(study=name, facts={STUDY_PLACE: place}) for place, name in ((1, "a"), (0, "b"))]
    assert [view.name for view in campaign_of(records).views] == ["b", "a"]
    assert [view.name for view in campaign_of(records, declared={"a": {}, "b": {}}).views] == ["a", "b"]
    assert [one.study for one in campaign_of([*records, record(study="0")]).records] == ["b", "a", "0"]


def test_efficiency_is_withheld_where_the_work_is_not_what_the_mode_asks_for():
    (view,) = arrange([record(), record(ranks=2, model_flops=1e9), record(ranks=4, model_flops=4.1e9)])
    assert [view.work_against_base(point) for point in view.points] == pytest.approx([1, 0.5, 1.025])
    assert [view.efficiency_measured(point) is None for point in view.points] == [False, True, False]
    (strong,) = arrange([record(mode="strong", ranks=ranks, model_flops=3e9) for ranks in (1, 2)])
    assert strong.efficiency_measured(strong.points[1]) == 0.5


def test_ambiguous_records_are_refused():
    with pytest.raises(UserError, match="two cells of the same ranks"):
        arrange([record(), record(cell_id="other", attempt=2)])
    with pytest.raises(UserError, match="disagree on mode"):
        arrange([record(), record(mode="strong", ranks=2)])
    with pytest.raises(UserError, match="two cells of the same structures per rank"):
        arrange([one if one.scale != 2 else dataclasses.replace(one, scale=4.0) for one in throughput()])
