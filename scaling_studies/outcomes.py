"""What became of an attempt whose job has ended: its final record, with a reason that a person understands.

It owns the order in which the witnesses are heard: the job's own end (``end.json``), what ended it (``verdict.json``),
the scheduler, the log; and who is asked where a failed attempt ran. It does not own reading a whole run (``measured``)
nor when a job has ended (``runner``).
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from scaling_studies import provenance
from scaling_studies.attempt_files import left_by_run
from scaling_studies.executors.base import ENDED, VERDICT_FILE, JobStatus
from scaling_studies.job_facts import BEGIN_FILE, END_FILE, SECOND_START, read_facts
from scaling_studies.launchers import RUN_FOLDER
from scaling_studies.measured import UnreadableRun, code_of
from scaling_studies.records import DONE, FAILED, OOM, TIMEOUT, Record

KILLED = 137  # 128 + SIGKILL: what the memory killer leaves
NO_MEMORY = re.compile(
    r"out of memory|oom.?kill|bad_alloc|memoryerror|(can ?not|can't|unable to) allocate memory|"
    r"exceeded (job |step |virtual )?memory limit",
    re.IGNORECASE,
)
LOG_TAIL_BYTES = 20_000  # last part of a log that is searched for the reason
Measure = Callable[[Record, Path], Record]  # record of a whole run: attempt, its folder; raises UnreadableRun


def has_begun(folder: Path) -> bool:
    """Whether a job has been at work in the attempt's folder."""
    return (folder / BEGIN_FILE).exists() or (folder / END_FILE).exists()


def has_program_begun(folder: Path) -> bool:
    """Whether a job has come past the setup lines of its script."""
    return (folder / BEGIN_FILE).exists()


def is_settled(folder: Path, status: JobStatus) -> bool:
    """Whether there is a word on how the job ended; without one it may still be on its way to this file system."""
    told = (folder / END_FILE).exists() or (folder / VERDICT_FILE).exists()
    return told or (status.state == ENDED and status.outcome not in ("", DONE))


def final_record(attempt: Record, folder: Path, status: JobStatus, measure: Measure) -> Record:
    """The final record of an attempt whose job has ended or is lost."""
    begin, end = read_facts(folder / BEGIN_FILE) or {}, read_facts(folder / END_FILE) or {}
    attempt = dataclasses.replace(
        attempt, started_at=begin.get("utc", attempt.started_at), ended_at=end.get("utc", attempt.ended_at)
    )
    if end.get("exit_code") == 0:
        try:
            return measure(attempt, folder)
        except UnreadableRun as error:
            state, reason = FAILED, f"the program ended well, but {error}"
    else:
        state, reason = _failure(attempt, folder, status, end)
    return dataclasses.replace(
        attempt, state=state, reason=reason, provenance=_origin(attempt, folder, status, begin, end)
    )


def _origin(
    attempt: Record, folder: Path, status: JobStatus, begin: Mapping[str, Any], end: Mapping[str, Any]
) -> dict[str, Any]:
    """Where a failed attempt ran and what it was, as far as run, job, scheduler and submission tell."""
    submitted = {
        **attempt.provenance, "job_id": attempt.job_id, "node_list": status.nodes,
        "launch_command": _launch_command(folder / "job.sh"),
    }  # fmt: skip
    code = code_of(begin, folder.parent.parent)
    run, settings = left_by_run(folder / RUN_FOLDER)
    try:
        found = provenance.of_failure(run, settings, begin, end, code, submitted)
        json.dumps(found, allow_nan=False)  # what a record cannot hold would be lost with it
        return found
    except (TypeError, ValueError, AttributeError):  # files of a run that was cut off: the job's facts remain
        return provenance.of_failure({}, {}, begin, end, code, submitted)


def _launch_command(script: Path) -> str | None:
    """The command by which an attempt's script starts its ranks: the one that it waits for (``executors.scripts``)."""
    try:
        lines = script.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((line.removesuffix(" &") for line, after in pairwise(lines) if after == 'wait "$!"'), None)


def _failure(attempt: Record, folder: Path, status: JobStatus, end: dict[str, object]) -> tuple[str, str]:
    """Final state and reason of an attempt that did not end well."""
    words, code = _last_words(folder / "log.txt"), end.get("exit_code")
    outcome, reason = _verdict(folder)
    if outcome in ("", DONE):
        outcome, reason = status.outcome, status.reason
    if outcome in (TIMEOUT, OOM):
        return outcome, f"{reason or 'so the scheduler says'}; see {folder.name}/log.txt"
    if NO_MEMORY.search(_tail(folder / "log.txt")):
        return OOM, f"exit code {code}: {words}" if code is not None else f"out of memory: {words}"
    if outcome == FAILED and reason and not reason.startswith(("exit code", "failed")):
        return FAILED, f"{reason}: {words}"  # preempted, a node failed, cancelled: not the program's doing
    if code == KILLED:
        return OOM, f"exit code {code}, killed as the memory killer does it: {words}"
    if code is not None:
        where = "" if has_program_begun(folder) else ", before the program began (the setup lines of job.sh)"
        return FAILED, f"exit code {code}{where}: {words}"
    return FAILED, _lost(attempt, folder, status, words)


def _lost(attempt: Record, folder: Path, status: JobStatus, words: str) -> str:
    """The reason of an attempt whose job left no end. How it begins decides whose fault it was, see ``wanted``."""
    began = "it had begun" if has_begun(folder) else "it never began"
    job_id = attempt.job_id or "not known"
    if SECOND_START in _tail(folder / "log.txt"):
        return f"requeued: {attempt.executor} started job {job_id} a second time, and an attempt is started once only"
    if status.state == ENDED and status.outcome:
        return f"job {job_id} left no end ({attempt.executor} says {status.reason or 'it ended'}, {began}): {words}"
    known = "it was killed" if status.state == ENDED else f"{attempt.executor} does not know it any more"
    return f"job lost: {status.reason or known}, {began} and left no end (job id {job_id}): {words}"


def _verdict(folder: Path) -> tuple[str, str]:
    """Outcome and reason as what watched over the job wrote them down; empty where it did not have to end it."""
    try:
        values = json.loads((folder / VERDICT_FILE).read_text(encoding="utf-8"))
        return str(values["outcome"]), str(values["reason"])
    except (OSError, ValueError, KeyError, TypeError):
        return "", ""


def _tail(log: Path) -> str:
    try:
        with log.open("rb") as stream:
            stream.seek(max(0, log.stat().st_size - LOG_TAIL_BYTES))
            return stream.read().decode("utf-8", errors="replace")
    except OSError:
        return ""


def _last_words(log: Path) -> str:
    """The last line before any launcher's banner, shortened: usually the one that names the error."""
    lines = [line.strip() for line in _tail(log).splitlines() if line.strip()]
    banner = next((number for number, line in enumerate(lines) if number and set(line) == {"="}), len(lines))
    return lines[banner - 1][:300] if lines else "it printed nothing"
