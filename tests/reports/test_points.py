"""Records arranged as points: values by hand, exclusions kept, nonsense refused."""

import pytest

from janus.errors import UserError
from reports.points import arrange, paired
from scaling_studies.records import FAILED, Peak
from tests.record_sets import campaign, continuation, prediction, record


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


def test_failures_stay_with_their_point_and_out_of_its_median():
    weak, _ = arrange(campaign())
    second = weak.points[1]
    assert len(second.jobs) == 2
    assert [entry.reason for entry in second.excluded] == ["exit code 1: rank 1 ran out of <memory>"]


def test_phases_sum_to_the_step_and_predicted_names_are_merged():
    weak, _ = arrange(campaign())
    point = weak.points[0]
    measured, predicted = point.phases_measured(), point.phases_predicted()
    assert sum(measured.values()) == pytest.approx(point.measured.median, rel=0.02)
    assert predicted["BF_BE"] == pytest.approx(0.45 * 0.095)
    assert sum(predicted.values()) == pytest.approx(0.095)


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


def test_ambiguous_records_are_refused():
    with pytest.raises(UserError, match="two cells of the same ranks"):
        arrange([record(), record(cell_id="other", attempt=2)])
    with pytest.raises(UserError, match="disagree on mode"):
        arrange([record(), record(mode="strong", ranks=2)])
