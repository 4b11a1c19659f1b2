"""Sets a run up from its request and describes it: threads, data, model, resume, run.json. All ranks call it.

It does not own the loop (``loop.py``) nor the command line (``janus/cli/train.py``).
"""

from __future__ import annotations

import math
import os
import resource
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from janus.config import read_toml
from janus.errors import UserError
from janus.host_facts import process_age_s
from janus.layout import Layout
from janus.parallel.communication import Communicator
from janus.parallel.fs3d import DistributedModel, distribute
from janus.train.checkpoint import Checkpoint, latest_good
from janus.train.checkpoint_files import remove_left_overs
from janus.train.config import TrainConfig, train_config
from janus.train.dataset import Subset, open_subsets
from janus.train.interrupt import InterruptFlag
from janus.train.loop import RunOutcome, Trainer
from janus.train.progress import ProgressLine
from janus.train.provenance import describe, is_oversubscribed
from janus.train.runfolder import SCHEMA, RunFolder, require_same_settings
from janus.train.steplog import StepLog, final_numbers, read_step_log

MAX_VERIFIED = 16  # structures of the check before step 0


@dataclass(frozen=True, kw_only=True)
class TrainRequest:
    """What a user asks for. stop_after: end, resumable, once this many steps of the run are done (None: at its end).

    planned: what a plan predicted for this run, kept in run.json beside what is measured (None: no plan).
    """

    config: TrainConfig
    out: Path
    resume: bool = False
    force: bool = False
    stop_after: int | None = None
    planned: Mapping[str, Any] | None = None


@dataclass(kw_only=True)
class Session:
    """A run that is ready to start. document: content of run.json so far; process_start: on the monotonic clock [s]."""

    trainer: Trainer
    folder: RunFolder
    communicator: Communicator
    document: dict[str, Any]
    stop_step: int
    process_start: float

    def mark_failed(self, message: str) -> None:
        """Write the failure into run.json (rank 0)."""
        if self.communicator.rank == 0:
            self.folder.write_run(self.document | {"status": "failed", "message": message})


def set_threads(threads: int, local_size: int) -> None:
    """Threads of this rank: as asked, or OMP_NUM_THREADS, or the cores it may use shared among the host's ranks."""
    if threads == 0 and "OMP_NUM_THREADS" in os.environ:
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(threads or max(1, cores // local_size))


def set_matmul_precision(tf32: bool) -> str:
    """TF32 matrix products off unless asked for; returns the precision's name for run.json."""
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    return "tf32" if tf32 else "ieee"


def peak_memory_bytes(device: torch.device) -> int:
    """Largest memory this rank has held: allocated on its GPU, or resident on the host."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    try:
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass  # not Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # may include the parent's peak before exec


def _started_config(request: TrainRequest, folder: RunFolder) -> TrainConfig | None:
    """Settings of the run to resume, checked against the request's."""
    folder.check(resume=request.resume, force=request.force)
    if not request.resume:
        return None
    started = train_config(read_toml(folder.config))
    require_same_settings(started, request.config, folder.path)
    return started


def open_session(request: TrainRequest, communicator: Communicator) -> Session:
    """Everything before step 0. Raises UserError, the same on all ranks, before anything on disk is changed."""
    config, folder = request.config, RunFolder(request.out)
    process_start = time.monotonic() - process_age_s()
    layout = communicator.together(lambda: config.parallel.layout(communicator.world_size))
    started = communicator.together(lambda: _started_config(request, folder))
    set_threads(config.run.threads, communicator.local_size)
    precision = set_matmul_precision(config.run.tf32)
    torch.manual_seed(config.run.seed)
    training, validation = open_subsets(config, communicator)
    checkpoint = _last_checkpoint(folder, communicator) if started else None
    communicator.together(lambda: _require_same_data(checkpoint, training.store.fingerprint, folder))
    distributed = distribute(config, layout, communicator)
    distributed.model.set_reference_energies(torch.as_tensor(training.store.reference_energies))
    if config.run.verify and checkpoint is None:
        _verify(distributed, training, config, communicator)
    communicator.together(lambda: folder.claim(config, force=request.force) if communicator.rank == 0 else None)
    trainer = Trainer(config, communicator, distributed, training, validation, folder)
    if checkpoint is not None:
        trainer.restore(checkpoint)
    stop_step = min(trainer.num_steps, request.stop_after or trainer.num_steps)
    document = _document(trainer, layout, precision, communicator) | {"planned": request.planned}
    return Session(
        trainer=trainer, folder=folder, communicator=communicator, document=document,
        stop_step=stop_step, process_start=process_start,
    )  # fmt: skip


def _last_checkpoint(folder: RunFolder, communicator: Communicator) -> Checkpoint | None:
    def tell(sentence: str) -> None:
        if communicator.rank == 0:
            ProgressLine("", 0).say(f"janus train: {sentence}")

    if communicator.rank == 0:
        remove_left_overs(folder.checkpoints)
    checkpoint = latest_good(folder.checkpoints, tell, communicator)
    if checkpoint is None:
        tell(f"{folder.path} has no checkpoint yet: starting from step 0")
    return checkpoint


def _verify(distributed: DistributedModel, training: Subset, config: TrainConfig, communicator: Communicator) -> None:
    """Hold the layout to a single process on the smallest training structures, before anything is written."""
    from janus.train.verify import compare_with_single_process, require_exact

    count = min(len(training.indices), 2 * distributed.layout.data_degree, MAX_VERIFIED)
    smallest = training.indices[np.argsort(training.store.work[training.indices], kind="stable")[:count]]
    structures = [training.store[int(index)] for index in smallest]
    table = torch.as_tensor(training.store.reference_energies)
    comparison = compare_with_single_process(distributed, structures, config, communicator, reference_energies=table)
    require_exact(comparison)
    if communicator.rank == 0:
        worst = comparison.worst_gradient
        ProgressLine("", 0).say(
            f"janus train: the layout equals a single process within {comparison.tolerance:.0e} "
            f"(largest gradient error {worst.relative or 0.0:.1e}, of {worst.name})"
        )


def _require_same_data(checkpoint: Checkpoint | None, fingerprint: str, folder: RunFolder) -> None:
    if checkpoint is not None and checkpoint.facts["data_fingerprint"] != fingerprint:
        raise UserError(
            f"--resume: the structures are not those that the run in {folder.path} was started with "
            "(their fingerprint differs): name the same data, or start a new run"
        )


def _document(trainer: Trainer, layout: Layout, precision: str, communicator: Communicator) -> dict[str, Any]:
    """run.json as it is before the first step."""
    return {
        "schema": SCHEMA,
        "status": "running",
        "provenance": describe(communicator),
        "world_size": communicator.world_size,
        "layout": layout.to_mapping(),
        "oversubscribed": is_oversubscribed(communicator),
        "dtype": trainer.config.run.dtype,
        "seeds": {"run": trainer.config.run.seed, "data": trainer.config.data.seed},
        "matmul_precision": precision,
        "parameters": sum(math.prod(shape) for shape in trainer.distributed.shapes.values()),
        "num_steps": trainer.num_steps,
        "first_step": trainer.steps_done,
        "steps_done": trainer.steps_done,
        "num_training": len(trainer.training.indices),
        "num_validation": len(trainer.validation.indices) if trainer.validation is not None else 0,
        "data_fingerprint": trainer.training.store.fingerprint,
    }


def run_session(session: Session, flag: InterruptFlag) -> tuple[dict[str, Any], int]:
    """Train; returns the final run.json and the exit code. Raises RunFailedError or OSError."""
    communicator, trainer = session.communicator, session.trainer
    is_first = communicator.rank == 0
    if is_first:
        session.folder.write_run(session.document)
    log = StepLog(session.folder.steps, trainer.steps_done) if is_first else None
    loop_start = time.monotonic()
    with ProgressLine("training", session.stop_step, done=trainer.steps_done, visible=is_first) as progress:
        outcome = trainer.run(log, progress, flag, session.stop_step)
    if log is not None:
        log.sync()
        log.close()
    session.document |= {
        "status": _status(outcome, trainer),
        "steps_done": outcome.steps_done,
        "start_up_s": loop_start - session.process_start,
        "loop_s": outcome.loop_s,
        "peak_memory_bytes": communicator.gather_objects(peak_memory_bytes(communicator.device)),
        "final": outcome.final or _last_line(session.folder),
        "validation": outcome.validation,
        "sent_last_step": communicator.gather_objects(trainer.sent_last_step),
        "wall_s": time.monotonic() - session.process_start,
    }
    if is_first:
        session.folder.write_run(session.document)
    return session.document, outcome.exit_code


def _last_line(folder: RunFolder) -> dict[str, Any]:
    """Numbers of the last step on record, for a resumed run that had nothing left to do."""
    lines = list(read_step_log(folder.steps)) if folder.steps.exists() else []
    return final_numbers(lines[-1]) if lines else {}


def _status(outcome: RunOutcome, trainer: Trainer) -> str:
    if outcome.exit_code:
        return "interrupted"
    return "done" if outcome.steps_done == trainer.num_steps else "stopped"
