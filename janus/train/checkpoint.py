"""Reading checkpoints: found, verified before use, read whole or by ranges; nothing that is loaded can execute code.

Any process, and any number of ranks in any layout, can read what any other number of ranks has written. It does not
own the folder (``checkpoint_files.py``), the tensors on disk (``checkpoint_storage.py``), how a checkpoint is saved
(``checkpoint_save.py``) or exported (``export.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load
from torch import Tensor

from janus.errors import UserError
from janus.parallel.communication import Communicator
from janus.parallel.pieces import Piece
from janus.train.checkpoint_files import (
    FIRST_SCHEMA,
    DamagedCheckpointError,
    list_checkpoints,
    read_description,
    verify_file,
)
from janus.train.checkpoint_save import WHOLE
from janus.train.checkpoint_storage import DTYPES, Index, Part, read_index, read_parts
from janus.train.config import TrainConfig, train_config

BUFFER = "buffer/"


class StoredTensors(Mapping[str, dict[str, Tensor]]):
    """Parts of a checkpoint by name, read whole onto the CPU whenever one is asked for."""

    def __init__(self, folder: Path, index: Index) -> None:
        self.folder, self.index = folder, index

    def __getitem__(self, part: str) -> dict[str, Tensor]:
        wanted = {name: entry for name, entry in self.index.items() if name.partition("/")[0] == part}
        if not wanted:
            raise KeyError(part)
        tensors = {name: torch.empty(entry["shape"], dtype=DTYPES[entry["dtype"]]) for name, entry in wanted.items()}
        whole = {
            name: Part(tensor.view(-1), ((0, tensor.numel()),), tuple(tensor.shape)) for name, tensor in tensors.items()
        }
        read_parts(self.folder, self.index, whole)
        return {name.partition("/")[2]: tensor for name, tensor in tensors.items()}

    def __iter__(self) -> Iterator[str]:
        return iter(sorted({name.partition("/")[0] for name in self.index}))

    def __len__(self) -> int:
        return len(list(iter(self)))


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A verified checkpoint or exported potential. tensors: part -> named whole tensors on the CPU.

    Parts: "weights" (parameters), "average" (EMA, absent without one), moments, "whole" (what is equal on all ranks:
    buffers of the model as "buffer/NAME" and other small things). facts: plain values (fingerprint of the data ...).
    """

    step: int
    config: TrainConfig
    tensors: Mapping[str, Mapping[str, Tensor]]
    facts: Mapping[str, Any] = field(default_factory=dict)
    path: Path | None = None

    def inference_weights(self, *, raw: bool = False) -> dict[str, Tensor]:
        """Parameters and buffers, averages in place of the parameters where there are any.

        raw: the parameters themselves. Raises UserError where they were not exported.
        """
        if raw and "weights" not in self.tensors:
            raise UserError(f"{self.path} holds averaged weights only: use the run's checkpoint for the raw ones")
        averaged = not raw and "average" in self.tensors
        chosen = dict(self.tensors["average" if averaged else "weights"])
        if averaged and "weights" in self.tensors and WHOLE not in self.tensors:
            chosen = {**self.tensors["weights"], **chosen}  # first schema: buffers lie among the weights
        whole = self.tensors.get(WHOLE, {})
        return chosen | {name[len(BUFFER) :]: value for name, value in whole.items() if name.startswith(BUFFER)}

    def names(self, part: str) -> set[str]:
        """Names of a part's tensors, none of which is read; empty where there is no such part."""
        if isinstance(self.tensors, StoredTensors):
            return {name.partition("/")[2] for name in self.tensors.index if name.partition("/")[0] == part}
        return set(self.tensors.get(part, ()))

    def fill(self, pieces: Mapping[str, Piece], parts: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Copy into each tensor of ``parts`` (as in ``save_checkpoint``) its ranges, whatever layout wrote them.

        The tensors are contiguous, on any device. Raises UserError where the checkpoint holds other tensors.
        """
        if not isinstance(self.tensors, StoredTensors):
            raise UserError(
                f"checkpoint {self.path} is of an older format, which can be evaluated and exported "
                "but not resumed: start a new run"
            )
        wanted = {
            f"{part}/{name}": Part(tensor.detach().view(-1), pieces[name].chunks, pieces[name].shape)
            for part, tensors in parts.items()
            for name, tensor in tensors.items()
        }
        try:
            read_parts(self.tensors.folder, self.tensors.index, wanted)
        except (KeyError, ValueError) as error:
            raise UserError(f"{error.args[0]}: resume with the model it was written with") from None


def read_checkpoint(folder: Path, *, share: tuple[int, int] = (0, 1)) -> Checkpoint:
    """Verify and open one checkpoint. Raises DamagedCheckpointError naming the folder and what is wrong.

    share: (rank, ranks): verify only every ranks-th file; the others must do theirs.
    """
    description = read_description(folder)
    rank, num_ranks = share
    for name, entry in sorted(description["files"].items())[rank::num_ranks]:
        verify_file(folder, name, entry)
    if description["schema"] == FIRST_SCHEMA:
        tensors: Mapping[str, Mapping[str, Tensor]] = {
            Path(name).stem: load((folder / name).read_bytes()) for name in description["files"]
        }
    else:
        tensors = StoredTensors(folder, _verified_index(folder, description["files"]))
    return Checkpoint(
        step=description["step"], config=train_config(description["config"]), tensors=tensors,
        facts=description["facts"], path=folder,
    )  # fmt: skip


def _verified_index(folder: Path, files: Mapping[str, Any]) -> Index:
    """index.json, where all that it names is among the files that are verified."""
    index = read_index(folder)
    strangers = {file for entry in index.values() for *_, file in entry["chunks"]} - files.keys()
    if strangers:
        raise DamagedCheckpointError(f"checkpoint {folder} is damaged: it does not describe {sorted(strangers)[0]}")
    return index


def _read_together(folder: Path, communicator: Communicator) -> Checkpoint:
    """read_checkpoint by all ranks, each verifying its share; what one finds damaged is damaged for all."""
    checkpoint, problem = None, None
    try:
        checkpoint = read_checkpoint(folder, share=(communicator.rank, communicator.world_size))
    except DamagedCheckpointError as error:
        problem = str(error)
    first = next((text for text in communicator.gather_objects(problem) if text is not None), None)
    if first is not None:
        raise DamagedCheckpointError(first)
    assert checkpoint is not None
    return checkpoint


def latest_good(
    checkpoints: Path, tell: Callable[[str], None], communicator: Communicator | None = None
) -> Checkpoint | None:
    """The newest checkpoint that is whole; damaged ones are named through ``tell``. None: there is no checkpoint.

    communicator: all ranks call it, share the work and get the same; None: this process alone.
    Raises UserError when there are some but none is whole.
    """
    names = [folder.name for folder in list_checkpoints(checkpoints)]
    if communicator is not None:
        names = communicator.gather_objects(names)[0]
    for name in names:
        try:
            if communicator is None:
                return read_checkpoint(checkpoints / name)
            return _read_together(checkpoints / name, communicator)
        except DamagedCheckpointError as error:
            tell(f"{error}; trying the one before")
    if names:
        raise UserError(f"none of the {len(names)} checkpoints in {checkpoints} is whole: restore one from a copy")
    return None
