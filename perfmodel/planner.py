"""Picks how to run a job before it starts: enumerates candidates, memory first, then time; says why the others lost.

It owns the search and the plan file's content; times come from ``step_time``, bytes from ``memory``. Candidates here:
the work cap of a micro-batch and recompute on or off for pure data parallelism; layouts with a unit above 1 are
listed with the reason that they cannot run yet. Global batches are sampled and packed exactly as the trainer does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from janus.config import ModelConfig, to_mapping
from janus.errors import UserError
from janus.layout import Layout, layouts_of
from perfmodel.dataset import DataCounts, sample_batches, share_out
from perfmodel.host import require_calibrated_here
from perfmodel.machine import Machine
from perfmodel.step_time import PHASE_NAMES, StepPrediction, predict_step, ranks_per_node
from perfmodel.workload import parameter_counts

SCHEMA = "janus.plan/1"
WORK_CAPS: tuple[int | None, ...] = (None, 400_000, 200_000, 100_000, 50_000, 25_000)
NO_CAP = 2**62  # in a plan file: TOML, into which the trainer resolves it, has no null
MEMORY_RESERVE = 0.1  # assumed: share of the memory left to the operating system and to prediction errors
NOT_YET = "not predicted yet: it trains, but steps are predicted for data parallel (unit 1) only"


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to plan for. memory_bytes: per rank, None: what the machine has per rank less the reserve."""

    model: ModelConfig
    model_name: str | None
    world_size: int
    global_batch: int
    dtype: str = "float32"
    seed: int = 0
    num_batches: int = 8
    memory_bytes: float | None = None


@dataclass(kw_only=True)
class Candidate:
    """One way to run the job: layout, work cap and recompute, what is predicted, and the verdict on it."""

    layout: Layout
    max_work: int | None = None
    recompute: bool = False
    micro_batches: float = 0.0
    step_s: float | None = None
    memory_bytes: float | None = None
    prediction: StepPrediction | None = None
    verdict: str = ""

    def to_mapping(self) -> dict[str, Any]:
        return {
            "layout": self.layout.to_mapping(), "max_work": self.max_work, "recompute": self.recompute,
            "micro_batches_per_step": self.micro_batches, "step_s": self.step_s, "memory_bytes": self.memory_bytes,
            "verdict": self.verdict,
        }  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The chosen candidate first among all considered, and the notes of its prediction."""

    request: Request
    machine: Machine
    data: DataCounts
    chosen: Candidate
    considered: list[Candidate]
    memory_limit_bytes: float
    notes: tuple[str, ...] = field(default=())


def memory_limit(request: Request, machine: Machine) -> float:
    """Bytes one rank may use."""
    if request.memory_bytes is not None:
        return request.memory_bytes
    node = machine.memory_bytes_per_node + machine.second_memory_bytes_per_node
    return (1 - MEMORY_RESERVE) * node / ranks_per_node(machine, request.world_size)


def _check(request: Request, machine: Machine, data: DataCounts) -> None:
    require_calibrated_here(machine)
    if len(data.atoms) == 0:
        raise UserError(f"{data.path} holds no structure: pack some with 'janus data pack'")
    if request.global_batch < request.world_size:
        raise UserError(
            f"the global batch of {request.global_batch} structures is below the {request.world_size} ranks: "
            f"use at least {request.world_size}, one structure per rank"
        )
    if request.global_batch > len(data.atoms):
        raise UserError(
            f"the global batch of {request.global_batch} structures exceeds the {len(data.atoms)} of {data.path}: "
            f"use at most {len(data.atoms)}"
        )
    limit = 64 * machine.devices_per_node if machine.is_calibrated_host else machine.nodes * machine.devices_per_node
    if request.world_size > limit:
        raise UserError(f"world size {request.world_size} exceeds what {machine.name} can hold: use at most {limit}")


def _predict(
    candidate: Candidate, request: Request, machine: Machine, data: DataCounts, batches: list[list[int]]
) -> None:
    predictions = []
    pieces = 0
    for batch in batches:
        shares = share_out(data.work, batch, request.world_size, candidate.max_work)
        counts = [[data.of(piece) for piece in share] for share in shares]
        pieces += max(len(share) for share in shares)
        predictions.append(predict_step(
            request.model, counts, candidate.layout, machine, dtype=request.dtype, recompute=candidate.recompute
        ))  # fmt: skip
    candidate.micro_batches = pieces / len(batches)
    candidate.step_s = float(np.mean([prediction.step_s for prediction in predictions]))
    candidate.memory_bytes = max(prediction.memory_bytes for prediction in predictions)
    candidate.prediction = _mean(predictions)


def _mean(predictions: Sequence[StepPrediction]) -> StepPrediction:
    """Mean of the sampled steps, phase by phase; the fullest memory; the first one's per-rank seconds."""
    first = predictions[0]

    def mean(values: Callable[[StepPrediction], float]) -> float:
        return float(np.mean([values(prediction) for prediction in predictions]))

    return StepPrediction(
        step_s=mean(lambda p: p.step_s),
        phase_s={phase: mean(lambda p, phase=phase: p.phase_s[phase]) for phase in PHASE_NAMES},  # type: ignore[misc]
        cause_s={cause: mean(lambda p, cause=cause: p.cause_s[cause]) for cause in first.cause_s},  # type: ignore[misc]
        rank_s=first.rank_s,
        memory_bytes=max(prediction.memory_bytes for prediction in predictions),
        flops_model=mean(lambda p: p.flops_model),
        flops_executed=mean(lambda p: p.flops_executed),
        oversubscribed=first.oversubscribed,
        notes=first.notes,
    )


def make_plan(
    request: Request, machine: Machine, data: DataCounts, on_candidate: Callable[[int], None] = lambda total: None
) -> Plan:
    """Predict every candidate and choose: those that fit in memory, the fastest of them, the simplest of equals.

    on_candidate: called with the number of candidates after each one. Raises UserError where nothing fits.
    """
    _check(request, machine, data)
    limit_bytes = memory_limit(request, machine)
    batches = sample_batches(data.work, request.global_batch, request.num_batches, request.seed)
    data_parallel = Layout(replicas=request.world_size)
    largest = max(data.of(batch).work for batch in batches)
    caps = [cap for cap in WORK_CAPS if cap is None or cap < largest]
    runnable = [Candidate(layout=data_parallel, max_work=cap, recompute=recompute)
                for recompute in (False, True) for cap in caps]  # fmt: skip
    for candidate in runnable:
        _predict(candidate, request, machine, data, batches)
        on_candidate(len(runnable))
    chosen = _judge(runnable, limit_bytes)
    has_experts = request.model.experts is not None
    later = [
        Candidate(layout=layout, verdict=NOT_YET)
        for layout in layouts_of(request.world_size, with_experts=has_experts)
        if not layout.is_pure_data_parallel
    ]
    assert chosen.prediction is not None, "a runnable candidate was predicted"
    ordered = sorted(
        runnable,
        key=lambda one: (one is not chosen, float(one.memory_bytes or 0) > limit_bytes, float(one.step_s or 0)),
    )
    return Plan(
        request=request, machine=machine, data=data, chosen=chosen, considered=ordered + later,
        memory_limit_bytes=limit_bytes, notes=chosen.prediction.notes,
    )  # fmt: skip


def _judge(candidates: Sequence[Candidate], limit_bytes: float) -> Candidate:
    """Fill in the verdicts; returns the chosen one. Raises UserError where none fits."""
    fitting = [one for one in candidates if one.memory_bytes is not None and one.memory_bytes <= limit_bytes]
    smallest = min(float(one.memory_bytes or 0) for one in candidates)
    if not fitting:
        raise UserError(
            f"nothing fits: the leanest candidate needs {smallest / 1e9:.2f} GB per rank of {limit_bytes / 1e9:.2f} GB"
            ": use a smaller model, a machine with more memory per rank, or fewer ranks per node"
        )
    chosen = min(fitting, key=lambda one: (float(one.step_s or 0), candidates.index(one)))
    for one in candidates:
        assert one.step_s is not None, "predicted"
        assert one.memory_bytes is not None, "predicted"
        assert chosen.step_s is not None, "predicted"
        if one is chosen:
            one.verdict = "chosen: the fastest that fits"
        elif one.memory_bytes > limit_bytes:
            one.verdict = f"does not fit: {one.memory_bytes / 1e9:.2f} GB of {limit_bytes / 1e9:.2f} GB per rank"
        else:
            one.verdict = f"slower by {100 * (one.step_s / chosen.step_s - 1):.1f} %" + _cause(one, chosen)
    return chosen


def _cause(one: Candidate, chosen: Candidate) -> str:
    """Which cause costs a losing candidate the most over the chosen one."""
    assert one.prediction is not None, "predicted"
    assert chosen.prediction is not None, "predicted"
    mine, best = one.prediction.cause_s, chosen.prediction.cause_s
    worst = max(mine, key=lambda cause: mine[cause] - best[cause])
    extra_s = mine[worst] - best[worst]
    reason = "recomputed " if one.recompute and not chosen.recompute else ""
    return f", mostly {reason}{worst} (+{1e3 * extra_s:.1f} ms)" if extra_s > 0 else ""


def plan_mapping(plan: Plan) -> dict[str, Any]:
    """The plan file's content (schema janus.plan/1): ``train`` overlays the trainer's settings."""
    request, chosen, machine = plan.request, plan.chosen, plan.machine
    prediction = chosen.prediction
    assert prediction is not None, "the chosen candidate was predicted"
    counts = parameter_counts(request.model)
    peak = machine.peak(request.dtype)
    devices = machine.devices_used(request.world_size, 1) if machine.is_calibrated_host else request.world_size
    return {
        "schema": SCHEMA,
        "world_size": request.world_size,
        "machine": machine.name,
        "layout": chosen.layout.to_mapping(),
        "train": {
            "model": request.model_name or to_mapping(request.model),
            "data": {"path": plan.data.path},
            "batch": {"structures": request.global_batch, "max_work": chosen.max_work or NO_CAP},
            "run": {"recompute": chosen.recompute, "dtype": request.dtype, "threads": 1, "seed": request.seed},
            "parallel": chosen.layout.to_mapping(),
        },
        "prediction": {
            "step_s": prediction.step_s, "phase_s": prediction.phase_s, "cause_s": prediction.cause_s,
            "memory_bytes": prediction.memory_bytes, "memory_limit_bytes": plan.memory_limit_bytes,
            "flops_model": prediction.flops_model, "flops_executed": prediction.flops_executed,
            "percent_of_peak": None if peak is None else
            100 * prediction.flops_model / prediction.step_s / (devices * peak.flops_per_s),
            "peak": None if peak is None else {"name": peak.name, "dtype": peak.dtype, "source": peak.source,
                                               "flops_per_s": peak.flops_per_s, "devices": devices},
            "parameters_total": counts.total, "parameters_active": counts.active,
            "oversubscribed": prediction.oversubscribed, "notes": list(plan.notes),
            "sampled_batches": request.num_batches, "data_fingerprint": plan.data.fingerprint,
            "assumptions": machine.assumptions(),
        },
        "considered": [candidate.to_mapping() for candidate in plan.considered],
    }  # fmt: skip
