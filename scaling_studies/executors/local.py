"""Attempts as jobs of this host. It owns starting, finding and ending them.

It does not own a job's time limit (``local_job``, which watches over it without the runner) nor what becomes of an
attempt (``runner``). A job is known by host, boot, process id and start time of its watcher: a number that is used
again is never mistaken for it.
"""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

from janus.host_facts import boot_id
from scaling_studies.executors import processes
from scaling_studies.executors.base import ENDED, RUNNING, UNKNOWN, AttemptJob, JobStatus, SubmitError
from scaling_studies.executors.scripts import attempt_script

WATCHER = "scaling_studies.executors.local_job"
END_PATIENCE_S = processes.GRACE_S + processes.FACTS_S + 10.0  # a watcher has ended its job by then


class LocalExecutor:
    """This host. setup: shell lines before the start. directives are for a scheduler, and here is none."""

    def __init__(
        self, *, max_in_flight: int = 1, poll_s: float = 0.5, setup: Sequence[str] = (), directives: Sequence[str] = ()
    ) -> None:
        self.name, self.max_in_flight, self.poll_s = "local", max_in_flight, poll_s
        self._setup = tuple(setup)
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    def render(self, attempt: AttemptJob) -> str:
        """Text of the attempt's script."""
        return attempt_script("local", attempt, setup=self._setup)

    def submit(self, attempts: Sequence[AttemptJob]) -> dict[str, str]:
        """Start a watcher for each attempt: tag -> job id. Raises SubmitError."""
        return {attempt.tag: self._start(attempt) for attempt in attempts}

    def _start(self, attempt: AttemptJob) -> str:
        words = [sys.executable, "-m", WATCHER, str(attempt.folder), str(attempt.job.time_limit_s), attempt.tag]
        environment = {**os.environ, processes.VARIABLE: str(attempt.folder)}
        try:
            with attempt.log.open("ab") as log:
                child = subprocess.Popen(
                    words, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=environment,
                    start_new_session=True,
                )  # fmt: skip
        except OSError as error:
            raise SubmitError(f"this host starts no process for {attempt.tag}: {error.strerror}") from None
        job_id = _job_id(child.pid)
        self._children[job_id] = child
        return job_id

    def poll(self, job_ids: Sequence[str]) -> dict[str, JobStatus]:
        """job id -> RUNNING, ENDED, or UNKNOWN when started on another host or before this one was started again."""
        return {job_id: self._status(job_id) for job_id in job_ids}

    def _status(self, job_id: str) -> JobStatus:
        host, boot, pid, start = job_id.rsplit(":", 3)
        if boot != _boot():
            return JobStatus(state=UNKNOWN, reason=f"it was started on {host}, not on {platform.node()} as it runs now")
        if job_id in self._children:
            self._children[job_id].poll()  # reaps it once it has ended
        if processes.is_alive(int(pid)) and processes.start_ticks(int(pid)) == start:
            return JobStatus(state=RUNNING, nodes=host)
        if folder := processes.attempt_in_session(int(pid)):
            processes.end_attempt(folder)  # the watcher was killed: nothing is left to run unwatched
        return JobStatus(state=ENDED, nodes=host)

    def find(self, tags: Sequence[str]) -> dict[str, str]:
        """tag -> job id of the watchers that are at work on this host."""
        found = {}
        for pid in processes.all_pids():
            words = processes.read(pid, "cmdline").decode(errors="replace").split("\0")
            for tag in words[words.index(WATCHER) + 3 :][:1] if WATCHER in words else ():
                if tag in tags:
                    found[tag] = _job_id(pid)
        return found

    def cancel(self, job_ids: Sequence[str]) -> None:
        """Ask the watchers to end their jobs, and wait until they have."""
        for job_id in job_ids:
            if self._status(job_id).state == RUNNING:
                processes.send(int(job_id.split(":")[-2]), signal.SIGTERM)
        end = time.monotonic() + END_PATIENCE_S
        while time.monotonic() < end and any(self._status(job_id).state == RUNNING for job_id in job_ids):
            time.sleep(0.05)


def _boot() -> str:
    return boot_id()[:8]


def _job_id(pid: int) -> str:
    return f"{platform.node()}:{_boot()}:{pid}:{processes.start_ticks(pid)}"
