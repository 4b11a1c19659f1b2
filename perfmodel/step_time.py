"""Analytic time of one training step: phases and causes, from workload, machine, layout and per-rank counts.

It owns how seconds are put together; FLOPs and elements come from ``workload``, speeds from ``machine``, collectives
from ``collectives``, bytes from ``memory``. Layouts with a unit above 1 are priced in ``full_machine``.

seconds of a phase = stretch x (FLOPs / rate + product bytes / rate + fused elements x s) + plain bytes / rate
+ fresh bytes / rate (FE and FF) + launches x s + a fixed part.
The slowest rank decides; a phase's seconds are the mean over ranks, the mean wait for the slowest counts as sync,
so the phases add up to the step, as in the trainer's record.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from janus.config import ModelConfig
from janus.errors import UserError
from janus.layout import Layout
from perfmodel.collectives import Link, ring_all_reduce_s, two_level_all_reduce_s
from perfmodel.machine import Machine, Rates
from perfmodel.memory import activation_bytes, predict_memory
from perfmodel.operators import ARRAYS
from perfmodel.workload import (
    ITEM_BYTES,
    Counts,
    PhaseWork,
    gradient_bytes,
    parameter_tensors,
    phase_work,
    step_flops,
    total_counts,
)

PHASE_NAMES = ("data", "FE", "FF", "BF_BE", "sync", "optimizer")
COMPUTE_PHASES = {"FE": ("FE",), "FF": ("FF",), "BF_BE": ("BF", "BE")}
CAUSES = (
    "products",
    "operators",
    "plain traffic",
    "fresh memory",
    "launches",
    "loader",
    "communication",
    "wait",
    "optimizer",
)
BUCKET_BYTES = 25 * 1024 * 1024  # janus.train.config.ParallelConfig.bucket_bytes
SMALL_ALL_REDUCES = 3  # exit code, losses and the gradient norm's or counts' sum: a few numbers each
OPTIMIZER_PASSES = 12  # clip reads g twice; AdamW reads p g m v, writes p m v; the average reads 2 and writes 1


@dataclass(frozen=True, kw_only=True)
class StepPrediction:
    """One step of one layout. phase_s: mean over ranks, adding up to step_s; cause_s: the same seconds by cause.

    flops_model, flops_executed: of all ranks; memory_bytes: of the fullest rank; rank_s: compute of each rank;
    notes: what the prediction had to assume.
    """

    step_s: float
    phase_s: dict[str, float]
    cause_s: dict[str, float]
    rank_s: tuple[float, ...]
    memory_bytes: float
    flops_model: float
    flops_executed: float
    oversubscribed: bool
    notes: tuple[str, ...] = field(default=())


def _scaled(rates: Rates, factor: float, ranks: int) -> Rates:
    """The same rates when every rank gets 1/factor of them."""
    fused = rates.fused_s and {
        kind: {name: value * factor for name, value in passes.items()} for kind, passes in rates.fused_s.items()
    }
    return dataclasses.replace(
        rates, ranks=ranks, fused_s=fused,
        matmul_flops_per_s=rates.matmul_flops_per_s / factor, matmul_bytes_per_s=rates.matmul_bytes_per_s / factor,
        plain_bytes_per_s=rates.plain_bytes_per_s / factor, fresh_bytes_per_s=rates.fresh_bytes_per_s / factor,
        op_s=rates.op_s * factor, batch_s=rates.batch_s * factor,
        optimizer_bytes_per_s=rates.optimizer_bytes_per_s / factor,
        optimizer_tensor_s=rates.optimizer_tensor_s * factor, data_structure_s=rates.data_structure_s * factor,
        data_edge_s=rates.data_edge_s * factor, data_angle_s=rates.data_angle_s * factor,
        all_reduce_latency_s=None if rates.all_reduce_latency_s is None else rates.all_reduce_latency_s * factor,
        all_reduce_bytes_per_s=None if rates.all_reduce_bytes_per_s is None else rates.all_reduce_bytes_per_s / factor,
    )  # fmt: skip


def rates_for(machine: Machine, ranks_per_node: int, threads: int = 1) -> tuple[Rates, list[str]]:
    """The measured rates that fit this filling of a node, and what had to be assumed.

    A filling that was not measured takes the next fuller one (its contention is the safer guess); beyond the fullest,
    ranks share the cores in turn.
    """
    if not machine.is_calibrated_host:
        return machine.require_rates()[0], []
    same = sorted((rates for rates in machine.rates if rates.threads == threads), key=lambda rates: rates.ranks)
    notes = []
    if not same:
        same = sorted((rates for rates in machine.rates if rates.threads == 1), key=lambda rates: rates.ranks)
        notes.append(f"{threads} threads per rank were not calibrated: rates of 1 thread are used")
    assert same, f"{machine.name} has no rates of 1 thread"
    fuller = next((rates for rates in same if rates.ranks >= ranks_per_node), None)
    if fuller is not None:
        if fuller.ranks != ranks_per_node:
            notes.append(f"{ranks_per_node} ranks were not calibrated: rates of {fuller.ranks} ranks are used")
        return fuller, notes
    fullest = same[-1]
    cores = machine.devices_per_node
    factor = max(ranks_per_node * threads, cores) / max(fullest.ranks * threads, cores)
    if factor > 1:
        notes.append(f"{ranks_per_node} ranks share {cores} cores in turn: rates of {fullest.ranks} ranks / {factor:g}")
    return _scaled(fullest, factor, ranks_per_node), notes


def phase_seconds(parts: Sequence[PhaseWork], rates: Rates, item_bytes: int) -> dict[str, float]:
    """Seconds by cause of a phase that the trainer times as one: FE, FF, or BF and BE together."""
    work = PhaseWork()
    for part in parts:
        work.add(part)
    if rates.fused_s is None:  # not timed: memory traffic of its arrays
        operators_s = sum(
            elements * ARRAYS[kind][name] * item_bytes / rates.plain_bytes_per_s
            for kind, passes in work.fused.items() for name, elements in passes.items()
        )  # fmt: skip
    else:
        operators_s = sum(
            elements * rates.fused_s[kind][name] for kind, passes in work.fused.items()
            for name, elements in passes.items()
        )  # fmt: skip
    return {
        "products": rates.step_stretch
        * (work.flops / rates.matmul_flops_per_s + work.product_bytes / rates.matmul_bytes_per_s),
        "operators": rates.step_stretch * operators_s,
        "plain traffic": work.plain_bytes / rates.plain_bytes_per_s,
        "launches": work.launches * rates.op_s + rates.batch_s,
    }


def fresh_memory_bytes(model: ModelConfig, counts: Counts, *, recompute: bool, dtype: str) -> dict[str, float]:
    """Bytes that each phase keeps for the second backward: half by FE, half by FF, in pages touched anew."""
    kept = activation_bytes(model, counts, recompute=recompute, dtype=dtype)
    return {"FE": kept / 2, "FF": kept / 2, "BF_BE": 0.0}


def compute_seconds(
    model: ModelConfig, micro_batches: Sequence[Counts], rates: Rates, *, dtype: str, recompute: bool
) -> tuple[dict[str, float], dict[str, float]]:
    """Seconds of FE, FF and BF_BE of one rank, by phase and by cause, over its micro-batches."""
    phase_s, cause_s = dict.fromkeys(COMPUTE_PHASES, 0.0), dict.fromkeys(CAUSES, 0.0)
    item_bytes = ITEM_BYTES[dtype]
    for counts in micro_batches:
        work = phase_work(model, counts, recompute=recompute, item_bytes=item_bytes)
        fresh_bytes = fresh_memory_bytes(model, counts, recompute=recompute, dtype=dtype)
        for phase, parts in COMPUTE_PHASES.items():
            causes = phase_seconds([work[part] for part in parts], rates, item_bytes)
            causes["fresh memory"] = fresh_bytes[phase] / rates.fresh_bytes_per_s
            for cause, seconds in causes.items():
                phase_s[phase] += seconds
                cause_s[cause] += seconds
    return phase_s, cause_s


def loader_seconds(micro_batches: Sequence[Counts], rates: Rates) -> float:
    """Seconds to read structures and build graphs and batches, in the background thread of one rank."""
    total = total_counts(micro_batches)
    return (
        total.structures * rates.data_structure_s + total.edges * rates.data_edge_s + total.angles * rates.data_angle_s
    )


def gradient_sync_seconds(model: ModelConfig, world_size: int, machine: Machine, rates: Rates, *, dtype: str) -> float:
    """Seconds of the gradient all-reduce in buckets and of the few small ones; 0 for one rank."""
    if world_size == 1:
        return 0.0
    message_bytes = gradient_bytes(model, dtype)
    sizes = [BUCKET_BYTES] * int(message_bytes // BUCKET_BYTES) + [message_bytes % BUCKET_BYTES]
    sizes += [32.0] * SMALL_ALL_REDUCES
    flatten_s = 4 * message_bytes / rates.plain_bytes_per_s  # into the bucket and back: two reads, two writes
    return flatten_s + sum(all_reduce_seconds(world_size, size, machine, rates) for size in sizes if size > 0)


def all_reduce_seconds(world_size: int, message_bytes: float, machine: Machine, rates: Rates) -> float:
    """One all-reduce over the whole job. Raises UserError where the machine file has no links for it."""
    if machine.is_calibrated_host:
        if rates.all_reduce_latency_s is None or rates.all_reduce_bytes_per_s is None:
            raise UserError(
                f"machine {machine.name!r} has no all-reduce timings for {world_size} ranks: calibrate with mpiexec"
            )
        link = Link(latency_s=rates.all_reduce_latency_s, bytes_per_s=rates.all_reduce_bytes_per_s)
        return ring_all_reduce_s(link, world_size, message_bytes)
    inside, fabric = node_and_fabric_links(machine, ranks_per_node(machine, world_size))
    on_node = ranks_per_node(machine, world_size)
    return two_level_all_reduce_s(
        inside, fabric, ranks_per_node=on_node, num_nodes=math.ceil(world_size / on_node), message_bytes=message_bytes
    )


def ranks_per_node(machine: Machine, world_size: int) -> int:
    """All ranks on one calibrated host; one rank per device elsewhere."""
    return world_size if machine.is_calibrated_host else min(world_size, machine.devices_per_node)


def node_and_fabric_links(machine: Machine, on_node: int) -> tuple[Link, Link]:
    """One rank's link inside its node and its share of the node's NICs. Raises UserError where one is unknown."""
    network = machine.network
    names = ("node_latency_s", "node_bytes_per_s", "fabric_latency_s", "nic_bytes_per_s", "nics_per_node")
    values = {name: getattr(network, name) for name in names}
    for name, value in values.items():
        if value is None:
            raise UserError(f"machine {machine.name!r} has no network.{name}: add it to its file to span nodes")
    inside = Link(latency_s=values["node_latency_s"], bytes_per_s=values["node_bytes_per_s"])
    share = values["nic_bytes_per_s"] * values["nics_per_node"] / on_node
    return inside, Link(latency_s=values["fabric_latency_s"], bytes_per_s=share)


def _as_lists(counts_per_rank: Sequence[Counts] | Sequence[Sequence[Counts]]) -> list[list[Counts]]:
    return [[entry] if isinstance(entry, Counts) else list(entry) for entry in counts_per_rank]


def _check(layout: Layout, shares: Sequence[Sequence[Counts]], machine: Machine, dtype: str) -> None:
    if not layout.is_pure_data_parallel:
        raise UserError(
            f"layout {layout.describe()} has a unit of {layout.unit} ranks: this version prices steps of unit 1 "
            "(pure data parallel), so set the unit to 1"
        )
    if dtype not in ITEM_BYTES:
        raise UserError(f"dtype {dtype!r} is not known: use one of {', '.join(ITEM_BYTES)}")
    if dtype != "float32" and machine.is_calibrated_host:
        raise UserError(f"machine {machine.name!r} was calibrated in float32, not {dtype}: use float32")
    assert len(shares) == layout.world_size, f"{len(shares)} ranks of counts, layout of {layout.world_size}"


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
    """Predict one training step.

    counts_per_rank: per rank its counts, or the counts of its micro-batches; threads: per rank.
    Raises UserError for a layout, dtype or world size that the machine file does not cover.
    """
    shares = _as_lists(counts_per_rank)
    _check(layout, shares, machine, dtype)
    on_node = ranks_per_node(machine, layout.world_size)
    rates, notes = rates_for(machine, on_node, threads)
    hidden = 1.0
    if machine.is_calibrated_host:  # loader threads run on idle cores; on busy ones they slow the step down
        hidden = min(1.0, max(0.0, machine.devices_per_node / (on_node * threads) - 1))
    per_rank = [_rank_seconds(model, share, rates, dtype, recompute, hidden) for share in shares]
    optimizer_s = (
        OPTIMIZER_PASSES * gradient_bytes(model, dtype) / rates.optimizer_bytes_per_s
        + parameter_tensors(model) * rates.optimizer_tensor_s
    )
    sync_s = gradient_sync_seconds(model, layout.world_size, machine, rates, dtype=dtype)
    rank_s = tuple(sum(phases.values()) for phases, _ in per_rank)
    wait_s = max(rank_s) - sum(rank_s) / len(rank_s)
    phase_s = {phase: sum(phases[phase] for phases, _ in per_rank) / len(shares) for phase in ("data", *COMPUTE_PHASES)}
    phase_s |= {"sync": sync_s + wait_s, "optimizer": optimizer_s}
    cause_s = {cause: sum(causes[cause] for _, causes in per_rank) / len(shares) for cause in CAUSES}
    cause_s |= {"communication": sync_s, "wait": wait_s, "optimizer": optimizer_s}
    flops = [step_flops(model, total_counts(share), recompute=recompute) for share in shares]
    return StepPrediction(
        step_s=max(rank_s) + sync_s + optimizer_s,
        phase_s=phase_s,
        cause_s=cause_s,
        rank_s=rank_s,
        memory_bytes=max(
            predict_memory(model, share, recompute=recompute, dtype=dtype).total_bytes for share in shares
        ),
        flops_model=sum(part.model_total for part in flops),
        flops_executed=sum(part.executed_total for part in flops),
        oversubscribed=machine.is_calibrated_host and on_node * threads > machine.devices_per_node,
        notes=tuple(notes),
    )


def _rank_seconds(
    model: ModelConfig, share: Sequence[Counts], rates: Rates, dtype: str, recompute: bool, hidden: float
) -> tuple[dict[str, float], dict[str, float]]:
    """Phases and causes of one rank before synchronisation; the loader's unhidden work stretches the phases."""
    phase_s, cause_s = compute_seconds(model, share, rates, dtype=dtype, recompute=recompute)
    loader_s = loader_seconds(share, rates)
    compute_s = sum(phase_s.values())
    stolen_s = (1 - hidden) * loader_s
    stretch = 1 + stolen_s / compute_s if compute_s > 0 else 1.0
    phase_s = {phase: seconds * stretch for phase, seconds in phase_s.items()}
    late_s = max(0.0, loader_s * hidden - compute_s)  # the next batch is not ready when the step is done
    cause_s["loader"] += stolen_s + late_s
    return {"data": late_s, **phase_s}, cause_s
