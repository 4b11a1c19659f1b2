"""The runner of a campaign: collect what has ended, submit what is lacking, sleep, again. It can be killed anywhere.

It owns the life of an attempt: claim (its record, PLANNED), script, submission, noting the job id (SUBMITTED), RUNNING,
the final record. Each step is on disk before the next begins, so that the next runner goes on from there:

    killed after the claim       no job is found under its name and none has begun: the attempt is taken over
    killed after the submission  the job is found by its name, or has begun: it is adopted
    killed later                 the job goes on without a runner; its own facts say how it ended

Attempts at points that the declaration has dropped are withdrawn: their jobs are ended, their records closed.

It does not own what is lacking (``wanted``), the files (``attempts``), schedulers (``executors``) nor what became of a
job (``outcomes``). One runner at a time works on a folder (``lease``); two of them would do no harm.
"""

from __future__ import annotations

import hashlib
import os
import platform
import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from janus.errors import UserError
from janus.host_facts import boot_id
from scaling_studies import records
from scaling_studies.atomic import write_atomically
from scaling_studies.attempts import AttemptMovedError, Attempts, make_folder, still_open
from scaling_studies.cells import Cell
from scaling_studies.executors import processes
from scaling_studies.executors.base import (
    ENDED,
    QUEUED,
    RUNNING,
    UNKNOWN,
    AttemptJob,
    Executor,
    JobStatus,
    SchedulerSilentError,
    SubmitError,
)
from scaling_studies.job_facts import BEGIN_FILE, read_facts
from scaling_studies.measured import UnreadableRun
from scaling_studies.outcomes import final_record, has_begun, is_settled
from scaling_studies.records import DONE, FAILED, PLANNED, SUBMITTED, Record
from scaling_studies.wanted import (
    WITHDRAWN,
    FailuresInARow,
    Standing,
    affordable,
    failures_in_a_row,
    lacking,
    standing,
)

PATIENCE_POLLS = 2  # polls without any word on an ended or unknown job before it counts as lost
MOST_REFUSALS = 3  # submissions refused in a row before the runner gives up
RUNNER = "runner"  # fact of an attempt: who claimed it


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a runner is given.

    planned: cell and repeat -> the record of an attempt that has no number yet; job_of: what is started for it, given
    its folder; measure: the record of a run that ended well, raises UnreadableRun; code_version: of the code as it is;
    seed: of the random order.
    """

    cells: Sequence[Cell]
    planned: Callable[[Cell, int], Record]
    job_of: Callable[[Cell, Record, Path], AttemptJob]
    measure: Callable[[Cell, Record, Path], Record]
    code_version: Callable[[], str]
    seed: int = 0


class Runner:
    """One runner on one study folder. say: takes a line for people; show: takes the standing after each pass."""

    def __init__(
        self, attempts: Attempts, work: Work, executor: Executor, *, say: Callable[[str], None] = print,
        show: Callable[[Standing], None] = lambda standing: None,
    ) -> None:  # fmt: skip
        self.attempts, self.work, self.executor = attempts, work, executor
        self._cells = {cell.id: cell for cell in work.cells}
        self._say, self._show = say, show
        self._name = _runner_name()
        self._study = hashlib.sha256(str(attempts.folder.resolve()).encode()).hexdigest()[:8]
        self._failures = {cell.id: FailuresInARow() for cell in work.cells}
        self._doubts: Counter[str] = Counter()  # tag -> polls without a word on its end
        self._withdrawn: set[str] = set()  # tags
        self._refusals = 0
        self._is_silent = False
        self._said: set[str] = set()

    def run(self) -> Standing:
        """Go on until nothing is wanted and nothing in flight. Ctrl-C stops jobs of this host and no others."""
        try:
            while True:
                now = self._one_pass()
                if not self._is_silent and not now.running and not now.waiting and not self._dropped():
                    return now
                time.sleep(self.executor.poll_s)
        except KeyboardInterrupt:
            self._stop()
            raise
        except UserError:
            if in_flight := self._in_flight():
                self._say(f"{_jobs(len(in_flight))} in flight: the same command takes them up again")
            raise

    def run_once(self) -> Standing:
        """One pass, for a runner that is started again and again: failures on record count, and doubts are settled."""
        for cell in self.work.cells:
            self._failures[cell.id] = failures_in_a_row(cell, self.attempts.read())
            if self._too_many(cell):
                self._say_left_alone(cell)
        now = self._one_pass()
        while self._doubts and not self._is_silent:
            time.sleep(self.executor.poll_s)
            now = self._one_pass()
        return now

    def _one_pass(self) -> Standing:
        """Collect, adopt, submit. A scheduler that gives no answer ends the pass: then nothing is concluded."""
        exhausted: tuple[str, ...] = ()
        for name, reason in self.attempts.refused():
            self._say_once(f"refused {name}: {reason}; it does not count, and its number is not used again")
        try:
            self._withdraw()
            self._collect()
            ready = self._adopt()
            exhausted = self._submit(ready)
            if self._is_silent:
                self._say(f"{self.executor.name} answers again")
            self._is_silent = False
        except SchedulerSilentError as error:
            if not self._is_silent:
                self._say(f"{self.executor.name} gives no answer ({error}): waiting, nothing is concluded from that")
            self._is_silent = True
        now = standing(self.work.cells, self.attempts.read(), exhausted=exhausted, given_up=self._given_up())
        self._show(now)
        return now

    # What has ended

    def _collect(self) -> None:
        """Move every submitted attempt on as its job says."""
        submitted = [record for record in self.attempts.open() if record.state != PLANNED]
        job_ids = [record.job_id for record in submitted if record.job_id]
        statuses = self.executor.poll(job_ids) if job_ids else {}
        unnamed = JobStatus(state=UNKNOWN, reason="its runner was killed before it noted the job's id")
        self._doubts = Counter(
            {record.tag: self._doubts[record.tag] for record in submitted if self._doubts[record.tag]}
        )
        for record in submitted:
            self._move(record, statuses.get(record.job_id, unnamed))

    def _move(self, record: Record, status: JobStatus) -> None:
        folder = self.attempts.folder_of(record)
        try:
            if status.state in (QUEUED, RUNNING):
                self._doubts.pop(record.tag, None)
                begin = read_facts(folder / BEGIN_FILE) if status.state == RUNNING else None
                if record.state == SUBMITTED and begin is not None:
                    self.attempts.advance(record, records.RUNNING, started_at=begin["utc"])
                return
            self._doubts[record.tag] += 1
            if is_settled(folder, status) or self._doubts[record.tag] >= PATIENCE_POLLS:
                self._conclude(record, folder, status)
        except AttemptMovedError as error:
            self._say(str(error))

    def _conclude(self, record: Record, folder: Path, status: JobStatus) -> None:
        """Write the final record of an attempt whose job has ended."""
        cell = self._cells.get(record.cell_id)
        final = final_record(record, folder, status, self._measure)
        if cell is None:
            final = replace(final, reason=f"{WITHDRAWN}: {final.reason}")
        self._doubts.pop(record.tag, None)
        self.attempts.replace(
            replace(final, facts={name: fact for name, fact in final.facts.items() if name != RUNNER})
        )
        if cell is None:
            return self._say(f"{final.tag}: {final.state}: {final.reason}")
        was_left_alone = self._too_many(cell)
        self._failures[cell.id] = self._failures[cell.id].then(final)
        if final.state == DONE:
            return
        self._say(f"{final.tag}: {final.state}: {final.reason}")
        if self._too_many(cell) and not was_left_alone:
            self._say_left_alone(cell)

    def _measure(self, attempt: Record, folder: Path) -> Record:
        """The record of a whole run. Raises UnreadableRun, also where nobody knows any more what was asked of it."""
        if (cell := self._cells.get(attempt.cell_id)) is None:
            raise UnreadableRun("nothing is measured at such a point")
        return self.work.measure(cell, attempt, folder)

    def _too_many(self, cell: Cell) -> str:
        """Why the point is left alone, "" where it is not."""
        return self._failures[cell.id].too_many(cell.study)

    def _say_left_alone(self, cell: Cell) -> None:
        self._say_once(
            f"{_point(cell)}: left alone after {self._too_many(cell)}; a new call of 'run' tries it again, one with "
            "--once does not"
        )

    # What is no longer declared

    def _dropped(self) -> list[Record]:
        """Attempts that have not ended, at points that are not in the declaration any more."""
        return [record for record in self.attempts.open() if record.cell_id not in self._cells]

    def _withdraw(self) -> None:
        """End the jobs of points that were dropped, once; what no scheduler ever had is closed at once."""
        new = [
            record for record in self._dropped()
            if record.tag not in self._withdrawn and not (record.state == PLANNED and self._is_another_ones(record))
        ]  # fmt: skip
        found = self._find([record for record in new if not record.job_id])
        jobs = {record.tag: record.job_id or found.get(record.tag, "") for record in new}
        if job_ids := [job_id for job_id in jobs.values() if job_id]:
            self.executor.cancel(job_ids)
        for record in new:
            self._withdrawn.add(record.tag)
            job_id, folder = jobs[record.tag], self.attempts.folder_of(record)
            try:
                if record.state == PLANNED and (job_id or has_begun(folder)):
                    self.attempts.advance(record, SUBMITTED, job_id=job_id, submitted_at=record.submitted_at or _now())
                elif record.state == PLANNED:
                    self._conclude(record, folder, JobStatus(state=UNKNOWN, reason="it was never submitted"))
            except AttemptMovedError as error:
                self._say(str(error))

    # What was planned and not submitted

    def _adopt(self) -> list[Record]:
        """Attempts that were claimed and have no job id: those with a job get it, the others are made ready again."""
        orphans = [
            record for record in self.attempts.open()
            if record.state == PLANNED and record.cell_id in self._cells and not self._is_another_ones(record)
        ]  # fmt: skip
        jobs = self._find(orphans)
        ready = []
        for record in orphans:
            job_id = jobs.get(record.tag, "")
            try:
                if job_id or has_begun(self.attempts.folder_of(record)):
                    self.attempts.advance(record, SUBMITTED, job_id=job_id, submitted_at=record.submitted_at or _now())
                else:
                    facts = {**record.facts, RUNNER: self._name}
                    ready.append(self.attempts.advance(record, PLANNED, facts=facts))
            except AttemptMovedError as error:
                self._say(str(error))
        return ready

    def _is_another_ones(self, record: Record) -> bool:
        """Whether a living runner of this host, other than this one, has claimed the attempt."""
        name = str(record.facts.get(RUNNER, ""))
        return name != self._name and _is_living_runner(name)

    # What is lacking

    def _submit(self, ready: list[Record]) -> tuple[str, ...]:
        """Submit what is ready, then further attempts as slots and budgets allow; studies whose budget does not."""
        found = self.attempts.read()
        slots = max(0, self.executor.max_in_flight - len(still_open(found)))
        cells = [cell for cell in self.work.cells if not self._too_many(cell)]
        tasks, exhausted = affordable(lacking(cells, found, self.work.seed), found) if slots else ([], ())
        for name in exhausted:
            self._say_once(f"study {name}: its budget of node-hours allows no further attempt")
        if ready or tasks:
            self._check_code()
        for task in tasks[:slots]:
            planned = self.work.planned(task.cell, task.repeat)
            if claimed := self.attempts.claim(replace(planned, facts={**planned.facts, RUNNER: self._name})):
                ready.append(claimed)
        if ready:
            self._start(ready)
        return exhausted

    def _start(self, ready: Sequence[Record]) -> None:
        """Scripts, submission, job ids. What the scheduler did not take stays PLANNED and is offered again."""
        own = [record for record in ready if self.attempts.present(record).facts.get(RUNNER) == self._name]
        jobs = [self._job(record) for record in own]
        try:
            job_ids = self.executor.submit(jobs)
        except SubmitError as error:
            return self._refused(error, len(own))
        self._refusals = 0
        for record in own:
            if job_id := job_ids.get(self._job_name(record)):
                self._note(record, job_id)

    def _job(self, record: Record) -> AttemptJob:
        """The job of an attempt, its script on disk."""
        folder = self.attempts.folder_of(record)
        make_folder(folder)
        job = replace(self.work.job_of(self._cells[record.cell_id], record, folder), tag=self._job_name(record))
        write_atomically(job.script, self.executor.render(job))
        return job

    def _job_name(self, record: Record) -> str:
        """Unique among a user's jobs: another study folder may hold an attempt of the same tag."""
        return f"{record.tag}-{self._study}"

    def _find(self, planned: Sequence[Record]) -> dict[str, str]:
        """tag -> job id of the attempts that have a job."""
        tags = {self._job_name(record): record.tag for record in planned}
        found = self.executor.find(list(tags)) if tags else {}
        return {tags[name]: job_id for name, job_id in found.items()}

    def _note(self, record: Record, job_id: str) -> None:
        try:
            self.attempts.advance(record, SUBMITTED, job_id=job_id, submitted_at=_now())
        except AttemptMovedError as error:
            self._say(f"{error}; job {job_id} of this one is ended")
            self.executor.cancel([job_id])

    def _refused(self, error: SubmitError, num_offered: int) -> None:
        """A queue that is full is waited for; one that takes nothing although nothing is in flight is an error."""
        self._say_once(str(error))
        if len(self.attempts.open()) > num_offered:
            return
        self._refusals += 1
        if self._refusals >= MOST_REFUSALS:
            raise UserError(f"{error} (refused {self._refusals} times in a row, nothing is in flight)")

    def _check_code(self) -> None:
        """Raises UserError when the code is no longer that of the cells: their results could not be compared."""
        now = self.work.code_version()
        for cell in self._cells.values():
            if cell.code_version != now:
                raise UserError(
                    f"{_point(cell)} is of code {cell.code_version} and the code is {now} by now: restore it, or start "
                    "again with a new --out; what is measured stays"
                )

    # The end

    def _given_up(self) -> tuple[str, ...]:
        return tuple(cell.id for cell in self._cells.values() if self._too_many(cell))

    def _stop(self) -> None:
        """After Ctrl-C or SIGTERM: jobs of this host are ended, those of a scheduler go on."""
        if not (in_flight := self._in_flight()):
            return
        if self.executor.name != "local":
            return self._say(f"{_jobs(len(in_flight))} in {self.executor.name}: the same command takes them up again")
        self._say(f"stopping {_jobs(len(in_flight))} of this host")
        planned = [record for record in in_flight if record.state == PLANNED]
        for tag, job_id in self._find(planned).items():
            self._note(next(record for record in planned if record.tag == tag), job_id)
        running = [record for record in self._in_flight() if record.job_id]
        self.executor.cancel([record.job_id for record in running])
        for job_id, status in self.executor.poll([record.job_id for record in running]).items():
            record = next(record for record in running if record.job_id == job_id)
            if status.state == ENDED:
                told = replace(status, outcome=FAILED, reason="stopped by the runner")
                self._conclude(record, self.attempts.folder_of(record), told)

    def _in_flight(self) -> list[Record]:
        return [record for record in self.attempts.open() if record.cell_id in self._cells]

    def _say_once(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            self._say(text)


def _point(cell: Cell) -> str:
    return f"study {cell.study.name} at {cell.study.scaled} = {cell.scale:,}"


def _jobs(number: int) -> str:
    return f"{number} job{'s' if number > 1 else ''}"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _runner_name() -> str:
    """Who this runner is: host, boot, process, its start, and a number of its own."""
    pid = os.getpid()
    return f"{platform.node()} {boot_id()[:8]} {pid} {processes.start_ticks(pid)} {uuid.uuid4().hex[:8]}"


def _is_living_runner(name: str) -> bool:
    """Whether this is the name of a process of this host that lives."""
    try:
        host, boot, pid, start, _ = name.split(" ")
    except ValueError:
        return False
    here = (platform.node(), boot_id()[:8]) == (host, boot)
    return here and processes.is_alive(int(pid)) and processes.start_ticks(int(pid)) == start
