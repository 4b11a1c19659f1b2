"""Small campaigns for a real Slurm whose attempts run a shell line, and runners in processes that can be killed."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path

from scaling_studies.attempts import Attempts
from scaling_studies.cells import Cell, identity, resolve_cells
from scaling_studies.executors.base import AttemptJob
from scaling_studies.executors.choice import executor_for
from scaling_studies.launch_scripts import Job
from scaling_studies.measured import UnreadableRun
from scaling_studies.records import DONE, MEASURED, PLANNED, RECORD_FOLDER, Record, read_folder
from scaling_studies.runner import Runner, Work
from scaling_studies.study import Declaration, ExecutorSettings, Study, write_declaration
from tests.study_cases import data, weak

GOOD = 'echo "$SLURM_PROCID" >> ran; echo 0.25 > step_s'
LONG = "touch at_work; sleep 300"
FORK = multiprocessing.get_context("fork")  # a killed runner leaves nothing behind but its files


def small_study(**changes: object) -> Study:
    """Two points, of one and of two nodes; twice three attempts."""
    return weak(**{"repeats": 3, **changes})


def small_runner(
    folder: Path, study: Study, program: Callable[[Record], str] = lambda record: GOOD, say: Callable = print,
    **settings: object,
) -> Runner:  # fmt: skip
    """A runner of the study on Slurm, one rank a node. program: attempt -> the shell line of its ranks."""
    executor = ExecutorSettings(kind="slurm", ranks_per_node=1, **{"poll_s": 0.3, "max_in_flight": 8, **settings})
    folder.mkdir(parents=True, exist_ok=True)
    write_declaration(folder, Declaration(studies=(study,), executor=executor))
    cells = resolve_cells(study, data(), executor=executor, code_version="1+c0de")
    return Runner(Attempts(folder), _work(cells, program, executor), executor_for(executor), say=say)


def start_runner(folder: Path, study: Study, program: Callable[[Record], str], **settings: object) -> BaseProcess:
    """The same at work in a process of its own."""
    process = FORK.Process(target=lambda: small_runner(folder, study, program, **settings).run(), daemon=True)
    process.start()
    return process


def measured(folder: Path) -> list[Record]:
    """The attempts of a study folder."""
    return [record for record in read_folder(folder / RECORD_FOLDER).records if record.source == MEASURED]


def _work(cells: list[Cell], program: Callable[[Record], str], executor: ExecutorSettings) -> Work:
    def planned(cell: Cell, repeat: int) -> Record:
        return Record(
            **identity(cell), source=MEASURED, method="shell", machine="cluster", layout={}, state=PLANNED,
            repeat=repeat, executor="slurm", counts_per_rank=cell.counts_per_rank,
        )  # fmt: skip

    def job_of(cell: Cell, record: Record, folder: Path) -> AttemptJob:
        job = Job(
            name=record.tag, command=("bash", "-c", program(record)), ranks=cell.ranks, nodes=cell.nodes,
            ranks_per_node=executor.ranks_per_node, threads=1, time_limit_s=cell.study.time_out_s,
        )  # fmt: skip
        return AttemptJob(tag=record.tag, folder=folder.resolve(), job=job)

    def measure(cell: Cell, record: Record, folder: Path) -> Record:
        try:
            step_s = float((folder / "step_s").read_text())
        except OSError as error:
            raise UnreadableRun(f"the run left no step time ({error.strerror})") from None
        return replace(record, state=DONE, step_s=(step_s,) * cell.study.steps)

    return Work(cells=tuple(cells), planned=planned, job_of=job_of, measure=measure, code_version=lambda: "1+c0de")
