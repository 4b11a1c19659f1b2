"""Errors of a model on labelled structures: exact sums, over ranks, in total and per element.

It does not own which weights are used (``ema.py``, ``checkpoint.py``). Legend: G structures, N atoms.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from ase.data import chemical_symbols
from torch import Tensor

from janus.data.store import StructureStore
from janus.layout import Layout
from janus.model.batch import GraphBatch
from janus.model.potential import Prediction
from janus.parallel.communication import Communicator
from janus.train.loader import NUM_ATOMIC_NUMBERS, BatchLoader
from janus.train.loss import Errors, Labels, errors_of
from janus.train.progress import ProgressLine
from janus.train.sampler import share_in_lockstep

Predict = Callable[[GraphBatch], Prediction]
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

    def add(self, errors: Errors, labels: Labels, numbers: Tensor, contains: Tensor) -> None:
        """Add a micro-batch, or a part of one: its errors and labels, atomic numbers of the atoms here [N], and which
        elements each whole structure contains [95,G].
        """
        atom_rows = _rows(errors.forces, labels.has_forces[:, None].expand_as(errors.forces)).sum(1)
        structure_rows = _rows(errors.energy, labels.has_energy)
        stress_rows = _rows(errors.stress, labels.has_stress[:, None, None].expand_as(errors.stress))
        self.total["energy"] += structure_rows.sum(0)
        self.total["forces"] += atom_rows.sum(0)
        self.total["stress"] += stress_rows.sum((0, 1, 2))
        self.by_element["forces"].index_add_(0, numbers, atom_rows)
        self.by_element["energy"] += contains.double() @ structure_rows

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


def evaluate_structures(
    predict: Predict,
    store: StructureStore,
    indices: list[int],
    loader: BatchLoader,
    communicator: Communicator,
    layout: Layout,
    *,
    max_work: int | None,
    progress: ProgressLine | None = None,
) -> ErrorTotals:
    """Errors over some structures of a store, shared out over the layout. All ranks call it and get the same sums."""
    totals = ErrorTotals()
    done = 0
    for chosen in share_in_lockstep(store.work, indices, layout, communicator.rank, max_work):
        micro_batch = loader.load_micro_batch(chosen)
        on_device = micro_batch.to(loader.device)
        errors = errors_of(predict(on_device.batch), on_device.labels)
        totals.add(errors, micro_batch.labels, micro_batch.batch.numbers, micro_batch.contains)
        done += len(chosen)
        if progress is not None:
            progress.advance(done)
    totals.sum_over_ranks(communicator)
    return totals
