"""Predicted records: the same cells and the same schema, with times from perfmodel instead of a run.

It owns turning a prediction into a record; it does not own how a time is predicted (``perfmodel``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from janus.config import to_mapping
from janus.errors import UserError
from janus.train.config import train_config
from perfmodel.compute_time import AVERAGE_PASSES, CLIP_PASSES, OPTIMIZER_PASSES
from perfmodel.machine import Machine
from perfmodel.memory import fullest_memory
from perfmodel.memory_tiers import used_bytes
from perfmodel.products import RowKind
from perfmodel.run_validation import settings_of
from perfmodel.start_up import start_up_seconds
from perfmodel.step_time import StepPrediction, predict
from perfmodel.step_work import RunSettings, StepWork, step_work
from perfmodel.workload import ITEM_BYTES
from scaling_studies.cells import Cell, identity
from scaling_studies.limits import ceilings_of, peak_of, rank_memory_bytes
from scaling_studies.records import DONE, FAILED, MEMORY_LIMIT, PREDICTED, PhaseWorkload, Record

__all__ = [
    "cell_settings", "cell_work", "expert_rows", "phase_workload", "predicted_record",
    "predicted_records", "record_of_step",
]  # fmt: skip

METHOD = "perfmodel, analytic step time"
MOST_RANKS_WHOLE = 64  # of a job of which the work of every unit is worked out; else of the extreme ones
REPRESENTED = 2
ROUTED_ROWS: tuple[RowKind, ...] = ("message_copies", "feature_copies")
RECORDED_PHASE = {"FE": "FE", "FF": "FF", "BF": "BF_BE", "BE": "BF_BE"}


def cell_settings(cell: Cell) -> RunSettings:
    """How the trainer runs the steps of a cell, its defaults included."""
    return settings_of(to_mapping(train_config({"model": cell.study.model, **cell.train_settings})))


def cell_work(cell: Cell) -> StepWork:
    """What the ranks of a cell do in one step; of large jobs the heaviest and the lightest unit stand for all."""
    represented = None if cell.ranks <= MOST_RANKS_WHOLE else REPRESENTED
    return step_work(
        cell.study.model_config, cell.data, cell.indices, cell.layout, cell_settings(cell), represented=represented
    )


def phase_workload(work: StepWork) -> dict[str, PhaseWorkload]:
    """Phase as the trainer records it -> executed FLOPs and bytes of memory moved in one step, all ranks together."""
    item_bytes = ITEM_BYTES[work.settings.dtype]
    flops = dict.fromkeys(RECORDED_PHASE.values(), 0.0)
    moved = dict(flops)
    for rank in work.ranks:
        for phase, done in rank.phases.items():
            flops[RECORDED_PHASE[phase]] += done.all_flops
            moved[RECORDED_PHASE[phase]] += done.all_bytes(item_bytes)
    scale = work.flops_executed / total if (total := sum(flops.values())) else 1.0
    found = {
        phase: PhaseWorkload(flops=float(scale * flops[phase]), bytes=float(scale * moved[phase])) for phase in flops
    }
    settings = work.settings
    passes = OPTIMIZER_PASSES - CLIP_PASSES * (not settings.clips) - AVERAGE_PASSES * (not settings.averages)
    numel = sum(rank.optimizer_numel for rank in work.ranks) * work.layout.world_size / len(work.ranks)
    return found | {"optimizer": PhaseWorkload(flops=0.0, bytes=float(passes * numel * item_bytes))}


def expert_rows(work: StepWork) -> tuple[float, ...]:
    """Rows that the routed experts of each rank work on in one step; empty without experts or where ranks stand for
    others."""
    experts = work.model.experts
    if experts is None or len(work.ranks) < work.layout.world_size:
        return ()
    return tuple(
        float(work.model.num_blocks * sum(
            batch.counts.rows(kind, experts.top_k) for batch in rank.micro_batches for kind in ROUTED_ROWS
        ))
        for rank in work.ranks
    )  # fmt: skip


def memory_parts(work: StepWork, machine: Machine) -> tuple[int, dict[str, float]]:
    """Bytes of the fullest rank, and of what; what the C library keeps of freed memory is a part of its own."""
    memory = fullest_memory(work, machine)
    used = used_bytes(memory, machine)
    parts = {"process": memory.base_bytes, **memory.cause_bytes}
    parts["kept by the allocator"] = used - sum(parts.values())
    return int(used), {name: size for name, size in parts.items() if size > 0}


def record_of_step(
    shared: dict[str, Any], step: StepPrediction, work: StepWork, machine: Machine, *, steps: int, threads: int = 1
) -> Record:
    """A record from a predicted step. shared: who it is about, and facts. steps: of the whole run, warm-up included.

    wall_s: start-up and loop, None where the start-up is not known.
    """
    ranks, loop_s = work.layout.world_size, steps * step.step_s
    start_up_s, _ = start_up_seconds(machine, ranks)
    memory_bytes, parts = memory_parts(work, machine)
    return Record(
        **shared, source=PREDICTED, state=DONE, machine=machine.name, layout=dict(work.layout.to_mapping()),
        step_s=(step.step_s,), phase_s={phase: (seconds,) for phase, seconds in step.phase_s.items()},
        phase_cause_s=step.phase_cause_s, start_up_s=start_up_s, loop_s=loop_s,
        wall_s=None if start_up_s is None else start_up_s + loop_s,
        model_flops=work.flops_model, executed_flops=work.flops_executed, workload=phase_workload(work),
        peak=peak_of(machine, work.settings.dtype, ranks, threads), ceilings=ceilings_of(machine, ranks, threads),
        memory_bytes=memory_bytes, memory_parts=parts, expert_rows_per_rank=expert_rows(work),
        oversubscribed=step.oversubscribed,
    )  # fmt: skip


def predicted_record(cell: Cell, machine: Machine) -> Record:
    """The predicted record of a cell; FAILED with the reason where the machine file does not allow a prediction."""
    study, threads = cell.study, cell.executor.threads
    shared: dict[str, Any] = {**identity(cell), "method": METHOD, "counts_per_rank": cell.counts_per_rank}
    try:
        work = cell_work(cell)
        step = predict(work, machine, threads=threads)
    except UserError as error:
        return Record(**shared, source=PREDICTED, machine=machine.name, layout=dict(cell.layout.to_mapping()),
                      state=FAILED, reason=str(error))  # fmt: skip
    assumptions = [f"{name}: {text}" for name, text in machine.assumptions().items()] + list(step.notes)
    ranks_on_node = min(cell.ranks, cell.executor.ranks_per_node or cell.ranks)
    shared["facts"] = {
        "threads per rank": threads, MEMORY_LIMIT: rank_memory_bytes(machine, ranks_on_node),
        "assumptions": assumptions,
    }  # fmt: skip
    return record_of_step(shared, step, work, machine, steps=study.warm_up_steps + study.steps, threads=threads)


def predicted_records(
    cells: Sequence[Cell], machine: Machine, on_cell: Callable[[Cell], None] = lambda cell: None
) -> list[Record]:
    """One record per cell. on_cell: told which is done (progress bars)."""
    records = []
    for cell in cells:
        records.append(predicted_record(cell, machine))
        on_cell(cell)
    return records
