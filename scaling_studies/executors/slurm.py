"""Attempts as jobs of Slurm: sbatch, squeue, scontrol, sacct and scancel, as text.

It owns what is asked of these programs and how their answers are read; it does not own the job's script (``scripts``)
nor what becomes of an attempt (``runner``). Options and words are those of the manuals of Slurm 22.05 and later.

Jobs are asked for with ``--no-requeue``: a preempted job or one whose node failed ends, and its attempt is tried again
as a new one. Slurm forgets a job soon after its end (MinJobAge); then accounting is asked, where the site keeps it.

With ``arrays`` attempts of equal shape (nodes, ranks, limit, queue) become one job array. Its folder
``arrays/NAME/`` holds its script, a link per element to the attempt's folder, and the map ``tags.txt``: a line per
element. Slurm starts the elements of an array in turn, so the random order holds inside an array but not across two.
"""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from janus.errors import UserError
from scaling_studies.atomic import write_atomically
from scaling_studies.attempts import make_folder
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
from scaling_studies.executors.commands import Answer, ask
from scaling_studies.executors.scripts import attempt_script
from scaling_studies.records import DONE, FAILED, OOM, TIMEOUT

MOST_ELEMENTS = 1000  # slurm.conf(5): MaxArraySize is 1001 unless the site says otherwise
ARRAY_PREFIX = "janus-array-"
TAG_FILE = "tags.txt"
JOB_ID = re.compile(r"^(\d+)(;\S+)?$", re.MULTILINE)  # sbatch --parsable: number, or number;cluster
WHICH_CLUSTER = ("SLURM_CONF", "SLURM_CLUSTERS")
HISTORY = "now-30days"  # how far back accounting is searched for a job by name
LOST = re.compile(  # slurm_errno.c: no answer, so a request may have been carried out or not
    "unable to contact slurm controller|socket timed out|zero bytes were transmitted|standby mode|connection refused|"
    "communication (connection|shutdown) failure|message (receive|send) failure|unexpected message received|"
    "protocol authentication error",
    re.IGNORECASE,
)
NO_SUCH_JOB = re.compile("invalid job id|already complet", re.IGNORECASE)
# State of a job that has ended -> the attempt's state and the reason in words (squeue(1), "JOB STATE CODES").
ENDS = {
    "COMPLETED": (DONE, ""), "TIMEOUT": (TIMEOUT, "time limit of the job"), "OUT_OF_MEMORY": (OOM, "out of memory"),
    "DEADLINE": (TIMEOUT, "deadline of the job"), "FAILED": (FAILED, "failed"), "PREEMPTED": (FAILED, "preempted"),
    "NODE_FAIL": (FAILED, "a node failed"), "BOOT_FAIL": (FAILED, "a node did not boot"),
    "CANCELLED": (FAILED, "cancelled"), "REVOKED": (FAILED, "revoked"), "LAUNCH_FAILED": (FAILED, "launch failed"),
}  # fmt: skip
WAITING = {"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT"}


@dataclass(frozen=True, kw_only=True)
class SlurmExecutor:
    """One Slurm cluster, as its programs on the path and SLURM_CONF find it.

    max_in_flight: most attempts queued or running; poll_s: seconds between two polls; setup: shell lines before the
    start; directives: further options of sbatch without "#SBATCH"; arrays: attempts of equal shape as one job array.
    """

    max_in_flight: int = 8
    poll_s: float = 30.0
    setup: tuple[str, ...] = ()
    directives: tuple[str, ...] = ()
    arrays: bool = False
    name: str = "slurm"

    def render(self, attempt: AttemptJob) -> str:
        """Text of the job script. Raises UserError for a name or a path that Slurm cannot take."""
        return attempt_script(
            "slurm", attempt, setup=self.setup, directives=("--no-requeue", "--open-mode=append", *self.directives)
        )

    def submit(self, attempts: Sequence[AttemptJob]) -> dict[str, str]:
        """tag -> job id. When a site's limit stops it half-way, those that were taken; the others were not.

        Raises SubmitError when Slurm refused the first job, SchedulerSilentError when it may or may not have taken it.
        """
        taken: dict[str, str] = {}
        for group in _equal_shapes(attempts) if self.arrays else [[attempt] for attempt in attempts]:
            try:
                taken |= _submit_array(group) if len(group) > 1 else {group[0].tag: _sbatch(group[0].script)}
            except (SubmitError, SchedulerSilentError):
                if not taken:
                    raise
                break
        return taken

    def poll(self, job_ids: Sequence[str]) -> dict[str, JobStatus]:
        """job id -> status, UNKNOWN where neither queue nor accounting has it. Raises SchedulerSilentError."""
        found = dict(_queue_status(job_ids)) if job_ids else {}
        if missing := [job_id for job_id in job_ids if job_id not in found]:
            found |= dict(_accounting_status(missing))
        return {job_id: found.get(job_id, JobStatus(state=UNKNOWN)) for job_id in job_ids}

    def find(self, tags: Sequence[str]) -> dict[str, str]:
        """tag -> job id of the user's jobs that run these attempts, ended ones included while Slurm remembers them.

        Of several jobs for one attempt it is the first, which began it. Raises SchedulerSilentError.
        """
        found: dict[str, str] = {}
        for jobs in (_queued_attempts, _accounted_attempts):
            missing = set(tags) - set(found)
            for tag, job_id in jobs() if missing else ():
                if tag in missing:
                    found.setdefault(tag, job_id)
        return found

    def cancel(self, job_ids: Sequence[str]) -> None:
        """End these jobs; those that have ended are left alone. Raises SchedulerSilentError."""
        if job_ids:
            answer = _ask("scancel", "--quiet", *job_ids)
            if answer.code and not NO_SUCH_JOB.search(answer.err):
                raise SchedulerSilentError(answer.words)


def _submit_array(group: Sequence[AttemptJob]) -> dict[str, str]:
    """Write the folder of one array and submit it: tag -> ARRAY_ELEMENT."""
    name = ARRAY_PREFIX + uuid.uuid4().hex[:12]
    folder = group[0].folder.parent.parent / "arrays" / name
    make_folder(folder)
    for element, attempt in enumerate(group):
        (folder / str(element)).symlink_to(os.path.relpath(attempt.folder, folder))
    write_atomically(folder / TAG_FILE, "".join(f"{attempt.tag}\n" for attempt in group))
    script = folder / "array.sh"
    lines = [
        "#!/bin/bash", f"#SBATCH --job-name={name}", f"#SBATCH --array=0-{len(group) - 1}",
        f"#SBATCH --output={folder}/%a/{group[0].log.name}", *_shape(group[0]),
        f'exec bash "{folder}/$SLURM_ARRAY_TASK_ID/{group[0].script.name}"',
    ]  # fmt: skip
    write_atomically(script, "\n".join(lines) + "\n")
    array_id = _sbatch(script)
    return {attempt.tag: f"{array_id}_{element}" for element, attempt in enumerate(group)}


def _shape(attempt: AttemptJob) -> tuple[str, ...]:
    """The directives of an attempt's script, but for its own name and log."""
    lines = attempt.script.read_text(encoding="utf-8").splitlines()
    return tuple(line for line in lines if re.match(r"#SBATCH (?!--(job-name|output)=)", line))


def _equal_shapes(attempts: Iterable[AttemptJob]) -> list[list[AttemptJob]]:
    """Attempts of equal shape together, each group as long as an array may be, all in the order given."""
    groups: dict[tuple[str, ...], list[AttemptJob]] = {}
    for attempt in attempts:
        groups.setdefault(_shape(attempt), []).append(attempt)
    return [
        group[start : start + MOST_ELEMENTS]
        for group in groups.values()
        for start in range(0, len(group), MOST_ELEMENTS)
    ]


def _sbatch(script: Path) -> str:
    """Submit one script and return its job id. Raises SubmitError, or SchedulerSilentError when no answer came."""
    answer = _ask("sbatch", "--parsable", str(script))
    if answer.code:
        raise SubmitError(f"Slurm did not take {script}: {answer.words}")
    if not (lines := list(JOB_ID.finditer(answer.out))):
        raise SchedulerSilentError(f"sbatch gave no job id: {answer.words}")
    return lines[-1][1]  # a site's filters may speak before it


def _queue_status(job_ids: Sequence[str]) -> Iterator[tuple[str, JobStatus]]:
    """What squeue knows: queued, running and just ended jobs."""
    for job_id, state, reason, nodes in _squeue("%i|%T|%r|%N", ["--jobs", ",".join(job_ids)]):
        if state in ENDS:
            yield job_id, _ended(state, nodes, _exit_of(job_id) if state == "FAILED" else "")
        elif state in WAITING:
            yield job_id, JobStatus(state=QUEUED, reason="" if reason == "None" else reason)
        else:
            yield job_id, JobStatus(state=RUNNING, reason="" if state == "RUNNING" else state, nodes=nodes)


def _accounting_status(job_ids: Sequence[str]) -> Iterator[tuple[str, JobStatus]]:
    """Ended jobs that accounting remembers; a job that the queue has forgotten is never one that still runs.

    Arrays are asked for as a whole: asked for by their own ids, elements that were cancelled while they waited are not
    found.
    """
    numbers = dict.fromkeys(job_id.partition("_")[0] for job_id in job_ids)
    for row, state, code, nodes in _sacct("JobID,State,ExitCode,NodeList", ["--jobs", ",".join(numbers)]):
        word, _, by = state.partition(" ")  # "CANCELLED by 1000"
        if word in ENDS:
            ended = _ended(word, nodes, code if word == "FAILED" else "", by.replace("by ", "by user "))
            yield from ((job_id, ended) for job_id in _jobs_of(row))


def _jobs_of(row: str) -> Iterator[str]:
    """The jobs of a row of accounting: elements that never started share one, 40_[0-1,3]."""
    array, _, elements = row.partition("_[")
    if not elements:
        yield row
    for first, last in re.findall(r"(\d+)(?:-(\d+))?", elements.partition("%")[0]):
        yield from (f"{array}_{element}" for element in range(int(first), int(last or first) + 1))


def _ended(state: str, nodes: str, exit_code: str, by: str = "") -> JobStatus:
    """Status of an ended job. exit_code: CODE:SIGNAL as Slurm writes it, "" when it says nothing more."""
    outcome, reason = ENDS[state]
    code, _, number = exit_code.partition(":")
    if number not in ("", "0"):
        reason = f"the job's script was ended by signal {number}"
    elif code not in ("", "0"):
        reason = f"exit code {code}"
    nodes = "" if nodes == "None assigned" else nodes
    return JobStatus(state=ENDED, outcome=outcome, reason=f"{reason} {by}".strip(), nodes=nodes)


def _exit_of(job_id: str) -> str:
    """CODE:SIGNAL of an ended job, "" when Slurm has just forgotten it."""
    found = re.search(r"\bExitCode=(\d+:\d+)", _ask("scontrol", "--oneliner", "show", "job", job_id).out)
    return found.group(1) if found else ""


def _queued_attempts() -> Iterator[tuple[str, str]]:
    """(tag, job id) of the user's jobs that the controller holds."""
    for job_id, name, command in _squeue("%i|%j|%o", ["--user", str(os.getuid())]):
        yield _tag(job_id, name, Path(command)), job_id


def _accounted_attempts() -> Iterator[tuple[str, str]]:
    """The same from accounting, for jobs that the controller has forgotten."""
    options = ["--user", str(os.getuid()), "--starttime", HISTORY]
    for job_id, name, line in _sacct("JobID,JobName,SubmitLine", options):
        yield _tag(job_id, name, Path(line.rpartition(" ")[2])), job_id


def _tag(job_id: str, name: str, script: Path) -> str:
    """The attempt that a job runs: its own name, or of an array's element its line in the map."""
    if not name.startswith(ARRAY_PREFIX):
        return name
    try:
        return (script.parent / TAG_FILE).read_text(encoding="utf-8").splitlines()[int(job_id.rpartition("_")[2])]
    except (OSError, ValueError, IndexError):  # an array of a folder that has been removed
        return ""


def _squeue(fields: str, options: Sequence[str]) -> Iterator[list[str]]:
    """Rows of squeue, oldest job first. An id that no job has is no row. Raises SchedulerSilentError."""
    answer = _ask("squeue", "--noheader", "--array", "--states=all", "--sort=i", f"--format={fields}", *options)
    if answer.code and not NO_SUCH_JOB.search(answer.err):
        raise SchedulerSilentError(answer.words)
    return _rows(answer.out, fields.count("|"))


def _sacct(fields: str, options: Sequence[str]) -> Iterator[list[str]]:
    """Rows of sacct, no row where the site keeps no accounting or its data base does not answer."""
    try:
        answer = _ask("sacct", "--noheader", "--parsable2", "--allocations", f"--format={fields}", *options)
    except (SchedulerSilentError, UserError):
        return iter(())
    return _rows("" if answer.code else answer.out, fields.count(","))


def _rows(text: str, separators: int) -> Iterator[list[str]]:
    """Lines of exactly so many separators or more; what is beyond belongs to the last field."""
    for line in text.splitlines():
        if line.count("|") >= separators:
            yield line.split("|", separators)


def _ask(*words: str) -> Answer:
    """Ask one of Slurm's programs. Raises SchedulerSilentError without an answer, UserError without Slurm.

    Not passed on are the variables of a job that this runner may itself run in, and those that hide jobs.
    """
    environment = {
        name: value
        for name, value in os.environ.items()
        if name in WHICH_CLUSTER or not name.startswith(("SLURM_", "SQUEUE_", "SACCT_", "SCANCEL_"))
    }
    answer = ask(words, environment=environment)
    if answer.code and LOST.search(answer.err):
        raise SchedulerSilentError(answer.words)
    return answer
