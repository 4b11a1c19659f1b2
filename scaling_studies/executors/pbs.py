"""Attempts as jobs of PBS Professional and OpenPBS: qsub, qstat, qselect and qdel, as text.

It owns what is asked of these programs and how their answers are read; it does not own the job's script (``scripts``)
nor what becomes of an attempt (``runner``).

Jobs are marked as not rerunnable: after a node failure an attempt ends and another one is made, PBS does not start the
same one twice. A server without job history (``job_history_enable``) forgets a job when it ends; then the attempt's
own end.json decides. One that was moved to another server (state M) is asked for there.

Jobs are read from the plain text of ``qstat -f``. Its JSON is not trusted: variables that hold quotes, backslashes,
shell functions or a number like 005 make it invalid, and some versions leave out or lose jobs when asked for several
(OpenPBS issues 1255, 2541, 2672, pull requests 585, 1033, 2049).

Source of options, states and exit values: PBS Professional Reference Guide 2022.1 (qstat, qselect, job states) and
``src/include/job.h`` of OpenPBS (exit values below 0).
"""

from __future__ import annotations

import re
import signal
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
from scaling_studies.records import DONE, FAILED, OOM, TIMEOUT

STATES = {
    "T": QUEUED, "Q": QUEUED, "H": QUEUED, "W": QUEUED, "M": QUEUED,
    "R": RUNNING, "E": RUNNING, "S": RUNNING, "U": RUNNING, "B": RUNNING, "F": ENDED, "X": ENDED,
}  # fmt: skip
WAITING_WORDS = {"H": "held", "W": "waiting for its time", "M": "moved to another server", "S": "suspended"}
# Exit values that PBS sets itself; every other one below 0 is a failure to start or to finish.
ENDS = {
    0: (DONE, ""), -29: (TIMEOUT, "walltime exceeded"), -28: (TIMEOUT, "CPU time exceeded"),
    -27: (OOM, "memory limit exceeded"), -26: (OOM, "virtual memory limit exceeded"),
    -31: (OOM, "huge-page memory limit exceeded"), -24: (FAILED, "more CPUs used than asked for"),
    -25: (FAILED, "more CPUs used than asked for"), -11: (FAILED, "rerun by PBS"), -20: (FAILED, "first node lost"),
}  # fmt: skip
SIGNALLED = 256  # exit value of a job that ended by signal N: 256 + N
STOPPED = (SIGNALLED + signal.SIGTERM, 128 + signal.SIGTERM)  # qdel, preemption, a node's shutdown: PBS does not tell
JOB_ID = re.compile(r"^\d+(\.\S+)?$", re.MULTILINE)
ATTRIBUTE = re.compile(r"^    (\S+) = (.*)$", re.MULTILINE)
FORGOTTEN = re.compile(r"Unknown Job Id (\d+)|(\d+)\S* Job has finished", re.IGNORECASE)
OVER = re.compile(r"Unknown Job Id|Job has finished|Request invalid for state of job", re.IGNORECASE)
NO_HISTORY = "not configured to maintain job history"
UNREACHABLE = re.compile(
    r"cannot connect|connection refused|no route to host|timed out|invalid credential|premature end of message",
    re.IGNORECASE,
)


@dataclass(frozen=True, kw_only=True)
class PbsExecutor:
    """One PBS server, as its programs on the path find it. Fields as ``SlurmExecutor``."""

    max_in_flight: int = 8
    poll_s: float = 30.0
    setup: tuple[str, ...] = ()
    directives: tuple[str, ...] = ()
    name: str = "pbs"

    def render(self, attempt: AttemptJob) -> str:
        """Text of the job script. Raises UserError for a name or a path that PBS cannot take."""
        return attempt_script("pbs", attempt, setup=self.setup, directives=("-r n", *self.directives))

    def submit(self, attempts: Sequence[AttemptJob]) -> dict[str, str]:
        """tag -> job id, as ``submit_in_turn``. Raises SubmitError and SchedulerSilentError."""
        return submit_in_turn(attempts, _submit)

    def poll(self, job_ids: Sequence[str]) -> dict[str, JobStatus]:
        """job id -> status, UNKNOWN where the server has forgotten it. Raises SchedulerSilentError."""
        jobs = _jobs(job_ids)
        jobs |= _jobs([f"{job_id}@{server}" for job_id in job_ids if (server := _moved_to(jobs[_number(job_id)]))])
        return {job_id: _status(jobs[_number(job_id)]) for job_id in job_ids}

    def find(self, tags: Sequence[str]) -> dict[str, str]:
        """tag -> job id of the jobs with these names, ended ones included. Raises SchedulerSilentError."""
        found = {}
        for tag in tags:
            answer = _with_history("qselect", "-N", tag)
            if answer.code:
                raise SchedulerSilentError(answer.words)
            if answer.out.strip():
                found[tag] = answer.out.split()[0]
        return found

    def cancel(self, job_ids: Sequence[str]) -> None:
        """End these jobs; those that have ended are left alone. Raises SchedulerSilentError."""
        if job_ids:
            answer = ask(["qdel", *job_ids])
            if answer.code and not answer.complains_only_of(OVER):
                raise SchedulerSilentError(answer.words)


def _submit(attempt: AttemptJob) -> str:
    answer = ask(["qsub", str(attempt.script)])
    lines = list(JOB_ID.finditer(answer.out))
    if answer.code or not lines:
        raise no_job_id("PBS", attempt, answer, UNREACHABLE)
    return lines[-1][0]  # a site's hooks may speak before it


def _number(job_id: str) -> str:
    """Number of a job without its server, whose name programs may write in full or not."""
    return re.split(r"[.@]", job_id)[0]


def _with_history(program: str, *options: str) -> Answer:
    """The answer with ended jobs, or without where the server keeps no history."""
    answer = ask([program, "-x", *options])
    return ask([program, *options]) if NO_HISTORY in answer.err else answer


def _jobs(job_ids: Sequence[str]) -> dict[str, Attributes]:
    """Number -> attributes of each job, none of one that the server does not know. Raises SchedulerSilentError."""
    if not job_ids:
        return {}
    answer = _with_history("qstat", "-f", *job_ids)
    if answer.code and not answer.complains_only_of(FORGOTTEN):
        raise SchedulerSilentError(answer.words)
    blocks = [block.partition("\n") for block in re.split(r"^Job Id: ", answer.out, flags=re.MULTILINE)[1:]]
    listed = {_number(job_id): dict(ATTRIBUTE.findall(text.replace("\n\t", ""))) for job_id, _, text in blocks}
    known = {number: job for number, job in listed.items() if "job_state" in job}
    unknown = {match[1] or match[2] for match in FORGOTTEN.finditer(answer.err)}
    return each_job(answer, [_number(job_id) for job_id in job_ids], known, unknown)


def _moved_to(job: Attributes) -> str:
    """The server that has the job by now, "" for the one that was asked."""
    return str(job["queue"]).partition("@")[2] if job.get("job_state") == "M" else ""


def _status(job: Attributes) -> JobStatus:
    if not job:
        return JobStatus(state=UNKNOWN)
    letter = job["job_state"]
    state = STATES.get(letter, RUNNING)
    hosts = dict.fromkeys(part.split("/")[0] for part in job.get("exec_host", "").split("+") if part)
    outcome, reason = _end(job) if state == ENDED else ("", WAITING_WORDS.get(letter, ""))
    if state == QUEUED:
        reason = job.get("comment", reason)
    return JobStatus(state=state, outcome=outcome, reason=reason, nodes=",".join(hosts))


def _end(job: Attributes) -> tuple[str, str]:
    """Outcome and reason of an ended job. One that never ran has no exit value."""
    if "Exit_status" not in job:
        return FAILED, f"deleted before it ran: {job.get('comment', 'no comment of PBS')}"
    code = int(job["Exit_status"])
    if code in ENDS:
        return ENDS[code]
    if code in STOPPED and _has_used_its_time(job):  # versions before exit value -29
        return ENDS[-29]
    if code in STOPPED:
        return FAILED, "stopped by SIGTERM (qdel, preemption or the node)"
    if code < 0:
        return FAILED, f"PBS could not run it (exit value {code})"
    if code > SIGNALLED:
        return FAILED, f"ended by {_signal_name(code - SIGNALLED)}"
    return FAILED, f"exit code {code}"


def _has_used_its_time(job: Attributes) -> bool:
    used_s, limit_s = (_seconds(job.get(f"{name}.walltime", "")) for name in ("resources_used", "Resource_List"))
    return used_s is not None and limit_s is not None and used_s >= limit_s


def _seconds(clock: str) -> int | None:
    """Hours:minutes:seconds as PBS writes them, None for anything else."""
    parts = clock.split(":")
    if len(parts) != 3 or not all(part.isdigit() for part in parts):
        return None
    hours, minutes, seconds = (int(part) for part in parts)
    return 3600 * hours + 60 * minutes + seconds


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
