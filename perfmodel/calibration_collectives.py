"""Fits what collectives cost and what compute hides of them. Pure functions of raw timings; it measures nothing.

One straight line, latency + size / bandwidth, is fitted per collective, group and transport; where it misses a size by
more than a tenth the measured times themselves are kept, as knots. Medians of the repeats: a rank that waits for others
meets their ordinary delays too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from perfmodel.calibration_fits import fit_costs, rate_of, spread
from perfmodel.collective_rates import CollectiveRates

LINE_MISSES = 0.1  # relative residual of one size from which on knots are kept


def fit_collectives(samples: Iterable[Mapping[str, Any]]) -> tuple[CollectiveRates, ...]:
    """Of samples {"transport", "collective", "ranks", "groups", "bytes", "seconds": [...]}."""
    groups: dict[tuple[str, str, int, int], list[Mapping[str, Any]]] = {}
    for sample in samples:
        key = (sample["transport"], sample["collective"], sample["ranks"], sample["groups"])
        groups.setdefault(key, []).append(sample)
    return tuple(_fit_group(*key, chosen) for key, chosen in groups.items())


def _fit_group(
    transport: str, collective: str, ranks: int, groups: int, samples: Sequence[Mapping[str, Any]]
) -> CollectiveRates:
    samples = sorted(samples, key=lambda sample: sample["bytes"])
    sizes = np.array([float(sample["bytes"]) for sample in samples])
    seconds = np.array([float(np.median(sample["seconds"])) for sample in samples])
    fit = fit_costs(np.stack([np.ones(len(sizes)), sizes], axis=1), seconds)
    latency_s, byte_s = (float(value) for value in fit.coefficients)
    misses = np.abs((latency_s + byte_s * sizes) / seconds - 1).max() > LINE_MISSES and len(sizes) > 1
    seconds = np.maximum.accumulate(seconds)  # more bytes never take less time: what noise made of it is taken out
    quality = float(np.median([spread(sample["seconds"]) for sample in samples])) if misses else fit.quality
    return CollectiveRates(
        transport=transport, collective=collective, ranks=ranks, groups=groups,
        latency_s=latency_s, bytes_per_s=rate_of(byte_s), quality=quality,
        knots_bytes=tuple(sizes.tolist()) if misses else (), knots_s=tuple(seconds.tolist()) if misses else (),
    )  # fmt: skip


def overlap_efficiency(sample: Mapping[str, Sequence[float]]) -> tuple[float, float]:
    """(efficiency, spread) of {"alone_s", "compute_s", "both_s"}: of the shorter of the two, the part that is hidden.

    (collective + compute - both) / min(collective, compute), by medians, kept between 0 and 1.
    """
    alone_s, compute_s, both_s = (float(np.median(sample[key])) for key in ("alone_s", "compute_s", "both_s"))
    hidden_s = alone_s + compute_s - both_s
    efficiency = min(1.0, max(0.0, hidden_s / min(alone_s, compute_s)))
    return efficiency, max(spread(sample[key]) for key in ("alone_s", "compute_s", "both_s"))
