"""Scaling lines up to a full machine of the catalogue, as predicted records: nothing of it is ever run here.

It owns which points a line has, the settings with which they fit in memory, and turning them into records; it does not
own the prediction nor what it assumes (``perfmodel.full_machine``).

The weak line is as perfmodel's: one configuration per unit at every point. The strong line has the batch of the full
machine at every point, one configuration per unit there: fewer units have more of it each, one micro-batch after the
other. A point that does not fit is a record without a time that says so, and efficiency refers to the first that fits.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

from janus.config import ModelConfig, to_mapping
from janus.presets import preset
from perfmodel.full_machine import (
    FullMachineAssumptions,
    FullMachinePoint,
    FullMachineStudy,
    default_units,
    predict_strong_scaling,
    predict_weak_scaling,
    rank_memory_bytes,
    require_predictable,
    unit_layout,
)
from perfmodel.machine import Machine, load_machine
from perfmodel.paper import GLOBAL
from scaling_studies.predicted import record_of_step
from scaling_studies.records import MEMORY_LIMIT, OOM, PREDICTED, Record, cell_hash

MODEL = "matris-moe-l"
QUESTIONS = {
    "weak": "How far would the weak scaling of {model} go on the full {machine}?",
    "strong": "How far would one batch of {model} scale, up to the full {machine}?",
}
METHOD = "perfmodel, analytic FS-3D step, not fitted to published results"
STEPS = round(GLOBAL["fewest_steps"].value)  # of a run: the fewest that the paper reports (arXiv 2604.15821)
CHOICES = tuple((recompute, number) for recompute in (False, True) for number in (4, 2, 1))  # the fastest first


def all_full_machine_records(
    machines: Sequence[str], model: str = MODEL, on_line: Callable[[str], None] = lambda name: None
) -> list[Record]:
    """Weak and strong lines of a model from one unit to the full machines. on_line: told which is worked on.

    Raises UserError for a model without experts, or a machine that is a host or has no rates.
    """
    records = []
    for name in machines:
        for mode in QUESTIONS:
            on_line(f"{name}, {mode} scaling")
            records += line_records(load_machine(name), model, mode)
    return records


def line_records(machine: Machine, model: str = MODEL, mode: str = "weak") -> list[Record]:
    """One line from one unit to the full machine; points that do not fit in memory first, as OOM records.

    Strong: the batch of the full machine everywhere; efficiency refers to the first point that fits.
    """
    config, given = preset(model), FullMachineAssumptions()
    require_predictable(machine, config)
    units = default_units(machine, given.unit)
    if mode == "strong":
        units = strong_units(units[-1])
    each = {
        number: given.configurations_per_unit * (units[-1] // number if mode == "strong" else 1) for number in units
    }
    given = fitting(machine, config, given, list(each.values()))
    fits = [number for number in units if _fits(machine, config, given, each[number])]
    predict = predict_strong_scaling if mode == "strong" else predict_weak_scaling
    study = predict(machine, config, fits or units[-1:], given)
    full = [_too_full(study, model, given, number, each[number]) for number in units if number not in fits]
    return [*full, *(full_machine_records(study, model) if fits else [])]


def strong_units(most: int) -> list[int]:
    """1, and the parts of the machine by factors of four that divide it: every unit then has equally much."""
    parts = [most // 4**power for power in range(20) if most % 4**power == 0]
    return sorted({1, *parts})


def fitting(
    machine: Machine, model: ModelConfig, given: FullMachineAssumptions, configurations: Sequence[int]
) -> FullMachineAssumptions:
    """The fastest settings, of recomputation and configurations per micro-batch, with which most points fit.

    configurations: of a unit at each point. Recomputation costs more than small micro-batches, so it comes last.
    """
    choices = [
        dataclasses.replace(given, recompute=recompute, configurations_per_micro_batch=number)
        for recompute, number in CHOICES
    ]
    return max(choices, key=lambda choice: sum(_fits(machine, model, choice, each) for each in configurations))


def _limit_bytes(machine: Machine) -> float:
    return (machine.memory_bytes_per_node + machine.second_memory_bytes_per_node) / machine.devices_per_node


def _fits(machine: Machine, model: ModelConfig, given: FullMachineAssumptions, each: int) -> bool:
    return rank_memory_bytes(model, given, each) <= _limit_bytes(machine)


def full_machine_records(study: FullMachineStudy | None = None, model: str = MODEL) -> list[Record]:
    """One predicted record per point. study: default weak, MatRIS-MoE-L on LineShine."""
    study = study or predict_weak_scaling()
    return [_record(study, point, model) for point in study.points]


def _identity(study: FullMachineStudy, model: str, layout: dict[str, Any]) -> dict[str, Any]:
    """The fields that do not come from a prediction."""
    resolved = {
        "machine": study.machine.name, "model": to_mapping(study.model), "layout": layout, "mode": study.mode,
        "assumptions": list(study.assumptions),
    }  # fmt: skip
    ranks = layout["unit"] * layout["replicas"]
    return {
        "method": METHOD, "study": f"{study.machine.name}-{study.mode}", "mode": study.mode, "model": model,
        "question": QUESTIONS[study.mode].format(model=model, machine=study.machine.name), "repeats_planned": 0,
        "cell_id": cell_hash(resolved), "ranks": ranks, "nodes": math.ceil(ranks / study.machine.devices_per_node),
        "base_ranks": study.points[0].ranks, "dtype": study.points[0].work.settings.dtype,
        "clock": "Predicted: expected time of the slowest rank in one step.",
    }  # fmt: skip


def _record(study: FullMachineStudy, point: FullMachinePoint, model: str) -> Record:
    shared = _identity(study, model, point.layout.to_mapping())
    shared["facts"] = {
        "units": point.units, "nodes": point.nodes, "configurations per step": point.counts.structures,
        "steps of a run": f"assumed: {STEPS:,}, the fewest that the paper reports",
        MEMORY_LIMIT: _limit_bytes(study.machine), "assumptions": [*study.assumptions, *point.step.notes],
    }  # fmt: skip
    return record_of_step(shared, point.step, point.work, study.machine, steps=STEPS)


def _too_full(
    study: FullMachineStudy, model: str, given: FullMachineAssumptions, units: int, each: int
) -> Record:  # fmt: skip
    """The record of a point whose batch is more than the memory of its ranks."""
    layout = dict(unit_layout(given.unit, units).to_mapping())
    needed, limit = rank_memory_bytes(study.model, given, each), _limit_bytes(study.machine)
    reason = (
        f"will not fit: a unit would work on {each:,} configurations per step, whose fullest rank needs "
        f"{needed / 1e9:.1f} GB of {limit / 1e9:.1f} GB"
    )
    return Record(**_identity(study, model, layout), source=PREDICTED, machine=study.machine.name, layout=layout,
                  state=OOM, reason=reason, memory_bytes=int(needed), facts={MEMORY_LIMIT: limit})  # fmt: skip
