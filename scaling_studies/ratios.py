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


def weak_efficiency(base_step_s: float, step_s: float) -> float:
    """T(base) / T(N) at constant work per rank: 1 is ideal."""
    return speed_up(base_step_s, step_s)


def strong_efficiency(base_step_s: float, base_ranks: int, step_s: float, ranks: int) -> float:
    """T(base) N(base) / (T(N) N) at constant total work: 1 is ideal. Above 1 can happen (caches) and is shown."""
    if base_ranks < 1 or ranks < 1:
        raise UserError(f"ranks {ranks} and base ranks {base_ranks}: both must be 1 or more")
    return speed_up(base_step_s, step_s) * base_ranks / ranks


def efficiency(mode: str, base_step_s: float, base_ranks: int, step_s: float, ranks: int) -> float:
    """Weak or strong efficiency by the study's mode. Raises UserError for another mode."""
    if mode == "weak":
        return weak_efficiency(base_step_s, step_s)
    if mode == "strong":
        return strong_efficiency(base_step_s, base_ranks, step_s, ranks)
    raise UserError(f"mode is {mode!r}: efficiency is defined for 'weak' and 'strong'")


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
