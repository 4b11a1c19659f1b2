"""The expected slowest of many ranks, from their quiet seconds and the noise of a machine.

It owns that expectation. It does not own the distributions (``network/noise``) nor whose seconds they are.

A rank's seconds are t f, f lognormal of mean 1 (and ``straggler_slowdown`` times that for a straggler). The slowest of
n_i ranks with t_i has P(max <= x) = product over i of P(t_i f <= x)^n_i, and its mean is the integral of 1 - P.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from perfmodel.network.noise import Noise

Floats = NDArray[np.float64]

POINTS = 400  # of the integral: 1e-4 of the result
BINS = 256  # different seconds that are told apart


def normal_tail(x: Floats) -> Floats:
    """P(Z > x) of a standard normal number, to 1.2e-7 of itself (Chebyshev fit of erfc, Numerical Recipes 6.2)."""
    z = np.abs(x) / math.sqrt(2)
    t = 1.0 / (1.0 + 0.5 * z)
    series = (-1.26551223, 1.00002368, 0.37409196, 0.09678418, -0.18628806, 0.27886807, -1.13520398, 1.48851587,
              -0.82215223, 0.17087277)  # fmt: skip
    upper = 0.5 * t * np.exp(-z * z + np.polyval(series[::-1], t))
    return np.asarray(np.where(x >= 0, upper, 1.0 - upper))


def expected_slowest(seconds: Floats, ranks_each: int, noise: Noise) -> float:
    """Expected seconds of the slowest of all ranks. seconds [U]: quiet ones of groups of ranks_each alike ranks."""
    if not len(seconds) or seconds.max() <= 0:
        return 0.0
    width = math.sqrt(math.log1p(noise.compute_deviation**2))
    stragglers = noise.straggler_fraction if noise.straggler_slowdown > 1 else 0.0
    if width == 0 and stragglers == 0:
        return float(seconds.max())
    different, number = _binned(seconds)
    highest = float(seconds.max()) * max(noise.straggler_slowdown if stragglers else 1.0, 1.0)
    lowest = float(seconds.max()) * math.exp(-6 * width - width**2 / 2)
    grid = np.linspace(lowest, highest * math.exp(6 * width), POINTS)
    tail = (1 - stragglers) * _exceeds(grid, different, width)
    if stragglers:
        tail = tail + stragglers * _exceeds(grid, different * noise.straggler_slowdown, width)
    log_below = np.log1p(-np.minimum(tail, 1 - 1e-15)) @ (number * ranks_each)
    return float(grid[0] + np.trapezoid(-np.expm1(log_below), grid))


def _exceeds(grid: Floats, seconds: Floats, width: float) -> Floats:
    """P(t f > x) for every x of the grid and every t [points, different]."""
    ratio = grid[:, None] / seconds[None, :]
    if width == 0:
        return np.asarray(ratio < 1, dtype=np.float64)
    return normal_tail(np.log(ratio) / width + width / 2)


def _binned(seconds: Floats) -> tuple[Floats, Floats]:
    """At most BINS different seconds (the upper edges, so never too fast) and how often each occurs; zeros left out."""
    positive = seconds[seconds > 0]
    if len(np.unique(positive)) <= BINS:
        different, number = np.unique(positive, return_counts=True)
        return different, number.astype(np.float64)
    edges = np.linspace(positive.min(), positive.max(), BINS + 1)[1:]
    number = np.bincount(np.searchsorted(edges, positive).clip(max=BINS - 1), minlength=BINS)
    return edges[number > 0], number[number > 0].astype(np.float64)
