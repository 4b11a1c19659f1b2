"""A batch of graphs as tensors. It owns concatenation and index offsets, not features.

Legend: N atoms, E directed edges, U undirected edges (pairs), B directed bonds, P bonded pairs, A angles, G structures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from janus.data.graph import Graph
from janus.data.structure import Structure


@dataclass(frozen=True, kw_only=True)
class GraphBatch:
    """Several structures side by side; edges sorted by centre, angles by first bond.

    numbers [N]; positions [N,3] angstrom; cell [G,3,3]; structure_of_atom [N]; centre, neighbour [E]; image [E,3];
    pair_of_edge [E] -> U; edge_of_pair [U] one directed edge of each pair; reverse_edge_of_pair [U] the other one;
    bond_edge [B] -> E; pair_of_bond [B] -> P; bonded_pair [P] -> U;
    angle_first, angle_second [A] -> B, the two bonds of an angle; first_pair, second_pair [A] -> P, the same bonds'
    pairs; volume [G] angstrom^3, 0 where the structure is not periodic in three directions.
    """

    numbers: Tensor
    positions: Tensor
    cell: Tensor
    volume: Tensor
    structure_of_atom: Tensor
    centre: Tensor
    neighbour: Tensor
    image: Tensor
    pair_of_edge: Tensor
    edge_of_pair: Tensor
    reverse_edge_of_pair: Tensor
    bond_edge: Tensor
    pair_of_bond: Tensor
    bonded_pair: Tensor
    angle_first: Tensor
    angle_second: Tensor
    first_pair: Tensor
    second_pair: Tensor

    @property
    def num_structures(self) -> int:
        return len(self.cell)

    @property
    def num_atoms(self) -> int:
        return len(self.numbers)

    @property
    def num_edges(self) -> int:
        return len(self.centre)

    @property
    def num_pairs(self) -> int:
        return len(self.edge_of_pair)

    @property
    def num_bonds(self) -> int:
        return len(self.bond_edge)

    @property
    def num_bonded_pairs(self) -> int:
        return len(self.bonded_pair)

    @property
    def num_angles(self) -> int:
        return len(self.angle_first)

    @classmethod
    def collate(cls, structures: Sequence[Structure], graphs: Sequence[Graph]) -> GraphBatch:
        """Concatenate structures and their graphs (float64, on the CPU)."""
        assert len(structures) == len(graphs), (len(structures), len(graphs))
        atom_start = _starts([graph.num_atoms for graph in graphs])
        edge_start = _starts([graph.num_edges for graph in graphs])
        bond_start = _starts([graph.num_bonds for graph in graphs])
        reverse = _joined([g.reverse for g in graphs], edge_start)
        bond_edge = _joined([g.bond_edge for g in graphs], edge_start)
        first = _joined([g.angle_first for g in graphs], bond_start)
        second = _joined([g.angle_second for g in graphs], bond_start)
        pair_of_edge, edge_of_pair = _pairs(reverse)
        bonded_pair, pair_of_bond = np.unique(pair_of_edge[bond_edge], return_inverse=True)
        cell = np.array([s.cell for s in structures], dtype=np.float64).reshape(-1, 3, 3)
        periodic = np.array([bool(np.all(s.pbc)) for s in structures], dtype=bool)
        volume = np.where(periodic, np.abs(np.linalg.det(cell)), 0.0) if len(cell) else np.zeros(0)
        arrays = {
            "numbers": np.concatenate([s.numbers for s in structures] or [np.zeros(0)]).astype(np.int64),
            "positions": np.concatenate([s.positions for s in structures] or [np.zeros((0, 3))]).astype(np.float64),
            "cell": cell,
            "volume": volume,
            "structure_of_atom": np.repeat(np.arange(len(graphs)), [g.num_atoms for g in graphs]),
            "centre": _joined([g.centre for g in graphs], atom_start),
            "neighbour": _joined([g.neighbour for g in graphs], atom_start),
            "image": np.concatenate([g.image for g in graphs] or [np.zeros((0, 3))]).astype(np.float64),
            "pair_of_edge": pair_of_edge,
            "edge_of_pair": edge_of_pair,
            "reverse_edge_of_pair": reverse[edge_of_pair],
            "bond_edge": bond_edge,
            "pair_of_bond": pair_of_bond,
            "bonded_pair": bonded_pair,
            "angle_first": first,
            "angle_second": second,
            "first_pair": pair_of_bond[first],
            "second_pair": pair_of_bond[second],
        }
        return cls(**{name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()})

    def to(self, device: torch.device | str, dtype: torch.dtype) -> GraphBatch:
        """The same batch on a device, its floating-point tensors in ``dtype``."""
        moved = {}
        for field in fields(self):
            tensor = getattr(self, field.name)
            moved[field.name] = tensor.to(device, dtype if tensor.is_floating_point() else None)
        return replace(self, **moved)


def _starts(sizes: Sequence[int]) -> np.ndarray:
    return np.cumsum([0, *sizes])[:-1]


def _joined(parts: Sequence[np.ndarray], starts: np.ndarray) -> np.ndarray:
    if not parts:
        return np.zeros(0, dtype=np.int64)
    return np.concatenate([part + start for part, start in zip(parts, starts, strict=True)]).astype(np.int64)


def _pairs(reverse: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Undirected pairs from the opposite edge of each edge: pair_of_edge [E], edge_of_pair [U]."""
    edges = np.arange(len(reverse))
    edge_of_pair = edges[edges < reverse]
    pair_of_edge = np.empty(len(reverse), dtype=np.int64)
    pair_of_edge[edge_of_pair] = np.arange(len(edge_of_pair))
    pair_of_edge[reverse[edge_of_pair]] = np.arange(len(edge_of_pair))
    return pair_of_edge, edge_of_pair
