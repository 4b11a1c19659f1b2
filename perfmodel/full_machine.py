"""Scaling of a MatRIS-MoE on a full machine under FS-3D, predicted: weak and strong lines of a catalogued machine.

It owns which jobs make a line and the list of what is assumed. It does not own the step (``step_time``, ``step_work``),
prices of collectives (``unit_prices``), the paper's rows (``paper``) nor bands of unknowns (``paper_model``). Nothing
here is fitted to published results.

A unit of 8 ranks shards parameters, graph and experts; replicas are units. Configurations are alike unless a spread is
given, so that one unit stands for all and the slowest is found by the trainer's own packing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np

from janus.config import ModelConfig
from janus.errors import UserError
from janus.layout import Layout
from janus.placement import Strategy
from janus.presets import preset
from perfmodel.dataset import DataCounts
from perfmodel.live_rows import row_vector
from perfmodel.machine import Machine, load_machine
from perfmodel.mean_configurations import DIFFERENT, MEAN_CONFIGURATION, mean_configurations
from perfmodel.memory import BASE_BYTES, memory_coefficients
from perfmodel.network.noise import Noise
from perfmodel.start_up import start_up_seconds
from perfmodel.step_time import ASSUMED_DEVIATION, ASSUMED_OVERLAP, StepPrediction, predict
from perfmodel.step_work import RunSettings, StepWork, step_work
from perfmodel.unit_prices import UnitPrices
from perfmodel.workload import Counts

__all__ = [
    "MEAN_CONFIGURATION", "FullMachineAssumptions", "FullMachinePoint", "FullMachineStudy", "default_units",
    "predict_strong_scaling", "predict_weak_scaling", "rank_memory_bytes", "require_predictable",
]  # fmt: skip

STRONG_SPAN = 16  # the strong line starts at this part of the full machine


@dataclass(frozen=True, kw_only=True)
class FullMachineAssumptions:
    """What nobody published, as numbers that can be changed. ``describe`` lists them with their reasons.

    configurations_per_unit: of the weak line and of the strong line's last point; configurations_per_micro_batch: of a
    unit. size_spread: deviation of the logarithm of configuration sizes; compute_deviation: of a rank from step to
    step.
    """

    unit: int = 8
    configuration: Counts = MEAN_CONFIGURATION
    configurations_per_unit: int = 1
    configurations_per_micro_batch: int = 4
    size_spread: float = 0.0
    compute_deviation: float = ASSUMED_DEVIATION
    expert_strategy: Strategy = "tokens"
    expert_compression: bool = True
    recompute: bool | None = None  # None: only if the step does not fit in a rank's memory without
    dtype: str = "float32"

    def settings(self) -> RunSettings:
        """How the step is run."""
        work = self.configuration.work * self.configurations_per_micro_batch
        return RunSettings(
            dtype=self.dtype, max_work=math.ceil(work * (1 + 3 * self.size_spread)), recompute=bool(self.recompute),
            expert_strategy=self.expert_strategy, expert_compression=self.expert_compression, clips=False,
            averages=False,
        )  # fmt: skip

    def describe(self) -> list[str]:
        """Every assumption in words."""
        counts = self.configuration
        moved = "tokens move" if self.expert_strategy == "tokens" else "experts' weights are restored everywhere"
        return [
            f"assumed: a unit is {self.unit} neighbouring devices of the machine file (the paper says 8 devices)",
            f"assumed: a unit works on {self.configurations_per_unit:g} configuration(s) of {counts.edges:,.0f} "
            "directed edges per step (mean of the published 473 M configurations and 3.6 trillion edges), "
            f"{self.configurations_per_micro_batch} at most at a time; the batch per unit is not published",
            f"assumed: {counts.atoms:,.0f} atoms, {counts.bonds:,.0f} bonds and {counts.angles:,.0f} angles go with "
            "a configuration, and five elements",
            f"assumed: sizes of configurations deviate by {100 * self.size_spread:g} % (the data set's more); units "
            "get theirs by the trainer's packing",
            f"assumed: a rank's compute deviates by {100 * self.compute_deviation:g} % from step to step",
            f"assumed: {100 * ASSUMED_OVERLAP:g} % of what can overlap with compute is hidden",
            f"assumed: exchanges of experts in {16 if self.expert_compression else 32} bits, {moved}, hot experts are "
            "copied where that pays (published: FP16 compression, planning per step)",
            "assumed: gradients are not clipped (the norm would end the pipelined update) and no average is kept",
            f"assumed: {'with' if self.recompute else 'no'} activation recompute (chosen by memory unless "
            "given); states and activations use all memory tiers, their transfers hidden",
            "not modelled: start-up and I/O inside a step, failures, transfers of different axes that share a NIC",
        ]


@dataclass(frozen=True, kw_only=True)
class FullMachinePoint:
    """One point of a scaling line. phase_s and cause_s each add up to step_s; efficiency is against the first point.

    memory_bytes: of the fullest rank, allocated; start_up_s: of the job, None where unknown; work, step: what the
    numbers come from.
    """

    units: int
    ranks: int
    nodes: int
    layout: Layout
    counts: Counts
    step_s: float
    phase_s: dict[str, float]
    cause_s: dict[str, float]
    flops_model: float
    flops_executed: float
    eflops: float
    percent_of_peak: float | None
    efficiency: float
    memory_bytes: float
    start_up_s: float | None
    work: StepWork
    step: StepPrediction


@dataclass(frozen=True, kw_only=True)
class FullMachineStudy:
    """The predicted line, what was assumed, and the published values to compare with in text. mode: weak or strong."""

    machine: Machine
    model: ModelConfig
    points: tuple[FullMachinePoint, ...]
    assumptions: tuple[str, ...]
    mode: str = field(default="weak")


def default_units(machine: Machine, unit: int) -> list[int]:
    """Numbers of units from 1 to the full machine, by factors of four."""
    most = machine.nodes * machine.devices_per_node // unit
    units = [4**power for power in range(20) if 4**power < most]
    return [*units, most]


def strong_units(machine: Machine, unit: int) -> list[int]:
    """Numbers of units of the strong line: a sixteenth of the full machine, then twice as many each time."""
    most = machine.nodes * machine.devices_per_node // unit
    return [max(1, most // part) for part in (STRONG_SPAN, 8, 4, 2, 1)]


def predict_weak_scaling(
    machine: Machine | None = None,
    model: ModelConfig | None = None,
    units: Sequence[int] | None = None,
    given: FullMachineAssumptions | None = None,
) -> FullMachineStudy:
    """Predict the weak-scaling line of a MatRIS-MoE from one unit to the full machine.

    machine: default LineShine; model: default matris-moe-l; units: numbers of units, the first is the reference.
    Raises UserError for a model without experts, a host machine, or more units than the machine has.
    """
    return _line("weak", machine, model, units, given)


def predict_strong_scaling(
    machine: Machine | None = None,
    model: ModelConfig | None = None,
    units: Sequence[int] | None = None,
    given: FullMachineAssumptions | None = None,
) -> FullMachineStudy:
    """Predict the strong-scaling line: the batch of the last point on every number of units; as the weak line else.

    units: default from a sixteenth of the machine to all of it.
    """
    return _line("strong", machine, model, units, given)


def require_predictable(machine: Machine, model: ModelConfig) -> None:
    """Raise UserError unless the model has experts and the machine is of the catalogue, with rates."""
    if model.experts is None:
        raise UserError("the full-machine prediction is of a mixture of experts: use a matris-moe model")
    if machine.is_calibrated_host:
        raise UserError(f"machine {machine.name!r} is one calibrated host: use a machine of the catalogue")
    machine.require_rates()


def _line(
    mode: str, machine: Machine | None, model: ModelConfig | None, units: Sequence[int] | None,
    given: FullMachineAssumptions | None,
) -> FullMachineStudy:  # fmt: skip
    machine, model = machine or load_machine("lineshine"), model or preset("matris-moe-l")
    given = given or FullMachineAssumptions()
    require_predictable(machine, model)
    most = machine.nodes * machine.devices_per_node // given.unit
    default = strong_units if mode == "strong" else default_units
    chosen = list(units) if units is not None else default(machine, given.unit)
    if not chosen or min(chosen) < 1 or max(chosen) > most:
        raise UserError(f"units {chosen}: {machine.name} holds from 1 to {most} units of {given.unit} ranks")
    given = _with_recompute(machine, model, given)
    prices = UnitPrices(machine)
    points: list[FullMachinePoint] = []
    for number in chosen:
        batch = given.configurations_per_unit * (max(chosen) if mode == "strong" else number)
        points.append(_point(model, machine, given, number, batch, prices, points[0] if points else None, mode))
    return FullMachineStudy(
        machine=machine, model=model, points=tuple(points), mode=mode,
        assumptions=(*given.describe(), *(f"{name}: {text}" for name, text in machine.assumptions().items())),
    )  # fmt: skip


def _with_recompute(machine: Machine, model: ModelConfig, given: FullMachineAssumptions) -> FullMachineAssumptions:
    """The assumptions with recompute decided: only where a rank's memory asks for it."""
    if given.recompute is not None:
        return given
    rank_bytes = (machine.memory_bytes_per_node + machine.second_memory_bytes_per_node) / machine.devices_per_node
    fits = rank_memory_bytes(model, replace(given, recompute=False)) <= rank_bytes
    return replace(given, recompute=not fits)


def rank_memory_bytes(model: ModelConfig, given: FullMachineAssumptions, each: int | None = None) -> float:
    """Bytes of the fullest rank of a unit at the peak of a step, allocated (``memory.fullest_memory``).

    each: configurations of the unit's step; None: ``configurations_per_unit``. Of many only the different compositions
    are worked out: a rank holds few micro-batches at once, however many its step has.
    """
    each = given.configurations_per_unit if each is None else each
    work = _one_unit(model, given, min(each, DIFFERENT))
    number = math.ceil(each / given.configurations_per_micro_batch)
    return BASE_BYTES + max(
        memory_coefficients(model, work.layout, work.settings, rank=rank.rank, micro_batches=number)
        .peak_bytes(np.stack([row_vector(model, batch.counts) for batch in rank.micro_batches])).max()
        for rank in work.ranks
    )  # fmt: skip


@lru_cache(maxsize=8)
def _configurations(number: int, mean: Counts, spread: float) -> DataCounts:
    return mean_configurations(number, mean=mean, spread=spread)


def unit_layout(unit: int, units: int) -> Layout:
    """The FS-3D layout of the paper: all three degrees are the unit."""
    return Layout(unit=unit, replicas=units, shard_degree=unit, graph_degree=unit, expert_degree=unit)


def job_work(model: ModelConfig, given: FullMachineAssumptions, units: int, batch: int) -> StepWork:
    """The work of one step of ``units`` units on ``batch`` configurations.

    Alike configurations that divide evenly: one unit is worked out and stands for all; else the trainer's packing of
    the whole batch, with the heaviest and the lightest unit worked out.
    """
    layout = unit_layout(given.unit, units)
    if given.size_spread == 0 and batch % units == 0:
        one = _one_unit(model, given, batch // units)
        return replace(
            one, layout=layout, group_work=np.full(units, float(one.group_work[0])),
            flops_model=one.flops_model * units, flops_executed=one.flops_executed * units,
        )  # fmt: skip
    data = _configurations(batch, given.configuration, given.size_spread)
    return step_work(model, data, range(batch), layout, given.settings(), represented=2)


@lru_cache(maxsize=32)
def _one_unit(model: ModelConfig, given: FullMachineAssumptions, each: int) -> StepWork:
    data = _configurations(min(each, DIFFERENT), given.configuration, 0.0)
    batch = [number % DIFFERENT for number in range(each)]
    return step_work(model, data, batch, unit_layout(given.unit, 1), given.settings())


def _point(
    model: ModelConfig, machine: Machine, given: FullMachineAssumptions, units: int, batch: int, prices: UnitPrices,
    first: FullMachinePoint | None, mode: str,
) -> FullMachinePoint:  # fmt: skip
    ranks = units * given.unit
    work = job_work(model, given, units, batch)
    step = predict(work, machine, prices=prices, noise=Noise(compute_deviation=given.compute_deviation))
    peak = machine.peak(given.dtype)
    rate = work.flops_model / step.step_s
    efficiency = 1.0 if first is None else first.step_s / step.step_s
    if first is not None and mode == "strong":
        efficiency *= first.units / units
    return FullMachinePoint(
        units=units, ranks=ranks, nodes=math.ceil(ranks / machine.devices_per_node), layout=work.layout,
        counts=given.configuration.scaled(batch), step_s=step.step_s, phase_s=step.phase_s, cause_s=step.cause_s,
        flops_model=work.flops_model, flops_executed=work.flops_executed, eflops=rate / 1e18,
        percent_of_peak=None if peak is None else 100 * rate / (ranks * peak.flops_per_s), efficiency=efficiency,
        memory_bytes=rank_memory_bytes(model, given, math.ceil(batch / units)),
        start_up_s=start_up_seconds(machine, ranks)[0], work=work, step=step,
    )  # fmt: skip
