"""From the folder of one finished training run to its measured record.

It owns reading the trainer's ``run.json`` and ``steps.jsonl`` and the checks that make an attempt count; it does not
own starting runs (``local``) nor the FLOP formulas (``perfmodel.workload``).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perfmodel.workload import Counts, step_flops
from scaling_studies.cells import COUNT_NAMES, Cell
from scaling_studies.records import DONE, INVALID, MEASURED, Peak, RankCounts, Record

RUN_SCHEMA = "janus.run/1"


class UnreadableRun(Exception):
    """A run folder that gives no record; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Host:
    """The host a local study runs on. core_peaks: dtype -> matrix-product ceiling of one core, where it is known."""

    name: str
    num_cores: int
    core_peaks: dict[str, Peak]

    def peak_of(self, ranks: int, dtype: str) -> Peak | None:
        """The ceiling of the cores that ``ranks`` single-threaded ranks can use: never more than the host has."""
        peak = self.core_peaks.get(dtype)
        return peak.times(min(ranks, self.num_cores)) if peak is not None else None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UnreadableRun(f"the run left no {path.name}") from None
    except (OSError, ValueError) as error:
        raise UnreadableRun(f"{path.name} cannot be read ({error})") from None
    if not isinstance(values, dict):
        raise UnreadableRun(f"{path.name} holds no table")
    return values


def read_run(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """``run.json`` and the lines of ``steps.jsonl`` of one run. Raises UnreadableRun unless both are whole."""
    run = _read_json(folder / "run.json")
    if run.get("schema") != RUN_SCHEMA:
        raise UnreadableRun(f"run.json has schema {run.get('schema')!r}, this program reads {RUN_SCHEMA!r}")
    if run.get("status") != "done":
        raise UnreadableRun(f"the run ended with status {run.get('status')!r}")
    try:
        lines = (folder / "steps.jsonl").read_text(encoding="utf-8").splitlines()
        return run, [json.loads(line) for line in lines if line.strip()]
    except (OSError, ValueError) as error:
        raise UnreadableRun(f"steps.jsonl cannot be read ({error})") from None


def _rank_counts(step: dict[str, Any]) -> tuple[RankCounts, ...]:
    entries = sorted(step["ranks"], key=lambda entry: entry["rank"])
    return tuple(RankCounts(**{name: entry[name] for name in ("structures", *COUNT_NAMES)}) for entry in entries)


def _phases(steps: Sequence[dict[str, Any]]) -> dict[str, tuple[float, ...]]:
    """Phase -> mean over ranks for each step [s]; a phase that one rank lacks counts 0 there."""
    names = list(dict.fromkeys(name for step in steps for entry in step["ranks"] for name in entry["phase_s"]))
    return {
        name: tuple(
            sum(entry["phase_s"].get(name, 0.0) for entry in step["ranks"]) / len(step["ranks"]) for step in steps
        )
        for name in names
    }


def invalid_reason(cell: Cell, run: dict[str, Any], steps: Sequence[dict[str, Any]]) -> str:
    """Why a finished run may not count as an attempt at this cell; empty when it may."""
    wanted = cell.study.warm_up_steps + cell.study.steps
    if run.get("world_size") != cell.ranks:
        return f"ran on {run.get('world_size')} ranks, the cell has {cell.ranks}"
    if len(steps) != wanted:
        return f"recorded {len(steps)} steps, the study asks for {wanted}"
    tolerance = cell.study.work_tolerance
    planned = sorted(entry.work for entry in cell.counts_per_rank)
    for step in steps:
        found = sorted(entry.work for entry in _rank_counts(step))
        if len(found) != len(planned):
            return f"step {step['step']} reports {len(found)} ranks, the cell has {len(planned)}"
        for work, plan in zip(found, planned, strict=True):
            if abs(work - plan) > tolerance * plan:
                return (
                    f"work of a rank in step {step['step']} is {work}, planned {plan}: "
                    f"not constant within {100 * tolerance:g} %"
                )
        loss = step.get("loss")
        if not isinstance(loss, int | float) or loss != loss or abs(loss) == float("inf"):
            return f"loss of step {step['step']} is not finite"
    return ""


def total_flops(cell: Cell, counts: Sequence[RankCounts]) -> tuple[float, float]:
    """Model and executed FLOPs of one step over all ranks, by the formulas of perfmodel."""
    parts = [
        step_flops(
            cell.study.model_config,
            Counts(structures=entry.structures, atoms=entry.atoms, edges=entry.edges, bonds=entry.bonds,
                   angles=entry.angles),
            recompute=cell.study.recompute,
        )
        for entry in counts
    ]  # fmt: skip
    return sum(part.model_total for part in parts), sum(part.executed_total for part in parts)


def measured_record(cell: Cell, folder: Path, host: Host, *, attempt: int, repeat: int, command: str) -> Record:
    """The record of one finished run, DONE or INVALID. Raises UnreadableRun when the folder gives none."""
    run, all_steps = read_run(folder)
    try:
        reason = invalid_reason(cell, run, all_steps)
        steps = all_steps[cell.study.warm_up_steps :]
        counts = _rank_counts(steps[0]) if steps else ()
        model_flops, executed_flops = total_flops(cell, counts)
        memory = [int(value) for value in _as_list(run.get("peak_memory_bytes")) if value]
        return Record(
            **identity(cell), source=MEASURED, method="janus train, wall clock", machine=host.name,
            layout=dict(run.get("layout") or {}), state=INVALID if reason else DONE, reason=reason,
            attempt=attempt, repeat=repeat, counts_per_rank=counts,
            warm_up_step_s=tuple(float(step["step_s"]) for step in all_steps[: cell.study.warm_up_steps]),
            step_s=tuple(float(step["step_s"]) for step in steps), phase_s=_phases(steps),
            start_up_s=run.get("start_up_s"), wall_s=run.get("wall_s"),
            model_flops=model_flops, executed_flops=executed_flops, peak=host.peak_of(cell.ranks, cell.study.dtype),
            memory_bytes=max(memory) if memory else None, oversubscribed=cell.ranks > host.num_cores,
            facts={"first loss": all_steps[0].get("loss"), "last loss": all_steps[-1].get("loss")} if all_steps else {},
            provenance={**dict(run.get("provenance") or {}), "command of the study": command},
        )  # fmt: skip
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UnreadableRun(f"the run's files lack what a record needs ({error!r})") from None


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    if isinstance(value, dict):
        return list(value.values())
    return list(value) if isinstance(value, list | tuple) else [value]


def identity(cell: Cell) -> dict[str, Any]:
    """The fields that every record of a cell shares, measured or predicted."""
    study = cell.study
    return {
        "study": study.name, "question": study.question, "mode": study.mode, "cell_id": cell.id,
        "repeats_planned": study.repeats, "ranks": cell.ranks, "base_ranks": study.base, "model": study.model,
        "dtype": study.dtype,
    }  # fmt: skip
