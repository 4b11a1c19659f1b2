"""From the folder of one ended attempt to its measured record.

It owns putting the record together; it does not own starting jobs (``runner``), reading their files
(``attempt_files``), whether an attempt counts (``attempt_checks``, ``provenance``), nor the formulas of the work
(``perfmodel``).
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from janus.errors import UserError
from perfmodel.machine import Machine
from scaling_studies import code_version, provenance
from scaling_studies.attempt_checks import invalid_reasons
from scaling_studies.attempt_files import (
    AttemptFiles,
    UnreadableRun,
    clock_shift_s,
    clock_step_s,
    end_before_begin,
    has_possible_times,
    job_seconds,
    rank_counts,
    read_attempt,
    read_run,
)
from scaling_studies.cells import Cell
from scaling_studies.limits import ceilings_of, devices_used, peak_of
from scaling_studies.predicted import cell_work, expert_rows, phase_workload
from scaling_studies.records import DONE, INVALID, JOB_SECONDS, Ceiling, Peak, RankTimes, Record, from_json, to_json
from scaling_studies.statistics import trend

__all__ = ["Host", "UnreadableRun", "code_of", "measured_record", "read_run"]

METHOD = "janus train, monotonic clock"


@dataclass(frozen=True, kw_only=True)
class Host:
    """The machine that jobs run on, as its file describes it: a calibrated host, or one of the catalogue."""

    machine: Machine

    @property
    def name(self) -> str:
        return self.machine.name

    def peak_of(self, ranks: int, dtype: str, threads: int = 1) -> Peak | None:
        """The peak of all devices that a job uses together, None where it is not known."""
        return peak_of(self.machine, dtype, ranks, threads)

    def ceilings_of(self, ranks: int, threads: int = 1) -> tuple[Ceiling, ...]:
        """What the roofline is drawn with: of all devices that a job uses together."""
        return ceilings_of(self.machine, ranks, threads)

    def is_oversubscribed(self, ranks: int, threads: int = 1) -> bool:
        """Whether a job has more ranks and threads than its devices."""
        per_rank = max(1, threads) if self.machine.is_calibrated_host else 1
        return ranks * per_rank > devices_used(self.machine, ranks, threads)


def measured_record(cell: Cell, attempt: Record, folder: Path, host: Host) -> Record:
    """The record of an attempt whose run is done: DONE, or INVALID with every reason why it may not count.

    attempt: its record so far, whose identity, submission and job id are kept; folder: of the attempt.
    Raises UnreadableRun when the folder gives no record.
    """
    files = read_attempt(folder)
    try:
        record = _record(cell, attempt, files, folder, host)
        text = to_json(record)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise UnreadableRun(f"the run's files lack what a record needs ({error!r})") from None
    try:
        from_json(text)  # a record that could not be read back would be lost
    except UserError as error:
        raise UnreadableRun(f"the run's files hold what a record cannot ({error})") from None
    return record


def _record(cell: Cell, attempt: Record, files: AttemptFiles, folder: Path, host: Host) -> Record:
    run, num_warm_up = files.run, cell.study.warm_up_steps
    # a record refuses impossible times; the reason tells them
    steps = files.steps if all(map(has_possible_times, files.steps)) else []
    times_s = tuple(clock_step_s(cell.study.clock, step) for step in steps)
    used, step_s = steps[num_warm_up:], times_s[num_warm_up:]
    known = provenance.of_attempt(
        run, files.settings, files.begin, files.end, code_of(files.begin, folder.parent.parent),
        order_seed=cell.study.seed,
    )  # fmt: skip
    reasons = [*invalid_reasons(cell, files), *_missing(known)]
    wall_s = None if end_before_begin(files.begin, files.end) else _duration(run.get("wall_s"))
    threads = cell.executor.threads
    memory = [int(value) for value in run.get("peak_memory_bytes") or () if value]
    return dataclasses.replace(
        attempt, method=METHOD, machine=host.name, layout=dict(run.get("layout") or {}),
        state=INVALID if reasons else DONE, reason="; ".join(reasons), nodes=_num_hosts(run) or attempt.nodes,
        started_at=files.begin.get("utc"), ended_at=files.end.get("utc"),
        counts_per_rank=rank_counts(used[0]) if used else (),
        warm_up_step_s=times_s[:num_warm_up], step_s=step_s, phase_s=_phases(used),
        rank_times=_rank_times(used),
        start_up_s=_duration(run.get("start_up_s")), loop_s=_duration(run.get("loop_s")), wall_s=wall_s,
        peak=host.peak_of(cell.ranks, cell.study.dtype, threads),
        ceilings=host.ceilings_of(cell.ranks, threads), memory_bytes=max(memory) if memory else None,
        oversubscribed=bool(run.get("oversubscribed")) or host.is_oversubscribed(cell.ranks, threads),
        facts=attempt.facts | _facts(cell, files, step_s), provenance=known, **_work(cell),
    )  # fmt: skip


def _work(cell: Cell) -> dict[str, Any]:
    """What the formulas say of a step's work; nothing where the data does not tell what they need."""
    try:
        work = cell_work(cell)
    except UserError:
        return {}
    return {"model_flops": work.flops_model, "executed_flops": work.flops_executed, "workload": phase_workload(work),
            "expert_rows_per_rank": expert_rows(work)}  # fmt: skip


def _rank_times(steps: Sequence[dict[str, Any]]) -> RankTimes | None:
    """Medians over the steps, rank by rank; busy is what is not waiting in the step's first collective.

    None unless every step has the same ranks.
    """
    by_rank = [sorted(step["ranks"], key=lambda entry: entry["rank"]) for step in steps]
    if len({len(entries) for entries in by_rank}) != 1:
        return None

    def medians(value: str) -> tuple[float, ...]:
        return tuple(
            statistics.median(
                entry["step_s"] - entry["wait_s"] if value == "busy_s" else entry[value] for entry in entries
            )
            for entries in zip(*by_rank, strict=True)
        )

    return RankTimes(step_s=medians("step_s"), busy_s=medians("busy_s"), wait_s=medians("wait_s"))


def _phases(steps: Sequence[dict[str, Any]]) -> dict[str, tuple[float, ...]]:
    """Phase -> mean over ranks for each step [s]; a phase that one rank lacks counts 0 there."""
    names = list(dict.fromkeys(name for step in steps for entry in step["ranks"] for name in entry["phase_s"]))
    return {
        name: tuple(
            sum(entry["phase_s"].get(name, 0.0) for entry in step["ranks"]) / len(step["ranks"]) for step in steps
        )
        for name in names
    }


def _num_hosts(run: Mapping[str, Any]) -> int | None:
    hosts = (run.get("provenance") or {}).get("hosts")
    return len(hosts) if hosts else None


def _finite(value: Any) -> Any:
    """A number that JSON has, else in words."""
    return value if not isinstance(value, float) or math.isfinite(value) else "not finite"


def _duration(value: Any) -> float | None:
    """A duration, or None for what cannot be one."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) and value > 0 else None


def code_of(begin: Mapping[str, Any], study: Path) -> dict[str, Any]:
    """Revision, diff and distributions as the job found them; where it could not read the repository, as they are now
    if the sources are still those that ran."""
    code = dict(begin.get("code") or {})
    if code.get("revision") is None and code:
        state = code_version.source_state()
        if state.version == code.get("version"):
            state.keep(study)
            code |= {"revision": state.revision, "diff": state.diff}
    return code


def _missing(known: Mapping[str, Any]) -> list[str]:
    gaps = provenance.missing(known)
    return [f"provenance is missing: {', '.join(gaps)}"] if gaps else []


def _facts(cell: Cell, files: AttemptFiles, step_s: Sequence[float]) -> dict[str, Any]:
    """What people may want to know beside the numbers."""
    facts: dict[str, Any] = {"threads per rank": cell.executor.threads}
    if files.steps:
        facts |= {"first loss": _finite(files.steps[0].get("loss")), "last loss": _finite(files.steps[-1].get("loss"))}
    if step_s:
        found = trend(step_s)
        how = "" if found.p_value is None else f" (Spearman {found.correlation:.2f}, p {found.p_value:.2g})"
        facts["steps after warm-up"] = f"{found.words}{how}"
    if (job_s := job_seconds(files.begin, files.end)) is not None:
        facts[JOB_SECONDS] = job_s
    if shift_s := clock_shift_s(files.begin, files.end):
        facts["clock"] = f"the host's clock was set by {shift_s:+.1f} s during the job; durations do not depend on it"
    return facts
