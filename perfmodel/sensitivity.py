"""Whether the choice survives what is uncertain: every constant made worse and better, the candidates combined anew.

It owns which parts of a step a constant scales. Parts were priced once (``search_parts``); nothing is searched or
priced again. A constant is changed by its quality (the relative residual of its fit), where the machine file has one,
else by ``ASSUMED_CHANGE``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from perfmodel.compute_time import COMPUTE_CAUSES
from perfmodel.machine import Machine
from perfmodel.search import step_seconds
from perfmodel.search_parts import SearchParts
from perfmodel.step_parts import StepParts

Floats = NDArray[np.float64]

ASSUMED_CHANGE = 0.3  # where nothing is known of a constant's error
LEAST_CHANGE = 0.05  # a fit's residual says nothing of tomorrow
WORTH = 0.01  # a candidate is better only if it is so by more than the search's own error
GATHERS = ("root_gather_s", "first_gather_s", "gathers_s", "scatters_s", "last_scatter_s")
EXCHANGES = ("halos_s", "exchanges_s")
SUMS = ("sums_s", "last_sum_s", "group_sums_s")
SMALL = ("norm_s", "control_s", "composition_s")


@dataclass(frozen=True, kw_only=True)
class Constant:
    """An uncertain constant. rate: its name in a machine file's rates (for its quality), or None; apply(priced, s):
    the parts when what it prices takes s times as long (overlap: the efficiency is what changes).
    """

    name: str
    rate: str | None
    apply: Callable[[SearchParts, float], tuple[StepParts, Floats]]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One constant changed one way. change: relative, negative: worse; loss: objective of the chosen over that of the
    best then, less 1 (infinite where it is not allowed any more); best: number of that candidate, the chosen one's
    where none is allowed.
    """

    constant: str
    change: float
    source: str
    chosen_step_s: float
    step_change: float
    still_best: bool
    best: int
    loss: float


def _compute(cause: str) -> Callable[[SearchParts, float], tuple[StepParts, Floats]]:
    place = COMPUTE_CAUSES.index(cause)

    def apply(priced: SearchParts, times: float) -> tuple[StepParts, Floats]:
        parts = priced.parts
        changed = parts.compute_s.copy()
        changed[:, :, place] *= times
        before, after = parts.compute_s.sum(axis=2), changed.sum(axis=2)
        ratio = np.where(before > 0, after / np.maximum(before, np.finfo(float).tiny), 1.0)
        parts = replace(parts, compute_s=changed, unit_s=parts.unit_s * ratio, slowest_s=parts.slowest_s * ratio)
        return parts, priced.overlap

    return apply


def _bandwidth(names: Sequence[str]) -> Callable[[SearchParts, float], tuple[StepParts, Floats]]:
    def apply(priced: SearchParts, times: float) -> tuple[StepParts, Floats]:
        changed = {}
        for name in names:
            whole = getattr(priced.parts, name)
            latency = priced.latency_s.get(name, np.zeros_like(whole))
            changed[name] = latency + times * (whole - latency)
        return replace(priced.parts, **changed), priced.overlap

    return apply


def _latency(priced: SearchParts, times: float) -> tuple[StepParts, Floats]:
    names = (*GATHERS, *EXCHANGES, *SUMS, *SMALL)
    changed = {name: getattr(priced.parts, name) + (times - 1) * priced.latency_s[name]
               for name in names if name in priced.latency_s}  # fmt: skip
    return replace(priced.parts, **changed), priced.overlap


def _scaled(*names: str) -> Callable[[SearchParts, float], tuple[StepParts, Floats]]:
    def apply(priced: SearchParts, times: float) -> tuple[StepParts, Floats]:
        return replace(priced.parts, **{name: times * getattr(priced.parts, name) for name in names}), priced.overlap

    return apply


def _overlap(priced: SearchParts, times: float) -> tuple[StepParts, Floats]:
    return priced.parts, np.clip(priced.overlap / times, 0.0, 1.0)


def _noise(priced: SearchParts, times: float) -> tuple[StepParts, Floats]:
    parts = priced.parts
    changed = {name: 1 + times * (getattr(parts, name) - 1) for name in ("unit_factor", "slowest_factor")}
    return replace(parts, **changed), priced.overlap


CONSTANTS = (
    Constant(name="speed of matrix products", rate="matmul_flops_per_s", apply=_compute("products")),
    Constant(name="speed of experts' products", rate="grouped_flops_per_s", apply=_compute("grouped products")),
    Constant(name="speed of fused operators", rate="fused_s", apply=_compute("operators")),
    Constant(name="bandwidth of plain arithmetic", rate="plain_bytes_per_s", apply=_compute("plain traffic")),
    Constant(name="bandwidth of fresh memory", rate="fresh_bytes_per_s", apply=_compute("fresh memory")),
    Constant(name="speed of operator calls", rate="op_s", apply=_compute("launches")),
    Constant(name="bandwidth of gathers and reduce-scatters", rate="all_gather", apply=_bandwidth(GATHERS)),
    Constant(name="bandwidth of all-to-all", rate="all_to_all", apply=_bandwidth(EXCHANGES)),
    Constant(name="bandwidth of all-reduce", rate="all_reduce", apply=_bandwidth(SUMS)),
    Constant(name="speed of empty messages", rate=None, apply=_latency),
    Constant(name="overlap of communication and compute", rate="overlap_efficiency", apply=_overlap),
    Constant(name="evenness of the ranks", rate=None, apply=_noise),
    Constant(name="bandwidth of the optimizer", rate="optimizer_bytes_per_s", apply=_scaled("optimizer_s")),
    Constant(name="speed of the loader", rate="data_edge_s", apply=_scaled("loader_s")),
    Constant(name="bandwidth of the second memory", rate="second_memory_bytes_per_s", apply=_scaled("transfers_s")),
)


def change_of(constant: Constant, machine: Machine) -> tuple[float, str]:
    """(relative change to try, where it comes from): the worst quality of the constant in the file, else assumed."""
    known = [
        value
        for name, value in machine.quality.items()
        if constant.rate is not None and constant.rate in name.split(".")
    ]
    if not known:
        return ASSUMED_CHANGE, f"assumed: {100 * ASSUMED_CHANGE:g} %"
    change = float(np.clip(max(known), LEAST_CHANGE, 0.9))
    return change, f"quality of its calibration: {100 * max(known):.0f} %"


def sensitivities(
    priced: SearchParts, chosen: int, machine: Machine, value: Callable[[Floats], Floats]
) -> list[Outcome]:
    """Every constant that matters, worse and better. chosen: number of the candidate; value(step_s [C]): what is
    wanted least of, infinite for candidates that are not allowed. Sorted by what it does to the chosen one's step.
    """
    before_s = step_seconds(priced.parts, priced.overlap)
    before = value(before_s)
    loss_before = _loss(before, chosen)
    outcomes = []
    for constant in CONSTANTS:
        change, source = change_of(constant, machine)
        for signed, times in ((-change, 1 / (1 - change)), (change, 1 / (1 + change))):
            parts, overlap = constant.apply(priced, times)
            step_s = step_seconds(parts, overlap)
            after = value(step_s)
            best, loss = int(np.argmin(after)) if np.isfinite(after).any() else chosen, _loss(after, chosen)
            outcomes.append(Outcome(
                constant=constant.name, change=signed, source=source, chosen_step_s=float(step_s[chosen]),
                step_change=float(step_s[chosen] / before_s[chosen] - 1),
                still_best=loss <= max(loss_before, 0.0) + WORTH, best=best, loss=loss,
            ))  # fmt: skip
    moved = [one for one in outcomes if abs(one.step_change) > 1e-4 or not one.still_best]
    return sorted(moved, key=lambda one: (one.still_best, -abs(one.step_change)))


def _loss(value: Floats, chosen: int) -> float:
    """How much worse the chosen one is than the best; infinite where it is not allowed any more."""
    best = float(np.min(value))
    if not np.isfinite(value[chosen]):
        return float("inf")
    return float(value[chosen] - best) / max(abs(best), np.finfo(float).tiny)
