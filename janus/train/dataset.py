"""Opens the structures of a run and splits off the validation set. It does not own the store (``janus/data``)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from janus.config import ModelConfig
from janus.data.pack import open_or_pack
from janus.data.store import StructureStore
from janus.errors import UserError
from janus.parallel.communication import Communicator
from janus.train.config import TrainConfig
from janus.train.loss import require_labels
from janus.train.sampler import split_validation


@dataclass(frozen=True, kw_only=True)
class Subset:
    """Some structures of a store, by ascending index."""

    store: StructureStore
    indices: np.ndarray


def open_on_all_ranks(path: Path, model: ModelConfig, communicator: Communicator) -> StructureStore:
    """Open (and, for a file, first pack) a data set with counts for the model's cutoffs; rank 0 first."""

    def open_store() -> StructureStore:
        store = open_or_pack(path, model.cutoff_angstrom, model.line_cutoff_angstrom)
        heaviest = int(np.flatnonzero(store.atoms_of_element).max())
        if heaviest > model.num_elements:
            raise UserError(
                f"{path} contains atomic number {heaviest} but the model knows 1 to {model.num_elements}: "
                "leave those structures out"
            )
        return store

    first = communicator.together(lambda: open_store() if communicator.rank == 0 else None)
    return communicator.together(lambda: first if communicator.rank == 0 else open_store())


def open_subsets(config: TrainConfig, communicator: Communicator) -> tuple[Subset, Subset | None]:
    """Training structures, and validation structures where the settings name any."""

    def path_of(path: Path | None) -> Path:
        if path is None:
            raise UserError("data.path is not set: name the structures with --data PATH")
        return path

    path = communicator.together(lambda: path_of(config.data.path))
    store = open_on_all_ranks(path, config.model, communicator)
    training, held_out = split_validation(len(store), config.data.validation_fraction, config.data.seed)
    communicator.together(lambda: _require_usable(store, len(training), config))
    if config.data.validation_path is not None:
        other = open_on_all_ranks(config.data.validation_path, config.model, communicator)
        return Subset(store=store, indices=training), Subset(store=other, indices=np.arange(len(other)))
    validation = Subset(store=store, indices=held_out) if len(held_out) else None
    return Subset(store=store, indices=training), validation


def _require_usable(store: StructureStore, num_training: int, config: TrainConfig) -> None:
    require_labels(store, config.loss)
    if config.batch.structures > num_training:
        raise UserError(
            f"batch.structures is {config.batch.structures} but {store.path} has {num_training} structures to train "
            f"on: use at most {num_training}"
        )
    if config.run.validate_every and not config.data.validation_fraction and config.data.validation_path is None:
        raise UserError(
            f"run.validate_every is {config.run.validate_every} but there is nothing to validate on: "
            "set data.validation_fraction or data.validation_path"
        )
