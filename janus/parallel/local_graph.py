"""Cuts a rank's part out of a micro-batch that all ranks of its graph group have built: no message is needed.

The local batch has the rank's own atoms, their edges, bonds and angles, the pairs these touch, and all structures; its
``neighbour`` counts ghosts behind the owned atoms. It does not own the division (``partition.py``) nor the exchanges
(``halo.py``).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from janus.model.batch import GraphBatch
from janus.parallel.axis import Axis
from janus.parallel.halo import Halo
from janus.parallel.partition import divide_atoms, work_of_atoms

if TYPE_CHECKING:
    from janus.train.loss import Labels


def partition(batch: GraphBatch, axis: Axis) -> GraphBatch:
    """This rank's part of a whole batch on the CPU; the batch itself when the axis has one rank."""
    assert batch.halo is None, "the batch is a part already"
    return batch if axis.size == 1 else local_batch(batch, part_of_atoms(batch, axis.size), axis)


def part_of_atoms(batch: GraphBatch, num_parts: int) -> np.ndarray:
    """Part of each atom of a batch on the CPU -> [N] int64, by ``divide_atoms``."""
    centre = batch.centre.numpy()
    edges_of_atom = np.bincount(centre, minlength=batch.num_atoms)
    bonds_of_atom = np.bincount(centre[batch.bond_edge.numpy()], minlength=batch.num_atoms)
    return divide_atoms(
        work_of_atoms(edges_of_atom, bonds_of_atom),
        batch.positions.double().numpy(),
        batch.cell.double().numpy(),
        batch.volume.numpy() > 0,
        batch.structure_of_atom.numpy(),
        num_parts,
    )


def labels_of_part(labels: Labels, part: GraphBatch) -> Labels:
    """Labels that count on this rank: forces of owned atoms; energy and stress of every n-th structure.

    Over the ranks of the graph group each label counts once, so that the sum of their losses is the batch's.
    """
    halo = part.halo
    if halo is None:
        return labels
    counted = torch.arange(len(labels.has_energy)) % halo.axis.size == halo.axis.index
    return replace(
        labels,
        has_energy=labels.has_energy & counted,
        has_stress=labels.has_stress & counted,
        forces=labels.forces[halo.owned],
        has_forces=labels.has_forces[halo.owned],
    )


def local_batch(batch: GraphBatch, part_of_atom: np.ndarray, axis: Axis) -> GraphBatch:
    """The part ``axis.index`` of a whole batch on the CPU, with its halo. part_of_atom [N], the same on all ranks."""
    whole = {name: getattr(batch, name).numpy() for name in ("centre", "neighbour", "pair_of_edge", "bond_edge")}
    here, part = axis.index, part_of_atom
    atoms = np.flatnonzero(part == here)
    edges = np.flatnonzero(part[whole["centre"]] == here)
    centre, neighbour = whole["centre"][edges], whole["neighbour"][edges]
    owner = part[neighbour]
    abroad = owner != here
    boundary, boundary_counts = _by_rank(centre[abroad], owner[abroad], axis.size)
    ghosts, ghost_counts = _by_rank(neighbour[abroad], owner[abroad], axis.size)
    place = np.full(batch.num_atoms, -1)
    place[atoms] = np.arange(len(atoms))
    place[ghosts] = len(atoms) + np.arange(len(ghosts))
    pairs, edge_of_pair, pair_of_edge = np.unique(whole["pair_of_edge"][edges], return_index=True, return_inverse=True)
    shared_pairs, pair_counts = _by_rank(pair_of_edge[abroad], owner[abroad], axis.size)

    bonds = np.flatnonzero(part[whole["centre"][whole["bond_edge"]]] == here)
    bond_edge = np.searchsorted(edges, whole["bond_edge"][bonds])
    bonded, pair_of_bond = np.unique(batch.pair_of_bond.numpy()[bonds], return_inverse=True)
    bond_abroad = abroad[bond_edge]
    shared_bonded_pairs, bonded_pair_counts = _by_rank(
        pair_of_bond[bond_abroad], owner[bond_edge][bond_abroad], axis.size
    )
    first, second = _local_angles(batch, bonds)
    halo = Halo(
        axis=axis,
        owned=torch.from_numpy(atoms),
        boundary=torch.from_numpy(place[boundary]),
        boundary_counts=boundary_counts,
        ghost_counts=ghost_counts,
        shared_pairs=torch.from_numpy(shared_pairs),
        pair_counts=pair_counts,
        shared_bonded_pairs=torch.from_numpy(shared_bonded_pairs),
        bonded_pair_counts=bonded_pair_counts,
    )
    arrays = {
        "centre": place[centre],
        "neighbour": place[neighbour],
        "pair_of_edge": pair_of_edge,
        "edge_of_pair": edge_of_pair,
        "bond_edge": bond_edge,
        "pair_of_bond": pair_of_bond,
        "bonded_pair": np.searchsorted(pairs, batch.bonded_pair.numpy()[bonded]),
        "angle_first": first,
        "angle_second": second,
        "first_pair": pair_of_bond[first],
        "second_pair": pair_of_bond[second],
    }
    return replace(
        batch,
        halo=halo,
        numbers=batch.numbers[halo.owned],
        positions=batch.positions[halo.owned],
        structure_of_atom=batch.structure_of_atom[halo.owned],
        image=batch.image[torch.from_numpy(edges)],
        **{name: _tensor(array) for name, array in arrays.items()},
    )


def _by_rank(items: np.ndarray, ranks: np.ndarray, num_ranks: int) -> tuple[np.ndarray, tuple[int, ...]]:
    """Each item once per rank, sorted by rank, then item; and how many there are per rank."""
    stride = int(items.max(initial=0)) + 1
    keys = np.unique(ranks * stride + items)
    return keys % stride, tuple(np.bincount(keys // stride, minlength=num_ranks).tolist())


def _local_angles(batch: GraphBatch, bonds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First and second bond of the angles whose bonds are among ``bonds`` (both have one centre), counted there."""
    place = np.full(batch.num_bonds, -1)
    place[bonds] = np.arange(len(bonds))
    first = place[batch.angle_first.numpy()]
    kept = first >= 0
    return first[kept], place[batch.angle_second.numpy()[kept]]


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.int64))
