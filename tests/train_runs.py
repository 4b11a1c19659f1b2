"""Small labelled data and real launches, for the tests of the trainer."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.emt import EMT

from janus.data.store import StructureStore, write_store
from janus.data.structure import Structure

CUTOFFS = {"cutoff_angstrom": 4.0, "line_cutoff_angstrom": 3.0}
TINY = ["--model.num_blocks=1", "--model.width=8", "--model.cutoff_angstrom=4.0", "--model.line_cutoff_angstrom=3.0"]
BIN = Path(sys.executable).parent


def labelled(atoms: Atoms, name: str) -> Structure:
    """A structure with ASE's EMT labels; stress only where the cell is periodic in three directions."""
    atoms.calc = EMT()
    return Structure(
        numbers=atoms.numbers.astype(np.int32), positions=atoms.positions.copy(), cell=atoms.cell.array.copy(),
        pbc=atoms.pbc.copy(), energy=float(atoms.get_potential_energy()), forces=atoms.get_forces(),
        stress=atoms.get_stress(voigt=False) if atoms.pbc.all() else None, name=name,
    )  # fmt: skip


def make_structures() -> list[Structure]:
    """Ten structures of very different work: metals of 4 to 12 atoms, a molecule, an isolated atom, a slab."""
    generator = np.random.default_rng(7)
    structures = []
    for number, metal in enumerate(["Cu", "Al", "Ni", "Au", "Cu", "Al", "Ni"]):
        atoms = bulk(metal, cubic=True).repeat((1 + number % 3, 1, 1))
        atoms.positions += 0.1 * generator.standard_normal(atoms.positions.shape)
        structures.append(labelled(atoms, f"{metal}-{number}"))
    structures.append(labelled(molecule("CH4"), "methane"))
    structures.append(labelled(Atoms("Cu", positions=[[0, 0, 0]]), "lone-copper"))
    slab = bulk("Al", cubic=True).repeat((2, 1, 1))
    slab.pbc = (True, True, False)
    structures.append(labelled(slab, "slab"))
    return structures


def make_store(path: Path) -> StructureStore:
    """The ten structures as a store."""
    return write_store(path, make_structures(), **CUTOFFS)


def environment() -> dict[str, str]:
    """One thread per rank; the package is the one under test."""
    return os.environ | {"OMP_NUM_THREADS": "1"}


def command(num_ranks: int, *words: str) -> list[str]:
    """A Python command, under mpiexec for more than one rank."""
    launcher = [str(BIN / "mpiexec"), "-n", str(num_ranks)] if num_ranks > 1 else []
    return [*launcher, sys.executable, *words]


def launch(num_ranks: int, *words: str, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
    """Run a Python command to its end and return its output and exit code."""
    return subprocess.run(
        command(num_ranks, *words), capture_output=True, text=True, timeout=timeout_s, env=environment(), check=False
    )
