"""Least squares of costs, and statistics of repeated timings: what every fit of a calibration is made of.

Every fit is linear least squares on relative errors with non-negative coefficients, because each constant is a cost:
t = sum_i c_i x_i with c_i >= 0, minimising sum ((t_pred - t) / t)^2. ``quality`` is the median of |t_pred - t| / t
over the timings fitted.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
FREE_S = 1e-18  # a cost per item that the timings do not show: practically nothing, and still a finite rate


@dataclass(frozen=True, kw_only=True)
class Fit:
    """coefficients [k] >= 0 of the columns, and quality: median relative residual of the fitted timings."""

    coefficients: Floats
    quality: float


def fit_costs(columns: Floats, seconds: Floats, least: Sequence[float] | None = None) -> Fit:
    """c, each at ``least`` [k] or more (default 0), minimising the relative residuals of columns [n,k] @ c against
    seconds [n] (> 0).

    The best of all subsets of columns whose plain least-squares solution is above the least: exact for the few columns
    here.
    """
    columns, seconds = np.asarray(columns, dtype=float), np.asarray(seconds, dtype=float)
    assert columns.ndim == 2, f"columns of shape {columns.shape}"
    assert len(columns) == len(seconds), f"{len(columns)} rows of columns, {len(seconds)} timings"
    assert (seconds > 0).all(), f"timings must be above 0, smallest {seconds.min()}"
    floor = np.zeros(columns.shape[1]) if least is None else np.asarray(least, dtype=float)
    weighted = columns / seconds[:, None]
    target = 1.0 - weighted @ floor
    scale = np.maximum(np.abs(weighted).max(axis=0), np.finfo(float).tiny)
    weighted = weighted / scale
    num_columns = columns.shape[1]
    best, best_residual = np.zeros(num_columns), float((target**2).sum())
    for size in range(1, num_columns + 1):
        for chosen in itertools.combinations(range(num_columns), size):
            part = weighted[:, chosen]
            solution = np.linalg.lstsq(part, target, rcond=None)[0]
            residual = float(((part @ solution - target) ** 2).sum())
            if (solution >= 0).all() and residual < best_residual * (1 - 1e-12):
                best = np.zeros(num_columns)
                best[list(chosen)], best_residual = solution, residual
    quality = float(np.median(np.abs(weighted @ best - target)))
    return Fit(coefficients=floor + best / scale, quality=quality)


def quiet_s(seconds: Sequence[float] | Floats) -> float:
    """Lower quartile of repeated timings: the time without most of other work's disturbance."""
    return float(np.percentile(seconds, 25))


def typical_s(sample: Mapping[str, Any]) -> float:
    """Lower quartile of a sample's repeated timings, seconds."""
    return quiet_s(sample["seconds"])


def spread(seconds: Sequence[float]) -> float:
    """Half the interquartile range over the median: the noise of repeated timings."""
    low, middle, high = np.percentile(seconds, [25, 50, 75])
    return float((high - low) / 2 / middle)


def rate_of(seconds_per_item: float) -> float:
    """Items per second of a fitted cost; a cost that the timings do not show is practically free."""
    return 1.0 / max(float(seconds_per_item), FREE_S)
