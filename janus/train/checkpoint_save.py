"""Saving a checkpoint: copied at once, written in the background, complete or absent; every rank writes its pieces.

In the foreground, on all ranks together: the partial folder is made, this rank's pieces are copied to host memory.
In the background, without any collective: each rank writes, flushes and hashes its files and reports to rank 0 through
the job's key-value store; rank 0 merges the index, writes the description, renames the folder, moves ``latest`` (and
``best``) and removes old checkpoints. What went wrong on any rank is raised on all at the next ``save_checkpoint`` or
``PendingSave.wait``, and the older checkpoints stay as they are. It does not own what is saved or when.
"""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from janus import __version__
from janus.config import to_mapping
from janus.parallel.communication import Communicator
from janus.parallel.job import RunFailedError
from janus.parallel.pieces import Piece
from janus.train.checkpoint_files import (
    INDEX,
    SCHEMA,
    folder_name,
    list_checkpoints,
    partial_folder,
    point_to,
    prune_checkpoints,
    publish_folder,
    remove_left_overs,
    write_description,
    write_json,
)
from janus.train.checkpoint_storage import Part, merge_indices, write_parts
from janus.train.config import TrainConfig

WHOLE = "whole"  # the part of tensors that are equal on all ranks
POLL_S = 0.05
Report = dict[str, Any]  # of one rank: "problem", or "index" and "files"


class PendingSave:
    """A checkpoint under way. ``done`` asks this rank alone; ``wait`` is called by all ranks together."""

    def __init__(self, checkpoints: Path, step: int, communicator: Communicator) -> None:
        self.checkpoints, self.step, self._communicator = checkpoints, step, communicator
        self._problem: str | None = None
        self._thread: threading.Thread | None = None

    def start(self, work: Callable[[], str | None], *, background: bool) -> None:
        """Run the work, which returns what went wrong; called once."""

        def run() -> None:
            self._problem = work()

        if background:
            self._thread = threading.Thread(target=run, name=f"janus-checkpoint-{self.step}", daemon=True)
            self._thread.start()
        else:
            run()

    def done(self) -> bool:
        """Whether this rank has nothing left to do; on rank 0, whether the checkpoint is there or has failed."""
        return self._thread is None or not self._thread.is_alive()

    def wait(self) -> None:
        """Until the checkpoint is there. Raises RunFailedError on all ranks, with one sentence, if it cannot be."""
        if _in_flight.pop(_key(self.checkpoints, self._communicator), None) is None:
            return
        if self._thread is not None:
            self._thread.join()
        raise_together(self._problem, self.step, self.checkpoints, self._communicator)


_in_flight: dict[tuple[Path, int], PendingSave] = {}  # by folder and rank: one save at a time


def _key(checkpoints: Path, communicator: Communicator) -> tuple[Path, int]:
    return checkpoints.resolve(), communicator.rank


def raise_together(problem: str | None, step: int, checkpoints: Path, communicator: Communicator) -> None:
    """RunFailedError on all ranks if rank 0 has a problem. All ranks call it."""
    sentence = None
    if problem is not None and communicator.rank == 0:
        left = list_checkpoints(checkpoints)
        kept = f"that of step {int(left[0].name[5:])} is intact" if left else "there is none before it"
        sentence = f"the checkpoint of step {step} could not be written ({problem}); {kept}"
    sentence = communicator.gather_objects(sentence)[0]
    if sentence is not None:
        raise RunFailedError(sentence)


def save_checkpoint(
    checkpoints: Path,
    *,
    step: int,
    config: TrainConfig,
    facts: Mapping[str, Any],
    pieces: Mapping[str, Piece],
    parts: Mapping[str, Mapping[str, Tensor]],
    whole: Mapping[str, Tensor],
    communicator: Communicator,
    background: bool,
    keep: int | None = None,
    best: bool = False,
) -> PendingSave:
    """Begin to save a checkpoint; all ranks call it. A save into the same folder that is still under way is waited for.

    parts: for instance {"weights": {NAME: tensor}, "exp_avg": {...}}: each tensor holds, in order, the elements of
    pieces[NAME].chunks of the flattened whole; the first rank of pieces[NAME].copies writes them. A name that one rank
    gives, all that hold some of it give. whole: tensors equal on all ranks, which rank 0 writes; those named
    "buffer/NAME" belong to the model. facts: plain JSON values.
    All tensors may change as soon as this returns. background False: returns when the checkpoint is there.
    keep: checkpoints kept afterwards, beside the best (None: all). best: ``best`` is to name this one.
    Raises RunFailedError on all ranks for this save or the one before.
    """
    former = _in_flight.get(_key(checkpoints, communicator))
    if former is not None:
        former.wait()
    target = checkpoints / folder_name(step)
    mine = _parts_to_write(pieces, parts, whole if communicator.rank == 0 else {})
    problem = _prepare_folder(target) if communicator.rank == 0 else None
    raise_together(problem, step, checkpoints, communicator)  # also: nobody writes before the folder is there
    writers = [rank for rank, writes in enumerate(communicator.gather_objects(bool(mine))) if writes]
    description = {
        "schema": SCHEMA, "step": step, "config": to_mapping(config), "facts": dict(facts),
        "world_size": communicator.world_size, "janus": __version__, "torch": torch.__version__,
    }  # fmt: skip
    exchange = _Exchange(communicator, step, writers)

    def work() -> str | None:
        report = _write(partial_folder(target), communicator.rank, mine) if mine else {}
        if communicator.rank != 0:
            exchange.send(report)
            return None
        return _settle(target, [report, *exchange.collect()], description, keep=keep, best=best)

    pending = PendingSave(checkpoints, step, communicator)
    _in_flight[_key(checkpoints, communicator)] = pending
    pending.start(work, background=background)
    if not background:
        pending.wait()
    return pending


def _parts_to_write(
    pieces: Mapping[str, Piece], parts: Mapping[str, Mapping[str, Tensor]], whole: Mapping[str, Tensor]
) -> dict[str, Part]:
    """Copies on the host of what this rank writes."""
    mine = {}
    for part, tensors in parts.items():
        assert part != WHOLE, part
        assert "/" not in part, part
        assert tensors.keys() <= pieces.keys(), (part, tensors.keys() - pieces.keys())
        for name, tensor in tensors.items():
            piece = pieces[name]
            if piece.copies.index == 0:
                mine[f"{part}/{name}"] = Part(_host_copy(tensor), piece.chunks, piece.shape)
    for name, tensor in whole.items():
        mine[f"{WHOLE}/{name}"] = Part(_host_copy(tensor), ((0, tensor.numel()),), tuple(tensor.shape))
    return mine


def _host_copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True).reshape(-1)


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError):
        return (error.strerror or str(error)) + (f": {Path(error.filename).name}" if error.filename else "")
    return f"{type(error).__name__}: {error}"


def _prepare_folder(target: Path) -> str | None:
    """Make the partial folder; returns what went wrong."""
    try:
        remove_left_overs(target.parent)
        partial_folder(target).mkdir(parents=True)
    except OSError as error:
        return _sentence(error)
    return None


def _write(folder: Path, rank: int, mine: Mapping[str, Part]) -> Report:
    try:
        index, files = write_parts(folder, rank, mine)
    except Exception as error:  # whatever it is: rank 0 waits for a report, and all ranks will raise it
        return {"problem": f"{_sentence(error)}, on rank {rank}"}
    return {"index": index, "files": files}


class _Exchange:
    """Reports of the writing ranks to rank 0, through the job's store: nothing that training could wait for."""

    def __init__(self, communicator: Communicator, step: int, writers: list[int]) -> None:
        self._rank = communicator.rank
        self._writers = [rank for rank in writers if rank != 0]
        taking_part = self._rank == 0 or self._rank in self._writers
        # a connection of its own: the main one may block
        self._store: Any = communicator.store.clone() if self._writers and taking_part else None
        self._key = f"checkpoint/{step}"

    def send(self, report: Report) -> None:
        if self._rank in self._writers:
            self._store.set(f"{self._key}/{self._rank}", json.dumps(report))

    def collect(self) -> list[Report]:
        """Rank 0: wait for all. If a rank dies meanwhile, the watchdog ends this process."""
        reports = []
        for rank in self._writers:
            key = f"{self._key}/{rank}"
            while not self._store.check([key]):
                time.sleep(POLL_S)
            reports.append(json.loads(self._store.get(key)))
            self._store.delete_key(key)
        return reports


def _settle(
    target: Path, reports: list[Report], description: Mapping[str, Any], *, keep: int | None, best: bool
) -> str | None:
    """Rank 0: make the checkpoint of what all ranks wrote, or remove it; returns what went wrong."""
    problem = next((report["problem"] for report in reports if "problem" in report), None)
    try:
        if problem is None:
            _publish(target, reports, description, keep=keep, best=best)
    except Exception as error:  # as in _write
        problem = _sentence(error)
    if problem is not None:
        shutil.rmtree(partial_folder(target), ignore_errors=True)  # what stays goes with the next left-overs
    return problem


def _publish(
    target: Path, reports: list[Report], description: Mapping[str, Any], *, keep: int | None, best: bool
) -> None:
    folder, checkpoints, step = partial_folder(target), target.parent, description["step"]
    files = {name: entry for report in reports for name, entry in report.get("files", {}).items()}
    index = merge_indices([report["index"] for report in reports if "index" in report])
    files[INDEX] = write_json(folder / INDEX, {"tensors": index})
    write_description(folder, {**description, "files": files})
    publish_folder(target)
    point_to(checkpoints, "latest", step)
    if best:
        point_to(checkpoints, "best", step)
    if keep is not None:
        prune_checkpoints(checkpoints, keep)
