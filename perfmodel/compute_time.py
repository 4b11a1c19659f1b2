"""Seconds that a rank computes: work of a phase times what the calibrated rates say each part of it costs, by cause.

It owns that product. FLOPs, bytes, elements and launches come from ``workload``, speeds from ``machine``. It does not
own communication (``prices``) nor how compute and communication make a step (``step_time``).

    seconds of a phase = stretch x (FLOPs / rate + product bytes / rate + grouped FLOPs / rate + grouped bytes / rate
                         + sum over kinds and passes of elements x s) + plain bytes / rate + fresh bytes / rate
                         + launches x s + grouped calls x s + a fixed part per micro-batch

Every term is linear in the work, and the work is affine in the rows of a micro-batch. So seconds of many micro-batches
are one matrix product: rows [M,R] @ coefficients [R,4,K] (``second_coefficients``), K causes.

Legend: M micro-batches, R kinds of rows (``ROWS``), F features of work (``FEATURES``), K causes (``COMPUTE_CAUSES``),
4 phases FE, FF, BF, BE.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from janus.config import ModelConfig
from perfmodel.live_rows import live_rows, row_vector
from perfmodel.machine import Machine, Rates
from perfmodel.model_rates import rates_of_model, scaled
from perfmodel.operators import ARRAYS, FUSED_KINDS, PASS_NAMES
from perfmodel.products import PHASES, Counts
from perfmodel.workload import ITEM_BYTES, PhaseWork, phase_work
from perfmodel.workload_moe import experts_of

Floats = NDArray[np.float64]

COMPUTE_PHASES = {"FE": ("FE",), "FF": ("FF",), "BF_BE": ("BF", "BE")}  # as the trainer times them
COMPUTE_CAUSES = ("products", "grouped products", "operators", "plain traffic", "fresh memory", "launches", "batch")
_FUSED = tuple((kind, name) for kind in FUSED_KINDS for name in PASS_NAMES)
FEATURES = (
    "flops", "product_bytes", "grouped_flops", "grouped_bytes", "grouped_calls",
    *(f"{kind}.{name}" for kind, name in _FUSED), "plain_bytes", "fresh_bytes", "launches", "batches",
)  # fmt: skip
ROWS = ("once", *(field.name for field in fields(Counts)))
_OPTIONAL_ROWS = ("message_copies", "feature_copies", "message_experts", "feature_experts")
# of the fixed part of a timed phase: BF_BE is one
BATCH_SHARE = {"FE": 1.0, "FF": 1.0, "BF": 0.5, "BE": 0.5}
OPTIMIZER_PASSES = 12  # clip reads g twice; AdamW reads p g m v, writes p m v; the average reads 2 and writes 1
CLIP_PASSES, AVERAGE_PASSES = 1, 3  # of these: the second reading of g, and the average
# Dividing a micro-batch and cutting out a part takes a little less than building its graph (docs/parallel.md)
DIVIDING_OVER_BUILDING = 0.8


def features_of(work: PhaseWork, *, fresh_bytes: float = 0.0, batches: float = 0.0) -> Floats:
    """The features [F] of a phase's work."""
    fused = [work.fused[kind][name] for kind, name in _FUSED]
    return np.array([
        work.flops, work.product_bytes, work.grouped_flops, work.grouped_bytes, work.grouped_calls, *fused,
        work.plain_bytes, fresh_bytes, work.launches, batches,
    ])  # fmt: skip


def feature_costs(rates: Rates, item_bytes: int) -> Floats:
    """Seconds per unit of every feature, in the column of its cause [F,K].

    Fused operators that were not timed cost the traffic of their arrays; grouped products that were not, what plain
    products and launches cost.
    """
    stretch = rates.step_stretch
    grouped_call_s = rates.op_s if rates.grouped_call_s is None else rates.grouped_call_s
    entries = {
        "flops": ("products", stretch / rates.matmul_flops_per_s),
        "product_bytes": ("products", stretch / rates.matmul_bytes_per_s),
        "grouped_flops": ("grouped products", stretch / (rates.grouped_flops_per_s or rates.matmul_flops_per_s)),
        "grouped_bytes": ("grouped products", stretch / rates.matmul_bytes_per_s),
        "grouped_calls": ("grouped products", grouped_call_s),
        "plain_bytes": ("plain traffic", 1 / rates.plain_bytes_per_s),
        "fresh_bytes": ("fresh memory", 1 / rates.fresh_bytes_per_s),
        "launches": ("launches", rates.op_s),
        "batches": ("batch", rates.batch_s),
    }
    for kind, name in _FUSED:
        if rates.fused_s is None:
            element_s = ARRAYS[kind][name] * item_bytes / rates.plain_bytes_per_s
        else:
            element_s = rates.fused_s[kind][name]
        entries[f"{kind}.{name}"] = ("operators", stretch * element_s)
    costs = np.zeros((len(FEATURES), len(COMPUTE_CAUSES)))
    for number, feature in enumerate(FEATURES):
        cause, seconds = entries[feature]
        costs[number, COMPUTE_CAUSES.index(cause)] = seconds
    return costs


def _unit_counts(row: str | None) -> Counts:
    """Counts that are 0 but for one kind of rows."""
    values = dict.fromkeys((field.name for field in fields(Counts)), 0.0)
    return Counts(**values if row is None else values | {row: 1.0})


def _features_of_counts(model: ModelConfig, counts: Counts, dtype: str, recompute: bool) -> Floats:
    """[4,F] of one micro-batch, its fixed part not counted."""
    work = phase_work(model, counts, recompute=recompute, item_bytes=ITEM_BYTES[dtype])
    fresh = _fresh_bytes(model, counts, dtype, recompute)
    return np.stack([features_of(work[phase], fresh_bytes=fresh.get(phase, 0.0)) for phase in PHASES])


def _fresh_bytes(model: ModelConfig, counts: Counts, dtype: str, recompute: bool) -> dict[str, float]:
    """Bytes that FE and FF keep for the second backward, in pages touched anew."""
    live, rows = live_rows(model, recompute=recompute), row_vector(model, counts)
    after_energies, after_forces = live.after_energies @ rows, live.after_forces @ rows
    item_bytes = ITEM_BYTES[dtype]
    return {"FE": item_bytes * float(after_energies), "FF": item_bytes * float(after_forces - after_energies)}


@lru_cache(maxsize=64)
def work_coefficients(model: ModelConfig, *, dtype: str, recompute: bool) -> Floats:
    """Features of a micro-batch per row of every kind, and per micro-batch ("once"), [R,4,F]; not to be written to.

    ``phase_work`` of counts that are 0 but for one 1: exact, because it is affine in them (a test holds it to that).
    """
    fixed = _features_of_counts(model, _unit_counts(None), dtype, recompute)
    result = np.empty((len(ROWS), *fixed.shape))
    for number, row in enumerate(ROWS):
        if row == "once":
            result[number] = fixed
            result[number, :, FEATURES.index("batches")] = [BATCH_SHARE[phase] for phase in PHASES]
        else:
            result[number] = _features_of_counts(model, _unit_counts(row), dtype, recompute) - fixed
    result.flags.writeable = False
    return result


def row_matrix(model: ModelConfig, micro_batches: Sequence[Counts]) -> Floats:
    """Rows of every kind of each micro-batch [M,R]; None: as where experts are not spread."""
    result = np.zeros((len(micro_batches), len(ROWS)))
    for number, counts in enumerate(micro_batches):
        whole = dict.fromkeys(_OPTIONAL_ROWS, 0.0)
        if model.experts is not None:
            experts = experts_of(model)
            whole = {
                "message_copies": counts.edges * experts.top_k, "feature_copies": counts.atoms * experts.top_k,
                "message_experts": float(experts.num_experts), "feature_experts": float(experts.num_experts),
            }  # fmt: skip
        for place, row in enumerate(ROWS):
            value = 1.0 if row == "once" else getattr(counts, row)
            result[number, place] = whole[row] if value is None else value
    return result


def fresh_memory_bytes(model: ModelConfig, counts: Counts, *, recompute: bool, dtype: str) -> dict[str, float]:
    """Bytes that each timed phase keeps for the second backward, in pages touched anew (``live_rows``)."""
    return {"BF_BE": 0.0, **_fresh_bytes(model, counts, dtype, recompute)}


def second_coefficients(model: ModelConfig, rates: Rates, *, dtype: str, recompute: bool) -> Floats:
    """Seconds of a micro-batch by phase and cause, per row of every kind and per micro-batch [R,4,K]."""
    costs = feature_costs(rates_of_model(rates, model), ITEM_BYTES[dtype])
    return work_coefficients(model, dtype=dtype, recompute=recompute) @ costs


def batch_seconds(
    model: ModelConfig, micro_batches: Sequence[Counts], rates: Rates, *, dtype: str, recompute: bool
) -> Floats:
    """Seconds of each micro-batch by phase and cause [M,4,K]."""
    coefficients = second_coefficients(model, rates, dtype=dtype, recompute=recompute)
    return np.tensordot(row_matrix(model, micro_batches), coefficients, axes=1)


def compute_seconds(
    model: ModelConfig, micro_batches: Sequence[Counts], rates: Rates, *, dtype: str, recompute: bool
) -> tuple[dict[str, float], dict[str, float]]:
    """Seconds of FE, FF and BF_BE of one rank, by phase and by cause, over its micro-batches."""
    seconds = batch_seconds(model, micro_batches, rates, dtype=dtype, recompute=recompute).sum(axis=0)
    places = {phase: [PHASES.index(part) for part in parts] for phase, parts in COMPUTE_PHASES.items()}
    phase_s = {phase: float(seconds[place].sum()) for phase, place in places.items()}
    return phase_s, dict(zip(COMPUTE_CAUSES, seconds.sum(axis=0).tolist(), strict=True))


def loader_seconds(micro_batches: Sequence[Counts], rates: Rates, *, divided: bool = False) -> float:
    """Seconds to read structures and build graphs and batches, in the background thread of one rank.

    micro_batches: whole ones; divided: each is then divided over a graph group and this rank's part cut out.
    """
    structures, edges, angles = (
        sum(getattr(counts, name) for counts in micro_batches) for name in ("structures", "edges", "angles")
    )
    build_s = structures * rates.data_structure_s + edges * rates.data_edge_s + angles * rates.data_angle_s
    return build_s * (1 + DIVIDING_OVER_BUILDING) if divided else build_s


def optimizer_seconds(
    numel: float, tensors: float, rates: Rates, *, dtype: str, clips: bool = True, averages: bool = True
) -> float:
    """Seconds of the gradient's norm, clipping, AdamW and the average, of the pieces that a rank keeps."""
    passes = OPTIMIZER_PASSES - CLIP_PASSES * (not clips) - AVERAGE_PASSES * (not averages)
    return passes * numel * ITEM_BYTES[dtype] / rates.optimizer_bytes_per_s + tensors * rates.optimizer_tensor_s


def scaled_rates(rates: Rates, factor: float, ranks: int) -> Rates:
    """The same rates when every rank gets 1/factor of the machine: all seconds are factor times as many."""
    changed = {field.name: scaled(getattr(rates, field.name), field.name, factor) for field in fields(Rates)}
    return replace(rates, **(changed | {"ranks": ranks}))  # type: ignore[arg-type]


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
    return scaled_rates(fullest, factor, ranks_per_node), notes


def ranks_per_node(machine: Machine, world_size: int) -> int:
    """All ranks on one calibrated host; one rank per device elsewhere."""
    return world_size if machine.is_calibrated_host else min(world_size, machine.devices_per_node)
