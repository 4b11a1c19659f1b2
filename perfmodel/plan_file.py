"""The plan file (schema janus.plan/1): what ``janus train --plan`` lays over its settings, and all that led to it.

It owns the file's content and units. It does not own the choice (``planner``) nor words for people (``advice``).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from janus.config import to_mapping
from perfmodel.advice import explanation
from perfmodel.machine import Machine
from perfmodel.memory_tiers import place_in_tiers
from perfmodel.planner import Finalist, Other, Plan
from perfmodel.search import describe
from perfmodel.sensitivity import Outcome
from perfmodel.step_work import RunSettings
from perfmodel.workload import parameter_counts

SCHEMA = "janus.plan/1"
NO_CAP = 2**62  # in a plan file: TOML, into which the trainer resolves it, has no null


def plan_mapping(plan: Plan) -> dict[str, Any]:
    """The plan file's content: ``train`` overlays the trainer's settings."""
    chosen, machine = plan.chosen, plan.machine
    return {
        "schema": SCHEMA,
        "world_size": chosen.layout.world_size,
        "nodes": chosen.nodes,
        "machine": machine.name,
        "layout": chosen.layout.to_mapping(),
        "train": _train(plan),
        "prediction": _prediction(plan),
        "run": _run(plan),
        "chosen": _finalist(chosen),
        "finalists": [_finalist(one) for one in plan.finalists],
        "considered": [*(_considered(one) for one in plan.finalists), *(_considered(one) for one in plan.others)],
        "searched": {
            "candidates": plan.found.considered,
            "fitting": len(plan.found),
            "worked_out": len(plan.finalists),
        },
        "pareto": _front(plan),
        "sensitivity": [_outcome(plan, one) for one in plan.sensitivity],
        "helps": [{"what": what, "step_s": seconds} for what, seconds in plan.helps],
        "explanation": explanation(plan),
        "provenance": _provenance(machine),
    }


def _train(plan: Plan) -> dict[str, Any]:
    """Settings of janus.train.config."""
    request, chosen = plan.request, plan.chosen
    settings = chosen.settings
    run: dict[str, Any] = {
        "recompute": settings.recompute, "dtype": settings.dtype, "threads": _threads(plan.machine),
        "seed": request.seed,
    }  # fmt: skip
    if request.steps is not None:
        run["steps"] = request.steps
    elif request.epochs is not None and float(request.epochs).is_integer():
        run["epochs"] = int(request.epochs)
    elif request.epochs is not None or plan.goal.open_ended:
        run["steps"] = max(1, int(chosen.num_steps))
    parallel: dict[str, Any] = {
        **chosen.layout.to_mapping(), "gathered_blocks": settings.gathered_blocks,
        "expert_strategy": settings.expert_strategy,
        "expert_compression": "float16" if settings.expert_compression else "none",
    }  # fmt: skip
    if settings.transport != "auto":
        parallel["transport"] = settings.transport
    return {
        "model": request.model_name or to_mapping(request.model),
        "data": {"path": plan.data.path},
        "batch": {"structures": chosen.structures, "max_work": chosen.max_work or NO_CAP},
        "run": run,
        "parallel": parallel,
    }


def _threads(machine: Machine) -> int:
    return 1 if machine.is_calibrated_host or not machine.rates else machine.rates[0].threads


def _prediction(plan: Plan) -> dict[str, Any]:
    chosen, machine, request = plan.chosen, plan.machine, plan.request
    prediction, memory = chosen.prediction, chosen.memory
    counts = parameter_counts(request.model)
    peak = machine.peak(request.dtype)
    ranks = chosen.layout.world_size
    devices = machine.devices_used(ranks, 1) if machine.is_calibrated_host else ranks
    return {
        "step_s": prediction.step_s, "events_step_s": chosen.events_step_s, "search_step_s": chosen.search_step_s,
        "phase_s": prediction.phase_s, "cause_s": prediction.cause_s, "communication_s": prediction.communication_s,
        "memory_bytes": chosen.memory_bytes, "memory_limit_bytes": plan.memory_limit_bytes,
        "memory_by_cause_bytes": {"process": memory.base_bytes, **memory.cause_bytes},
        "memory_by_phase_bytes": memory.phase_bytes, "memory_peak": memory.peak, "memory_tiers": _tiers(plan),
        "flops_model": prediction.flops_model, "flops_executed": prediction.flops_executed,
        "percent_of_peak": None if peak is None else
        100 * prediction.flops_model / prediction.step_s / (devices * peak.flops_per_s),
        "peak": None if peak is None else {"name": peak.name, "dtype": peak.dtype, "source": peak.source,
                                           "flops_per_s": peak.flops_per_s, "devices": devices},
        "parameters_total": counts.total, "parameters_active": counts.active,
        "oversubscribed": prediction.oversubscribed, "notes": list(plan.notes),
        "sampled_batches": request.num_batches, "data_fingerprint": plan.data.fingerprint,
        "assumptions": machine.assumptions(),
    }  # fmt: skip


def _tiers(plan: Plan) -> dict[str, Any] | None:
    """What lies in which of two memories; None on a machine with one."""
    if not plan.machine.second_memory_bytes_per_node:
        return None
    tiers = place_in_tiers(plan.chosen.memory, plan.machine)
    return {
        "first_bytes": tiers.first_bytes, "second_bytes": tiers.second_bytes, "second_by_cause_bytes": tiers.second,
        "moved_bytes_per_step": tiers.moved_bytes_per_step,
    }  # fmt: skip


def _run(plan: Plan) -> dict[str, Any]:
    """The whole run; epochs_allowed: what budget and deadline allow, None without either."""
    chosen, goal = plan.chosen, plan.goal
    epochs = chosen.num_steps / max(1, goal.num_structures // chosen.structures)
    return {
        "num_structures": goal.num_structures, "structures_per_step": chosen.structures, "steps": chosen.num_steps,
        "epochs": epochs, "start_up_s": plan.start_up_s, "run_s": chosen.run_s, "node_hours": chosen.node_s / 3600,
        "deadline_s": goal.deadline_s, "node_hours_allowed": None if goal.node_s is None else goal.node_s / 3600,
        "length_by": "budget" if goal.open_ended else "request" if goal.epochs or goal.steps else "one epoch",
    }  # fmt: skip


def _settings(settings: RunSettings, micro_batches: float) -> dict[str, Any]:
    return {
        "max_work": settings.max_work, "recompute": settings.recompute, "gathered_blocks": settings.gathered_blocks,
        "expert_strategy": settings.expert_strategy, "expert_compression": settings.expert_compression,
        "transport": settings.transport, "micro_batches_per_step": micro_batches,
    }  # fmt: skip


def _considered(one: Finalist | Other) -> dict[str, Any]:
    return {
        "layout": one.layout.to_mapping(), **_settings(one.settings, one.micro_batches), "step_s": one.step_s,
        "memory_bytes": one.memory_bytes, "in_full": isinstance(one, Finalist), "verdict": one.verdict,
    }  # fmt: skip


def _finalist(one: Finalist) -> dict[str, Any]:
    return {
        **_considered(one), "words": one.words, "nodes": one.nodes, "structures": one.structures,
        "events_step_s": one.events_step_s, "search_step_s": one.search_step_s, "run_s": one.run_s,
        "node_hours": one.node_s / 3600, "cause_s": one.prediction.cause_s,
    }  # fmt: skip


def _front(plan: Plan) -> list[dict[str, Any]]:
    """Candidates that nothing beats in run time, memory and node-hours, as searched."""
    return [
        {
            "words": describe(one.found.candidates, one.number),
            "layout": one.found.candidates.layout(one.number).to_mapping(), "nodes": one.nodes,
            "step_s": float(one.found.step_s[one.number]), "run_s": one.run_s, "memory_bytes": one.memory_bytes,
            "node_hours": one.node_s / 3600,
        }
        for one in plan.front
    ]  # fmt: skip


def _outcome(plan: Plan, one: Outcome) -> dict[str, Any]:
    none = one.still_best or one.best == plan.chosen.number
    best = None if none else describe(plan.found.candidates, one.best)
    return {
        "constant": one.constant, "change": one.change, "change_from": one.source, "step_change": one.step_change,
        "still_best": one.still_best, "best_then": best,
        "loss": one.loss if np.isfinite(one.loss) else None,
    }  # fmt: skip


def _provenance(machine: Machine) -> dict[str, Any]:
    """Where the machine's numbers come from."""
    return {
        "machine": machine.name, "device": machine.device_name, "calibration": dict(machine.provenance) or None,
        "sources": {name: source for name, source in machine.sources.items() if name.startswith("rates.")},
    }  # fmt: skip
