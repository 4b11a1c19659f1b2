"""Analytic time of one training step in any layout: what overlaps, who waits for whom, every second attributed.

It owns how the parts of a step (``step_parts``) become its seconds, by phase and by cause. It does not own the work of
the ranks (``step_work``), seconds of computing (``compute_time``) or of collectives (``prices``), nor events
(``step_events``, which play the same parts rank by rank).

One table [candidates, phases, causes] holds every second; the step is its sum, so phases and causes both add up to it.

    compute         mean rank's seconds by cause
    wait, inside    mean unit - mean rank: in every micro-batch and phase a unit takes as long as its slowest rank
    wait, sync      slowest unit - mean unit: units meet at the sum of gradients
    X hidden        e min(seconds of X that may hide, part of the compute beside which X runs, compute not yet used up)
    X exposed       seconds of X - hidden

e is the measured overlap efficiency: of the shorter of a collective and the compute beside it, the part that is hidden.
Gathers run one block ahead; reduce-scatters but the last of a micro-batch run beside the next block's backward; sums of
gradients that start before BE has ended run beside the rest of it, all of them beside the small sums, and beside the
optimizer where nothing is clipped.
On a host with more ranks than cores a rank that waits gives its core away: a unit takes the larger of the mean rank's
seconds and what its slowest rank takes with a core of its own.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from janus.config import ModelConfig
from janus.errors import UserError
from janus.layout import Layout
from perfmodel.compute_time import (
    COMPUTE_CAUSES,
    COMPUTE_PHASES,
    OPTIMIZER_PASSES,
    compute_seconds,
    fresh_memory_bytes,
    loader_seconds,
    ranks_per_node,
    rates_for,
    scaled_rates,
)
from perfmodel.machine import Machine, Rates
from perfmodel.memory import MemoryPrediction, fullest_memory, place_in_tiers
from perfmodel.memory_tiers import used_bytes
from perfmodel.network.noise import Noise
from perfmodel.prices import HostPrices, Prices, prices_for
from perfmodel.slowest import expected_slowest
from perfmodel.step_parts import SUM_AXES, Circumstances, StepParts, coupled_ranks, parts_of
from perfmodel.step_work import MicroBatchWork, RankStep, RunSettings, StepWork, settings_traffic
from perfmodel.traffic import MicroBatchSizes, step_traffic
from perfmodel.traffic_parameters import kept_pieces
from perfmodel.workload import ITEM_BYTES, PHASES, Counts, PhaseWork, phase_work, step_flops, total_counts
from perfmodel.workload_moe import experts_of

__all__ = [
    "CAUSES", "COMMUNICATION_CAUSES", "COMPUTE_PHASES", "OPTIMIZER_PASSES", "PHASE_NAMES", "StepPrediction",
    "StepSeconds", "combine", "compute_seconds", "fresh_memory_bytes", "loader_seconds",
    "predict", "predict_step", "ranks_per_node", "rates_for", "what_helps", "work_of_counts",
]  # fmt: skip

Floats = NDArray[np.float64]

PHASE_NAMES = ("data", "FE", "FF", "BF_BE", "sync", "optimizer", "outside")  # as in the trainer's record; outside: rest
_RECORDED = {"FE": "FE", "FF": "FF", "BF": "BF_BE", "BE": "BF_BE"}
COMMUNICATION_CAUSES = (
    "gathers", "scatters", "halos", "exchanges", "group sums", "gradient sums", "small sums",
)  # fmt: skip
CAUSES = (
    *COMPUTE_CAUSES, "packing", "planning", "loader", *COMMUNICATION_CAUSES, "memory tiers", "wait", "optimizer",
    "outside",
)  # fmt: skip
AXIS_OF_CAUSE = {
    "gathers": "shard", "scatters": "shard", "halos": "graph", "group sums": "graph", "exchanges": "expert",
    "small sums": "world",
}  # fmt: skip
# Operator calls' worth of work per call of a step: notes in place of gathered buffers, kept by autograd's hooks where
# anything is gathered, and views of every parameter in every phase where they are sharded. Measured on one CPU
NOTING_CALLS, SHARDING_CALLS = 0.13, 0.4
ROUNDING_S = 1e-12  # seconds below it are rounding of differences
ASSUMED_OVERLAP = 0.9  # where it was not measured, and no rank wants the cores that communicate
ASSUMED_DEVIATION = 0.02  # of a rank's compute from step to step on machines that were not measured


class PhaseCorrections(Protocol):
    """What ``perfmodel.corrections.Corrections`` offers here."""

    def factor(self, model: ModelConfig, phase: str) -> float:
        """What predicted seconds of a phase are multiplied by."""


@dataclass(frozen=True, kw_only=True)
class StepPrediction:
    """One step of one layout. phase_s: mean over ranks, adding up to step_s; cause_s: the same seconds by cause.

    phase_cause_s: phase -> cause -> seconds above zero. communication_s: exposed seconds by axis. flops_model,
    flops_executed: of all ranks; memory_bytes: of the fullest rank worked out, resident (what the operating system
    sees) on a calibrated host, else allocated; rank_s: compute of each rank worked out; notes: what the prediction had
    to assume.
    """

    step_s: float
    phase_s: dict[str, float]
    cause_s: dict[str, float]
    rank_s: tuple[float, ...]
    memory_bytes: float
    flops_model: float
    flops_executed: float
    oversubscribed: bool
    communication_s: dict[str, float] = field(default_factory=dict)
    phase_cause_s: dict[str, dict[str, float]] = field(default_factory=dict)
    notes: tuple[str, ...] = field(default=())


@dataclass(frozen=True, kw_only=True, eq=False)
class StepSeconds:
    """table [C, phases, causes]: every second of the step. sums_share [C,3]: gradient sums by axis, of all of them."""

    table: Floats
    sums_share: Floats

    @property
    def step_s(self) -> Floats:
        return np.asarray(self.table.sum(axis=(1, 2)))

    @property
    def phase_s(self) -> dict[str, Floats]:
        return {phase: self.table[:, place].sum(axis=1) for place, phase in enumerate(PHASE_NAMES)}

    @property
    def cause_s(self) -> dict[str, Floats]:
        return {cause: self.table[:, :, place].sum(axis=1) for place, cause in enumerate(CAUSES)}

    @property
    def phase_cause_s(self) -> dict[str, dict[str, float]]:
        """phase -> cause -> seconds above zero, of the first candidate."""
        return {
            phase: {cause: float(seconds) for cause, seconds in zip(CAUSES, row, strict=True) if seconds > ROUNDING_S}
            for phase, row in zip(PHASE_NAMES, self.table[0], strict=True)
        }

    @property
    def communication_s(self) -> dict[str, Floats]:
        """Exposed seconds by axis."""
        causes = self.cause_s
        found: dict[str, Floats] = {}
        for cause, axis in AXIS_OF_CAUSE.items():
            found[axis] = found.get(axis, 0.0) + causes[cause]
        for place, axis in enumerate(SUM_AXES):
            found[axis] = found.get(axis, 0.0) + causes["gradient sums"] * self.sums_share[:, place]
        return found


class _Table:
    """The seconds of C candidates, filled in cell by cell."""

    def __init__(self, count: int) -> None:
        self.seconds = np.zeros((count, len(PHASE_NAMES), len(CAUSES)))

    def add(self, phase: str, cause: str, seconds: Floats) -> None:
        """phase: of PHASE_NAMES, or one of FE, FF, BF, BE."""
        place = PHASE_NAMES.index(_RECORDED.get(phase, phase))
        self.seconds[:, place, CAUSES.index(cause)] += seconds

    def add_phases(self, cause: str, seconds: Floats) -> None:
        """seconds [C,4]."""
        for place, phase in enumerate(PHASES):
            self.add(phase, cause, seconds[:, place])


def combine(parts: StepParts, overlap: float | Floats) -> StepSeconds:
    """The seconds of C candidates at once. overlap: the efficiency e, one for all or [C]."""
    efficiency = np.broadcast_to(np.asarray(overlap, dtype=np.float64), parts.compute_s.shape[:1])
    table = _Table(len(parts.compute_s))
    for place, cause in enumerate(COMPUTE_CAUSES):
        table.add_phases(cause, parts.compute_s[:, :, place])
    table.add_phases("packing", parts.packing_s + bookkeeping(parts))
    critical_s = _waits(table, parts)
    left_s = critical_s.copy()  # compute beside which nothing runs yet
    _gathers(table, parts, critical_s, left_s, efficiency)
    for cause, seconds, cover in (
        ("exchanges", parts.exchanges_s, parts.exchanges_cover), ("halos", parts.halos_s, parts.halos_cover),
    ):  # fmt: skip
        table.add_phases(cause, seconds - _hidden(seconds, cover * critical_s, left_s, efficiency))
    _scatters(table, parts, critical_s, left_s, efficiency)
    table.add_phases("group sums", np.broadcast_to(parts.group_sums_s, critical_s.shape))
    shares = _sums(table, parts, critical_s, left_s, efficiency)
    table.add("outside", "exchanges", parts.composition_s)
    table.add("outside", "planning", parts.plan_s)
    table.add("outside", "outside", parts.outside_s)
    table.add("BF_BE", "memory tiers", np.maximum(parts.transfers_s - critical_s.sum(axis=1), 0.0))
    _loader(table, parts, critical_s)
    return StepSeconds(table=table.seconds, sums_share=shares)


def bookkeeping(parts: StepParts) -> Floats:
    """Seconds [C,4] in which sharded or spread parameters are put in their place and autograd keeps notes of them."""
    launches_s = parts.compute_s[:, :, COMPUTE_CAUSES.index("launches")]
    shards = (parts.scatters_cover > 0).any(axis=1)
    share = np.where(shards, SHARDING_CALLS, np.where(parts.plan_s > 0, NOTING_CALLS, 0.0))
    return np.asarray(share[:, None] * launches_s)


def _waits(table: _Table, parts: StepParts) -> Floats:
    """Waits of ranks and of units; returns the compute of the slowest unit [C,4], which is what others wait for."""
    mean_s, turns = parts.compute_s.sum(axis=2), parts.turns[:, None]
    unit_s = np.maximum(mean_s, parts.unit_s * turns)
    table.add_phases("wait", unit_s * parts.unit_factor[:, None] - mean_s)
    alone_s = parts.slowest_s.sum(axis=1)
    slowest_s = np.maximum(alone_s * parts.turns, mean_s.sum(axis=1))
    table.add("sync", "wait", np.maximum(
        slowest_s * parts.slowest_factor - (unit_s * parts.unit_factor[:, None]).sum(axis=1), 0.0
    ))  # fmt: skip
    scale = np.where(alone_s > 0, slowest_s / np.maximum(alone_s, np.finfo(float).tiny), 1.0)
    return np.asarray(parts.slowest_s * scale[:, None])


def _hidden(seconds: Floats, beside_s: Floats, left_s: Floats, efficiency: Floats) -> Floats:
    """Hidden part of seconds [C,4] that run beside some compute; takes that out of what is left."""
    covered = np.minimum(np.minimum(seconds, beside_s), left_s)
    left_s -= covered
    return np.asarray(efficiency[:, None] * covered)


def _gathers(table: _Table, parts: StepParts, critical_s: Floats, left_s: Floats, efficiency: Floats) -> None:
    table.add("outside", "gathers", parts.root_gather_s)
    table.add("FE", "gathers", parts.first_gather_s)
    hidden = _hidden(parts.gathers_s, parts.gathers_cover * critical_s, left_s, efficiency)
    table.add_phases("gathers", parts.gathers_s - hidden)


def _scatters(table: _Table, parts: StepParts, critical_s: Floats, left_s: Floats, efficiency: Floats) -> None:
    """All but the last of every micro-batch hide behind the next block's backward."""
    may_hide = np.broadcast_to(parts.scatters_s, critical_s.shape).copy()
    may_hide[:, -1] -= parts.last_scatter_s
    hidden = _hidden(np.maximum(may_hide, 0.0), parts.scatters_cover * critical_s, left_s, efficiency)
    table.add_phases("scatters", parts.scatters_s - hidden)


def _sums(table: _Table, parts: StepParts, critical_s: Floats, left_s: Floats, efficiency: Floats) -> Floats:
    """Sums of gradients, the optimizer, the small sums; returns each axis's share of the gradient sums [C,3]."""
    all_s = parts.sums_s.sum(axis=1)
    table.add("sync", "gradient sums", all_s - efficiency * beside_sums(parts, critical_s[:, -1], left_s[:, -1]))
    table.add("sync", "small sums", parts.control_s)
    table.add("optimizer", "small sums", parts.norm_s)
    table.add("optimizer", "optimizer", parts.optimizer_s)
    shares = parts.sums_s / np.maximum(all_s, np.finfo(float).tiny)[:, None]
    return np.broadcast_to(shares, (len(critical_s), len(SUM_AXES)))


def beside_sums(parts: StepParts, critical_s: Floats, left_s: Floats) -> Floats:
    """Seconds of the sums of gradients that run beside something else [C].

    critical_s, left_s [C]: compute of BE, and what nothing else runs beside yet.
    """
    all_s = parts.sums_s.sum(axis=1)
    may_hide_s = np.maximum(all_s - parts.last_sum_s, 0.0)
    beside_be = np.minimum(np.minimum(may_hide_s, parts.sums_cover * critical_s), left_s)
    beside_control = np.minimum(all_s - beside_be, parts.control_s)
    beside_optimizer = np.minimum(all_s - beside_be - beside_control, parts.pipelined * parts.optimizer_s)
    return np.asarray(beside_be + beside_control + beside_optimizer)


def _loader(table: _Table, parts: StepParts, critical_s: Floats) -> None:
    """What idle cores cannot do stretches the phases; what they can is late where the step is shorter."""
    stolen_s = (1 - parts.loader_hidden) * parts.loader_s
    whole_s = critical_s.sum(axis=1)
    shares = np.where(whole_s[:, None] > 0, critical_s / np.maximum(whole_s, np.finfo(float).tiny)[:, None], 0.0)
    table.add_phases("loader", stolen_s[:, None] * shares)
    step_s = table.seconds.sum(axis=(1, 2))
    late_s = np.maximum(parts.loader_s * np.maximum(parts.loader_hidden, 0.0) - step_s, 0.0)
    table.add("data", "loader", late_s + np.where(whole_s > 0, 0.0, stolen_s))


def filling(machine: Machine, world_size: int, threads: int) -> tuple[Rates, float, float, list[str]]:
    """(rates of the ranks on a node, cores over ranks where they share them, part of the loader hidden, notes).

    The loader can cost more than its own seconds where it was measured to: what is hidden is then below 0.
    """
    on_node = ranks_per_node(machine, world_size)
    rates, notes = rates_for(machine, on_node, threads)
    if not machine.is_calibrated_host:
        return rates, 1.0, 1.0, notes
    cores = machine.devices_per_node / threads
    if cores < on_node < rates.ranks:  # rates of a fuller host whose ranks share cores
        rates = scaled_rates(rates, on_node / rates.ranks, on_node)
    rates = not_faster_than_turns(rates, machine, on_node, threads)
    idle = min(1.0, max(0.0, cores / on_node - 1))  # loader threads run on idle cores
    hidden = idle if rates.loader_felt is None else 1.0 - rates.loader_felt
    return rates, min(1.0, cores / on_node), hidden, notes


def not_faster_than_turns(rates: Rates, machine: Machine, on_node: int, threads: int) -> Rates:
    """Rates of ranks that share cores, slowed down to what their turns allow.

    Timings of ranks that share cores favour those that got more than their turn; n ranks on c cores cannot compute
    faster than c ranks with a core each, n / c times slower. What the loader costs stays as it was measured.
    """
    cores = machine.devices_per_node // threads
    each = next((one for one in machine.rates if (one.ranks, one.threads) == (cores, threads)), None)
    if on_node <= cores or each is None:
        return rates
    turns = scaled_rates(each, on_node / cores, on_node)
    if rates.matmul_flops_per_s / rates.step_stretch <= turns.matmul_flops_per_s / turns.step_stretch:
        return rates
    kept = ("overlap_efficiency", "loader_felt", "data_structure_s", "data_edge_s", "data_angle_s",
            "all_reduce_latency_s", "all_reduce_bytes_per_s")  # fmt: skip
    return dataclasses.replace(turns, **{name: getattr(rates, name) for name in kept})


def overlap_of(machine: Machine, rates: Rates, turns: float, world_size: int) -> tuple[float, list[str]]:
    """The overlap efficiency of a filling, and what had to be assumed.

    Ranks that share cores: none, whatever was measured. There timings of one rank tell how turns fell (0.85 and 0.02
    were seen in two calibrations of a host), and no core is idle to carry anything.
    """
    if machine.is_calibrated_host and turns < 1:
        return 0.0, []
    if rates.overlap_efficiency is not None or world_size == 1:
        return rates.overlap_efficiency or 0.0, []
    if machine.is_calibrated_host:
        assumed = 0.0 if world_size >= machine.devices_per_node else ASSUMED_OVERLAP
    else:
        assumed = ASSUMED_OVERLAP
    return assumed, [f"assumed: {100 * assumed:g} % of what can overlap with compute is hidden (not calibrated)"]


def predict(
    work: StepWork,
    machine: Machine,
    *,
    prices: Prices | None = None,
    corrections: PhaseCorrections | None = None,
    noise: Noise | None = None,
    threads: int = 1,
) -> StepPrediction:
    """Predict one training step of a layout.

    prices: default those of the machine (``prices_for``); corrections: factors by phase; noise: of the ranks' compute
    (default: none on a calibrated host, a deviation of 2 % assumed elsewhere); threads: per rank.
    Raises UserError for what the machine file does not cover.
    """
    parts, seconds, details = predicted_parts(work, machine, prices=prices, noise=noise, threads=threads)
    del parts
    table = seconds.table.copy()
    if corrections is not None:
        table *= np.array([corrections.factor(work.model, phase) for phase in PHASE_NAMES])[None, :, None]
    seconds = StepSeconds(table=table, sums_share=seconds.sums_share)
    return StepPrediction(
        step_s=float(seconds.step_s[0]),
        phase_s={phase: float(value[0]) for phase, value in seconds.phase_s.items()},
        cause_s={cause: float(value[0]) for cause, value in seconds.cause_s.items()},
        communication_s={axis: float(value[0]) for axis, value in seconds.communication_s.items()},
        phase_cause_s=seconds.phase_cause_s,
        rank_s=details.rank_s, memory_bytes=details.memory_bytes, flops_model=work.flops_model,
        flops_executed=work.flops_executed, oversubscribed=details.oversubscribed, notes=details.notes,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class PartsDetails:
    """rank_s: compute of the ranks worked out; overlap: efficiency; group_s: all coupled groups' compute; memory_bytes:
    of the fullest rank, as in ``StepPrediction``.
    """

    rank_s: tuple[float, ...]
    oversubscribed: bool
    overlap: float
    group_s: Floats
    memory_bytes: float
    notes: tuple[str, ...]


def predicted_parts(
    work: StepWork, machine: Machine, *, prices: Prices | None = None, noise: Noise | None = None, threads: int = 1
) -> tuple[StepParts, StepSeconds, PartsDetails]:
    """The parts of one step and what they combine to; see ``predict``."""
    settings, layout = work.settings, work.layout
    _check(settings.dtype, machine)
    rates, turns, hidden, notes = filling(machine, layout.world_size, threads)
    chosen = prices or prices_for(machine, rates=rates, transport=settings.transport)
    control = HostPrices(machine, rates, "gloo") if isinstance(chosen, HostPrices) else chosen
    overlap, assumed = overlap_of(machine, rates, turns, layout.world_size)
    memory = fullest_memory(work, machine)
    transfers_s, of_memory = _transfers(memory, machine)
    given = Circumstances(
        rates=rates, prices=chosen, control=control, turns=turns, loader_hidden=hidden, transfers_s=transfers_s,
    )  # fmt: skip
    parts, rank_s, group_s = parts_of(work, given)
    unit_factor, slowest_factor, of_noise = _factors(layout, group_s, machine, noise)
    parts = dataclasses.replace(parts, unit_factor=np.array([unit_factor]), slowest_factor=np.array([slowest_factor]))
    details = PartsDetails(
        rank_s=rank_s, oversubscribed=turns < 1, overlap=overlap, group_s=group_s,
        memory_bytes=used_bytes(memory, machine),
        notes=tuple(dict.fromkeys((*notes, *assumed, *of_noise, *of_memory, *chosen.notes, *control.notes))),
    )  # fmt: skip
    return parts, combine(parts, overlap), details


def what_helps(
    work: StepWork, machine: Machine, *, prices: Prices | None = None, noise: Noise | None = None, threads: int = 1
) -> list[tuple[str, float]]:
    """What would make the step shorter, and its seconds then: each thing alone, the greatest help first.

    What is worked is twice as fast, what is sent or waited for costs nothing. Things that would change nothing are
    left out.
    """
    parts, seconds, details = predicted_parts(work, machine, prices=prices, noise=noise, threads=threads)
    changes = _remedies(parts, details.overlap)
    step_s = float(seconds.step_s[0])
    outcomes = [
        (what, float(combine(dataclasses.replace(parts, **values), overlap).step_s[0]))
        for what, overlap, values in changes
    ]
    helpful = [(what, seconds) for what, seconds in outcomes if seconds < step_s * (1 - 1e-6)]
    return sorted(helpful, key=lambda entry: entry[1])


def _remedies(parts: StepParts, overlap: float) -> list[tuple[str, float, dict[str, Floats]]]:
    """(what, overlap efficiency, parts that differ) of everything that is tried."""
    found: list[tuple[str, float, dict[str, Floats]]] = []
    for place, cause in enumerate(COMPUTE_CAUSES):
        faster = parts.compute_s.copy()
        faster[:, :, place] /= 2
        share = faster.sum(axis=2) / np.maximum(parts.compute_s.sum(axis=2), np.finfo(float).tiny)
        values = {"compute_s": faster, "unit_s": parts.unit_s * share, "slowest_s": parts.slowest_s * share}
        found.append((f"{cause}: twice as fast", overlap, values))
    for name in ("packing", "loader", "optimizer"):
        found.append((f"{name}: twice as fast", overlap, {f"{name}_s": getattr(parts, f"{name}_s") / 2}))
    for what, names in (
        ("gathers and reduce-scatters of sharded parameters: free",
         ("root_gather_s", "first_gather_s", "gathers_s", "scatters_s", "last_scatter_s")),
        ("halos and sums over graph groups: free", ("halos_s", "group_sums_s")),
        ("exchanges of experts: free", ("exchanges_s", "composition_s")),
        ("placing of experts: free", ("plan_s",)),
        ("sums of gradients over copies: free", ("sums_s", "last_sum_s")),
        ("small sums of losses and norm: free", ("control_s", "norm_s")),
        ("traffic of the second memory: free", ("transfers_s",)),
        ("work outside the phases: free", ("outside_s",)),
    ):  # fmt: skip
        found.append((what, overlap, {name: np.zeros_like(getattr(parts, name)) for name in names}))
    mean_s, one = parts.compute_s.sum(axis=2), np.ones_like(parts.turns)
    even = mean_s * (parts.slowest_s.sum(axis=1) / np.maximum(parts.unit_s.sum(axis=1), np.finfo(float).tiny))[:, None]
    found.append(("ranks of a unit: all alike", overlap, {"unit_s": mean_s, "slowest_s": even}))
    found.append(("units: all alike", overlap, {"slowest_s": parts.unit_s}))
    found.append(("noise of the ranks: none", overlap, {"unit_factor": one, "slowest_factor": one}))
    found.append(("overlap of communication and compute: perfect", 1.0, {}))
    return found


def _factors(layout: Layout, group_s: Floats, machine: Machine, noise: Noise | None) -> tuple[float, float, list[str]]:
    """Expected slowest rank of a coupled group, and of the job over its slowest group, with noise; and notes."""
    notes = []
    if noise is None:
        noise = Noise()
        if not machine.is_calibrated_host and layout.world_size > 1:
            noise = Noise(compute_deviation=ASSUMED_DEVIATION)
            notes = [f"assumed: a rank's compute deviates by {100 * ASSUMED_DEVIATION:g} % from step to step"]
    each = coupled_ranks(layout)
    unit_factor = expected_slowest(np.ones(1), each, noise) if each > 1 else 1.0
    most = float(group_s.max(initial=0.0))
    slowest = expected_slowest(group_s, each, noise) / most if most > 0 and layout.world_size > 1 else 1.0
    return unit_factor, slowest, notes


def _transfers(memory: MemoryPrediction, machine: Machine) -> tuple[float, list[str]]:
    """Seconds of a step's traffic with the second memory, and what is not known of it."""
    if not machine.second_memory_bytes_per_node:
        return 0.0, []
    moved_bytes = place_in_tiers(memory, machine).moved_bytes_per_step
    if machine.second_memory_bytes_per_s is None:
        unknown = "traffic of the second memory takes no time: its rate is not known"
        return 0.0, [unknown] if moved_bytes else []
    return moved_bytes / machine.second_memory_bytes_per_s, []


def _check(dtype: str, machine: Machine) -> None:
    if dtype not in ITEM_BYTES:
        raise UserError(f"dtype {dtype!r} is not known: use one of {', '.join(ITEM_BYTES)}")
    if dtype != "float32" and machine.is_calibrated_host:
        raise UserError(f"machine {machine.name!r} was calibrated in float32, not {dtype}: use float32")


def work_of_counts(
    model: ModelConfig,
    counts_per_rank: Sequence[Counts] | Sequence[Sequence[Counts]],
    layout: Layout,
    settings: RunSettings,
) -> StepWork:
    """The work of a data parallel step whose ranks have these counts, or these micro-batches.

    Raises UserError for a layout with a unit above 1, whose counts follow from a data set (``step_work``).
    """
    if not layout.is_pure_data_parallel:
        raise UserError(
            f"layout {layout.describe()} has a unit of {layout.unit} ranks: counts per rank are known for unit 1 "
            "(pure data parallel) only, so set the unit to 1 or predict it from a data set"
        )
    shares = [[entry] if isinstance(entry, Counts) else list(entry) for entry in counts_per_rank]
    assert len(shares) == layout.world_size, f"{len(shares)} ranks of counts, layout of {layout.world_size}"
    flops = [step_flops(model, total_counts(share), recompute=settings.recompute) for share in shares]
    return StepWork(
        model=model, layout=layout, settings=settings,
        ranks=tuple(_rank_of_counts(model, rank, share, layout, settings) for rank, share in enumerate(shares)),
        group_work=np.array([sum(counts.work for counts in share) for share in shares]),
        flops_model=sum(part.model_total for part in flops), flops_executed=sum(part.executed_total for part in flops),
    )  # fmt: skip


def _rank_of_counts(
    model: ModelConfig, rank: int, share: Sequence[Counts], layout: Layout, settings: RunSettings
) -> RankStep:
    number = float(experts_of(model).num_experts) if model.experts is not None else 0.0
    phases = {phase: PhaseWork() for phase in PHASES}
    for counts in share:
        done = phase_work(model, counts, recompute=settings.recompute, item_bytes=ITEM_BYTES[settings.dtype])
        for phase, part in done.items():
            phases[phase].add(part)
    sizes = [MicroBatchSizes(structures=math.ceil(counts.structures)) for counts in share]
    numel, tensors = kept_pieces(model, layout, rank, settings.expert_strategy)
    return RankStep(
        rank=rank, phases=phases, optimizer_numel=numel, optimizer_tensors=tensors,
        micro_batches=tuple(MicroBatchWork(counts=one, whole=one, experts_called=(number, number)) for one in share),
        traffic=tuple(step_traffic(model, layout, rank, sizes, settings_traffic(settings))),
    )  # fmt: skip


def predict_step(
    model: ModelConfig,
    counts_per_rank: Sequence[Counts] | Sequence[Sequence[Counts]],
    layout: Layout,
    machine: Machine,
    *,
    dtype: str = "float32",
    recompute: bool = False,
    threads: int = 1,
) -> StepPrediction:
    """Predict one data parallel training step from the counts of each rank, or of its micro-batches.

    Raises UserError for a layout, dtype or world size that the machine file does not cover.
    """
    _check(dtype, machine)
    settings = RunSettings(dtype=dtype, recompute=recompute)
    return predict(work_of_counts(model, counts_per_rank, layout, settings), machine, threads=threads)
