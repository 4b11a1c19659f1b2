"""What a campaign will cost and whether it may start: predicted time, memory and node-hours of every point.

It owns the sums and the refusals; it does not own the predictions (``predicted``) nor what is spent (``progress``).

    seconds of a job = start-up + (warm-up steps + steps) x predicted step
    node-hours       = nodes x seconds of a job x repeats

A job whose seconds are not known (no prediction, or a machine file without start-up) counts with its time limit, which
it cannot exceed; the plan then says "at most".
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from janus.errors import UserError
from janus.layout import Layout
from perfmodel.machine import Machine
from perfmodel.planner import largest_world
from scaling_studies.atomic import write_atomically
from scaling_studies.cells import Cell, constancy_problems
from scaling_studies.limits import rank_memory_bytes
from scaling_studies.records import DONE, Record
from scaling_studies.statistics import MIN_SAMPLES_FOR_INTERVAL
from scaling_studies.study import ExecutorSettings

SCHEMA = "janus.campaign-plan/1"
PLAN_FILE = "plan.json"
HOUR_S = 3600.0
WAYS_TO_FIT = "use fewer structures per rank, recompute = true, a lower max_work, a larger unit or more ranks"


@dataclass(frozen=True, kw_only=True)
class PlannedPoint:
    """One point. scale: value of what the study scales; step_s, memory_bytes (of the fullest rank), start_up_s, job_s:
    predicted, None where not known; memory_limit_bytes: of a rank; repeats: jobs; limit_s: time limit of one job.

    note: why there is no prediction; empty where there is one.
    """

    study: str
    cell_id: str
    scaled: str
    scale: int
    ranks: int
    nodes: int
    layout: Layout
    structures: int
    repeats: int
    limit_s: float
    step_s: float | None
    start_up_s: float | None
    job_s: float | None
    memory_bytes: int | None
    memory_limit_bytes: float
    oversubscribed: bool
    note: str

    @property
    def charged_s(self) -> float:
        """Seconds that one job is counted with."""
        return self.limit_s if self.job_s is None else self.job_s

    @property
    def node_hours(self) -> float:
        """Of all repeats; at most, where the seconds of a job are not known."""
        return self.nodes * self.charged_s * self.repeats / HOUR_S


@dataclass(frozen=True, kw_only=True)
class PlannedStudy:
    """A study's points and budget [node-hours], None: none. most_repeats: what the stop rule may go up to."""

    name: str
    mode: str
    question: str
    points: tuple[PlannedPoint, ...]
    budget_node_hours: float | None
    most_repeats: int

    @property
    def node_hours(self) -> float:
        return sum(point.node_hours for point in self.points)

    @property
    def is_exact(self) -> bool:
        """Whether the seconds of every job are predicted; else node-hours are an upper limit."""
        return all(point.job_s is not None for point in self.points)


@dataclass(frozen=True, kw_only=True)
class CampaignPlan:
    """The whole campaign on one machine. refusals: why it may not start, one sentence each; empty where it may."""

    machine: str
    executor: str
    studies: tuple[PlannedStudy, ...]
    refusals: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def jobs(self) -> int:
        return sum(point.repeats for study in self.studies for point in study.points)

    @property
    def node_hours(self) -> float:
        return sum(study.node_hours for study in self.studies)

    @property
    def is_exact(self) -> bool:
        return all(study.is_exact for study in self.studies)

    @property
    def jobs_s(self) -> float:
        """Seconds of all jobs, one after another."""
        return sum(point.charged_s * point.repeats for study in self.studies for point in study.points)

    def require(self) -> None:
        """Raise UserError with every refusal, one per line, if there is any."""
        if self.refusals:
            raise UserError("\n".join(self.refusals))

    def to_mapping(self) -> dict[str, Any]:
        """Plain values for ``plan.json`` and ``--json``."""
        studies = [
            {**dataclasses.asdict(study), "node_hours": study.node_hours, "is_exact": study.is_exact,
             "points": [{**dataclasses.asdict(point), "node_hours": point.node_hours} for point in study.points]}
            for study in self.studies
        ]  # fmt: skip
        return {
            "schema": SCHEMA, "machine": self.machine, "executor": self.executor, "jobs": self.jobs,
            "node_hours": self.node_hours, "is_exact": self.is_exact, "jobs_s": self.jobs_s,
            "refusals": list(self.refusals), "notes": list(self.notes), "studies": studies,
        }  # fmt: skip


def plan_campaign(
    cells: Sequence[Cell], predictions: Sequence[Record], settings: ExecutorSettings, machine: Machine
) -> CampaignPlan:
    """The plan of a campaign's cells with the predicted record of each. It never raises for a refusal: see ``require``.

    predictions: may hold records of other cells too. Sources of limits: the machine file, the declaration.
    """
    record_of = {record.cell_id: record for record in predictions}
    names = list(dict.fromkeys(cell.study.name for cell in cells))
    studies, refusals = [], []
    for name in names:
        own = [cell for cell in cells if cell.study.name == name]
        points = tuple(_point(cell, record_of[cell.id], machine) for cell in own)
        study = own[0].study
        planned = PlannedStudy(
            name=name, mode=study.mode, question=study.question, points=points, budget_node_hours=study.node_hours,
            most_repeats=study.max_repeats if study.stop_ci_percent is not None else study.repeats,
        )  # fmt: skip
        studies.append(planned)
        refusals += constancy_problems(own)
        refusals += [sentence for point in points for sentence in _refusals(point, machine, settings)]
        refusals += _budget_refusal(planned)
    return CampaignPlan(
        machine=machine.name, executor=settings.kind, studies=tuple(studies), refusals=tuple(refusals),
        notes=tuple(_notes(studies)),
    )  # fmt: skip


def _point(cell: Cell, record: Record, machine: Machine) -> PlannedPoint:
    study = cell.study
    known = record.state == DONE
    return PlannedPoint(
        study=study.name, cell_id=cell.id, scaled=study.scaled, scale=cell.scale, ranks=cell.ranks, nodes=cell.nodes,
        layout=cell.layout, structures=len(cell.indices), repeats=study.repeats, limit_s=study.time_out_s,
        step_s=record.step_s[0] if known else None, start_up_s=record.start_up_s, job_s=record.wall_s,
        memory_bytes=record.memory_bytes, memory_limit_bytes=rank_memory_bytes(machine, _ranks_on_node(cell)),
        oversubscribed=record.oversubscribed, note="" if known else record.reason,
    )  # fmt: skip


def _ranks_on_node(cell: Cell) -> int:
    """Ranks on the fullest node of a job."""
    return min(cell.ranks, cell.executor.ranks_per_node or cell.ranks)


def _refusals(point: PlannedPoint, machine: Machine, settings: ExecutorSettings) -> list[str]:
    """Why this point may not be submitted."""
    where = f"study {point.study} at {point.scaled} = {point.scale:,}"
    return _too_large(point, where, machine, settings) or [*_too_full(point, where), *_too_short(point, where)]


def _too_large(point: PlannedPoint, where: str, machine: Machine, settings: ExecutorSettings) -> list[str]:
    per_node = settings.ranks_per_node or point.ranks
    most = largest_world(machine)
    if not machine.is_calibrated_host and per_node > machine.devices_per_node:
        return [
            f"{where} puts {per_node} ranks on a node and {machine.name} has {machine.devices_per_node} devices "
            f"per node: set executor.ranks_per_node to {machine.devices_per_node} or less"
        ]
    if point.nodes > machine.nodes:
        return [
            f"{where} fills {point.nodes:,} nodes and {machine.name} has {machine.nodes:,}: leave out points above "
            f"{machine.nodes * per_node:,} ranks"
        ]
    if point.ranks > most:
        return [f"{where} needs {point.ranks:,} ranks and {machine.name} can hold {most:,}: leave the point out"]
    return []


def _too_full(point: PlannedPoint, where: str) -> list[str]:
    if point.memory_bytes is None or point.memory_bytes <= point.memory_limit_bytes:
        return []
    return [
        f"{where} will not fit: its fullest rank needs {point.memory_bytes / 1e9:.2f} GB (predicted) and may use "
        f"{point.memory_limit_bytes / 1e9:.2f} GB: {WAYS_TO_FIT}"
    ]


def _too_short(point: PlannedPoint, where: str) -> list[str]:
    if point.job_s is None or point.job_s <= point.limit_s:
        return []
    return [
        f"{where} would be stopped: a job takes {point.job_s:,.0f} s (predicted) and its time limit is "
        f"{point.limit_s:,.0f} s: set time_out_s to {math.ceil(1.5 * point.job_s)} or fewer steps"
    ]


def _budget_refusal(study: PlannedStudy) -> list[str]:
    budget, needed = study.budget_node_hours, study.node_hours
    if budget is None or needed <= budget:
        return []
    each = needed / study.points[0].repeats
    fitting = math.floor(budget / each)
    repair = f"{fitting} repeats would fit" if fitting else "not one repeat fits"
    if 0 < fitting < MIN_SAMPLES_FOR_INTERVAL:
        repair += f" (below {MIN_SAMPLES_FOR_INTERVAL} there is no confidence interval)"
    how_sure = "" if study.is_exact else "at most "
    return [
        f"study {study.name} needs {how_sure}{needed:,.3g} node-hours for {study.points[0].repeats} repeats of "
        f"{len(study.points)} points, its budget is {budget:,.3g}: {repair}; lower repeats or steps, leave points out, "
        "or raise node_hours"
    ]


def _notes(studies: Sequence[PlannedStudy]) -> list[str]:
    """What the reader of the table must know."""
    points = [point for study in studies for point in study.points]
    notes = []
    for reason in dict.fromkeys(point.note for point in points if point.note):
        where = ", ".join(f"{point.study} at {point.scale:,}" for point in points if point.note == reason)
        notes.append(f"no prediction for {where}: {reason}")
    if any(point.oversubscribed for point in points):
        notes.append("oversubscribed points (*) put more ranks than cores on the host")
    if any(point.job_s is None for point in points):
        notes.append("jobs without a predicted time count with their time limit: their node-hours are an upper limit")
    for study in studies:
        if study.most_repeats > study.points[0].repeats:
            most = study.node_hours * study.most_repeats / study.points[0].repeats
            if study.budget_node_hours is not None:
                most = min(most, study.budget_node_hours)
            notes.append(
                f"study {study.name} may go on to {study.most_repeats} repeats per point by its stop rule: "
                f"{most:,.3g} node-hours then"
            )
    return notes


def write_plan(folder: Path, plan: CampaignPlan) -> Path:
    """Keep what was planned beside the results."""
    path = folder / PLAN_FILE
    write_atomically(path, json.dumps(plan.to_mapping(), indent=1, allow_nan=False) + "\n")
    return path
