"""Neighbour graph and line graph against ASE's neighbour list, and their own identities."""

from __future__ import annotations

import ase
import numpy as np
import pytest
from ase.build import bulk, fcc111, molecule
from ase.neighborlist import primitive_neighbor_list

from janus.data.graph import build_graph, count_graph
from janus.data.structure import Structure


def as_structure(atoms: ase.Atoms) -> Structure:
    return Structure(numbers=atoms.numbers.astype(np.int32), positions=atoms.positions, cell=atoms.cell.array,
                     pbc=atoms.pbc)  # fmt: skip


def rattled(atoms: ase.Atoms, seed: int = 0) -> ase.Atoms:
    atoms = atoms.copy()
    atoms.positions += np.random.default_rng(seed).normal(0.0, 0.1, atoms.positions.shape)
    return atoms


def skewed_cell() -> ase.Atoms:
    random = np.random.default_rng(3)
    return ase.Atoms("SiOCl", cell=[[3.1, 0.2, 0.0], [-2.6, 2.9, 0.1], [0.9, 1.7, 4.2]], pbc=True,
                     scaled_positions=random.uniform(-0.7, 1.6, (3, 3)))  # fmt: skip


def slab(pbc: list[bool]) -> ase.Atoms:
    atoms = rattled(fcc111("Al", size=(2, 2, 3), vacuum=4.0))
    atoms.pbc = pbc
    return atoms


def wire_without_other_vectors() -> ase.Atoms:
    return ase.Atoms("Au2", positions=[[0, 0, 0], [0.4, 1.1, 2.0]], cell=[[2.9, 0, 0], [0, 0, 0], [0, 0, 0]],
                     pbc=[True, False, False])  # fmt: skip


CASES = {
    "rattled supercell": rattled(bulk("Cu", cubic=True).repeat((3, 2, 2))),
    "perfect crystal": bulk("Si", cubic=True),
    "primitive cell, self-image edges only": bulk("Cu"),
    "skewed cell, atoms outside it": skewed_cell(),
    "molecule without a cell": rattled(molecule("CH3CH2OH")),
    "molecule in a box, not periodic": ase.Atoms("H2O", [[0, 0, 0], [0.9, 0, 0], [0, 7.9, 0]], cell=[8.0] * 3),
    "slab": slab([True, True, False]),
    "periodic along the first and third": slab([True, False, True]),
    "periodic along the third only": slab([False, False, True]),
    "wire with one lattice vector": wire_without_other_vectors(),
}


@pytest.mark.parametrize("cutoff", [2.5, 6.0])
@pytest.mark.parametrize("name", CASES)
def test_edges_are_those_of_ase(name, cutoff):
    atoms = CASES[name]
    graph = build_graph(as_structure(atoms), cutoff, cutoff / 2)
    centre, neighbour, image, distance = primitive_neighbor_list(
        "ijSd", atoms.pbc, atoms.cell.complete().array, atoms.positions, cutoff, self_interaction=False
    )
    assert np.abs(distance - cutoff).min(initial=1.0) > 1e-6, "a case where both may differ by rounding"
    ours = sorted(map(tuple, np.column_stack((graph.centre, graph.neighbour, graph.image)).tolist()))
    theirs = sorted(map(tuple, np.column_stack((centre, neighbour, image)).tolist()))
    assert ours == theirs
    assert cutoff < 6 or len(ours) > 0


@pytest.mark.parametrize("name", CASES)
def test_reverse_edges_bonds_and_angles_keep_their_identities(name):
    atoms = CASES[name]
    graph = build_graph(as_structure(atoms), 6.0, 3.5)
    edges = np.arange(graph.num_edges)
    assert (np.diff(graph.centre) >= 0).all()
    assert (graph.centre[graph.reverse] == graph.neighbour).all()
    assert (graph.neighbour[graph.reverse] == graph.centre).all()
    assert (graph.image[graph.reverse] == -graph.image).all()
    assert (graph.reverse[graph.reverse] == edges).all()
    assert (graph.reverse != edges).all()
    vectors = atoms.positions[graph.neighbour] - atoms.positions[graph.centre] + graph.image @ atoms.cell.array
    distance = np.linalg.norm(vectors, axis=1)
    assert sorted(graph.bond_edge) == np.flatnonzero(distance < 3.5).tolist()
    assert np.isin(graph.reverse[graph.bond_edge], graph.bond_edge).all()
    bond_centre = graph.centre[graph.bond_edge]
    bonds = np.bincount(bond_centre, minlength=len(atoms))
    assert graph.num_angles == (bonds * (bonds - 1)).sum()
    assert (bond_centre[graph.angle_first] == bond_centre[graph.angle_second]).all()
    assert (graph.angle_first != graph.angle_second).all()
    pairs = graph.angle_first * max(1, graph.num_bonds) + graph.angle_second
    assert len(np.unique(pairs)) == graph.num_angles
    assert (np.diff(graph.angle_first) >= 0).all()


@pytest.mark.parametrize("name", CASES)
def test_counts_equal_those_of_the_built_graph(name):
    structure = as_structure(CASES[name])
    graph, counts = build_graph(structure, 6.0, 4.0), count_graph(structure, 6.0, 4.0)
    assert (counts.edges_of_atom == np.bincount(graph.centre, minlength=structure.num_atoms)).all()
    assert (counts.num_edges, counts.num_bonds, counts.num_angles) == (
        graph.num_edges, graph.num_bonds, graph.num_angles)  # fmt: skip


def test_perfect_copper_has_its_known_shells():
    atoms = bulk("Cu", a=3.6)  # shells: 12 at 2.546, 6 at 3.600, 24 at 4.409
    graph = build_graph(as_structure(atoms), 4.5, 3.0)
    assert (graph.num_edges, graph.num_bonds, graph.num_angles) == (42, 12, 132)


@pytest.mark.parametrize("atoms", [ase.Atoms("H"), ase.Atoms("He2", [[0, 0, 0], [0, 0, 50.0]]),
                                   ase.Atoms("Xe", cell=[20.0] * 3, pbc=True)], ids=str)  # fmt: skip
def test_isolated_atoms_have_an_empty_graph(atoms):
    graph = build_graph(as_structure(atoms), 6.0, 4.5)
    assert (graph.num_atoms, graph.num_edges, graph.num_bonds, graph.num_angles) == (len(atoms), 0, 0, 0)
    assert graph.image.shape == (0, 3)
    counts = count_graph(as_structure(atoms), 6.0, 4.5)
    assert (counts.num_edges, counts.num_bonds, counts.num_angles) == (0, 0, 0)
    assert counts.edges_of_atom.tolist() == [0] * len(atoms)


def test_bonds_agree_in_both_directions_at_the_line_cutoff_itself():
    """Distances that fall on the cutoff exactly must not make a bond in one direction only."""
    atoms = bulk("Cu", a=4.0, cubic=True).repeat((2, 2, 2))
    atoms.rotate(31.7, (1, 2, 3), rotate_cell=True)  # gives every distance a different rounding
    line_cutoff = 4.0 / np.sqrt(2)
    graph = build_graph(as_structure(atoms), 6.0, line_cutoff)
    assert np.isin(graph.reverse[graph.bond_edge], graph.bond_edge).all()
    assert count_graph(as_structure(atoms), 6.0, line_cutoff).num_bonds == graph.num_bonds


def test_counts_on_the_timing_batch_are_the_published_ones(shared_data):
    """27,510 directed edges at 6 A and 120,518 angles at 4 A, as in data/README.md."""
    structures = [as_structure(atoms) for atoms in ase.io.read(shared_data / "structures" / "bench_8x64.xyz", ":")]
    counts = [count_graph(structure, 6.0, 4.0) for structure in structures]
    assert sum(count.num_edges for count in counts) == 27_510
    assert sum(count.num_angles for count in counts) == 120_518
    graphs = [build_graph(structure, 6.0, 4.0) for structure in structures]
    assert sum(graph.num_angles for graph in graphs) == 120_518
