"""What nobody knows before launch, of the measured steps: the real gates' experts and the real graphs' divisions.

It owns finding them out from the trainer's own code, one process for all ranks. It does not own what is predicted with
them (``prediction_judge.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
import torch
from numpy.typing import NDArray

from janus.config import ModelConfig
from janus.data.store import StructureStore
from janus.model.batch import GraphBatch
from janus.model.build import build_model
from janus.model.experts import MixtureOfExperts
from janus.parallel.local_graph import local_batch, part_of_atoms
from janus.train.loader import BatchLoader
from perfmodel.division import Part
from perfmodel.products import Counts

NUM_ATOMIC_NUMBERS = 95


def real_experts(model: ModelConfig, seed: int = 0) -> list[NDArray] | None:
    """Experts of each element [Z,k] at the start of a run, of the message and feature layer of each block in turn."""
    if model.experts is None:
        return None
    built = build_model(model, seed=seed)
    with torch.no_grad():
        return [module.gate()[0].numpy() for module in built.modules() if isinstance(module, MixtureOfExperts)]


class RealDivisions(dict):
    """Parts of micro-batches by their structures and degree, worked out when they are asked for."""

    def __init__(self, store: StructureStore, model: ModelConfig, num_parts: int) -> None:
        super().__init__()
        self.num_parts = num_parts
        self._loader = BatchLoader(
            store, cutoff_angstrom=model.cutoff_angstrom, line_cutoff_angstrom=model.line_cutoff_angstrom,
            dtype=torch.float32, device=torch.device("cpu"),
        )  # fmt: skip

    def __bool__(self) -> bool:
        return True  # empty at first, but never without parts

    def get(self, indices: tuple[int, ...], default: object = None) -> Sequence[Part] | None:  # type: ignore[override]
        if not indices:
            return None
        if indices not in self:
            whole = self._loader.load_micro_batch(list(indices)).batch
            parts = part_of_atoms(whole, self.num_parts)
            self[indices] = [
                _part(local_batch(whole, parts, SimpleNamespace(size=self.num_parts, index=place)))
                for place in range(self.num_parts)
            ]
        return self[indices]


def _part(batch: GraphBatch) -> Part:
    halo, numbers = batch.halo, batch.numbers.numpy()
    return Part(
        counts=Counts(
            structures=batch.num_structures, atoms=batch.num_atoms, edges=batch.num_edges, bonds=batch.num_bonds,
            angles=batch.num_angles, ghosts=halo.num_ghosts, shared_pairs=len(halo.shared_pairs),
            shared_bonded_pairs=len(halo.shared_bonded_pairs),
        ),
        boundary=len(halo.boundary),
        atoms_of=np.bincount(numbers, minlength=NUM_ATOMIC_NUMBERS),
        edges_of=np.bincount(numbers[batch.centre.numpy()], minlength=NUM_ATOMIC_NUMBERS),
    )  # fmt: skip
