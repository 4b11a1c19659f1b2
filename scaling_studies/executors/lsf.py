"""Attempts as jobs of IBM Spectrum LSF: bsub, bjobs and bkill, as text.

It owns what is asked of these programs and how their answers are read; it does not own the job's script (``scripts``)
nor what becomes of an attempt (``runner``).

Jobs are marked as not rerunnable: after a node failure an attempt ends and another one is made, LSF does not start the
same one twice. LSF forgets a job some time after its end (CLEAN_PERIOD, one hour by default); then the attempt's own
end.json decides. While LSF is down its programs print "Please wait" and do not end: that is no answer.

Source: bsub, bjobs and bkill of the LSF 10.1 command reference; termination reasons of bacct(1).
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
    SubmitError,
)
from scaling_studies.executors.commands import Answer, Attributes, ask, each_job, no_job_id, submit_in_turn
from scaling_studies.executors.scripts import attempt_script
from scaling_studies.records import DONE, FAILED, OOM, TIMEOUT

FIELDS = "jobid job_name stat exit_code exit_reason pend_reason exec_host"
STATES = {
    "PEND": QUEUED, "PSUSP": QUEUED, "PROV": QUEUED, "WAIT": QUEUED, "FWD_PEND": QUEUED,
    "RUN": RUNNING, "USUSP": RUNNING, "SSUSP": RUNNING, "UNKWN": RUNNING, "ZOMBI": RUNNING,
    "DONE": ENDED, "EXIT": ENDED,
}  # fmt: skip
WAITING_WORDS = {"PSUSP": "held", "USUSP": "suspended", "SSUSP": "suspended by LSF", "UNKWN": "its host is silent"}
# Termination reason -> state of the attempt, where it is not FAILED.
ENDS = {
    "TERM_RUNLIMIT": TIMEOUT, "TERM_DEADLINE": TIMEOUT, "TERM_CPULIMIT": TIMEOUT, "TERM_MEMLIMIT": OOM,
    "TERM_SWAP": OOM,
}  # fmt: skip
CANCELLED = ("TERM_OWNER", "TERM_FORCE_OWNER", "TERM_ADMIN", "TERM_FORCE_ADMIN")
SUBMITTED = re.compile(r"Job <(\d+)> is submitted")
REFUSED = re.compile(r"Job\s+not\s+submitted", re.IGNORECASE)
FORGOTTEN = re.compile(r"Job <(\d+)> is not found", re.IGNORECASE)
NONE_FOUND = re.compile(r'is not found|No (matching |unfinished )?job found|"RECORDS"\s*:\s*\[\s*\]', re.IGNORECASE)
OVER = re.compile(r"is not found|No matching job|already finished|is being terminated", re.IGNORECASE)
UNREACHABLE = re.compile(r"LSF is down|Please wait|Cannot connect to LSF|Failed in an LSF library call", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class LsfExecutor:
    """One LSF cluster, as its programs on the path find it. Fields as ``SlurmExecutor``."""

    max_in_flight: int = 8
    poll_s: float = 30.0
    setup: tuple[str, ...] = ()
    directives: tuple[str, ...] = ()
    name: str = "lsf"

    def render(self, attempt: AttemptJob) -> str:
        """Text of the job script. Raises UserError for a name or a path that LSF cannot take."""
        return attempt_script("lsf", attempt, setup=self.setup, directives=("-rn", *self.directives))

    def submit(self, attempts: Sequence[AttemptJob]) -> dict[str, str]:
        """tag -> job id, as ``submit_in_turn``. Raises SubmitError and SchedulerSilentError."""
        return submit_in_turn(attempts, _submit)

    def poll(self, job_ids: Sequence[str]) -> dict[str, JobStatus]:
        """job id -> status, UNKNOWN where LSF has forgotten it. Raises SchedulerSilentError."""
        if not job_ids:
            return {}
        answer = _bjobs(*job_ids)
        listed = {str(job["JOBID"]): job for job in _records(answer)}
        unknown = FORGOTTEN.findall(answer.out + answer.err)
        return {job_id: _status(job) for job_id, job in each_job(answer, job_ids, listed, unknown).items()}

    def find(self, tags: Sequence[str]) -> dict[str, str]:
        """tag -> job id of the jobs with these names, ended ones included. Raises SchedulerSilentError."""
        found = {}
        for tag in tags:
            answer = _bjobs("-J", tag)
            if ids := sorted(int(job["JOBID"]) for job in _records(answer)):
                found[tag] = str(ids[0])
            elif not NONE_FOUND.search(answer.out + answer.err):
                raise SchedulerSilentError(answer.words)
        return found

    def cancel(self, job_ids: Sequence[str]) -> None:
        """End these jobs; those that have ended are left alone. Raises SchedulerSilentError."""
        if job_ids:
            answer = ask(["bkill", *job_ids])
            if answer.code and not answer.complains_only_of(OVER):
                raise SchedulerSilentError(answer.words)


def _submit(attempt: AttemptJob) -> str:
    answer = ask(["bsub"], stdin=attempt.script)  # bsub reads its directives from standard input only
    if match := SUBMITTED.search(answer.out):
        return match[1]
    if REFUSED.search(answer.err):  # whatever the exit code, and whatever it had to wait for
        raise SubmitError(f"LSF did not take {attempt.script}: {answer.words}")
    raise no_job_id("LSF", attempt, answer, UNREACHABLE)


def _bjobs(*options: str) -> Answer:
    return ask(["bjobs", "-a", "-json", "-o", FIELDS, *options])


def _records(answer: Answer) -> list[Attributes]:
    """The jobs in an answer of ``bjobs -json``. A job that LSF does not know is a record with ERROR, or a complaint."""
    text = answer.out[answer.out.find("{") :] if "{" in answer.out else "{}"  # "Please wait" may stand before it
    try:
        values = json.loads(text)
    except ValueError as error:
        raise SchedulerSilentError(f"bjobs printed no JSON ({error})") from None
    return [job for job in values.get("RECORDS", []) if "STAT" in job]


def _status(job: Attributes) -> JobStatus:
    if not job:
        return JobStatus(state=UNKNOWN)
    word = job["STAT"]
    state = STATES.get(word, RUNNING)
    hosts = dict.fromkeys(part.split("*")[-1] for part in job.get("EXEC_HOST", "").split(":") if part)
    outcome, reason = _end(job) if state == ENDED else ("", WAITING_WORDS.get(word, ""))
    if word == "PEND":
        reason = job.get("PEND_REASON", "")
    return JobStatus(state=state, outcome=outcome, reason=reason, nodes=",".join(hosts))


def _end(job: Attributes) -> tuple[str, str]:
    """Outcome and reason of an ended job."""
    if job["STAT"] == "DONE":
        return DONE, ""
    reason = job.get("EXIT_REASON", "").strip()
    word = reason.partition(":")[0]
    if not reason:
        return FAILED, f"exit code {job.get('EXIT_CODE') or 'not known'}"
    prefix = "preempted: " if word == "TERM_PREEMPT" else "cancelled: " if word in CANCELLED else ""
    return ENDS.get(word, FAILED), prefix + reason
