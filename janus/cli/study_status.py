"""``janus study status``: where every point of a campaign stands. It owns the table and asks; it changes nothing."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from janus.errors import UserError

if TYPE_CHECKING:
    from scaling_studies.executors.base import JobStatus
    from scaling_studies.progress import OpenAttempt, PointProgress
    from scaling_studies.records import Record
    from scaling_studies.study import Declaration

EXAMPLES = """examples:
  janus study status studies/first
  janus study status studies/first --json
  watch -n 60 janus study status studies/first   (or: janus study watch)
"""
SCHEMA = "janus.study-status/1"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Status:
    """rows: a point each; budgets: study -> node-hours, None: no budget; jobs: job id -> what the scheduler says now;
    runner: who works on the folder, "" nobody; notes: what could not be asked or read, or is left out; undeclared:
    points that the declaration has dropped."""

    rows: tuple[PointProgress, ...]
    budgets: Mapping[str, float | None]
    jobs: Mapping[str, JobStatus]
    runner: str
    notes: tuple[str, ...]
    undeclared: tuple[PointProgress, ...] = ()

    def node_hours(self, study: str) -> float:
        """What a study has used so far, at points that were dropped too: its budget has paid for them."""
        return sum(row.node_hours for row in (*self.rows, *self.undeclared) if row.study == study)


def main(arguments: list[str]) -> int:
    """Print the status. Returns 0. Raises UserError when the folder holds no campaign."""
    parser = argparse.ArgumentParser(
        prog="janus study status", epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Good attempts of those wanted, attempts by state, jobs in flight, node-hours,\nlast failure.",
    )  # fmt: skip
    parser.add_argument("folder", type=Path, help="folder that 'janus study run' wrote")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of a table")
    options = parser.parse_args(arguments)
    status = read_status(options.folder)
    if options.json:
        print(json.dumps(_document(options.folder, status), indent=1))
    else:
        print_status(options.folder, status)
    return 0


def read_status(folder: Path, *, ask: bool = True) -> Status:
    """The status of a study folder now. ask: also the scheduler. Raises UserError when it holds no campaign."""
    from scaling_studies.lease import holder
    from scaling_studies.progress import progress
    from scaling_studies.study import CAMPAIGN_FILE, read_declaration, study_records

    if not (folder / CAMPAIGN_FILE).is_file():
        raise UserError(f"{folder} holds no {CAMPAIGN_FILE}: give a folder that 'janus study run' wrote")
    declaration = read_declaration(folder / CAMPAIGN_FILE)
    found, now = study_records(folder), datetime.now(UTC)
    jobs, notes = _ask(declaration, found.records) if ask else ({}, [])
    return Status(
        rows=progress(found.records, now=now, wanted=_wanted(declaration, found.records)), jobs=jobs,
        budgets={study.name: study.node_hours for study in declaration.studies}, runner=holder(folder),
        notes=(*notes, *found.undeclared_lines, *(f"refused {name}: {reason}" for name, reason in found.refused)),
        undeclared=progress(found.undeclared, now=now),
    )  # fmt: skip


def _wanted(declaration: Declaration, records: Sequence[Record]) -> dict[str, int]:
    """cell id -> good attempts wanted, by the repeats and stop rule that the studies declare now."""
    from scaling_studies.records import DONE, MEASURED
    from scaling_studies.wanted import target

    studies = {study.name: study for study in declaration.studies}
    good: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        if record.study in studies:
            own = good.setdefault((record.study, record.cell_id), [])
            own += [record] if record.source == MEASURED and record.state == DONE else []
    return {cell_id: target(studies[name], own) for (name, cell_id), own in good.items()}


def _ask(declaration: Declaration, records: Sequence[Record]) -> tuple[dict[str, JobStatus], list[str]]:
    """What the scheduler says of the jobs in flight, and why it could not be asked. Jobs of a host have none."""
    from scaling_studies.executors.base import SchedulerSilentError
    from scaling_studies.executors.choice import executor_for
    from scaling_studies.records import MEASURED, OPEN_STATES

    job_ids = [
        record.job_id for record in records
        if record.source == MEASURED and record.state in OPEN_STATES and record.job_id
    ]  # fmt: skip
    if not job_ids or declaration.executor.kind == "local":
        return {}, []
    try:
        return executor_for(declaration.executor).poll(job_ids), []
    except (SchedulerSilentError, UserError) as error:
        return {}, [f"{declaration.executor.kind} could not be asked ({error}): jobs are shown as last recorded"]


def _document(folder: Path, status: Status) -> dict[str, Any]:
    def point(row: PointProgress) -> dict[str, Any]:
        in_flight = [
            {**dataclasses.asdict(entry), "scheduler": _scheduler_words(entry, status)} for entry in row.in_flight
        ]
        return {**dataclasses.asdict(row), "states": dict(row.states), "in_flight": in_flight}

    studies = [
        {"study": name, "node_hours": status.node_hours(name), "budget_node_hours": budget}
        for name, budget in status.budgets.items()
    ]
    return {"schema": SCHEMA, "folder": str(folder), "runner": status.runner, "studies": studies,
            "points": [point(row) for row in status.rows], "notes": list(status.notes),
            "no_longer_declared": [point(row) for row in status.undeclared]}  # fmt: skip


def _scheduler_words(entry: OpenAttempt, status: Status) -> str:
    """State of a job and its reason as the scheduler gives them now, "" where it was not asked."""
    job = status.jobs.get(entry.job_id)
    return "" if job is None else f"{job.state} {job.reason}".strip()


def print_status(folder: Path, status: Status) -> None:
    """Tables for people: points, then jobs in flight, then what failed."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, soft_wrap=True)
    for name, budget in status.budgets.items():
        rows = [row for row in status.rows if row.study == name]
        if not rows:
            continue
        spent = f"{status.node_hours(name):,.3g}{_untimed(rows)} node-hours"
        title = f"{name} ({rows[0].mode}): {spent}" + ("" if budget is None else f" of {budget:,.3g}")
        table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for heading in (rows[0].scaled.replace("_", " "), "good", "in flight", "did not count", "node-h"):
            table.add_column(heading, justify="right", no_wrap=True)
        for row in rows:
            failed = ", ".join(f"{number} {state}" for state, number in sorted(row.states.items()) if state in FAILED)
            table.add_row(f"{row.x:,g}", f"{row.good} of {row.wanted}", str(len(row.in_flight) or "-"), failed or "-",
                          f"{row.node_hours:,.3g}")  # fmt: skip
        console.print(table)
    _print_lines(console, status)
    good, wanted = (sum(min(row.good, row.wanted) for row in status.rows), sum(row.wanted for row in status.rows))
    runner = f"runner: {status.runner}" if status.runner else "no runner at work"
    console.print(f"{folder}: {good} of {wanted} good attempts; {runner}", markup=False)


FAILED = ("FAILED", "OOM", "TIMEOUT", "INVALID")


def _untimed(rows: Sequence[PointProgress]) -> str:
    """How many attempts the sum lacks because nobody knows how long they ran."""
    number = sum(row.untimed for row in rows)
    return f" (without {number} of unknown length)" if number else ""


def _print_lines(console: Any, status: Status) -> None:
    """One line per job in flight, two per point's last failure, one per note."""
    from scaling_studies.attempts import ATTEMPT_FOLDER

    for row in status.rows:
        for entry in row.in_flight:
            age = "" if entry.age_s is None else f" for {_age(entry.age_s)}"
            words = _scheduler_words(entry, status)
            job = f", job {entry.job_id}" if entry.job_id else ""
            console.print(f"{entry.tag}: {entry.state}{age}{job}{f' ({words})' if words else ''}", markup=False)
    for row in status.rows:
        if row.last_failure:
            console.print(f"last failure of {row.study} at {row.scaled} = {row.x:,g}: {row.last_failure}", markup=False)
            console.print(f"  its script and log: {ATTEMPT_FOLDER}/{row.last_failed}", markup=False)
    for note in status.notes:
        console.print(note, markup=False)


def _age(seconds: float) -> str:
    """Two units at most: 3 d 4 h, 2 h 5 min, 40 s."""
    days, rest = divmod(int(seconds), 86400)
    hours, rest = divmod(rest, 3600)
    minutes, rest = divmod(rest, 60)
    parts = [(days, "d"), (hours, "h"), (minutes, "min"), (rest, "s")]
    first = next((place for place, (number, _) in enumerate(parts) if number), len(parts) - 1)
    return " ".join(f"{number} {unit}" for number, unit in parts[first : first + 2] if number) or "0 s"
