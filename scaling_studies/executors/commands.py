"""Asking a scheduler's own programs: run one, bound its time, keep its words; submit in turn. It knows no scheduler.

The rule of every answer: a job is unknown to a scheduler only where the answer says so in words. Answers that leave out
jobs that run are real: bjobs without a line and exit code 0 (nextflow issues 910 and 927), qstat with the first of
several jobs (OpenPBS issue 2672).
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from janus.errors import UserError
from scaling_studies.executors.base import AttemptJob, SchedulerSilentError, SubmitError

Attributes = Mapping[str, Any]  # of one job, as the scheduler names them
ANSWER_S = 90.0  # assumed: an answer that takes longer will not come


@dataclass(frozen=True, kw_only=True)
class Answer:
    """code: exit code; out, err: what the program printed."""

    code: int
    out: str
    err: str

    @property
    def words(self) -> str:
        """What it said, on one line and cut to be shown."""
        return " ".join((self.err.strip() or self.out.strip()).split())[:300] or f"exit code {self.code}, no words"

    def complains_only_of(self, pattern: re.Pattern[str]) -> bool:
        """Whether it complained, and every line of it fits the pattern: then nothing else went wrong."""
        lines = [line for line in (self.err.strip() or self.out).splitlines() if line.strip()]
        return bool(lines) and all(pattern.search(line) for line in lines)


def ask(
    words: Sequence[str], *, stdin: Path | None = None, environment: Mapping[str, str] | None = None
) -> Answer:  # fmt: skip
    """Run a program of the scheduler. stdin: file it reads; environment: its variables, None: those of this process.

    Raises SchedulerSilentError when it does not end in time, UserError when there is no such program.
    """
    try:
        with (stdin or Path("/dev/null")).open("rb") as stream:
            found = subprocess.run(
                words, stdin=stream, capture_output=True, timeout=ANSWER_S, check=False, env=environment
            )
    except subprocess.TimeoutExpired:
        raise SchedulerSilentError(f"{words[0]} gave no answer within {ANSWER_S:g} s") from None
    except FileNotFoundError:
        raise UserError(
            f"{words[0]} is not on the path: load the scheduler's module, or set [executor] kind to what this host has"
        ) from None
    return Answer(
        code=found.returncode, out=found.stdout.decode(errors="replace"), err=found.stderr.decode(errors="replace")
    )


def each_job(
    answer: Answer, job_ids: Sequence[str], listed: Mapping[str, Attributes], unknown: Collection[str]
) -> dict[str, Attributes]:
    """job id -> its attributes as listed, none for a job of which the answer says that it is unknown.

    Raises SchedulerSilentError where nothing is said of a job.
    """
    for job_id in job_ids:
        if job_id not in listed and job_id not in unknown:
            words = " ".join(answer.err.split())[:300] or f"exit code {answer.code}"
            raise SchedulerSilentError(f"nothing is said of job {job_id}: {words}")
    return {job_id: listed.get(job_id, {}) for job_id in job_ids}


def submit_in_turn(attempts: Sequence[AttemptJob], submit: Callable[[AttemptJob], str]) -> dict[str, str]:
    """tag -> job id by ``submit``. When a limit of the site or silence stops it half-way, those noted so far.

    Raises SubmitError when the first job was refused, SchedulerSilentError when it may or may not have been taken.
    """
    taken: dict[str, str] = {}
    for attempt in attempts:
        try:
            taken[attempt.tag] = submit(attempt)
        except (SubmitError, SchedulerSilentError):
            if not taken:
                raise
            break
    return taken


def no_job_id(scheduler: str, attempt: AttemptJob, answer: Answer, unreachable: re.Pattern[str]) -> Exception:
    """What to raise when a submission gave no job id. unreachable: the words of a scheduler that is away."""
    if answer.code == 0 or unreachable.search(answer.err):
        return SchedulerSilentError(answer.words)
    return SubmitError(f"{scheduler} did not take {attempt.script}: {answer.words}")
