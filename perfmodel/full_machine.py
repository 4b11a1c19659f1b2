"""Weak scaling of a MatRIS-MoE on a full machine under FS-3D, predicted: a first analytic version.

It owns the FS-3D step (unit of 8 ranks that shards parameters, graph and experts; replicas by data parallelism) and
the list of what it assumes. It does not own topology, discrete events or expert placement; they come later.
Nothing here is fitted to published results; ``PUBLISHED`` is there to be set beside the prediction.

Per unit and step, n ranks in the unit, d width, P parameters:
    compute      step_flops of the unit's batch, shared evenly by graph partition, times (1 + imbalance)
    FSDP         4 all-gathers and 1 reduce-scatter of the parameters outside the routed experts
                 (facts: measured 3.5 to 3.9 P all-gather in a second-order step; 4 in the limit)
    FSEP         dispatch and combine all-to-all of k copies of every token's d channels, forward, x 4 for the step
    FSGP         all-gather of the atoms' features per block, forward, x 4
    replicas     all-reduce over units of the P/n gradients that each rank holds
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from janus.config import ModelConfig
from janus.errors import UserError
from janus.layout import Layout
from janus.presets import preset
from perfmodel.collectives import Link, pairwise_all_to_all_s, ring_all_gather_s, ring_reduce_scatter_s
from perfmodel.collectives import tree_all_reduce_s as halving_all_reduce_s
from perfmodel.machine import Machine, load_machine
from perfmodel.memory import activation_bytes, states_bytes
from perfmodel.step_time import OPTIMIZER_PASSES, compute_seconds, node_and_fabric_links
from perfmodel.workload import Counts, gradient_bytes, parameter_counts, parameter_tensors, step_flops
from perfmodel.workload_moe import experts_of

SECOND_ORDER_VOLUME = 4.0  # measured: a collective's bytes in a second-order step over its forward (facts, section 2)

MEAN_CONFIGURATION = Counts(structures=1, atoms=110, edges=7611, bonds=2700, angles=64000)  # edges: published

PUBLISHED = {
    "source": "arXiv 2604.15821, second-hand: MatRIS-MoE-L on LineShine, full machine",
    "peak_eflops": 1.2, "percent_of_fp32_peak": 24.41, "weak_efficiency_percent": 90.3, "step_s": 8.14,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class FullMachineAssumptions:
    """What nobody published, as numbers that can be changed. ``describe`` lists them with their reasons."""

    unit: int = 8
    counts_per_unit: Counts = MEAN_CONFIGURATION
    unit_imbalance: float = 0.05
    replica_deviation: float = 0.02
    gradient_overlap: float = 0.8
    gather_overlap: float = 0.8
    all_to_all_overlap: float = 0.0
    all_to_all_item_bytes: int = 2
    recompute: bool | None = None  # None: only if the step does not fit in a rank's memory without
    dtype: str = "float32"

    def describe(self) -> list[str]:
        """Every assumption in words."""
        counts = self.counts_per_unit
        return [
            f"assumed: a unit is {self.unit} ranks, one per NUMA domain of one CPU (the paper says 8 devices)",
            f"assumed: a unit works on {counts.structures:g} configuration of {counts.edges:,.0f} directed edges "
            "per step (mean of the published 473 M configurations and 3.6 trillion edges); the batch per unit is not "
            "published",
            f"assumed: {counts.atoms:,.0f} atoms, {counts.bonds:,.0f} bonds and {counts.angles:,.0f} angles go with "
            "them",
            f"assumed: the fullest rank of a unit has {100 * self.unit_imbalance:g} % more work than the mean",
            f"assumed: units' work is normal with a deviation of {100 * self.replica_deviation:g} %; the "
            "slowest of n is deviation x sqrt(2 ln n) above the mean",
            f"assumed: {100 * self.gradient_overlap:g} % of BF and BE can hide the gradient all-reduce, a tenth stays",
            f"assumed: {100 * self.gather_overlap:g} % of the parameter gathers are prefetched behind compute",
            f"assumed: {100 * self.all_to_all_overlap:g} % of the expert all-to-all is hidden",
            f"assumed: all-to-all in {8 * self.all_to_all_item_bytes} bits (published: FP16 compression of its volume)",
            "assumed: experts stay on their owners and tokens move, every expert equally loaded",
            "assumed: a full-bisection fabric without taper; LingQi's taper and radix are not published",
            f"assumed: {'with' if self.recompute else 'no'} activation recompute (chosen by memory unless "
            "given); states and activations use HBM and DDR, their transfers hidden",
            "assumed: no moving average of the weights is kept",
            "not modelled: start-up, I/O, noise, failures, partition of angles across cuts, second-order halo of edges",
        ]


@dataclass(frozen=True, kw_only=True)
class FullMachinePoint:
    """One point of the weak-scaling line. phase_s adds up to step_s; efficiency is against the first point."""

    units: int
    ranks: int
    nodes: int
    layout: Layout
    counts: Counts
    step_s: float
    phase_s: dict[str, float]
    flops_model: float
    flops_executed: float
    eflops: float
    percent_of_peak: float | None
    efficiency: float
    memory_bytes: float


@dataclass(frozen=True, kw_only=True)
class FullMachineStudy:
    """The predicted line, what was assumed, and the published values to compare with in text."""

    machine: Machine
    model: ModelConfig
    points: tuple[FullMachinePoint, ...]
    assumptions: tuple[str, ...]


def default_units(machine: Machine, unit: int) -> list[int]:
    """Numbers of units from 1 to the full machine, by factors of four."""
    most = machine.nodes * machine.devices_per_node // unit
    units = [4**power for power in range(20) if 4**power < most]
    return [*units, most]


def _unit_seconds(
    model: ModelConfig, machine: Machine, given: FullMachineAssumptions, inside: Link
) -> dict[str, float]:
    """Seconds per phase of one unit alone: compute of its fullest rank, and the exposed collectives in the unit."""
    n = given.unit
    share = given.counts_per_unit.scaled((1 + given.unit_imbalance) / n)
    compute_s, _ = compute_seconds(model, [share], machine.rates[0], dtype=given.dtype, recompute=bool(given.recompute))
    experts = experts_of(model)
    item_bytes = 4.0
    dense_bytes = item_bytes * _parameters_outside_experts(model)
    gather_s = ring_all_gather_s(inside, n, dense_bytes) * (1 - given.gather_overlap)
    tokens = (given.counts_per_unit.edges + given.counts_per_unit.atoms) / n
    moved = tokens * experts.top_k * model.width * given.all_to_all_item_bytes
    exchange_s = model.num_blocks * 2 * pairwise_all_to_all_s(inside, n, moved) * (1 - given.all_to_all_overlap)
    halo_s = model.num_blocks * ring_all_gather_s(inside, n, given.counts_per_unit.atoms * model.width * item_bytes)
    forward_s = gather_s + exchange_s + halo_s
    return {
        "FE": compute_s["FE"] + forward_s,
        "FF": compute_s["FF"] + forward_s,
        "BF_BE": compute_s["BF_BE"] + (SECOND_ORDER_VOLUME - 2) * forward_s,
        "sync": ring_reduce_scatter_s(inside, n, dense_bytes) * (1 - given.gather_overlap),
    }


def _parameters_outside_experts(model: ModelConfig) -> int:
    counts = parameter_counts(model)
    return counts.total - counts.parts["message_experts"] - counts.parts["feature_experts"]


def _gradient_sync_s(
    model: ModelConfig, given: FullMachineAssumptions, units: int, ranks_on_node: int, inside: Link, fabric: Link
) -> float:
    """All-reduce of a rank's shard of the gradients over all units: inside the node first, then between nodes."""
    shard_bytes = gradient_bytes(model, given.dtype) / given.unit
    on_node = max(1, min(units, ranks_on_node // given.unit))
    nodes = math.ceil(units / on_node)
    inside_s = 2 * ring_all_gather_s(inside, on_node, shard_bytes)
    return inside_s + halving_all_reduce_s(fabric, nodes, shard_bytes / on_node)


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
    machine = machine or load_machine("lineshine")
    model = model or preset("matris-moe-l")
    given = given or FullMachineAssumptions()
    if model.experts is None:
        raise UserError("the full-machine prediction is of a mixture of experts: use a matris-moe model")
    if machine.is_calibrated_host:
        raise UserError(f"machine {machine.name!r} is one calibrated host: use a machine of the catalogue")
    machine.require_rates()
    most = machine.nodes * machine.devices_per_node // given.unit
    chosen = list(units) if units is not None else default_units(machine, given.unit)
    if not chosen or min(chosen) < 1 or max(chosen) > most:
        raise UserError(f"units {chosen}: {machine.name} holds from 1 to {most} units of {given.unit} ranks")
    if given.recompute is None:
        rank_bytes = machine.memory_bytes_per_node + machine.second_memory_bytes_per_node
        plain = replace(given, recompute=False)
        fits = rank_memory_bytes(model, plain) <= rank_bytes / machine.devices_per_node
        given = replace(given, recompute=not fits)
    points: list[FullMachinePoint] = []
    for number in chosen:
        points.append(_point(model, machine, given, number, points[0] if points else None))
    return FullMachineStudy(
        machine=machine, model=model, points=tuple(points),
        assumptions=(*given.describe(), *(f"{name}: {text}" for name, text in machine.assumptions().items())),
    )  # fmt: skip


def rank_memory_bytes(model: ModelConfig, given: FullMachineAssumptions) -> float:
    """Bytes of one rank: its shard of the states, and the activations of its part of the unit's batch."""
    share = given.counts_per_unit.scaled(1 / given.unit)
    activations = activation_bytes(model, share, recompute=bool(given.recompute), dtype=given.dtype)
    return states_bytes(model, given.dtype, average=False) / given.unit + activations


def _point(
    model: ModelConfig, machine: Machine, given: FullMachineAssumptions, units: int, first: FullMachinePoint | None
) -> FullMachinePoint:
    ranks = units * given.unit
    on_node = min(ranks, machine.devices_per_node)
    # a rank's share of the NICs when its node is full; fewer ranks on a node do not get more than that here
    inside, fabric = node_and_fabric_links(machine, machine.devices_per_node)
    phase_s = _unit_seconds(model, machine, given, inside)
    straggle = given.replica_deviation * math.sqrt(2 * math.log(units)) if units > 1 else 0.0
    wait_s = straggle * (phase_s["FE"] + phase_s["FF"] + phase_s["BF_BE"])
    sync_s = _gradient_sync_s(model, given, units, on_node, inside, fabric)
    exposed_s = max(0.1 * sync_s, sync_s - given.gradient_overlap * phase_s["BF_BE"])
    rates = machine.rates[0]
    optimizer_s = (
        OPTIMIZER_PASSES * gradient_bytes(model, given.dtype) / given.unit / rates.optimizer_bytes_per_s
        + parameter_tensors(model) * rates.optimizer_tensor_s
    )
    phase_s = {"data": 0.0, **phase_s, "sync": phase_s["sync"] + wait_s + exposed_s, "optimizer": optimizer_s}
    step_s = sum(phase_s.values())
    flops = step_flops(model, given.counts_per_unit, recompute=bool(given.recompute))
    total_flops = flops.model_total * units
    peak = machine.peak(given.dtype)
    return FullMachinePoint(
        units=units, ranks=ranks, nodes=math.ceil(ranks / machine.devices_per_node),
        layout=Layout(unit=given.unit, replicas=units, shard_degree=given.unit, graph_degree=given.unit,
                      expert_degree=given.unit),
        counts=given.counts_per_unit.scaled(units), step_s=step_s, phase_s=phase_s,
        flops_model=total_flops, flops_executed=flops.executed_total * units, eflops=total_flops / step_s / 1e18,
        percent_of_peak=None if peak is None else 100 * total_flops / step_s / (ranks * peak.flops_per_s),
        efficiency=1.0 if first is None else first.step_s / step_s, memory_bytes=rank_memory_bytes(model, given),
    )  # fmt: skip
