"""Builds the graphs of a rank's micro-batches, one step ahead, in a background thread.

It does not choose structures (``sampler.py``). Memory: the graphs of two steps of this rank at most.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass

import torch

from janus.data.graph import build_graph
from janus.data.store import StructureStore
from janus.model.batch import GraphBatch
from janus.train.loss import Labels


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """Structures evaluated together: their indices in the store, graphs and labels."""

    indices: list[int]
    batch: GraphBatch
    labels: Labels

    def to(self, device: torch.device) -> MicroBatch:
        """The same micro-batch on a device."""
        moved = self.batch.to(device, self.batch.positions.dtype)
        return MicroBatch(indices=self.indices, batch=moved, labels=self.labels.to(device))


class BatchLoader:
    """Micro-batches of a store, in the model's dtype, on the CPU; ``device`` is where they will be used."""

    def __init__(
        self,
        store: StructureStore,
        *,
        cutoff_angstrom: float,
        line_cutoff_angstrom: float,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self._store, self._dtype, self.device = store, dtype, device
        self._cutoffs = (cutoff_angstrom, line_cutoff_angstrom)

    def load_micro_batch(self, indices: list[int]) -> MicroBatch:
        """Read structures and build their graphs."""
        structures = [self._store[index] for index in indices]
        graphs = [build_graph(structure, *self._cutoffs) for structure in structures]
        batch = GraphBatch.collate(structures, graphs).to("cpu", self._dtype)
        return MicroBatch(indices=indices, batch=batch, labels=Labels.collate(structures))

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
