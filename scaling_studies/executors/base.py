"""What an executor is: it renders, submits, polls and cancels jobs. It knows nothing of studies nor of records.

One job per attempt: attempts are independent allocations. A job is named by its attempt's tag, so that a job whose
number was not written down (the runner died in between) is found again by name.

Every job's script calls ``python -m scaling_studies.job_facts begin`` and, by a trap, ``end``: the attempt's own folder
says whether it started and how it ended even when the scheduler has forgotten the job.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from janus.errors import UserError
from scaling_studies.launch_scripts import Job

VERDICT_FILE = "verdict.json"  # in an attempt's folder: outcome and reason, when what watched over the job ended it
QUEUED, RUNNING, ENDED, UNKNOWN = "queued", "running", "ended", "unknown"


class SubmitError(UserError):
    """The scheduler took no job; the message holds its own words."""


class SchedulerSilentError(Exception):
    """The scheduler gave no answer (time-out, controller down): nothing is known about any job, ask again later."""


@dataclass(frozen=True, kw_only=True)
class AttemptJob:
    """tag: name of the job, unique among a user's jobs; folder: of the attempt, absolute, where script, log and facts
    lie; job: what is started.
    """

    tag: str
    folder: Path
    job: Job

    @property
    def script(self) -> Path:
        return self.folder / "job.sh"

    @property
    def log(self) -> Path:
        return self.folder / "log.txt"


@dataclass(frozen=True, kw_only=True)
class JobStatus:
    """state: QUEUED, RUNNING, ENDED, or UNKNOWN to the scheduler.

    outcome: of an ended job, one of the record states DONE, FAILED, OOM, TIMEOUT as the scheduler sees it ("" where it
    does not tell); reason: its own word (PREEMPTED, NODE_FAIL, exit code 3); nodes: host list as it writes it.
    """

    state: str
    outcome: str = ""
    reason: str = ""
    nodes: str = ""


class Executor(Protocol):
    """One scheduler. ``name`` is kept in records; ``max_in_flight``: most attempts queued or running at a time."""

    @property
    def name(self) -> str: ...

    @property
    def max_in_flight(self) -> int: ...

    @property
    def poll_s(self) -> float: ...

    def render(self, attempt: AttemptJob) -> str:
        """Text of the job script, with the calls of job_facts."""

    def submit(self, attempts: Sequence[AttemptJob]) -> dict[str, str]:
        """tag -> job id, once every script lies on disk. Raises SubmitError, after none of them was taken."""

    def poll(self, job_ids: Sequence[str]) -> dict[str, JobStatus]:
        """job id -> status of each. Raises SchedulerSilentError."""

    def find(self, tags: Sequence[str]) -> dict[str, str]:
        """tag -> job id of the jobs the scheduler holds under these names. Raises SchedulerSilentError."""

    def cancel(self, job_ids: Sequence[str]) -> None:
        """End these jobs; those that have ended are left alone."""
