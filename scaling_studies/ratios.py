"""Ratios derived from summarised costs: speed-up, efficiency, percent of peak, prediction error.

Ratios are computed from medians of times, never averaged themselves (Hoefler and Belli, SC15, rules 3 and 4).
What is not known gives None, shown as "n/a"; what cannot be is refused. It does not own the costs.
"""

from __future__ import annotations

import math

from janus.errors import UserError
from scaling_studies.records import Peak


def _require_time(name: str, value_s: float) -> None:
    if not (value_s > 0 and math.isfinite(value_s)):
        raise UserError(f"{name} is {value_s} s: a ratio needs a finite time above 0")


def speed_up(base_step_s: float, step_s: float) -> float:
    """T(base) / T(N), dimensionless."""
    _require_time("base step time", base_step_s)
    _require_time("step time", step_s)
    return base_step_s / step_s


def ideal_step_s(mode: str, base_step_s: float, base_x: float, x: float) -> float:
    """Step time of an ideal machine [s] at ``x``, the value of what the study scales, from that at the base point.

    weak: T(base), the work per rank is constant. strong: T(base) base_x / x, the total is shared by x ranks.
    throughput: T(base) x / base_x, the ranks are constant and each has x structures.
    """
    _require_time("base step time", base_step_s)
    if not (base_x > 0 and x > 0):
        raise UserError(f"a study scales from {base_x} to {x}: both must be above 0")
    if mode == "weak":
        return base_step_s
    if mode == "strong":
        return base_step_s * base_x / x
    if mode == "throughput":
        return base_step_s * x / base_x
    raise UserError(f"mode is {mode!r}: efficiency is defined for 'weak', 'strong' and 'throughput'")


def efficiency(mode: str, base_step_s: float, base_x: float, step_s: float, x: float) -> float:
    """Ideal step time / step time: 1 is ideal. Above 1 can happen (caches, larger batches) and is shown.

    Of a throughput study it is the rate of structures relative to the base point's. Raises UserError for other modes.
    """
    _require_time("step time", step_s)
    return ideal_step_s(mode, base_step_s, base_x, x) / step_s


def percent_of_peak(flops_per_step: float | None, step_s: float, peak: Peak | None) -> float | None:
    """100 x (FLOP per step / step time) / peak, or None when the FLOPs or the peak are not known.

    Raises UserError above 100 %: then the FLOP count, the time or the peak is wrong, and a number would mislead.
    """
    if flops_per_step is None or peak is None:
        return None
    _require_time("step time", step_s)
    if not (peak.flops_per_s > 0 and math.isfinite(peak.flops_per_s)):
        raise UserError(f"peak {peak.name!r} is {peak.flops_per_s} FLOP/s: it must be finite and above 0")
    if not (flops_per_step >= 0 and math.isfinite(flops_per_step)):
        raise UserError(f"FLOPs per step are {flops_per_step}: they must be finite and not negative")
    percent = 100 * flops_per_step / step_s / peak.flops_per_s
    if percent > 100:
        raise UserError(
            f"percent of peak is {percent:.1f}, above 100 % of {peak.name} ({peak.dtype}, {peak.flops_per_s:.3g}/s): "
            "the FLOP count, the time or the peak is wrong, correct that one"
        )
    return percent


def signed_error(predicted_s: float, measured_s: float) -> float:
    """(predicted - measured) / measured: positive when the prediction was too slow, negative when too optimistic."""
    _require_time("predicted step time", predicted_s)
    _require_time("measured step time", measured_s)
    return predicted_s / measured_s - 1
