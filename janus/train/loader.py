"""Builds the graphs of a rank's micro-batches, one step ahead, in a background thread.

It does not choose structures (``sampler.py``). Memory: the graphs of two steps of this rank at most.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from janus.data.graph import build_graph
from janus.data.structure import Structure
from janus.model.batch import GraphBatch
from janus.parallel.axis import Axis, LoneAxis
from janus.parallel.local_graph import labels_of_part, partition
from janus.train.loss import Labels

if TYPE_CHECKING:
    from janus.data.store import StructureStore

NUM_ATOMIC_NUMBERS = 95


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """Structures evaluated together: their indices in the store, graphs and labels, or this rank's part of them.

    contains [95,G]: whether an element is in a structure, anywhere.
    """

    indices: list[int]
    batch: GraphBatch
    labels: Labels
    contains: Tensor

    def to(self, device: torch.device) -> MicroBatch:
        """The same micro-batch on a device."""
        moved = self.batch.to(device, self.batch.positions.dtype)
        return replace(self, batch=moved, labels=self.labels.to(device))

    @property
    def owned_atoms(self) -> Tensor:
        """Which atoms of the whole micro-batch are evaluated here [N], in the order of the forces."""
        halo = self.batch.halo
        return torch.arange(self.batch.num_atoms) if halo is None else halo.owned.cpu()

    @property
    def num_counted_structures(self) -> int:
        """Structures whose energy counts here: over the ranks of a graph group each counts once."""
        halo = self.batch.halo
        if halo is None:
            return self.batch.num_structures
        return len(range(halo.axis.index, self.batch.num_structures, halo.axis.size))


class BatchLoader:
    """Micro-batches of a store (or a list of structures), in the model's dtype, on the CPU.

    device: where they will be used. graph: the axis of the ranks that share each micro-batch (None: this rank alone);
    each loads it whole and keeps its part.
    """

    def __init__(
        self,
        store: StructureStore | Sequence[Structure],
        *,
        cutoff_angstrom: float,
        line_cutoff_angstrom: float,
        dtype: torch.dtype,
        device: torch.device,
        graph: Axis | None = None,
    ) -> None:
        self._store, self._dtype, self.device = store, dtype, device
        self._graph = graph if graph is not None else LoneAxis("graph")
        self._cutoffs = (cutoff_angstrom, line_cutoff_angstrom)

    def load_micro_batch(self, indices: list[int]) -> MicroBatch:
        """Read structures and build their graphs."""
        structures = [self._store[index] for index in indices]
        graphs = [build_graph(structure, *self._cutoffs) for structure in structures]
        whole = GraphBatch.collate(structures, graphs).to("cpu", self._dtype)
        contains = torch.zeros(NUM_ATOMIC_NUMBERS, whole.num_structures, dtype=torch.bool)
        contains[whole.numbers, whole.structure_of_atom] = True
        batch = partition(whole, self._graph)
        labels = labels_of_part(Labels.collate(structures), batch)
        return MicroBatch(indices=indices, batch=batch, labels=labels, contains=contains)

    def load(self, micro_batches: list[list[int]]) -> list[MicroBatch]:
        """Several micro-batches."""
        return [self.load_micro_batch(indices) for indices in micro_batches]


class Prefetcher:
    """Hands out steps while a thread prepares the next one; its errors are raised where the step is awaited."""

    def __init__(self, loader: BatchLoader, share_of_step: Callable[[int], list[list[int]]], steps: range) -> None:
        self._loader, self._share_of_step, self._steps = loader, share_of_step, steps
        self._ready: queue.Queue[list[MicroBatch] | BaseException] = queue.Queue(maxsize=1)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._prepare, name="janus-loader", daemon=True)
        self._thread.start()

    def next(self) -> list[MicroBatch]:
        """The micro-batches of the next step; waits for them."""
        item = self._ready.get()
        if isinstance(item, BaseException):
            raise item
        return item

    def close(self) -> None:
        """Stop preparing."""
        self._stopping.set()
        self._thread.join()

    def _prepare(self) -> None:
        for step in self._steps:
            try:
                item: list[MicroBatch] | BaseException = self._loader.load(self._share_of_step(step))
            except Exception as error:  # handed over to the thread that waits, which raises it
                item = error
            if not self._hand_over(item) or isinstance(item, BaseException):
                return

    def _hand_over(self, item: list[MicroBatch] | BaseException) -> bool:
        while not self._stopping.is_set():
            try:
                self._ready.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False
