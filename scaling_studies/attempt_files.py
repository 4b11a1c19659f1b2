"""What lies in the folder of an ended attempt: the trainer's files and the facts of the job's script.

It owns reading them, and the step times and durations that follow from them; it does not own whether the attempt counts
(``attempt_checks``) nor its record (``measured``).
"""

from __future__ import annotations

import datetime
import json
import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from janus.config import read_toml
from janus.errors import UserError
from scaling_studies.cells import COUNT_NAMES
from scaling_studies.job_facts import BEGIN_FILE, END_FILE, read_facts
from scaling_studies.launchers import RUN_FOLDER
from scaling_studies.records import RankCounts

RUN_SCHEMA = "janus.run/1"
CLOCK_SLACK_S = 2.0  # assumed: a wall clock that is steered, not set, differs by less over a job


class UnreadableRun(Exception):
    """A run folder that gives no record; the message says why."""


@dataclass(frozen=True, kw_only=True)
class AttemptFiles:
    """What lies in the folder of an attempt. begin, end: facts of the job's script, empty where there are none."""

    run: dict[str, Any]
    steps: list[dict[str, Any]]
    settings: dict[str, Any]
    begin: dict[str, Any]
    end: dict[str, Any]


def read_run(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """``run.json`` and the lines of ``steps.jsonl`` of a trainer's folder. Raises UnreadableRun unless both are whole
    and the run is done.
    """
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


def read_attempt(folder: Path) -> AttemptFiles:
    """Read an attempt's folder. Raises UnreadableRun unless the trainer's files are whole and its run is done."""
    run, steps = read_run(folder / RUN_FOLDER)
    try:
        settings = read_toml(folder / RUN_FOLDER / "config.toml")
    except UserError as error:
        raise UnreadableRun(str(error)) from None
    begin, end = (read_facts(folder / name) or {} for name in (BEGIN_FILE, END_FILE))
    return AttemptFiles(run=run, steps=steps, settings=settings, begin=begin, end=end)


def left_by_run(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a run that may have been cut off left of ``run.json`` and of its settings; empty where nothing is whole."""
    try:
        run = _read_json(folder / "run.json")
    except UnreadableRun:
        run = {}
    try:
        return run, read_toml(folder / "config.toml")
    except UserError:
        return run, {}


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


def clock_step_s(clock: str, step: Mapping[str, Any]) -> float:
    """The time of one step by a study's clock (``study.CLOCKS``), from a line of steps.jsonl [s]."""
    times = [float(entry["step_s"]) for entry in step["ranks"]]
    return statistics.fmean(times) if clock == "mean_rank" else max(times)


def has_possible_times(step: Mapping[str, Any]) -> bool:
    """Whether every rank's time of a step is a number above 0."""
    times = [float(entry["step_s"]) for entry in step["ranks"]]
    return bool(times) and all(math.isfinite(step_s) and step_s > 0 for step_s in times)


def rank_counts(step: Mapping[str, Any]) -> tuple[RankCounts, ...]:
    entries = sorted(step["ranks"], key=lambda entry: entry["rank"])
    return tuple(RankCounts(**{name: entry[name] for name in ("structures", *COUNT_NAMES)}) for entry in entries)


def _utc_span_s(begin: Mapping[str, Any], end: Mapping[str, Any]) -> float | None:
    if not begin.get("utc") or not end.get("utc"):
        return None
    start, stop = (datetime.datetime.fromisoformat(facts["utc"]) for facts in (begin, end))
    return (stop - start).total_seconds()


def _monotonic_span_s(begin: Mapping[str, Any], end: Mapping[str, Any]) -> float | None:
    """Seconds between the two on one boot of one host; None where they do not compare."""
    same = begin.get("host") == end.get("host") and begin.get("boot_id") == end.get("boot_id")
    known = begin.get("monotonic_s") is not None and end.get("monotonic_s") is not None
    return end["monotonic_s"] - begin["monotonic_s"] if same and known else None


def end_before_begin(begin: Mapping[str, Any], end: Mapping[str, Any]) -> bool:
    """Whether the job's end lies before its begin."""
    span_s = _utc_span_s(begin, end)
    return span_s is not None and span_s < 0


def job_seconds(begin: Mapping[str, Any], end: Mapping[str, Any]) -> float | None:
    """How long the job's script ran, launcher included; None where it is not known [s]."""
    if end_before_begin(begin, end):
        return None
    span_s = _monotonic_span_s(begin, end)
    return _utc_span_s(begin, end) if span_s is None else span_s


def clock_shift_s(begin: Mapping[str, Any], end: Mapping[str, Any]) -> float | None:
    """By how much the wall clock was set while the job ran; None where it was not, or cannot be known [s]."""
    wall_s, true_s = _utc_span_s(begin, end), _monotonic_span_s(begin, end)
    if wall_s is None or true_s is None or abs(wall_s - true_s) < CLOCK_SLACK_S:
        return None
    return wall_s - true_s
