"""Fits the constants of a communication library to measured collectives: robust, with a prior, on relative errors.

It owns the objective, its prior and the search. It does not own what is fitted to what (``validation``) nor the
formulas (``measured_cases``, ``closed_form``).

Objective over the constants x (their logarithms), measurements i, r_i = ln(predicted_i / measured_i) / SCALE:

    sum_i 2 (sqrt(1 + r_i^2) - 1) + sum_j ((x_j - prior_j) / width_j)^2

The first term is quadratic for errors below about SCALE and linear above (one odd run does not turn a constant); the
second keeps a constant that the rows do not determine where machines in general have it. Search: Levenberg-Marquardt
with the weights of the first term (Triggs et al. 2000, section 4.3), over a small grid of the step positions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from perfmodel.network.measured_cases import Case, measured, predict
from perfmodel.network.routes import Transport

Floats = NDArray[np.float64]

SCALE = 0.2
MEBIBYTE = 2.0**20
WIDE, NARROW = 1.0, 0.02
WORTHWHILE = 1.0  # of the objective: what moving a step must gain


@dataclass(frozen=True, kw_only=True)
class Prior:
    """Where a constant is expected (value), and how far from it in logarithms (width)."""

    value: float
    width: float = WIDE


# Expected from machines and libraries in general; none is of one machine here.
PRIORS: dict[str, Prior] = {
    "overhead_s": Prior(value=1.2e-6),
    "gap_s": Prior(value=0.3e-6),
    "entry_s": Prior(value=0.5e-6),
    "link_fraction": Prior(value=0.93, width=NARROW),
    "contended_fraction": Prior(value=0.9, width=0.5),
    "rendezvous_s": Prior(value=5e-6),  # beyond the copy of the largest eager message: time never falls with size
    "eager_copy_bytes_per_s": Prior(value=3e9),
    "exchange_fraction": Prior(value=0.6, width=0.3),
    "reduction_bytes_per_s": Prior(value=7e9),
    "copy_bytes_per_s": Prior(value=15e9),
    "memory_reduction_bytes_per_s": Prior(value=4e9),
    "memory_copy_bytes_per_s": Prior(value=6e9),
    "first_touch_bytes_per_s": Prior(value=3e9),
}
FRACTIONS = ("link_fraction", "contended_fraction", "exchange_fraction")
# Positions of steps: tried one after the other, the first is the prior. 32 MiB: the largest mmap threshold of glibc.
STEPS: dict[str, tuple[float, ...]] = {
    "eager_bytes": (8192.0, 4096.0, 16384.0, 65536.0),
    "exchange_bytes": (2 * MEBIBYTE,),
    "cache_bytes": (32 * MEBIBYTE, 8 * MEBIBYTE),
    "kept_bytes": (32 * MEBIBYTE, math.inf),
    "trim_bytes": (64 * MEBIBYTE, MEBIBYTE),
}


@dataclass(frozen=True, kw_only=True)
class Fit:
    """transport: the constants. objective: reached value; num_rows: measurements fitted."""

    transport: Transport
    objective: float
    num_rows: int


def generic_transport(values: Mapping[str, float] | None = None) -> Transport:
    """The constants expected of any machine: the priors, those in values replaced."""
    start = {name: prior.value for name, prior in PRIORS.items()} | {name: grid[0] for name, grid in STEPS.items()}
    return _transport(start | dict(values or {}))


def mean_transport(transports: Sequence[Transport]) -> Transport:
    """The geometric mean of each constant: what is expected of a machine beside those fitted. Steps: the median."""
    if not transports:
        return generic_transport()
    means = {}
    for name in (entry.name for entry in fields(Transport)):
        values = np.array([getattr(one, name) for one in transports])
        middle = float(np.sort(values)[(len(values) - 1) // 2])
        smooth = name in PRIORS and (values > 0).all() and np.isfinite(values).all()
        means[name] = float(np.exp(np.log(values).mean())) if smooth else middle
    return Transport(**means)


def _transport(values: Mapping[str, float]) -> Transport:
    """The library of a point of the search; rendezvous_s of the point is beyond the largest eager copy."""
    found = dict(values)
    found["rendezvous_s"] += found["eager_bytes"] / found["eager_copy_bytes_per_s"]
    return Transport(**{name: min(value, 1.0) if name in FRACTIONS else value for name, value in found.items()})


def fit_transport(cases: Sequence[Case], progress: Callable[[], None] | None = None) -> Fit:
    """The constants that fit the cases best; those that the cases do not determine stay at the prior.

    progress: called after each search (one per value of a step's grid).
    """
    target_s = measured(cases)
    values = {name: prior.value for name, prior in PRIORS.items()} | {name: grid[0] for name, grid in STEPS.items()}
    values, best = _search(cases, target_s, values)
    for name, grid in STEPS.items():
        for position in grid[1:]:
            tried, objective = _search(cases, target_s, values | {name: position})
            if objective < best - WORTHWHILE:
                values, best = tried, objective
            if progress is not None:
                progress()
    return Fit(transport=_rounded(_transport(values)), objective=best, num_rows=len(target_s))


def num_searches() -> int:
    """Calls of ``progress`` in one fit."""
    return sum(len(grid) - 1 for grid in STEPS.values())


def _rounded(transport: Transport) -> Transport:
    """Three significant digits: more are not known."""
    rounded = {name: float(f"{value:.3g}") for name, value in vars(transport).items()}
    return replace(transport, **rounded)


def _search(
    cases: Sequence[Case], target_s: Floats, start: Mapping[str, float], iterations: int = 30
) -> tuple[dict[str, float], float]:
    """(values, objective) of the nearest minimum over the smooth constants."""
    names = list(PRIORS)
    prior = np.log([PRIORS[name].value for name in names])
    width = np.array([PRIORS[name].width for name in names])

    def residuals(x: Floats) -> Floats:
        values = dict(start) | dict(zip(names, np.exp(x).tolist(), strict=True))
        return np.asarray(np.log(predict(cases, _transport(values)) / target_s) / SCALE)

    def objective(x: Floats, r: Floats) -> float:
        return float((2 * (np.sqrt(1 + r * r) - 1)).sum() + (((x - prior) / width) ** 2).sum())

    x = np.log([start[name] for name in names])
    r = residuals(x)
    value, damping = objective(x, r), 1e-2
    for _ in range(iterations):
        jacobian = np.stack([(residuals(x + step) - r) / 1e-4 for step in 1e-4 * np.eye(len(x))], axis=1)
        weights = 1 / np.sqrt(1 + r * r)
        normal = (jacobian * weights[:, None]).T @ jacobian + np.diag(1 / width**2)
        gradient = jacobian.T @ (weights * r) + (x - prior) / width**2
        before = value
        for _ in range(8):
            step = -np.linalg.solve(normal + damping * np.diag(np.diag(normal)), gradient)
            tried = x + np.clip(step, -1.0, 1.0)
            tried_r = residuals(tried)
            if objective(tried, tried_r) < value:
                x, r, value, damping = tried, tried_r, objective(tried, tried_r), max(damping / 5, 1e-6)
                break
            damping *= 5
        if before - value < 1e-4 * before:
            break
    return dict(start) | dict(zip(names, np.exp(x).tolist(), strict=True)), value
