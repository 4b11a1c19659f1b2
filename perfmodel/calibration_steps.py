"""Fits what kernels become inside the trainer's steps, from short steps of models that are no preset.

A phase takes

    product_stretch x (FLOPs / F + product bytes / B + the same of grouped products)
    + operator_stretch x (sum over kinds and passes of elements x s + rows x r)
    + plain bytes / T + launches x op_s + grouped calls x call_s + batch_s + new pages x page_s

with F, B, s and r from kernels alone (``calibration``), page_s from the first touch of new memory, and the rest fitted,
jointly over FE, FF and BF_BE, for each model family by itself: its operators are written otherwise. New pages are
counted while the steps run, so they do not hide in other constants; what they cost per byte that a step keeps is
fresh_bytes_per_s. The work of the phases is that of ``compute_time``, which evaluates the same formula.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from janus.config import ModelConfig, from_mapping
from perfmodel.calibration_fits import Fit, Floats, fit_costs, quiet_s, rate_of, spread
from perfmodel.compute_time import (
    COMPUTE_PHASES,
    FEATURES,
    OPTIMIZER_PASSES,
    compute_seconds,
    row_matrix,
    work_coefficients,
)
from perfmodel.machine import FamilyRates, Rates
from perfmodel.model_rates import rates_of_model
from perfmodel.operators import FUSED_KINDS, PASS_NAMES
from perfmodel.products import PHASES
from perfmodel.workload import ITEM_BYTES, Counts, parameter_tensors

MANY_PAGES, ENOUGH = 1000, 8  # what tells two repeats apart, and how many such pairs give a slope
LEAST_STRETCH = 0.5  # assumed: kernels take at least this part of their time alone; a noisy host may say they are free
LEAST_OF_TOUCH = 0.25  # of a first touch alone: what a page costs in a step at the least
PAGE_BYTES = 4096  # of the operating system, as the calibration counts faults
COLUMNS = ("products", "operators", "plain_bytes", "launches", "grouped_calls", "batches")
_PLACE = {name: place for place, name in enumerate(FEATURES)}


@dataclass(frozen=True, kw_only=True)
class StepSample:
    """One measured training step of a known model on known counts, lower quartiles of its repeats.

    phase_s: of the trainer's record, new pages included; pages: new pages of each phase; outside_s: outside any phase;
    slowest_s: FE, FF, BF and BE of the rank that took longest; spread: of the repeats' whole step; divided: a layout
    with a unit above 1, never fitted. tensors, numel: of the pieces that one rank keeps.
    """

    model: ModelConfig
    counts: Counts
    recompute: bool
    phase_s: dict[str, float]
    step_s: float
    outside_s: float
    slowest_s: float
    pages: dict[str, float]
    tensors: int
    numel: int
    held_out: bool = False
    divided: bool = False
    spread: float = 0.0

    @property
    def is_fitted(self) -> bool:
        return not self.held_out and not self.divided

    @property
    def compute_s(self) -> dict[str, float]:
        """FE, FF and BF_BE of the rank that took longest: ranks with equal work meet at its end in every step, so that
        is what a step takes, and the phases' means are below it by what ranks differ from step to step.
        """
        mean_s = sum(self.phase_s[phase] for phase in COMPUTE_PHASES)
        return {phase: self.phase_s[phase] * self.slowest_s / mean_s for phase in COMPUTE_PHASES}


def step_samples(raw: Mapping[str, Any]) -> list[StepSample]:
    """The steps of one filling's raw timings, as samples."""
    return [
        StepSample(
            model=from_mapping(ModelConfig, step["model"]), counts=Counts(**step["counts"]),
            recompute=step["recompute"], held_out=step["held_out"], divided=bool(step["parallel"]),
            phase_s={phase: quiet_s(seconds) for phase, seconds in step["seconds"].items()},
            pages={phase: float(np.percentile(faults, 25)) for phase, faults in step["faults"].items()},
            step_s=quiet_s(step["step_seconds"]), spread=spread(step["step_seconds"]),
            outside_s=_outside_s(step), slowest_s=quiet_s(step["slowest_seconds"]),
            tensors=step["tensors"], numel=step["numel"],
        )
        for step in raw["steps"]
    ]  # fmt: skip


def _outside_s(step: Mapping[str, Any]) -> float:
    """Lower quartile over the repeats of what is left of each step beside its phases."""
    phases_s = np.sum(list(step["seconds"].values()), axis=0)
    return quiet_s(np.asarray(step["step_seconds"]) - phases_s)


def page_seconds(raw: Mapping[str, Any]) -> float:
    """Seconds of one new page in a step; 0 where pages were not measured (an accelerator).

    From repeats of one step that met different numbers of new pages (median slope) where there are enough, and never
    more than the first touch of a block alone, which is mapped and given back each time.
    """
    found = [sample for sample in raw["traffic"] if sample["name"] == "pages"]
    if not found:
        return 0.0
    alone_s = float(np.median(found[0]["seconds"])) / (found[0]["bytes"] / PAGE_BYTES)
    slopes = [slope for step in raw["steps"] for phase in COMPUTE_PHASES for slope in _slopes(step, phase)]
    return min(alone_s, max(LEAST_OF_TOUCH * alone_s, float(np.median(slopes)))) if len(slopes) >= ENOUGH else alone_s


def _slopes(step: Mapping[str, Any], phase: str) -> list[float]:
    """Seconds per page between two repeats of a phase that differ by many pages."""
    pairs = itertools.combinations(zip(step["faults"][phase], step["seconds"][phase], strict=True), 2)
    return [(s2 - s1) / (n2 - n1) for (n1, s1), (n2, s2) in pairs if abs(n2 - n1) >= MANY_PAGES]


def _features(sample: StepSample, dtype: str) -> Floats:
    """Features of the phases FE, FF, BF, BE of a sample [4,F]."""
    coefficients = work_coefficients(sample.model, dtype=dtype, recompute=sample.recompute)
    return np.asarray(np.tensordot(row_matrix(sample.model, [sample.counts])[0], coefficients, axes=1))


def _columns(sample: StepSample, rates: Rates, dtype: str) -> tuple[Floats, Floats]:
    """What is fitted of a sample [3, columns], and the bytes that its phases keep [3]; timed phases FE, FF, BF_BE."""
    own = rates_of_model(replace(rates, families={}), sample.model)
    assert own.fused_s is not None, "a calibration times the fused operators"
    features = _features(sample, dtype)

    def of(name: str) -> Floats:
        return features[:, _PLACE[name]]

    grouped_flops_per_s = own.grouped_flops_per_s or own.matmul_flops_per_s
    products = of("flops") / own.matmul_flops_per_s + of("grouped_flops") / grouped_flops_per_s
    products = products + (of("product_bytes") + of("grouped_bytes")) / own.matmul_bytes_per_s
    operators = sum(of(f"{kind}.{name}") * own.fused_s[kind][name] for kind in FUSED_KINDS for name in PASS_NAMES)
    by_phase = np.stack(
        [products, operators, of("plain_bytes"), of("launches"), of("grouped_calls"), of("batches")], axis=1
    )
    places = [[PHASES.index(part) for part in parts] for parts in COMPUTE_PHASES.values()]
    timed = np.stack([by_phase[place].sum(axis=0) for place in places])
    kept = np.array([of("fresh_bytes")[place].sum() for place in places])
    return timed, kept


@dataclass(frozen=True, kw_only=True)
class StepConstants:
    """Constants of a filling's steps, and their quality by name in Rates ("families.NAME.CONSTANT" for a family's)."""

    plain: dict[str, float]
    families: dict[str, FamilyRates]
    quality: dict[str, float]


def fit_steps(samples: Sequence[StepSample], rates: Rates, page_s: float, dtype: str) -> StepConstants:
    """Constants of all families together (for models of another family), and of each family by itself."""
    fitted = [sample for sample in samples if sample.is_fitted]
    fit, fresh_bytes_per_s = _fit(fitted, rates, page_s, dtype, together=True)
    stretch, plain_s, op_s, call_s, batch_s = fit.coefficients
    plain = {
        "step_stretch": float(stretch), "plain_bytes_per_s": rate_of(plain_s), "fresh_bytes_per_s": fresh_bytes_per_s,
        "op_s": float(op_s), "grouped_call_s": float(call_s), "batch_s": float(batch_s),
    }  # fmt: skip
    quality = dict.fromkeys(plain, fit.quality)
    families: dict[str, FamilyRates] = {}
    for family in sorted({sample.model.family for sample in fitted}):
        chosen = [sample for sample in fitted if sample.model.family == family]
        own, fresh_bytes_per_s = _fit(chosen, rates, page_s, dtype, together=False)
        products, operators, plain_s, op_s, call_s, batch_s = own.coefficients
        families[family] = FamilyRates(
            product_stretch=float(products), operator_stretch=float(operators), plain_bytes_per_s=rate_of(plain_s),
            fresh_bytes_per_s=fresh_bytes_per_s, op_s=float(op_s), grouped_call_s=float(call_s),
            batch_s=float(batch_s),
        )  # fmt: skip
        names = ("product_stretch", "operator_stretch", "plain_bytes_per_s", "fresh_bytes_per_s", "op_s",
                 "grouped_call_s", "batch_s")  # fmt: skip
        quality |= dict.fromkeys((f"families.{family}.{name}" for name in names), own.quality)
    return StepConstants(plain=plain, families=families, quality=quality)


def _fit(
    samples: Sequence[StepSample], rates: Rates, page_s: float, dtype: str, *, together: bool
) -> tuple[Fit, float]:
    """Costs of the columns (together: one stretch of products and operators), and fresh_bytes_per_s."""
    assert samples, "no step to fit the constants to"
    made = [_columns(sample, rates, dtype) for sample in samples]
    columns = np.concatenate([timed for timed, _ in made])
    pages = np.array([[sample.pages[phase] for phase in COMPUTE_PHASES] for sample in samples])
    seconds = np.array([[sample.compute_s[phase] for phase in COMPUTE_PHASES] for sample in samples])
    without = np.maximum(seconds - pages * page_s, 0.2 * seconds).reshape(-1)
    if together:
        columns = np.concatenate([columns[:, :2].sum(axis=1, keepdims=True), columns[:, 2:]], axis=1)
    least = [LEAST_STRETCH if column < 1 + (not together) else 0.0 for column in range(columns.shape[1])]
    kept = float(sum(kept.sum() for _, kept in made))
    return fit_costs(columns, without, least), rate_of(float(pages.sum()) * page_s / kept if kept else 0.0)


def crowding(samples: Sequence[StepSample], rates: Rates, dtype: str) -> tuple[float, float]:
    """(factor, quality): how much longer steps compute where ranks share cores than with ``rates``, which are of ranks
    with a core each; median over all fitted steps, and of the deviations from it.
    """
    fitted = [sample for sample in samples if sample.is_fitted]
    factors = []
    for sample in fitted:
        phase_s, _ = compute_seconds(sample.model, [sample.counts], rates, dtype=dtype, recompute=sample.recompute)
        factors.append(sample.slowest_s / sum(phase_s.values()))
    factor = float(np.median(factors))
    return factor, float(np.median(np.abs(np.array(factors) / factor - 1)))


def fit_optimizer(samples: Sequence[StepSample], norm_s: float, dtype: str) -> tuple[float, float, float]:
    """(optimizer_bytes_per_s, optimizer_tensor_s, quality) from the optimizer's phase of real steps, where parameters
    and states have left the cache. norm_s: of the gradient norm's sum over ranks, which is in that phase.
    """
    fitted = [sample for sample in samples if sample.is_fitted]
    columns = np.array([[OPTIMIZER_PASSES * sample.numel * ITEM_BYTES[dtype], sample.tensors] for sample in fitted])
    seconds = np.array([sample.phase_s["optimizer"] for sample in fitted])
    fit = fit_costs(columns, np.maximum(seconds - norm_s, 0.2 * seconds))
    byte_s, tensor_s = fit.coefficients
    return rate_of(byte_s), float(tensor_s), fit.quality


def fit_outside(samples: Sequence[StepSample]) -> tuple[float, float, float]:
    """(step_s, step_tensor_s, quality): time of a step outside its phases, fixed and per parameter tensor of the model
    (the graph of its operators is taken down there).
    """
    fitted = [sample for sample in samples if sample.is_fitted]
    columns = np.array([[1.0, parameter_tensors(sample.model)] for sample in fitted])
    fit = fit_costs(columns, np.maximum([sample.outside_s for sample in fitted], 1e-5))
    return float(fit.coefficients[0]), float(fit.coefficients[1]), fit.quality
