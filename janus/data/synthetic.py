"""Structures made on the spot: alloys of seven metals, labelled by ASE's EMT potential. Never imports torch.

It does not own where they are written. EMT is a toy of a potential: good for trying things out, not for science.
Source of the potential: K. W. Jacobsen, P. Stoltze, J. K. Norskov, Surf. Sci. 366 (1996) 394 (ase.calculators.emt).
"""

from __future__ import annotations

from collections.abc import Iterator

import ase
import numpy as np
from ase import units
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.data import atomic_numbers, reference_states
from ase.md.verlet import VelocityVerlet

from janus.data.structure import Structure
from janus.errors import UserError

METALS = ("Al", "Cu", "Ag", "Au", "Ni", "Pd", "Pt")
MAX_ELEMENTS = 4
MAX_CELLS_PER_SIDE = 4
DEFAULT_MAX_ATOMS = 108
MIN_MAX_ATOMS = 4  # one cubic cell
MAX_STRAIN = 0.04  # of each component
MAX_VOLUME_STRAIN = 0.05  # of each length, uniformly
RATTLE_ANGSTROM = (0.02, 0.12)  # range of the standard deviation
MD_TEMPERATURE_K = (300.0, 1500.0)
MD_STEP_FS = 4.0
MD_STEPS = 12
MD_RATTLE_ANGSTROM = 0.05
KINDS = ("strained", "rattled", "md")


def make_structures(num_structures: int, *, seed: int = 0, max_atoms: int = DEFAULT_MAX_ATOMS) -> Iterator[Structure]:
    """Labelled structures: energies, forces, stresses. The same seed gives the same ones; a larger count only appends.

    Face-centred cubic cells of 1 to max_atoms atoms in many sizes and shapes, with 1 to 4 metals in random places; in
    turn strained, strained and rattled, or taken from the end of a short molecular dynamics run.
    Arguments: num_structures >= 1; seed >= 0; max_atoms >= 4. Names are "emt-SEED-INDEX-KIND".
    """
    if num_structures < 1:
        raise UserError(f"the count is {num_structures}: make at least 1 structure")
    if seed < 0:
        raise UserError(f"the seed is {seed}: it must be 0 or more")
    if max_atoms < MIN_MAX_ATOMS:
        raise UserError(f"the largest number of atoms is {max_atoms}: it must be at least {MIN_MAX_ATOMS}")
    return (_labelled_structure(seed, index, max_atoms) for index in range(num_structures))


def _labelled_structure(seed: int, index: int, max_atoms: int) -> Structure:
    random = np.random.default_rng([seed, index])
    kind = KINDS[index % len(KINDS)]
    atoms = _alloy(random, max_atoms)
    _strain(atoms, random)
    if kind == "rattled":
        atoms.positions += random.normal(0.0, random.uniform(*RATTLE_ANGSTROM), atoms.positions.shape)
    atoms.calc = EMT()
    if kind == "md":
        _run_dynamics(atoms, random)
    return Structure(
        numbers=atoms.numbers.astype(np.int32),
        positions=atoms.positions.copy(),
        cell=atoms.cell.array.copy(),
        pbc=atoms.pbc.copy(),
        energy=float(atoms.get_potential_energy()),
        forces=atoms.get_forces(),
        stress=atoms.get_stress(voigt=False),
        name=f"emt-{seed}-{index:06d}-{kind}",
    )


def _alloy(random: np.random.Generator, max_atoms: int) -> ase.Atoms:
    """A block of primitive or cubic cells with random metals at a lattice constant between theirs (Vegard)."""
    metals = random.choice(METALS, size=random.integers(1, MAX_ELEMENTS + 1), replace=False)
    shares = random.dirichlet(np.ones(len(metals)))
    constants = [reference_states[atomic_numbers[metal]]["a"] for metal in metals]
    cubic = bool(random.integers(2))
    cell = bulk("Cu", "fcc", a=float(np.dot(shares, constants)), cubic=cubic)
    sides = random.integers(1, MAX_CELLS_PER_SIDE + 1, size=3)
    while len(cell) * sides.prod() > max_atoms:
        sides[np.argmax(sides)] -= 1
    atoms = cell.repeat(tuple(int(side) for side in sides))
    atoms.symbols[:] = random.choice(metals, size=len(atoms), p=shares)
    return atoms


def _strain(atoms: ase.Atoms, random: np.random.Generator) -> None:
    """Deform the cell by a symmetric strain and a change of volume, atoms with it."""
    components = random.uniform(-MAX_STRAIN, MAX_STRAIN, size=(3, 3))
    strain = (components + components.T) / 2 + np.eye(3) * random.uniform(-MAX_VOLUME_STRAIN, MAX_VOLUME_STRAIN)
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + strain), scale_atoms=True)


def _run_dynamics(atoms: ase.Atoms, random: np.random.Generator) -> None:
    """Constant-energy dynamics from rattled places and thermal velocities."""
    atoms.positions += random.normal(0.0, MD_RATTLE_ANGSTROM, atoms.positions.shape)
    temperature = random.uniform(*MD_TEMPERATURE_K)
    spread = np.sqrt(atoms.get_masses() * units.kB * temperature)  # Maxwell-Boltzmann: width of each momentum component
    atoms.set_momenta(random.standard_normal((len(atoms), 3)) * spread[:, None])
    VelocityVerlet(atoms, timestep=MD_STEP_FS * units.fs).run(MD_STEPS)
