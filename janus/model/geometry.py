"""Positions to distances and angle cosines, with the strain through which stress is a derivative.

Legend: N atoms, E directed edges, U pairs, B bonds, A angles, G structures, H ghosts.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from janus.model.batch import GraphBatch


@dataclass(frozen=True)
class Geometry:
    """distance [U] angstrom of each pair; cosine [A] of each angle."""

    distance: Tensor
    cosine: Tensor


def strained(batch: GraphBatch, positions: Tensor, strain: Tensor) -> tuple[Tensor, Tensor]:
    """Apply the symmetric part of ``strain`` [G,3,3]: positions x + x s [N,3] and cells L + L s [G,3,3]."""
    symmetric = (strain + strain.transpose(1, 2)) / 2
    moved = positions + torch.bmm(positions[:, None, :], symmetric[batch.structure_of_atom]).squeeze(1)
    return moved, batch.cell + batch.cell @ symmetric


def measure(batch: GraphBatch, positions: Tensor, cell: Tensor) -> Geometry:
    """Distances of pairs and cosines of angles, from strained positions [N,3] and cells [G,3,3].

    Images are gathered per edge: no block-diagonal matrix. Each sharer of a pair measures it from its own edge.
    """
    shift = torch.bmm(batch.image[:, None, :], cell[batch.structure_of_atom[batch.centre]]).squeeze(1)
    vector = batch.with_ghosts(positions)[batch.neighbour] + shift - positions[batch.centre]
    distance = torch.linalg.vector_norm(vector[batch.edge_of_pair], dim=1)
    unit = vector[batch.bond_edge] / distance[batch.bonded_pair[batch.pair_of_bond]][:, None]
    cosine = (unit[batch.angle_first] * unit[batch.angle_second]).sum(dim=1)
    return Geometry(distance, cosine)
