"""Which rank of a graph group owns each atom of a micro-batch: equal work, short boundaries.

Atoms are cut by recursive bisection: structures lie one after another, and a structure through which a cut passes is
halved by planes across the side that makes the smallest faces. It does not own what follows from a division
(``local_graph.py``). No torch; every rank computes the same division from the same batch.

Legend: N atoms, G structures.
"""

from __future__ import annotations

import numpy as np

# positions are rounded before they are compared, so that a plane of equivalent atoms is one plane on every rank
_DECIMALS = 6
# Across a periodic direction the first cut opens two faces, each later one opens one. By area alone this were 1/2; a
# little more prefers blocks to slabs of equal area, which on crystals of 150 to 1700 atoms had the fewest shared pairs.
_WORTH_OF_PERIODIC_EXTENT = 0.6


def work_of_atoms(edges_of_atom: np.ndarray, bonds_of_atom: np.ndarray) -> np.ndarray:
    """Directed edges from each atom and angles centred on it, at least 1 -> [N] (``janus.packing``'s unit of work)."""
    return np.maximum(edges_of_atom + bonds_of_atom * (bonds_of_atom - 1), 1)


def divide_atoms(
    work: np.ndarray,
    positions: np.ndarray,
    cell: np.ndarray,
    periodic: np.ndarray,
    structure_of_atom: np.ndarray,
    num_parts: int,
) -> np.ndarray:
    """Part of each atom -> [N] int64, 0..num_parts-1.

    work [N] positive integers; positions [N,3] angstrom; cell [G,3,3]; periodic [G] whether in all three directions
    (positions are then wrapped into the cell); structure_of_atom [N] ascending.

    Each part's work differs from the mean by less than the largest work of an atom. Parts may be empty. Time grows as
    N log N. Recursive bisection: Berger and Bokhari, IEEE Trans. Comput. C-36, 570 (1987).
    """
    assert len(work) == len(positions) == len(structure_of_atom), (len(work), len(positions), len(structure_of_atom))
    division = _Division(np.asarray(work, dtype=np.int64), num_parts)
    starts = np.searchsorted(structure_of_atom, np.arange(len(cell) + 1))
    before = np.concatenate(([0], np.cumsum(division.work)))[starts]
    for structure in range(len(cell)):
        atoms = slice(starts[structure], starts[structure + 1])
        first, last = division.parts_between(before[structure], before[structure + 1])
        if first == last:
            division.part[atoms] = first
        else:
            places = _places(positions[atoms], cell[structure], bool(periodic[structure]))
            worth = np.full(3, _WORTH_OF_PERIODIC_EXTENT if periodic[structure] else 1.0)
            division.cut(np.arange(atoms.start, atoms.stop), places, worth, int(before[structure]), first, last)
    return division.part


class _Division:
    """Atoms under division. A cut j, between parts j-1 and j, lies where the work before it is nearest to j/n."""

    def __init__(self, work: np.ndarray, num_parts: int) -> None:
        self.work, self.num_parts = work, num_parts
        self.total = int(work.sum())
        self.part = np.zeros(len(work), dtype=np.int64)

    def parts_between(self, start: int, end: int) -> tuple[int, int]:
        """First and last part of the work from start to end: the cuts strictly inside lie between them."""
        first = start * self.num_parts // max(self.total, 1)
        last = -(-end * self.num_parts // max(self.total, 1)) - 1
        return int(min(first, self.num_parts - 1)), int(min(max(first, last), self.num_parts - 1))

    def cut(self, atoms: np.ndarray, places: np.ndarray, worth: np.ndarray, start: int, first: int, last: int) -> None:
        """Give ``atoms`` at ``places``, before which lies the work ``start``, to the parts first..last.

        The longest side is cut across, each side times its ``worth`` [3].
        """
        if first == last or not len(atoms):
            self.part[atoms] = first
            return
        middle = (first + last + 1) // 2
        extent = places.max(axis=0) - places.min(axis=0)
        side = int(np.argmax(extent * worth))
        order = np.argsort(places[:, side], kind="stable")
        before = start + np.concatenate(([0], np.cumsum(self.work[atoms[order]])))
        # integers: the work before the cut times n is nearest to j times the total
        nearest = int(np.argmin(np.abs(before * self.num_parts - middle * self.total)))
        left, right = order[:nearest], order[nearest:]
        worth = np.where(np.arange(3) == side, 1.0, worth)
        self.cut(atoms[left], places[left], worth, start, first, middle - 1)
        self.cut(atoms[right], places[right], worth, int(before[nearest]), middle, last)


def _places(positions: np.ndarray, cell: np.ndarray, periodic: bool) -> np.ndarray:
    """Coordinates to cut along [N,3], angstrom: distances from the faces of the cell, or as they are without one."""
    if not periodic:
        return np.round(positions, _DECIMALS)
    fractional = np.round(positions @ np.linalg.inv(cell), _DECIMALS) % 1.0
    heights = 1.0 / np.linalg.norm(np.linalg.inv(cell), axis=0)
    return fractional * heights
