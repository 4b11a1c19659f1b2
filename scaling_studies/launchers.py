"""How programs are started on ranks: any janus command on this host, and one attempt of a cell anywhere.

It owns command lines; it does not own launch scripts (``launch_scripts``) nor jobs (``executors``).
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from janus.errors import UserError
from scaling_studies.cells import Cell
from scaling_studies.executors.base import AttemptJob
from scaling_studies.launch_scripts import Job

TRAINER = (sys.executable, "-m", "janus", "train")
RUN_FOLDER = "run"  # of the trainer, inside an attempt's folder


def attempt_job(tag: str, folder: Path, cell: Cell, data: Path, *, trainer: Sequence[str] = TRAINER) -> AttemptJob:
    """The job of one attempt. folder: of the attempt; data: the cell's data set; trainer: command up to its options."""
    settings = cell.executor
    job = Job(
        name=tag, command=trainer_command(cell, data.resolve(), folder.resolve() / RUN_FOLDER, trainer=trainer),
        ranks=cell.ranks, nodes=cell.nodes, ranks_per_node=settings.ranks_per_node or cell.ranks,
        threads=settings.threads, time_limit_s=cell.study.time_out_s, gpus_per_node=settings.gpus_per_node,
        transport=cell.study.transport, queue=settings.queue, account=settings.account, launcher=settings.launcher,
        comments=(f"study {cell.study.name}: {cell.study.question}",),
    )  # fmt: skip
    return AttemptJob(tag=tag, folder=folder.resolve(), job=job)


def trainer_command(cell: Cell, data: Path, run_folder: Path, *, trainer: Sequence[str] = TRAINER) -> list[str]:
    """The words of one rank's program, every setting spelled out."""
    words = [*trainer, "--data", str(data), "--out", str(run_folder), "--model", cell.study.model]
    for section, values in cell.train_settings.items():
        for name, value in values.items():
            words.append(f"--{section}.{name}={str(value).lower() if isinstance(value, bool) else value}")
    return words


def launch_command(ranks: int, words: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The command line and environment that start ``janus WORDS`` on so many ranks of this host, one thread each."""
    command = [sys.executable, "-m", "janus", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    return command if ranks == 1 else [mpiexec(), "-n", str(ranks), *command], environment


def mpiexec() -> str:
    """mpiexec of this Python's environment, else the one on the path. Raises UserError when there is none."""
    beside = Path(sys.executable).parent / "mpiexec"
    found = str(beside) if beside.exists() else shutil.which("mpiexec")
    if found is None:
        raise UserError("no mpiexec beside this Python nor on the path: install mpich or load your site's MPI")
    return found
