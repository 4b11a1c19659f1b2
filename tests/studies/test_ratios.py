"""Ratios: values by hand, and everything they refuse."""

import pytest

from janus.errors import UserError
from scaling_studies import ratios
from scaling_studies.records import Peak

PEAK = Peak(flops_per_s=1e12, name="matrix product", dtype="float32", source="measured")


def test_values_by_hand():
    assert ratios.speed_up(1.0, 0.25) == 4.0
    assert ratios.efficiency("weak", 1.0, 1, 1.25, 8) == 0.8
    assert ratios.efficiency("strong", 1.0, 1, 0.25, 5) == 0.8
    assert ratios.efficiency("strong", 1.0, 2, 0.5, 4) == 1.0
    assert ratios.efficiency("throughput", 1.0, 2, 1.6, 4) == 1.25  # twice the structures in 1.6 times the time
    assert ratios.ideal_step_s("throughput", 1.0, 2, 5) == 2.5
    assert ratios.percent_of_peak(1e11, 0.5, PEAK) == 20.0
    assert ratios.signed_error(0.9, 1.0) == pytest.approx(-0.1)
    assert ratios.signed_error(1.2, 1.0) == pytest.approx(0.2)


def test_unknown_peak_or_flops_give_none_and_never_a_number():
    assert ratios.percent_of_peak(1e11, 0.5, None) is None
    assert ratios.percent_of_peak(None, 0.5, PEAK) is None


def test_above_one_hundred_percent_is_refused_and_names_the_peak():
    with pytest.raises(UserError, match=r"above 100 % of matrix product \(float32"):
        ratios.percent_of_peak(1.01e12, 1.0, PEAK)
    assert ratios.percent_of_peak(1e12, 1.0, PEAK) == 100.0


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_times_that_cannot_be_are_refused(value):
    for call in (
        lambda: ratios.speed_up(1.0, value),
        lambda: ratios.speed_up(value, 1.0),
        lambda: ratios.signed_error(value, 1.0),
        lambda: ratios.signed_error(1.0, value),
        lambda: ratios.percent_of_peak(1e9, value, PEAK),
    ):
        with pytest.raises(UserError, match="above 0"):
            call()


def test_nonsense_peaks_flops_ranks_and_modes_are_refused():
    with pytest.raises(UserError, match="must be finite"):
        ratios.percent_of_peak(1e9, 1.0, Peak(flops_per_s=0.0, name="none", dtype="float32", source="?"))
    with pytest.raises(UserError, match="FLOPs per step"):
        ratios.percent_of_peak(-1.0, 1.0, PEAK)
    with pytest.raises(UserError, match="scales from 0 to 2: both must be above 0"):
        ratios.efficiency("strong", 1.0, 0, 1.0, 2)
    with pytest.raises(UserError, match="'sideways'"):
        ratios.efficiency("sideways", 1.0, 1, 1.0, 2)
