"""The slowest unit over the mean one, for many jobs at once: the trainer's packing and noise, read off a table.

It owns the table and its interpolation. It does not own the packing (``dataset``) nor the expectation of the slowest
(``slowest``). Units are at most ``UNITS[-1]`` in the table; more units lengthen it as the logarithm of their number.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from perfmodel.dataset import group_of_items
from perfmodel.network.noise import Noise
from perfmodel.slowest import expected_slowest

Floats = NDArray[np.float64]

SPREADS = (0.0, 0.1, 0.25, 0.5)
DEVIATIONS = (0.0, 0.02, 0.06)
# configurations per unit; finer beside whole numbers, where units get one more or not
EACH = (0.25, 0.5, 0.9, 1.0, 1.1, 1.5, 1.9, 2.0, 2.1, 2.5, 2.9, 3.0, 3.1, 3.5, 4.0, 5.0, 6.0, 8.0, 16.0, 64.0)
UNITS = (16, 256, 2048)
RANKS = 8  # of a unit
WHOLE = 4000  # items at most that are packed; more units than that hold are fewer here


class Grid:
    """Multilinear interpolation on a grid: values [n1, n2, ...] at axes of n1, n2, ... ascending places; beyond the
    ends the value of the end, except along axes named in ``beyond``, which go on straight."""

    def __init__(self, axes: Sequence[Floats], values: Floats, beyond: Sequence[int] = ()) -> None:
        self.axes, self.values, self.beyond = [np.asarray(axis) for axis in axes], values, tuple(beyond)

    def __call__(self, *places: Floats) -> Floats:
        """Values at places, one array [C] per axis; result [C, ...]."""
        places = tuple(np.broadcast_arrays(*places))
        lower, weights = [], []
        for number, (axis, place) in enumerate(zip(self.axes, places, strict=True)):
            left = np.clip(np.searchsorted(axis, place, side="right") - 1, 0, len(axis) - 2)
            weight = (place - axis[left]) / (axis[left + 1] - axis[left])
            lower.append(left)
            weights.append(weight if number in self.beyond else np.clip(weight, 0.0, 1.0))
        result: Floats = np.zeros(())
        tail = (1,) * (self.values.ndim - len(self.axes))
        for corner in np.ndindex(*(2,) * len(self.axes)):
            share = np.prod([weight if up else 1 - weight for up, weight in zip(corner, weights, strict=True)], axis=0)
            index = tuple(left + up for left, up in zip(lower, corner, strict=True))
            result = result + share.reshape(share.shape + tail) * self.values[index]
        return np.asarray(result)


@lru_cache
def _table() -> Grid:
    values = np.zeros((len(SPREADS), len(DEVIATIONS), len(EACH), len(UNITS)))
    for spread_place, spread in enumerate(SPREADS):
        for each_place, each in enumerate(EACH):
            for units_place, most in enumerate(UNITS):
                units = max(UNITS[0], min(most, int(WHOLE / each)))
                work = _packed(spread, max(1, round(each * units)), units)
                for deviation_place, deviation in enumerate(DEVIATIONS):
                    slowest = expected_slowest(work, RANKS, Noise(compute_deviation=deviation))
                    values[spread_place, deviation_place, each_place, units_place] = slowest / work.mean()
    axes = [np.array(SPREADS), np.array(DEVIATIONS), np.log(EACH), np.log(UNITS)]
    return Grid(axes, values, beyond=(3,))


def _packed(spread: float, number: int, units: int) -> Floats:
    """Work of every unit: sizes at the middles of equal parts of the lognormal distribution, packed as the trainer."""
    place = (np.arange(number) + 0.5) / number
    sizes = np.exp(spread * _normal_quantile(place))
    return np.asarray(np.bincount(group_of_items(sizes, units), weights=sizes, minlength=units), dtype=np.float64)


def _normal_quantile(place: Floats) -> Floats:
    """Quantiles of a standard normal number, to 4.5e-4 (Abramowitz and Stegun 26.2.23)."""
    tail = np.minimum(place, 1 - place)
    t = np.sqrt(-2 * np.log(tail))
    value = t - (2.515517 + 0.802853 * t + 0.010328 * t**2) / (1 + 1.432788 * t + 0.189269 * t**2 + 0.001308 * t**3)
    return np.where(place < 0.5, -value, value)


def slowest_over_mean(spread: Floats, deviation: Floats, each: Floats, units: Floats) -> Floats:
    """Expected compute of the slowest unit over the mean of all, [C]; at least 1.

    spread: of configuration sizes; deviation: of a rank's compute; each: configurations per unit (fewer than one leave
    units idle); units: of the job.
    """
    few = np.minimum(each, EACH[0]) / EACH[0]
    found = _table()(spread, deviation, np.log(np.maximum(each, EACH[0])), np.log(np.maximum(units, 1.0)))
    return np.asarray(np.maximum(found, 1.0) / few)


@lru_cache
def _inside() -> Grid:
    values = np.array([expected_slowest(np.ones(1), RANKS, Noise(compute_deviation=one)) for one in DEVIATIONS])
    return Grid([np.array(DEVIATIONS)], values)


def slowest_in_unit(deviation: Floats) -> Floats:
    """Expected slowest rank of a unit over its mean by noise alone, [C]."""
    return _inside()(deviation)
