"""Builds the graphs of a rank's micro-batches, ahead of their use, in a background thread.

It does not choose structures (``sampler.py``). Memory: the micro-batch in use, one that is ready and one in the making,
however many a step has.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
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
from janus.train.timing import PhaseTimer

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

    def counts(self) -> dict[str, int]:
        """What is evaluated here."""
        batch = self.batch
        return {
            "structures": self.num_counted_structures, "atoms": batch.num_atoms, "edges": batch.num_edges,
            "bonds": batch.num_bonds, "angles": batch.num_angles, "micro_batches": 1,
        }  # fmt: skip


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


class StepBatches:
    """The micro-batches of one step on a device, each awaited when it is its turn and then kept by its user alone.

    counts: what those handed out so far hold. Waiting and moving are timed as the phase "data".
    """

    def __init__(self, prefetcher: Prefetcher, device: torch.device, timer: PhaseTimer) -> None:
        self._prefetcher, self._device, self._timer = prefetcher, device, timer
        self.counts = dict.fromkeys(("structures", "atoms", "edges", "bonds", "angles", "micro_batches"), 0)
        with timer("data"):
            self._number, self._first = prefetcher.next()

    def __len__(self) -> int:
        return self._number

    def __iter__(self) -> Iterator[MicroBatch]:
        """All of them, once. Raises what the loader raised."""
        for _ in range(self._number):
            yield self._take()  # no name here: this frame would keep it while the next one is awaited

    def _take(self) -> MicroBatch:
        with self._timer("data"):
            waiting, self._first = self._first, None
            if waiting is None:
                _, waiting = self._prefetcher.next()
            assert waiting is not None
            taken = waiting.to(self._device)
        for name, count in taken.counts().items():
            self.counts[name] += count
        return taken


# A micro-batch and how many its step has; None for a step that has none here.
Ready = tuple[int, MicroBatch | None]


class Prefetcher:
    """Hands out micro-batches, step by step, while a thread prepares the next; who awaits one gets the thread's error.

    share_of_step: the structures of each micro-batch of a step, on this rank.
    """

    def __init__(self, loader: BatchLoader, share_of_step: Callable[[int], list[list[int]]], steps: range) -> None:
        self._loader, self._share_of_step, self._steps = loader, share_of_step, steps
        self._ready: queue.Queue[Ready | BaseException] = queue.Queue(maxsize=1)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._prepare, name="janus-loader", daemon=True)
        self._thread.start()

    def step(self, timer: PhaseTimer) -> StepBatches:
        """The micro-batches of the next step; waits for the first. Those of the step before were all taken."""
        return StepBatches(self, self._loader.device, timer)

    def next(self) -> Ready:
        """The next micro-batch; waits for it."""
        item = self._ready.get()
        if isinstance(item, BaseException):
            raise item
        return item

    def close(self) -> None:
        """Stop preparing."""
        self._stopping.set()
        self._thread.join()

    def _prepare(self) -> None:
        try:
            for step in self._steps:
                share = self._share_of_step(step)
                if not share and not self._hand_over((0, None)):
                    return
                for indices in share:
                    if not self._hand_over((len(share), self._loader.load_micro_batch(indices))):
                        return
        except Exception as error:  # handed over to the thread that waits, which raises it
            self._hand_over(error)

    def _hand_over(self, item: Ready | BaseException) -> bool:
        while not self._stopping.is_set():
            try:
                self._ready.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False
