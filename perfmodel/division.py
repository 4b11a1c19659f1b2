"""Rows of each rank's part of a divided micro-batch, and its halo, estimated from counts alone.

It owns the estimate. The division itself is janus/parallel/partition.py, which needs positions; who has them hands in
exact parts instead (``Part``), and nothing here is asked. What halos send is in ``traffic``.

Which structures are cut, and what share of each falls to which part, follows exactly from the structures' work: they
lie one after another and are cut where the work before the cut is j/n of all (docs/parallel.md). What follows for rows:

* a part has that share of the structure's atoms, edges, bonds, angles and elements;
* the halo of a structure that is cut is measured on a homogeneous periodic box, divided by the same recursive
  bisection: of sample points x and displacements u, |u| < cutoff, the pairs whose ends have different
  owners. With e edges per atom, phi(q, p) the share of displacements from points of part q that end in part p:

      V(q, p) = edges(q) phi(q, p)                        shared pairs: each crossing edge is one
      S(q, p) = atoms(q) mean over x of 1 - exp(-e phi_x(q, p))   atoms of q that have a neighbour in p

  and H(p) = sum over q of S(q, p). Q as V, with bonds and the line cutoff. The box has the heights of the cell where
  they are known and it is periodic; else it is a cube of the density e / (4/3 pi cutoff^3), of side
  (4/3 pi atoms / e)^(1/3) cutoffs.

Held against real partitions by tests/perfmodel/test_division.py; errors in docs/prediction.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from janus.config import ModelConfig
from perfmodel.dataset import DataCounts
from perfmodel.products import Counts
from perfmodel.traffic import HaloCounts

WORTH = 0.6  # of an uncut periodic side: janus/parallel/partition.py
POINTS_PER_SIDE = {0: 1, 1: 32, 2: 12, 3: 8}  # by how many sides are cut
NUM_DISPLACEMENTS = 96


@dataclass(frozen=True, kw_only=True, eq=False)
class Part:
    """What one rank has of a micro-batch. counts: its rows, ghosts and shared pairs among them; boundary: owned atoms
    sent as ghosts, once per receiver; atoms_of, edges_of [95]: atoms and edges by (the centre's) element, or None.
    """

    counts: Counts
    boundary: float = 0.0
    atoms_of: NDArray | None = None
    edges_of: NDArray | None = None

    @property
    def halo(self) -> HaloCounts:
        """What the traffic depends on, in whole rows."""
        return HaloCounts(
            boundary=round(self.boundary), ghosts=round(self.counts.ghosts),
            shared_pairs=round(self.counts.shared_pairs), shared_bonded_pairs=round(self.counts.shared_bonded_pairs),
        )  # fmt: skip


Divisions = Mapping[tuple[int, ...], Sequence[Part]]  # of micro-batches, by their structures


def whole_part(data: DataCounts, indices: Sequence[int]) -> Part:
    """An undivided micro-batch."""
    counts = data.of(indices)
    if data.elements is None:
        return Part(counts=counts)
    atoms, edges = data.elements_of(indices)
    return Part(counts=counts, atoms_of=atoms.sum(axis=0), edges_of=edges.sum(axis=0))


def divide(data: DataCounts, indices: Sequence[int], num_parts: int, model: ModelConfig) -> list[Part]:
    """The parts of a micro-batch over a graph group, estimated. All structures are on all ranks."""
    if num_parts == 1 or not len(indices):
        return [whole_part(data, indices) for _ in range(num_parts)]
    chosen = np.asarray(indices, dtype=np.int64)
    shares = shares_of_parts(np.maximum(np.asarray(data.work)[chosen], 1), num_parts)
    columns = np.stack([np.asarray(column)[chosen] for column in (data.atoms, data.edges, data.bonds, data.angles)])
    rows, halos = columns @ shares, np.zeros((4, num_parts))
    for structure in np.flatnonzero((shares > 0).sum(axis=1) > 1):
        parts = np.flatnonzero(shares[structure])
        atoms, edges, bonds, _ = columns[:, structure].tolist()
        heights = data.heights(int(chosen[structure]))
        halos[:, parts] += _halos(shares[structure, parts], (atoms, edges, bonds), heights, model)
    elements = None if data.elements is None else [hist.T @ shares for hist in data.elements.of(chosen)]
    return [
        Part(
            counts=Counts(
                structures=len(chosen), atoms=rows[0, part], edges=rows[1, part], bonds=rows[2, part],
                angles=rows[3, part], ghosts=halos[1, part], shared_pairs=halos[2, part],
                shared_bonded_pairs=halos[3, part],
            ),
            boundary=halos[0, part],
            atoms_of=None if elements is None else elements[0][:, part],
            edges_of=None if elements is None else elements[1][:, part],
        )
        for part in range(num_parts)
    ]  # fmt: skip


def shares_of_parts(work: NDArray, num_parts: int) -> NDArray:
    """Share of each structure that falls to each part [structures, parts]: where j/n of all work lies in it."""
    end = np.cumsum(work, dtype=np.float64)
    start = end - work
    cuts = end[-1] * np.arange(num_parts + 1) / num_parts
    overlap = np.minimum(end[:, None], cuts[1:]) - np.maximum(start[:, None], cuts[:-1])
    return np.maximum(overlap, 0.0) / work[:, None]


def _halos(shares: NDArray, rows: tuple[float, float, float], heights: NDArray | None, model: ModelConfig) -> NDArray:
    """S, H, V, Q of the parts of one structure [4, parts]. rows: its atoms, edges, bonds; heights [3]: of its cell."""
    atoms, edges, bonds = rows
    if not atoms or not edges:
        return np.zeros((4, len(shares)))
    sides = np.full(3, (4 / 3 * np.pi * atoms**2 / edges) ** (1 / 3))  # in cutoffs
    if heights is not None:
        sides = heights / model.cutoff_angstrom
    boxes = _boxes(shares, sides)
    ratio, degree = model.line_cutoff_angstrom / model.cutoff_angstrom, edges / atoms
    send, pairs = _crossings(boxes, 1 / sides, degree)
    bonded = _crossings(boxes, ratio / sides, degree)[1] if bonds else 0 * pairs
    send, pairs, bonded = atoms * send, edges * pairs, bonds * bonded
    return np.stack([send.sum(axis=1), send.sum(axis=0), pairs.sum(axis=1), bonded.sum(axis=1)])


def _boxes(shares: NDArray, sides: NDArray) -> NDArray:
    """Boxes of the parts in the unit cube, by recursive bisection as janus/parallel/partition.py [parts, 2, 3]."""
    boxes = np.zeros((len(shares), 2, 3))

    def cut(first: int, last: int, low: NDArray, high: NDArray, worth: NDArray) -> None:
        if first == last:
            boxes[first] = low, high
            return
        middle = (first + last + 1) // 2
        side = int(np.argmax((high - low) * sides * worth))
        left = shares[first:middle].sum() / shares[first : last + 1].sum()
        at, worth = low[side] + left * (high - low)[side], np.where(np.arange(3) == side, 1.0, worth)
        there, here = high.copy(), low.copy()
        there[side] = here[side] = at
        cut(first, middle - 1, low, there, worth)
        cut(middle, last, here, high, worth)

    cut(0, len(shares) - 1, np.zeros(3), np.ones(3), np.full(3, WORTH))
    return boxes


def _crossings(boxes: NDArray, radius: NDArray, degree: float) -> tuple[NDArray, NDArray]:
    """Shares of atoms and of edges of the whole that go from part to part, [parts, parts] each (from, to).

    boxes in a periodic unit cube; radius [3]: of the cutoff in its sides; degree: edges per atom.
    """
    is_cut = tuple(bool((boxes[:, 0, side] > 0).any()) for side in range(3))
    points, displacements = _samples(is_cut)
    owner = _owner(points, boxes, is_cut)
    ends = _owner((points[:, None] + radius * displacements) % 1.0, boxes, is_cut)
    parts = len(boxes)
    hits = np.stack([(ends == part).mean(axis=1) for part in range(parts)], axis=1)  # [points, parts]
    hits[np.arange(len(points)), owner] = 0.0
    volume = (boxes[:, 1] - boxes[:, 0]).prod(axis=1)
    weight = volume / np.maximum(np.bincount(owner, minlength=parts), 1)
    own = np.zeros((parts, len(points)))
    own[owner, np.arange(len(points))] = weight[owner]
    return own @ (1 - np.exp(-degree * hits)), own @ hits


def _owner(points: NDArray, boxes: NDArray, is_cut: Sequence[bool]) -> NDArray:
    """Part whose box holds each point [...,3] -> [...]; only the sides that are cut tell boxes apart."""
    owner = np.zeros(points.shape[:-1], dtype=np.int64)
    sides = np.flatnonzero(is_cut)
    for part, (low, high) in enumerate(boxes):
        inside = np.ones(points.shape[:-1], dtype=bool)
        for side in sides:
            inside &= (points[..., side] >= low[side]) & (points[..., side] < high[side])
        owner[inside] = part
    return owner


@lru_cache
def _samples(is_cut: tuple[bool, ...]) -> tuple[NDArray, NDArray]:
    """Points of the unit cube, midpoints of a grid over the sides that are cut [P,3], and displacements spread over
    the unit ball [D,3].
    """
    number_of_points = POINTS_PER_SIDE[sum(is_cut)]
    axis = (np.arange(number_of_points) + 0.5) / number_of_points
    axes = [axis if cut else np.full(1, 0.5) for cut in is_cut]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    number = np.arange(NUM_DISPLACEMENTS) + 0.5
    height, angle = 1 - 2 * number / NUM_DISPLACEMENTS, number * np.pi * (1 + 5**0.5)
    flat = np.sqrt(1 - height**2)
    sphere = np.stack([flat * np.cos(angle), flat * np.sin(angle), height], axis=1)
    return points, sphere * ((number * (5**0.5 - 1) / 2) % 1.0)[:, None] ** (1 / 3)
