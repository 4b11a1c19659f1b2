"""What a data set holds, structure by structure, and how the trainer shares it out: batches, groups, micro-batches.

It owns the counts and their sampling and packing exactly as janus/train/sampler.py does them (a test holds them equal).
It does not own the work of a micro-batch (``workload``) nor its division over a graph group (``division``). The counts
come from a packed store; nothing here opens a structure.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from janus.errors import UserError
from janus.packing import split_by_cap
from perfmodel.products import Counts

NUM_ATOMIC_NUMBERS = 95  # 0 is no element


@dataclass(frozen=True, kw_only=True, eq=False)
class ElementCounts:
    """Atoms and directed edges (by the element of their centre) per element of each structure, one line per element
    that is there. end [S]: where a structure's lines end; element, atoms, edges [lines]; element is the atomic number.
    """

    end: NDArray
    element: NDArray
    atoms: NDArray
    edges: NDArray

    @classmethod
    def from_dense(cls, atoms: NDArray, edges: NDArray) -> ElementCounts:
        """Of ``StructureStore.element_counts``: atoms, edges [S,95]."""
        structure, element = np.nonzero(atoms)
        end = np.cumsum(np.bincount(structure, minlength=len(atoms)))
        return cls(end=end, element=element, atoms=atoms[structure, element], edges=edges[structure, element])

    def of(self, indices: Sequence[int] | NDArray) -> tuple[NDArray, NDArray]:
        """Atoms and edges of some structures, by element: two [len(indices), 95]."""
        chosen = np.asarray(indices, dtype=np.int64)
        stop = np.asarray(self.end)[chosen]
        start = np.where(chosen > 0, np.asarray(self.end)[np.maximum(chosen - 1, 0)], 0)
        counts = (stop - start).astype(np.int64)
        row = np.repeat(np.arange(len(chosen)), counts)
        line = np.arange(counts.sum()) + np.repeat(start - (np.cumsum(counts) - counts), counts)
        element = np.asarray(self.element)[line]
        result = []
        for column in (self.atoms, self.edges):
            dense = np.zeros((len(chosen), NUM_ATOMIC_NUMBERS), dtype=np.int64)
            dense[row, element] = np.asarray(column)[line]
            result.append(dense)
        return result[0], result[1]


@dataclass(frozen=True, kw_only=True)
class DataCounts:
    """Counts of every structure of a data set [S], and where it lies.

    None where they are not known: elements; cell [S,3,3] in angstrom and periodic [S,3] by direction, which say how a
    structure that is divided lies in its parts.
    """

    path: str
    fingerprint: str
    atoms: np.ndarray
    edges: np.ndarray
    bonds: np.ndarray
    angles: np.ndarray
    elements: ElementCounts | None = None
    cell: np.ndarray | None = None
    periodic: np.ndarray | None = None

    @property
    def work(self) -> np.ndarray:
        return np.asarray(self.edges) + np.asarray(self.angles)

    def of(self, indices: Sequence[int]) -> Counts:
        """Summed counts of some structures."""
        chosen = np.asarray(indices, dtype=np.int64)
        sums = (float(np.asarray(column)[chosen].sum()) for column in (self.atoms, self.edges, self.bonds, self.angles))
        return Counts(len(chosen), *sums)

    def at(self, indices: Sequence[int]) -> DataCounts:
        """These structures, repeats included, as a data set of their own."""
        chosen = np.asarray(indices, dtype=np.int64)
        columns = {name: np.asarray(getattr(self, name))[chosen] for name in ("atoms", "edges", "bonds", "angles")}
        return DataCounts(
            path=self.path, fingerprint=self.fingerprint, **columns,
            elements=None if self.elements is None else ElementCounts.from_dense(*self.elements.of(chosen)),
            cell=None if self.cell is None else np.asarray(self.cell)[chosen],
            periodic=None if self.periodic is None else np.asarray(self.periodic)[chosen],
        )  # fmt: skip

    def heights(self, index: int) -> NDArray | None:
        """Distances between opposite faces of a structure's cell, angstrom [3]; None: not known or not periodic."""
        if self.cell is None or self.periodic is None or not np.all(self.periodic[index]):
            return None
        return 1.0 / np.linalg.norm(np.linalg.inv(self.cell[index]), axis=0)

    def elements_of(self, indices: Sequence[int]) -> tuple[NDArray, NDArray]:
        """Atoms and edges by element of some structures, [len(indices), 95]. Raises UserError where not known."""
        if self.elements is None:
            raise UserError(
                f"{self.path} has no counts per element, which decide where experts' rows are computed: pack it with "
                "'janus data pack', or plan without spread experts"
            )
        return self.elements.of(indices)


def sample_batches(
    work: np.ndarray, global_batch: int, num_batches: int, seed: int, indices: NDArray | None = None
) -> list[list[int]]:
    """The first global batches of the trainer's first epoch: the same shuffle (janus/train/sampler.py).

    indices: of the structures to train on; None: all.
    """
    trained = np.arange(len(work)) if indices is None else np.asarray(indices, dtype=np.int64)
    order = np.random.default_rng([seed, 0]).permutation(trained)
    count = min(num_batches, len(trained) // global_batch)
    return [order[number * global_batch : (number + 1) * global_batch].tolist() for number in range(count)]


def group_of_items(work: NDArray, num_groups: int) -> NDArray:
    """Group of each item [S]: ``janus.packing.pack_longest_first`` (a test holds it equal), fast for many groups.

    Each item, heaviest first, goes to the lightest group; of equally light ones to that with fewest items, then to the
    lowest number. work [S], above 0: the first ``num_groups`` items then take a group each.
    """
    values = np.asarray(work, dtype=np.float64)
    order = np.argsort(-values, kind="stable")
    group = np.zeros(len(values), dtype=np.int64)
    alone = order[:num_groups]
    group[alone] = np.arange(len(alone))
    if len(values) > num_groups:
        lightest = [(load, 1, number) for number, load in enumerate(values[alone].tolist())]
        heapq.heapify(lightest)
        for item in order[num_groups:].tolist():
            load, count, number = lightest[0]
            group[item] = number
            heapq.heapreplace(lightest, (load + float(values[item]), count + 1, number))
    return group


@dataclass(frozen=True, eq=False)
class SharedBatch:
    """One global batch shared out over the groups that work on different data.

    indices [S]: structures, in the batch's order; group [S] of each; group_work [groups]: edges + angles;
    weight [S]: what is packed, at least 1 per structure.
    """

    indices: NDArray
    group: NDArray
    group_work: NDArray
    weight: NDArray

    def micro_batches(self, group: int, max_work: int | None) -> list[list[int]]:
        """Structures of each micro-batch of a group, before empty ones are added behind them."""
        items = np.flatnonzero(self.group == group)
        if not len(items):
            return []
        weight = self.weight[items]
        whole = [list(range(len(items)))]
        pieces = split_by_cap(weight, max_work) if max_work is not None and weight.sum() > max_work else whole
        return [self.indices[items[piece]].tolist() for piece in pieces]


def share_batch(work: NDArray, indices: Sequence[int], num_groups: int) -> SharedBatch:
    """Share the structures of one global batch out over groups: longest first, as the trainer does."""
    chosen = np.asarray(indices, dtype=np.int64)
    real = np.asarray(work)[chosen]
    weight = np.maximum(real, 1)
    group = group_of_items(weight, num_groups)
    group_work = np.bincount(group, weights=real, minlength=num_groups)
    return SharedBatch(chosen, group, group_work, weight)


def share_out(work: np.ndarray, indices: Sequence[int], world_size: int, max_work: int | None) -> list[list[list[int]]]:
    """Micro-batches of every group, as the trainer packs them (a test holds this equal to janus/train/sampler.py)."""
    shared = share_batch(work, indices, world_size)
    return [shared.micro_batches(group, max_work) for group in range(world_size)]


def lockstep(shares: Sequence[list[list[int]]]) -> list[list[list[int]]]:
    """Micro-batches of the groups of one unit: equally many, empty ones behind (``sampler.share_in_lockstep``)."""
    longest = max((len(share) for share in shares), default=0)
    return [share + [[] for _ in range(longest - len(share))] for share in shares]
