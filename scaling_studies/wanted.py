"""What a campaign still lacks: how many good attempts of which point, and what its budget allows. It starts nothing.

A point lacks attempts until it has ``repeats`` good ones, or, with a stop rule, until the interval of its median is
narrow enough or ``max_repeats`` is reached. Failed attempts cost node-hours too, and are tried again, but not for ever.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from scaling_studies.cells import Cell
from scaling_studies.progress import attempt_node_hours
from scaling_studies.records import DONE, FAILED, MEASURED, OPEN_STATES, PLANNED, PREDICTED, RUNNING, Record
from scaling_studies.statistics import interval_within
from scaling_studies.study import Study

# How reasons begin (``outcomes`` writes them, with the words of the executors) that say nothing about the program.
WITHDRAWN = "withdrawn, its point was no longer declared"
NOBODYS_FAULT = ("stopped by the runner", WITHDRAWN)  # the first: Ctrl-C or SIGTERM
MACHINE_FAULTS = (
    "job lost", "requeued",  # cut off without a word, forgotten by the scheduler, started a second time by it
    "preempted", "a node failed", "a node did not boot", "launch failed", "revoked",  # Slurm; LSF the first
    "first node lost", "rerun by PBS", "PBS could not run it", "stopped by SIGTERM",  # PBS
    "node-failure", "exec: lost contact",  # Flux
    "TERM_LOAD", "TERM_WINDOW", "TERM_REQUEUE", "TERM_ZOMBIE", "TERM_REMOVE_HUNG_JOB", "TERM_PRE_EXEC_FAIL",  # LSF
    "TERM_RC_RECLAIM", "TERM_MC_RECALL", "TERM_CSM_ALLOC",
)  # fmt: skip
SECONDS_PER_HOUR = 3600.0


@dataclass(frozen=True, kw_only=True)
class Task:
    """One attempt still wanted: a cell, and which of its repeats (0-based) it serves."""

    cell: Cell
    repeat: int


@dataclass(frozen=True, kw_only=True)
class Standing:
    """Where a campaign stands. good of wanted: attempts that count, over all points; waiting: not running yet, of them
    unsubmitted: no scheduler has taken them; exhausted: studies whose budget allows no further attempt; given_up: ids
    of cells that failed too often."""

    good: int
    wanted: int
    running: int
    waiting: int
    unsubmitted: int = 0
    exhausted: tuple[str, ...] = ()
    given_up: tuple[str, ...] = ()

    @property
    def is_complete(self) -> bool:
        return self.good >= self.wanted

    @property
    def is_under_way(self) -> bool:
        """Whether any job runs or is queued."""
        return self.running > 0 or self.waiting > self.unsubmitted


@dataclass(frozen=True, kw_only=True)
class FailuresInARow:
    """Failures of a point after its last good attempt: its own, and those of the machine, which have a limit apart."""

    own: int = 0
    machine: int = 0

    def then(self, record: Record) -> FailuresInARow:
        """The same after one more attempt has ended."""
        if record.state == DONE:
            return FailuresInARow()
        if record.reason.startswith(NOBODYS_FAULT):
            return self
        if is_machine_fault(record):
            return replace(self, machine=self.machine + 1)
        return replace(self, own=self.own + 1)

    def too_many(self, study: Study) -> str:
        """Why a point of the study is left alone, in words; "" where it is not."""
        if self.own >= study.max_failures:
            return "1 failure" if self.own == 1 else f"{self.own} failures in a row"
        if self.machine >= study.max_machine_faults:
            return f"{self.machine} faults of the machine ('janus study show' names the hosts)"
        return ""


def is_machine_fault(record: Record) -> bool:
    """Whether an attempt failed by node, scheduler or preemption, as its reason says, and not by its program."""
    return record.state == FAILED and record.reason.startswith(MACHINE_FAULTS)


def target(study: Study, done: Sequence[Record]) -> int:
    """Good attempts that a point wants, given those it has."""
    if study.stop_ci_percent is None or len(done) < study.repeats:
        return study.repeats
    medians = [statistics.median(record.step_s) for record in done]
    if len(done) >= study.max_repeats or interval_within(medians, study.stop_ci_percent):
        return len(done)
    return len(done) + 1


def targets(cells: Iterable[Cell], records: Sequence[Record]) -> dict[str, int]:
    """cell id -> good attempts that it wants now."""
    return {cell.id: target(cell.study, _good(cell, records)) for cell in cells}


def failures_in_a_row(cell: Cell, records: Iterable[Record]) -> FailuresInARow:
    """Failures of the cell on record after its last good attempt."""
    ended = [record for record in _of(cell, records) if record.state not in OPEN_STATES]
    found = FailuresInARow()
    for record in sorted(ended, key=lambda record: record.attempt):
        found = found.then(record)
    return found


def lacking(cells: Sequence[Cell], records: Sequence[Record], seed: int) -> list[Task]:
    """Every attempt still wanted and not in flight, in random order.

    The order is drawn anew as attempts are made, from the seed and their number: the same history gives the same order.
    """
    tasks = []
    for cell in cells:
        good = _good(cell, records)
        in_flight = [record for record in _of(cell, records) if record.state in OPEN_STATES]
        served = {record.repeat for record in (*good, *in_flight)}
        number = target(cell.study, good) - len(good) - len(in_flight)
        free = (repeat for repeat in range(len(served) + max(number, 0)) if repeat not in served)
        tasks += [Task(cell=cell, repeat=repeat) for repeat, _ in zip(free, range(number), strict=False)]
    random.Random(f"{seed} {sum(record.source == MEASURED for record in records)}").shuffle(tasks)
    return tasks


def affordable(tasks: Sequence[Task], records: Sequence[Record]) -> tuple[list[Task], tuple[str, ...]]:
    """The tasks that fit the budgets of their studies one after another, and the names of studies where none does."""
    now = datetime.now(UTC)
    left = {task.cell.study.name: _budget_left(task.cell.study, records, now) for task in tasks}
    chosen = []
    for task in tasks:
        name, cost = task.cell.study.name, expected_node_hours(task.cell, records)
        if cost <= left[name]:
            left[name] -= cost
            chosen.append(task)
    served = {task.cell.study.name for task in chosen}
    return chosen, tuple(sorted(set(left) - served))


def _budget_left(study: Study, records: Sequence[Record], now: datetime) -> float:
    """Node-hours left once every attempt in flight has taken what it is expected to take."""
    if study.node_hours is None:
        return float("inf")
    own = [record for record in records if record.study == study.name and record.source == MEASURED]
    return study.node_hours - sum(_cost(record, study, records, now) for record in own)


def _cost(record: Record, study: Study, records: Sequence[Record], now: datetime) -> float:
    """Node-hours of one attempt: used, expected while in flight, at most its time limit where nobody knows."""
    used = attempt_node_hours(record, now)
    if used is None:
        return _node_hours(record, study.time_out_s)
    if record.state not in OPEN_STATES:
        return used
    expected = _node_hours(record, _expected_s(record.cell_id, study, records))
    return max(used, expected) if record.state == RUNNING else expected


def expected_node_hours(cell: Cell, records: Sequence[Record]) -> float:
    """Node-hours that a further attempt at a cell will take, by its good attempts, else its prediction, else its
    time limit."""
    return cell.nodes * _expected_s(cell.id, cell.study, records) / SECONDS_PER_HOUR


def _expected_s(cell_id: str, study: Study, records: Sequence[Record]) -> float:
    own = [record for record in records if record.cell_id == cell_id]
    now = datetime.now(UTC)
    done = [record for record in own if record.source == MEASURED and record.state == DONE]
    hours = [(attempt_node_hours(record, now), record.nodes or 1) for record in done]
    if known := [used * SECONDS_PER_HOUR / nodes for used, nodes in hours if used is not None]:
        return statistics.median(known)
    predicted = [record.wall_s for record in own if record.source == PREDICTED and record.wall_s is not None]
    return min(predicted[0], study.time_out_s) if predicted else study.time_out_s


def _node_hours(record: Record, seconds: float) -> float:
    return (record.nodes or 1) * seconds / SECONDS_PER_HOUR


def _of(cell: Cell, records: Iterable[Record]) -> list[Record]:
    return [record for record in records if record.source == MEASURED and record.cell_id == cell.id]


def _good(cell: Cell, records: Iterable[Record]) -> list[Record]:
    return [record for record in _of(cell, records) if record.state == DONE]


def standing(
    cells: Sequence[Cell], records: Sequence[Record], *, exhausted: tuple[str, ...] = (), given_up: tuple[str, ...] = ()
) -> Standing:
    """The sums over all points."""
    wanted = targets(cells, records)
    good = sum(min(len(_good(cell, records)), wanted[cell.id]) for cell in cells)
    in_flight = [record for cell in cells for record in _of(cell, records) if record.state in OPEN_STATES]
    running = sum(record.state == RUNNING for record in in_flight)
    return Standing(
        good=good, wanted=sum(wanted.values()), running=running, waiting=len(in_flight) - running,
        unsubmitted=sum(record.state == PLANNED for record in in_flight), exhausted=exhausted, given_up=given_up,
    )  # fmt: skip
