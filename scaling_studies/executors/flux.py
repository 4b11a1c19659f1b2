"""Attempts as jobs of Flux: flux batch, flux jobs and flux cancel, as text.

It owns what is asked of these programs and how their answers are read; it does not own the job's script (``scripts``)
nor what becomes of an attempt (``runner``).

A batch job is a Flux instance of its own. At the time limit its inner instance may end first: then the outer job is
FAILED with the return code of SIGALRM, not TIMEOUT (flux-core issue 6779), and is read as TIMEOUT here.

Source: flux-jobs(1), flux-batch(1), flux-cancel(1) of flux-core 0.50 and later; RFC 19 (job ids), RFC 21 (states).
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from scaling_studies.executors.base import (
    ENDED,
    QUEUED,
    RUNNING,
    UNKNOWN,
    AttemptJob,
    JobStatus,
    SchedulerSilentError,
)
from scaling_studies.executors.commands import Answer, Attributes, ask, each_job, no_job_id, submit_in_turn
from scaling_studies.executors.scripts import attempt_script
from scaling_studies.records import DONE, FAILED, TIMEOUT

STATES = {
    "NEW": QUEUED, "DEPEND": QUEUED, "PRIORITY": QUEUED, "SCHED": QUEUED, "RUN": RUNNING, "CLEANUP": RUNNING,
    "INACTIVE": ENDED,
}  # fmt: skip
RETURN_CODE_OF_SIGALRM = 128 + 14
BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
FORGOTTEN = re.compile(r"JobID (\d+|[ƒf]\w+) unknown")  # in decimal or, in some versions, base 58
OVER = re.compile(r"unknown job id|job is inactive", re.IGNORECASE)
UNREACHABLE = re.compile(r"Unable to connect to Flux|Connection refused|No route to host|timed out", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class FluxExecutor:
    """One Flux instance, as ``flux`` on the path and FLUX_URI find it. Fields as ``SlurmExecutor``."""

    max_in_flight: int = 8
    poll_s: float = 30.0
    setup: tuple[str, ...] = ()
    directives: tuple[str, ...] = ()
    name: str = "flux"

    def render(self, attempt: AttemptJob) -> str:
        """Text of the job script. Raises UserError for a name or a path that Flux cannot take."""
        return attempt_script("flux", attempt, setup=self.setup, directives=self.directives)

    def submit(self, attempts: Sequence[AttemptJob]) -> dict[str, str]:
        """tag -> job id, as ``submit_in_turn``. Raises SubmitError and SchedulerSilentError."""
        return submit_in_turn(attempts, _submit)

    def poll(self, job_ids: Sequence[str]) -> dict[str, JobStatus]:
        """job id -> status, UNKNOWN where Flux has purged it. Raises SchedulerSilentError."""
        if not job_ids:
            return {}
        answer = ask(["flux", "jobs", "--json", *job_ids])
        listed = {str(job["id"]): job for job in _jobs(answer)}
        unknown = {decimal_id(printed) for printed in FORGOTTEN.findall(answer.err)}
        return {job_id: _status(job) for job_id, job in each_job(answer, job_ids, listed, unknown).items()}

    def find(self, tags: Sequence[str]) -> dict[str, str]:
        """tag -> job id of the jobs with these names, ended ones included. Raises SchedulerSilentError."""
        found = {}
        for tag in tags:
            answer = ask(["flux", "jobs", "--json", "-a", f"--name={tag}"])
            if answer.code or not answer.out.strip():
                raise SchedulerSilentError(answer.words)
            if ids := sorted(int(job["id"]) for job in _jobs(answer)):
                found[tag] = str(ids[0])
        return found

    def cancel(self, job_ids: Sequence[str]) -> None:
        """End these jobs; those that have ended are left alone. Raises SchedulerSilentError."""
        if job_ids:
            answer = ask(["flux", "cancel", *job_ids])
            if answer.code and not answer.complains_only_of(OVER):
                raise SchedulerSilentError(answer.words)


def _submit(attempt: AttemptJob) -> str:
    answer = ask(["flux", "batch", str(attempt.script)])
    if answer.code or not answer.out.strip():
        raise no_job_id("Flux", attempt, answer, UNREACHABLE)
    try:
        return decimal_id(answer.out.split()[-1])
    except ValueError:
        raise SchedulerSilentError(f"flux batch printed no job id: {answer.words}") from None


def decimal_id(job_id: str) -> str:
    """A job id as Flux prints it (base 58 after "ƒ" or, without UTF-8, "f"; or decimal) in decimal. RFC 19.

    Raises ValueError for anything else.
    """
    if job_id[:1] not in ("ƒ", "f"):
        return str(int(job_id))
    number = 0
    for digit in job_id[1:]:
        number = number * len(BASE58) + BASE58.index(digit)
    return str(number)


def _jobs(answer: Answer) -> list[Attributes]:
    """The jobs in an answer of ``flux jobs --json``: one object for one id, nothing where none is known, else a list in
    an object.
    """
    try:
        values = json.loads(answer.out) if answer.out.strip() else {}
    except ValueError as error:
        raise SchedulerSilentError(f"flux jobs printed no JSON ({error})") from None
    jobs: list[Attributes] = values.get("jobs", [values])
    return [job for job in jobs if "id" in job]


def _status(job: Attributes) -> JobStatus:
    if not job:
        return JobStatus(state=UNKNOWN)
    state = STATES.get(job["state"], RUNNING)
    outcome, reason = _end(job) if state == ENDED else ("", "")
    if state == QUEUED:
        pending = job.get("annotations", {}).get("sched", {}).get("reason_pending", "")
        reason = "held" if job.get("urgency") == 0 else str(pending)
    return JobStatus(state=state, outcome=outcome, reason=reason, nodes=str(job.get("nodelist", "")))


def _end(job: Attributes) -> tuple[str, str]:
    """Outcome and reason of an inactive job."""
    exception = job.get("exception", {})
    note = f": {exception['note']}" if exception.get("note") else ""
    code = job.get("returncode")
    if job.get("result") == "COMPLETED":
        return DONE, ""
    if job.get("result") == "TIMEOUT" or code == RETURN_CODE_OF_SIGALRM:
        return TIMEOUT, f"time limit of the job{note}"
    if job.get("result") == "CANCELED":
        return FAILED, f"cancelled{note}"
    if exception.get("occurred"):
        return FAILED, f"{exception.get('type', 'exception')}{note}"
    return FAILED, f"exit code {code}"
