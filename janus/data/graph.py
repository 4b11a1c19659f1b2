"""Neighbour graph and line graph of one structure, as index arrays. Imports torch only where vesin does.

Legend: N atoms, E directed edges within the pair cutoff, B directed bonds (edges within the line cutoff),
A angles: ordered pairs of distinct bonds leaving one centre, so A = sum over atoms of n(n-1), n bonds of the atom.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from janus.data.structure import Structure


@dataclass(frozen=True, kw_only=True)
class Graph:
    """Index arrays of one structure. Edges are sorted by centre; angles by (centre, first bond).

    centre, neighbour [E]: atom indices; image [E,3]: lattice translation of the neighbour;
    reverse [E]: index of the opposite directed edge; bond_edge [B]: edges that are bonds, ascending;
    angle_first, angle_second [A]: bond indices (0..B-1) of the two bonds of each angle.
    """

    num_atoms: int
    centre: np.ndarray
    neighbour: np.ndarray
    image: np.ndarray
    reverse: np.ndarray
    bond_edge: np.ndarray
    angle_first: np.ndarray
    angle_second: np.ndarray

    @property
    def num_edges(self) -> int:
        return len(self.centre)

    @property
    def num_bonds(self) -> int:
        return len(self.bond_edge)

    @property
    def num_angles(self) -> int:
        return len(self.angle_first)


def find_pairs(structure: Structure, cutoff_angstrom: float, quantities: str) -> list[np.ndarray]:
    """Directed neighbour pairs in no particular order: vesin's arrays, i and j atoms, S images, d distances."""
    import vesin  # here, because it imports torch where torch is installed

    search = vesin.NeighborList(cutoff=cutoff_angstrom, full_list=True)
    return search.compute(points=structure.positions, box=structure.cell, periodic=structure.pbc, quantities=quantities)


def build_graph(structure: Structure, cutoff_angstrom: float, line_cutoff_angstrom: float) -> Graph:
    """All directed neighbour pairs within the cutoff, periodic images included, and the angles of the short ones.

    Isolated atoms, missing cells and mixed boundary conditions give fewer (or no) edges, never an error.
    """
    centre, neighbour, image, distance = find_pairs(structure, cutoff_angstrom, "ijSd")
    image = image.astype(np.int32).reshape(-1, 3)
    order = np.lexsort((image[:, 2], image[:, 1], image[:, 0], neighbour, centre))
    centre, neighbour = centre[order].astype(np.int64), neighbour[order].astype(np.int64)
    image, distance = image[order], distance[order]
    opposite = np.lexsort((-image[:, 2], -image[:, 1], -image[:, 0], centre, neighbour))
    reverse = np.empty(len(centre), dtype=np.int64)
    reverse[opposite] = np.arange(len(centre))
    # both directions of a pair must agree on being a bond, whatever the last bit of their distances
    bond_edge = np.flatnonzero(np.minimum(distance, distance[reverse]) < line_cutoff_angstrom)
    first, second = _angle_pairs(centre[bond_edge], structure.num_atoms)
    return Graph(
        num_atoms=structure.num_atoms, centre=centre, neighbour=neighbour, image=image, reverse=reverse,
        bond_edge=bond_edge, angle_first=first, angle_second=second,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class GraphCounts:
    """Sizes of the graph of one structure, without its index arrays.

    edges_of_atom [N]: directed edges leaving each atom; num_bonds: directed bonds; num_angles: as in ``Graph``.
    """

    edges_of_atom: np.ndarray
    num_bonds: int
    num_angles: int

    @property
    def num_edges(self) -> int:
        return int(self.edges_of_atom.sum())


def count_graph(structure: Structure, cutoff_angstrom: float, line_cutoff_angstrom: float) -> GraphCounts:
    """The counts that ``build_graph`` would give, faster and in less memory: angles are never listed."""
    centre, distance = find_pairs(structure, cutoff_angstrom, "id")
    bonds_of_atom = np.bincount(centre[distance < line_cutoff_angstrom].astype(np.int64), minlength=structure.num_atoms)
    return GraphCounts(
        edges_of_atom=np.bincount(centre.astype(np.int64), minlength=structure.num_atoms),
        num_bonds=int(bonds_of_atom.sum()),
        num_angles=int((bonds_of_atom * (bonds_of_atom - 1)).sum()),
    )


def _angle_pairs(bond_centre: np.ndarray, num_atoms: int) -> tuple[np.ndarray, np.ndarray]:
    """Ordered pairs of distinct bonds with one centre, for bonds sorted by centre: two arrays [A]."""
    bonds_of_atom = np.bincount(bond_centre, minlength=num_atoms)
    start_of_atom = np.concatenate(([0], np.cumsum(bonds_of_atom)[:-1]))
    partners = bonds_of_atom[bond_centre]  # of each bond, itself included
    first = np.repeat(np.arange(len(bond_centre)), partners)
    offset = np.arange(len(first)) - np.repeat(np.cumsum(partners) - partners, partners)
    second = start_of_atom[bond_centre[first]] + offset
    distinct = first != second
    return first[distinct], second[distinct]
