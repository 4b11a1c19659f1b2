"""Errors of a model on labelled structures: exact sums, over ranks, in total and per element.

It does not own which weights are used (``ema.py``, ``checkpoint.py``). Legend: G structures, N atoms.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from ase.data import chemical_symbols
from torch import Tensor, nn

from janus.data.store import StructureStore
from janus.model.potential import evaluate_potential
from janus.parallel.communication import Communicator
from janus.train.loader import BatchLoader, MicroBatch
from janus.train.loss import Errors, Labels, errors_of
from janus.train.progress import ProgressLine
from janus.train.sampler import share_out

NUM_ATOMIC_NUMBERS = 95
UNITS = {"energy": "eV/atom", "forces": "eV/angstrom", "stress": "eV/angstrom^3"}


class ErrorTotals:
    """Sums of |e|, e^2 and counts: per quantity [3], and per element for energy (structures that contain it, each once)
    and forces (components by the element of their atom) [95, 3]. float64 on the CPU.
    """

    def __init__(self) -> None:
        self.total = {name: torch.zeros(3, dtype=torch.float64) for name in UNITS}
        self.by_element = {
            name: torch.zeros(NUM_ATOMIC_NUMBERS, 3, dtype=torch.float64) for name in ("energy", "forces")
        }

    def add(self, errors: Errors, labels: Labels, numbers: Tensor, structure_of_atom: Tensor) -> None:
        """Add a micro-batch: its errors and labels, atomic numbers [N] and the structure of each atom [N]."""
        atom_rows = _rows(errors.forces, labels.has_forces[:, None].expand_as(errors.forces)).sum(1)
        structure_rows = _rows(errors.energy, labels.has_energy)
        stress_rows = _rows(errors.stress, labels.has_stress[:, None, None].expand_as(errors.stress))
        self.total["energy"] += structure_rows.sum(0)
        self.total["forces"] += atom_rows.sum(0)
        self.total["stress"] += stress_rows.sum((0, 1, 2))
        self.by_element["forces"].index_add_(0, numbers, atom_rows)
        contains = torch.zeros(NUM_ATOMIC_NUMBERS, len(errors.energy), dtype=torch.float64)
        contains[numbers, structure_of_atom] = 1.0
        self.by_element["energy"] += contains @ structure_rows

    def sum_over_ranks(self, communicator: Communicator) -> None:
        """Make the sums those of all ranks. All ranks call it."""
        for sums in (*self.total.values(), *self.by_element.values()):
            communicator.all_reduce_sum(sums)

    def mae(self, name: str) -> float | None:
        """Mean absolute error of a quantity, None without labels."""
        absolute, _, count = self.total[name].tolist()
        return absolute / count if count else None

    def document(self) -> dict[str, Any]:
        """MAE, RMSE and counts per quantity, with units, in total and by element."""
        result: dict[str, Any] = {}
        for name, unit in UNITS.items():
            result[name] = {"unit": unit, **_statistics(self.total[name])}
            if name in self.by_element:
                result[name]["by_element"] = {
                    chemical_symbols[number]: _statistics(self.by_element[name][number])
                    for number in torch.nonzero(self.by_element[name][:, 2])[:, 0].tolist()
                }
        return result


def _rows(error: Tensor, labelled: Tensor) -> Tensor:
    """|e|, e^2 and 1 where labelled, else zeros, along a new last dimension, on the CPU."""
    return torch.stack([error.abs(), error.square(), labelled.double()], dim=-1).cpu()


def _statistics(sums: Tensor) -> dict[str, Any]:
    absolute, squared, count = sums.tolist()
    if count == 0:
        return {"mae": None, "rmse": None, "count": 0}
    return {"mae": absolute / count, "rmse": math.sqrt(squared / count), "count": int(count)}


def add_micro_batch(totals: ErrorTotals, model: nn.Module, micro_batch: MicroBatch) -> None:
    """Evaluate one micro-batch and add its errors."""
    prediction = evaluate_potential(model, micro_batch.batch, create_graph=False)
    errors = errors_of(prediction, micro_batch.labels)
    on_cpu = micro_batch.labels.to(torch.device("cpu"))
    totals.add(errors, on_cpu, micro_batch.batch.numbers.cpu(), micro_batch.batch.structure_of_atom.cpu())


def evaluate_structures(
    model: nn.Module,
    store: StructureStore,
    indices: list[int],
    loader: BatchLoader,
    communicator: Communicator,
    *,
    max_work: int | None,
    progress: ProgressLine | None = None,
) -> ErrorTotals:
    """Errors over some structures of a store, shared out over the ranks. All ranks call it and get the same sums."""
    totals = ErrorTotals()
    shares = share_out(store.work, indices, communicator.world_size, max_work)[communicator.rank]
    done = 0
    for chosen in shares:
        add_micro_batch(totals, model, loader.load_micro_batch(chosen).to(loader.device))
        done += len(chosen)
        if progress is not None:
            progress.advance(done)
    totals.sum_over_ranks(communicator)
    return totals
