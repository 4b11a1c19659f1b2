"""Structures made on the spot: reproducible, sound, of many sizes, with labels that fit their energies."""

from __future__ import annotations

from itertools import islice

import ase
import numpy as np
import pytest
from ase.calculators.emt import EMT

from janus.data.labels import LabelLimits, structure_findings
from janus.data.reading import read_entries
from janus.data.synthetic import METALS, make_structures
from janus.data.writing import write_extxyz
from janus.errors import UserError


@pytest.fixture(scope="module")
def made():
    return list(make_structures(60, seed=3))


def test_the_same_seed_gives_the_same_structures_and_more_only_append(made, tmp_path):
    write_extxyz(tmp_path / "a.xyz", make_structures(12, seed=3))
    write_extxyz(tmp_path / "b.xyz", islice(make_structures(60, seed=3), 12))
    assert (tmp_path / "a.xyz").read_bytes() == (tmp_path / "b.xyz").read_bytes()
    (other,) = make_structures(1, seed=4)
    assert other.num_atoms != made[0].num_atoms or not np.array_equal(other.positions, made[0].positions)


def test_structures_are_sound_and_of_many_kinds(made):
    assert all(structure_findings(structure, LabelLimits()) == [] for structure in made)
    assert all(structure.stress is not None and structure.pbc.all() for structure in made)
    sizes = np.array([structure.num_atoms for structure in made])
    assert sizes.max() <= 108
    assert sizes.max() >= 10 * max(1, sizes.min())
    symbols = set().union(*(ase.Atoms(numbers=structure.numbers).symbols for structure in made))
    assert symbols == set(METALS)
    assert {structure.name.rsplit("-", 1)[1] for structure in made} == {"strained", "rattled", "md"}
    assert len({structure.name for structure in made}) == len(made)
    assert max(len(set(structure.numbers)) for structure in made) >= 3
    assert max(structure.num_atoms for structure in make_structures(20, seed=3, max_atoms=16)) <= 16


def test_labels_are_derivatives_of_the_energy(made):
    """Central differences with a step of 1e-4 A have an error of about 1e-6 eV/A here."""
    structure = next(structure for structure in made if 4 <= structure.num_atoms <= 20 and "rattled" in structure.name)

    def energy(positions, cell):
        atoms = ase.Atoms(numbers=structure.numbers, positions=positions, cell=cell, pbc=True)
        atoms.calc = EMT()
        return atoms.get_potential_energy()

    assert energy(structure.positions, structure.cell) == pytest.approx(structure.energy, abs=1e-9)
    step = np.zeros_like(structure.positions)
    step[1, 2] = 1e-4
    slope = (
        energy(structure.positions + step, structure.cell) - energy(structure.positions - step, structure.cell)
    ) / 2e-4
    assert -slope == pytest.approx(structure.forces[1, 2], abs=1e-5)
    strain = np.zeros((3, 3))
    strain[0, 1] = strain[1, 0] = 5e-5
    up, down = np.eye(3) + strain, np.eye(3) - strain
    slope = (
        energy(structure.positions @ up, structure.cell @ up)
        - energy(structure.positions @ down, structure.cell @ down)
    ) / 1e-4
    volume = abs(np.linalg.det(structure.cell))
    assert slope / volume / 2 == pytest.approx(structure.stress[0, 1], abs=1e-6)


def test_a_written_file_reads_back_with_its_labels(made, tmp_path):
    assert write_extxyz(tmp_path / "a.xyz", made[:9]) == 9
    for entry, structure in zip(read_entries(tmp_path / "a.xyz"), made[:9], strict=True):
        assert entry.identity == structure.name
        assert entry.structure.positions == pytest.approx(structure.positions, abs=1e-8)
        assert entry.structure.cell == pytest.approx(structure.cell, abs=1e-12)
        assert entry.structure.forces == pytest.approx(structure.forces, abs=1e-8)
        assert entry.structure.stress == pytest.approx(structure.stress, abs=1e-12)
        assert float(entry.structure.energy) == pytest.approx(structure.energy, abs=1e-9)


def test_writing_is_atomic(made, tmp_path):
    path = tmp_path / "a.xyz"
    path.write_text("precious")
    with pytest.raises(UserError, match="exists"):
        write_extxyz(path, made[:1])

    def failing():
        yield made[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_extxyz(path, failing(), replace=True)
    assert path.read_text() == "precious"
    assert [child.name for child in tmp_path.iterdir()] == ["a.xyz"]
    assert write_extxyz(path, made[:2], replace=True) == 2


@pytest.mark.parametrize(("arguments", "words"), [({"num_structures": 0}, "count is 0"), ({"seed": -1}, "seed is -1"),
                                                  ({"max_atoms": 3}, "at least 4")])  # fmt: skip
def test_impossible_requests_are_user_errors(arguments, words):
    with pytest.raises(UserError, match=words):
        make_structures(**({"num_structures": 5} | arguments))
