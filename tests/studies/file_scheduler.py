"""A small scheduler for tests: its jobs are shell processes, its memory is a folder, so it outlives its runner.

``FileScheduler`` has the interface of ``scaling_studies.executors.base``; ``work_for`` gives a runner programs that
take milliseconds: a shell line per attempt instead of the trainer.
"""

from __future__ import annotations

import dataclasses
import os
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from scaling_studies.cells import Cell, identity
from scaling_studies.executors import processes
from scaling_studies.executors.base import ENDED, RUNNING, UNKNOWN, AttemptJob, JobStatus, SchedulerSilentError
from scaling_studies.launch_scripts import Job
from scaling_studies.measured import UnreadableRun
from scaling_studies.records import DONE, MEASURED, PLANNED, Record
from scaling_studies.runner import Work

SCRIPT = """cd {folder} || exit 9
fact() {{ printf '{{"schema":"janus.job/1","event":"%s","utc":"%s","exit_code":%s}}' $1 "$(date -u +%FT%T+00:00)" $2; }}
set -C; fact begin null > begin.json || exit 3; set +C
sh -c {program}
fact end $? > end.new; mv end.new end.json
"""
GOOD = "echo 0.07 > step_s"


class FileScheduler:
    """is_silent: gives no answer. folder/N holds tag and process of job N; a removed file is a forgotten job."""

    name = "filed"
    poll_s = 0.02

    def __init__(self, folder: Path, *, max_in_flight: int = 1) -> None:
        self.folder, self.max_in_flight, self.is_silent = folder, max_in_flight, False
        folder.mkdir(parents=True, exist_ok=True)

    def render(self, attempt: AttemptJob) -> str:
        program = "'" + attempt.job.command[0].replace("'", "'\\''") + "'"
        return SCRIPT.format(folder=attempt.folder, program=program)

    def submit(self, attempts: Sequence[AttemptJob]) -> dict[str, str]:
        self.answer()
        return {attempt.tag: self._start(attempt) for attempt in attempts}

    def _start(self, attempt: AttemptJob) -> str:
        with attempt.log.open("ab") as log:
            child = subprocess.Popen(["sh", str(attempt.script)], stdout=log, stderr=log, start_new_session=True)
        (self.folder / str(child.pid)).write_text(f"{attempt.tag} {processes.start_ticks(child.pid)}")
        return str(child.pid)

    def answer(self) -> None:
        if self.is_silent:
            raise SchedulerSilentError("controller is down")

    def poll(self, job_ids: Sequence[str]) -> dict[str, JobStatus]:
        self.answer()
        return {job_id: JobStatus(state=self._state(job_id)) for job_id in job_ids}

    def _state(self, job_id: str) -> str:
        if not (self.folder / job_id).exists():
            return UNKNOWN
        start = (self.folder / job_id).read_text().split()[1]
        return RUNNING if processes.is_alive(int(job_id)) and processes.start_ticks(int(job_id)) == start else ENDED

    def find(self, tags: Sequence[str]) -> dict[str, str]:
        self.answer()
        jobs = {path.read_text().split()[0]: path.name for path in self.folder.iterdir()}
        return {tag: jobs[tag] for tag in tags if tag in jobs}

    def cancel(self, job_ids: Sequence[str]) -> None:
        for job_id in job_ids:
            os.killpg(int(job_id), 9)

    def tags(self) -> list[str]:
        """Attempts for which a job was ever started and not forgotten, one entry per job."""
        return [path.read_text().split()[0].rpartition("-")[0] for path in self.folder.iterdir()]


def measure(cell: Cell, record: Record, folder: Path) -> Record:
    """The record of a program that left its step time."""
    try:
        step_s = float((folder / "step_s").read_text())
    except OSError as error:
        raise UnreadableRun(f"the run left no step time ({error.strerror})") from None
    return dataclasses.replace(record, state=DONE, step_s=(step_s,) * cell.study.steps)


def work_for(cells: Sequence[Cell], program: Callable[[Record], str] = lambda record: GOOD, seed: int = 0) -> Work:
    """Work whose attempts run a shell line. program: attempt -> the line."""

    def planned(cell: Cell, repeat: int) -> Record:
        return Record(
            **identity(cell), source=MEASURED, method="shell", machine="here", layout={}, state=PLANNED, repeat=repeat,
            executor=FileScheduler.name, counts_per_rank=cell.counts_per_rank,
        )  # fmt: skip

    def job_of(cell: Cell, record: Record, folder: Path) -> AttemptJob:
        job = Job(name=record.tag, command=(program(record),), ranks=1, nodes=1, ranks_per_node=1, threads=1,
                  time_limit_s=60.0)  # fmt: skip
        return AttemptJob(tag=record.tag, folder=folder.resolve(), job=job)

    return Work(cells=tuple(cells), planned=planned, job_of=job_of, measure=measure, code_version=lambda: "", seed=seed)
