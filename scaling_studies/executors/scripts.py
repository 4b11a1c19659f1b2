"""The script of one attempt: a launch script that also writes down when it began and how it ended.

It owns what an attempt adds to a launch script: its folder, its log, the calls of ``job_facts`` and what a signal
does. It does not own resources and launch commands (``launch_scripts``) nor submission (the executors).

The script can be read and submitted by hand; it runs in the attempt's folder, so its command needs absolute paths.
A signal to it (time limit, cancellation, preemption) goes on to the program; the facts of the end are written once the
program has left.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from janus.errors import UserError
from scaling_studies.executors.base import AttemptJob
from scaling_studies.launch_scripts import ScriptParts, comment_lines, script_parts

# What the schedulers send before SIGKILL: SIGTERM; LSF also SIGINT and, at the time limit, SIGUSR2; Flux SIGALRM.
SIGNALS = "TERM INT HUP USR2 ALRM"
DIRECTIVE = {"slurm": "#SBATCH", "pbs": "#PBS", "flux": "#flux:", "lsf": "#BSUB"}
LEAST_LIMIT_S = 60.0  # no scheduler here counts in less than minutes
# PBS and LSF deliver a job's output when it has ended, Flux may part it in two: there the script writes its log itself.
OWN_LOG = ("pbs", "flux", "lsf")
SCHEDULER_WORDS = "scheduler.txt"  # what such a scheduler adds of its own
_PLAIN_PATH = re.compile(r"[A-Za-z0-9/._@+=-]+")


def attempt_script(
    scheduler: str, attempt: AttemptJob, *, setup: Sequence[str] = (), directives: Sequence[str] = ()
) -> str:
    """Text of the script that runs one attempt.

    scheduler: one of ``launch_scripts.SCHEDULERS``; setup: shell lines before the start ("module load cray-python");
    directives: options for the scheduler without its prefix ("--constraint=gpu").
    Raises UserError for a folder or a name that the scheduler cannot take.
    """
    job = replace(attempt.job, name=attempt.tag, least_limit_s=LEAST_LIMIT_S)
    if job.safe_name != attempt.tag:
        raise UserError(
            f"attempt {attempt.tag} cannot name a job: begin the study's name with a letter and keep it below "
            "150 characters"
        )
    if scheduler in DIRECTIVE and not _PLAIN_PATH.fullmatch(str(attempt.log)):
        raise UserError(
            f"{scheduler} cannot write its log to {str(attempt.folder)!r}: choose a study folder whose path has only "
            "letters, digits and any of / . _ @ + = -"
        )
    words = attempt.folder / SCHEDULER_WORDS if scheduler in OWN_LOG else attempt.log
    parts = script_parts(scheduler, job, log=str(words))
    own = [f"{DIRECTIVE[scheduler]} {line}" for line in directives] if scheduler in DIRECTIVE else []
    lines = ["#!/bin/bash", *parts.directives, *own, *comment_lines(job), *_life(scheduler, attempt, parts, setup)]
    return "\n".join(lines) + "\n"


def _life(scheduler: str, attempt: AttemptJob, parts: ScriptParts, setup: Sequence[str]) -> list[str]:
    """Shell lines from the first command to the end of the program. ``set -u`` waits: site modules break under it."""
    folder = shlex.quote(str(attempt.folder))
    facts = f"{shlex.quote(sys.executable)} -m scaling_studies.job_facts"
    beside = shlex.quote(str(Path(sys.executable).parent))
    log = [f"exec >> {shlex.quote(str(attempt.log))} 2>&1"] if scheduler in OWN_LOG else []
    path = [f'export PATH={beside}:"$PATH"  # mpiexec and torchrun of this Python'] if scheduler == "local" else []
    return [
        "set -e", f"cd {folder}", *log, "",
        f"finish() {{ code=$?; trap '' {SIGNALS}; {facts} end {folder} $code || true; exit $code; }}",
        f"stop() {{ trap '' {SIGNALS}; "
        'for child in $(jobs -p); do kill -TERM "$child" || true; done; wait || true; exit 143; }',
        "trap finish EXIT", f"trap stop {SIGNALS}", "",
        *path, *setup, "set -u", *parts.environment, f"{facts} begin {folder}", "",
        *parts.notes, f"{parts.start} &", 'wait "$!"',
    ]  # fmt: skip
