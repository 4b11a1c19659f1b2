"""A batch of graphs as tensors. It owns concatenation and index offsets, not features.

A batch may be one rank's part of a larger one. Models then call its exchange points (``with_ghosts`` ...), which do
nothing for a whole batch; what travels is the business of ``Halo`` (``janus/parallel/halo.py``).
Legend: N atoms, E directed edges, U undirected edges (pairs), B directed bonds, P bonded pairs, A angles, G structures,
H ghosts: neighbours that another rank owns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from janus.data.graph import Graph
from janus.data.structure import Structure


class Halo(Protocol):
    """What a part of a batch needs of the other ranks. A movement is "ghosts", "owners", "pairs" or "bonded_pairs"."""

    @property
    def num_ghosts(self) -> int: ...

    def to(self, device: torch.device | str) -> Halo: ...

    def start(self, *parts: tuple[str, Tensor]) -> Any: ...

    def finish(self, under_way: Any) -> list[Tensor]: ...

    def sum_over_group(self, tensor: Tensor) -> Tensor: ...


@dataclass(frozen=True, kw_only=True)
class GraphBatch:
    """Several structures side by side; edges sorted by centre, angles by first bond.

    numbers [N]; positions [N,3] angstrom; cell [G,3,3]; structure_of_atom [N]; centre, neighbour [E]; image [E,3];
    pair_of_edge [E] -> U; edge_of_pair [U] one directed edge of each pair; bond_edge [B] -> E; pair_of_bond [B] -> P;
    bonded_pair [P] -> U; angle_first, angle_second [A] -> B, the two bonds of an angle; first_pair, second_pair
    [A] -> P, the same bonds' pairs; volume [G] angstrom^3, 0 where the structure is not periodic in three directions.

    halo: None for a whole batch. In a part, N counts the atoms owned here and ``neighbour`` ghosts behind them; an edge
    is where its centre is owned; a pair whose atoms have different owners is on both, with one directed edge on each;
    all structures are everywhere.
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
    bond_edge: Tensor
    pair_of_bond: Tensor
    bonded_pair: Tensor
    angle_first: Tensor
    angle_second: Tensor
    first_pair: Tensor
    second_pair: Tensor
    halo: Halo | None = None

    @property
    def num_structures(self) -> int:
        return len(self.cell)

    @property
    def num_atoms(self) -> int:
        return len(self.numbers)

    @property
    def num_ghosts(self) -> int:
        """Neighbours that another rank owns, H."""
        return 0 if self.halo is None else self.halo.num_ghosts

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
        moved: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                moved[field.name] = value.to(device, dtype if value.is_floating_point() else None)
            elif value is not None:
                moved[field.name] = value.to(device)
        return replace(self, **moved)

    def start_exchange(self, *parts: tuple[str, Tensor]) -> Any:
        """Begin the movements of parts (movement, rows), all in one message per rank; see ``Halo`` for their names."""
        return parts if self.halo is None else self.halo.start(*parts)

    def finish_exchange(self, under_way: Any) -> list[Tensor]:
        """The moved rows of what ``start_exchange`` returned, in the order of its parts."""
        return [rows for _, rows in under_way] if self.halo is None else self.halo.finish(under_way)

    def exchange(self, *parts: tuple[str, Tensor]) -> list[Tensor]:
        """``start_exchange`` and ``finish_exchange`` at once."""
        return self.finish_exchange(self.start_exchange(*parts))

    def with_ghosts(self, rows: Tensor) -> Tensor:
        """rows [N,C] of owned atoms -> [N+H,C], those of the ghosts behind them."""
        return self.exchange(("ghosts", rows))[0]

    def sum_over_sharers_of_pairs(self, rows: Tensor) -> Tensor:
        """rows [U,C] -> [U,C], summed over the ranks that share the pair."""
        return self.exchange(("pairs", rows))[0]

    def sum_over_group(self, tensor: Tensor) -> Tensor:
        """Sum over the ranks that hold parts of this batch."""
        return tensor if self.halo is None else self.halo.sum_over_group(tensor)


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
