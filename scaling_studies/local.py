"""The local executor: starts the trainer with mpiexec on this host, one attempt at a time, and records each outcome.

It owns the order of attempts, their folders, time-outs and resuming; it does not own what a run does (``janus train``)
nor how its files become a record (``measured``). A failed attempt is a record too.
"""

from __future__ import annotations

import fcntl
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from janus.errors import UserError
from scaling_studies.cells import Cell
from scaling_studies.measured import Host, UnreadableRun, identity, measured_record
from scaling_studies.records import (
    DONE,
    FAILED,
    MEASURED,
    RECORD_FOLDER,
    TIMEOUT,
    Record,
    read_folder,
    write_record,
)

ATTEMPT_FOLDER = "attempts"
GRACE_S = 10.0  # assumed: time a run gets to save and leave after SIGTERM, before SIGKILL
TRAINER = (sys.executable, "-m", "janus", "train")


@dataclass(frozen=True, kw_only=True)
class Task:
    """One attempt still wanted: a cell, and which of its repeats (0-based) it serves."""

    cell: Cell
    repeat: int


@dataclass(frozen=True, kw_only=True)
class LocalExecutor:
    """Runs attempts below ``folder``. data_of: cell -> its data set. trainer: command line up to its options."""

    folder: Path
    host: Host
    data_of: Callable[[Cell], Path]
    trainer: Sequence[str] = TRAINER

    @property
    def record_folder(self) -> Path:
        return self.folder / RECORD_FOLDER

    def wanted(self, cells: Iterable[Cell], seed: int) -> list[Task]:
        """Attempts that lack a good record, in an order shuffled by ``seed``."""
        done = {
            (record.cell_id, record.repeat)
            for record in read_folder(self.record_folder).records
            if record.source == MEASURED and record.state == DONE
        }
        tasks = [
            Task(cell=cell, repeat=repeat)
            for cell in cells
            for repeat in range(cell.study.repeats)
            if (cell.id, repeat) not in done
        ]
        random.Random(seed).shuffle(tasks)
        return tasks

    def run(self, task: Task) -> Record:
        """Run one attempt to its end and write its record, whatever the outcome."""
        self.record_abandoned([task.cell])
        attempt, folder = self._next_attempt(task.cell)
        command = self.command(task.cell, folder / "run")
        (folder / "command.sh").write_text(f"#!/bin/sh\nOMP_NUM_THREADS=1 {shlex.join(command)}\n", encoding="utf-8")
        state, reason = self._execute(command, folder / "log.txt", task.cell.study.time_out_s)
        if state == DONE:
            try:
                record = measured_record(
                    task.cell, folder / "run", self.host,
                    attempt=attempt, repeat=task.repeat, command=shlex.join(command),
                )  # fmt: skip
            except UnreadableRun as error:
                state, reason = FAILED, str(error)
        if state != DONE:
            record = self._failure(task.cell, attempt, task.repeat, state, reason, shlex.join(command))
        write_record(self.record_folder, record)
        return record

    def command(self, cell: Cell, run_folder: Path) -> list[str]:
        """The command line of one attempt: mpiexec for more than one rank, the trainer itself for one."""
        words = [
            *self.trainer, "--data", str(self.data_of(cell)), "--out", str(run_folder), "--model", cell.study.model,
        ]  # fmt: skip
        for section, values in cell.train_settings.items():
            for name, value in values.items():
                words.append(f"--{section}.{name}={str(value).lower() if isinstance(value, bool) else value}")
        return on_ranks(cell.ranks, words)

    def record_abandoned(self, cells: Iterable[Cell]) -> list[Record]:
        """Records for attempts whose runner was killed before it could write one, so that they are listed."""
        written = []
        for cell in cells:
            for folder in sorted((self.folder / ATTEMPT_FOLDER).glob(f"{_attempt_stem(cell)}-*")):
                attempt = int(folder.name.rpartition("-")[2])
                reason = "the study was stopped before this attempt ended"
                record = self._failure(cell, attempt, 0, FAILED, reason, "")
                if not (self.record_folder / record.file_name).exists():
                    write_record(self.record_folder, record)
                    written.append(record)
        return written

    def _next_attempt(self, cell: Cell) -> tuple[int, Path]:
        root = self.folder / ATTEMPT_FOLDER
        root.mkdir(parents=True, exist_ok=True)
        attempt = 1
        while True:
            folder = root / f"{_attempt_stem(cell)}-{attempt:02d}"
            try:
                folder.mkdir()
                return attempt, folder
            except FileExistsError:
                attempt += 1

    def _execute(self, command: Sequence[str], log: Path, time_out_s: float) -> tuple[str, str]:
        """Run the command in a process group of its own. Returns the state and, unless DONE, the reason."""
        with log.open("wb") as stream:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT,
                env=one_thread_environment(), start_new_session=True,
            )  # fmt: skip
            try:
                code = process.wait(timeout=time_out_s)
            except subprocess.TimeoutExpired:
                return TIMEOUT, f"no end within {time_out_s:g} s, stopped; see {log.parent.name}/{log.name}"
            finally:
                _stop_group(process)
        if code:
            return FAILED, f"exit code {code}: {_last_line(log)}"
        return DONE, ""

    def _failure(self, cell: Cell, attempt: int, repeat: int, state: str, reason: str, command: str) -> Record:
        return Record(
            **identity(cell), source=MEASURED, method="janus train, wall clock", machine=self.host.name, layout={},
            state=state, reason=reason, attempt=attempt, repeat=repeat, counts_per_rank=cell.counts_per_rank,
            oversubscribed=cell.ranks > self.host.num_cores, provenance={"command of the study": command},
        )  # fmt: skip


@contextmanager
def only_runner(folder: Path) -> Iterator[None]:
    """Hold the study folder for one runner; released by the system however the runner ends. Raises UserError."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"another runner works on {folder}: wait for it, or use another --out") from None
        yield


def _attempt_stem(cell: Cell) -> str:
    return f"{cell.study.name}-ranks{cell.ranks:05d}-{cell.id}"


def one_thread_environment() -> dict[str, str]:
    """This process's environment with one thread per rank."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def on_ranks(ranks: int, words: Sequence[str]) -> list[str]:
    """A command line on so many ranks: by mpiexec for more than one, as it is for one."""
    return list(words) if ranks == 1 else [mpiexec(), "-n", str(ranks), *words]


def launch_command(ranks: int, words: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The command line and environment that start ``janus WORDS`` on so many ranks of this host."""
    return on_ranks(ranks, [sys.executable, "-m", "janus", *words]), one_thread_environment()


def mpiexec() -> str:
    """mpiexec of this Python's environment, else the one on the path. Raises UserError when there is none."""
    beside = Path(sys.executable).parent / "mpiexec"
    found = str(beside) if beside.exists() else shutil.which("mpiexec")
    if found is None:
        raise UserError("no mpiexec beside this Python nor on the path: install mpich or load your site's MPI")
    return found


def _stop_group(process: subprocess.Popen[bytes]) -> None:
    """End what is left of the attempt's process group: politely, then for certain."""
    for number, patience_s in ((signal.SIGTERM, GRACE_S), (signal.SIGKILL, None)):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        try:
            process.wait(timeout=patience_s)
        except subprocess.TimeoutExpired:
            continue
    process.wait()


def _last_line(log: Path) -> str:
    """The last line before any launcher's banner, shortened: usually the one that names the error."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    banner = next((number for number, line in enumerate(lines) if number and set(line) == {"="}), len(lines))
    return lines[banner - 1][:300] if lines else "it printed nothing"
