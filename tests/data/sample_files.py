"""Small structure files for the tests: one good frame, and ways to spoil it."""

from __future__ import annotations

import numpy as np

CUBE = 'Lattice="4.0 0 0 0 4.0 0 0 0 4.0"'
STRESS = 'stress="0.01 0 0 0 0.02 0 0 0 0.03"'
PROPERTIES = "Properties=species:S:1:pos:R:3:forces:R:3"
ATOMS = (
    "Cu 0.0 0.0 0.0 0.1 0.0 0.0",
    "Au 2.0 2.0 0.1 -0.1 0.0 0.0",
)


def frame(
    *, info: str = f"energy=-3.5 {STRESS}", cell: str = CUBE, pbc: str = "T T T", properties: str = PROPERTIES,
    atoms: tuple[str, ...] = ATOMS,
) -> str:  # fmt: skip
    """One frame of extended XYZ."""
    return "\n".join((str(len(atoms)), f'{cell} {properties} {info} pbc="{pbc}"', *atoms)) + "\n"


def good_frames(count: int) -> list[str]:
    """Frames that differ in one coordinate and the energy."""
    return [
        frame(atoms=(ATOMS[0], f"Au 2.0 2.0 {0.1 + 0.01 * index:.3f} -0.1 0.0 0.0"),
              info=f"energy={-3.5 + 0.01 * index:.3f} {STRESS} id=good-{index}")
        for index in range(count)
    ]  # fmt: skip


def many_atoms_at_one_place(count: int) -> tuple[str, ...]:
    return tuple("Cu 0.0 0.0 0.0 0.0 0.0 0.0" for _ in np.arange(count))


# name -> (spoiled frame, rule, words of the sentence)
BAD_FRAMES = {
    "NaN force": (frame(atoms=(ATOMS[0], "Au 2.0 2.0 0.1 nan 0.0 0.0")), "not-finite", "forces of atom 1 is nan"),
    "infinite energy": (frame(info="energy=inf"), "not-finite", "energy is inf"),
    "NaN energy": (frame(info="energy=nan"), "not-finite", "energy is nan"),
    "NaN position": (frame(atoms=("Cu nan 0.0 0.0 0.1 0.0 0.0", ATOMS[1])), "not-finite", "positions of atom 0"),
    "NaN stress": (frame(info='energy=-3.5 stress="nan 0 0 0 0 0 0 0 0"'), "not-finite", "stress"),
    "NaN cell": (frame(cell='Lattice="nan 0 0 0 4.0 0 0 0 4.0"'), "not-finite", "cell"),
    "no energy": (frame(info=STRESS), "missing-label", "no energy"),
    "no forces": (frame(properties="Properties=species:S:1:pos:R:3"), "missing-label", "no forces"),
    "energy under another name": (frame(info="REF_energy=-3.5"), "missing-label", "REF_energy"),
    "forces with two columns": (
        frame(properties="Properties=species:S:1:pos:R:3:forces:R:2"), "wrong-shape", "forces has shape [2, 2]"),
    "energy of two numbers": (frame(info='energy="1.0 2.0"'), "wrong-shape", "energy has shape [2]"),
    "stress of four numbers": (frame(info='energy=1.0 stress="1.0 2.0 3.0 4.0"'), "wrong-shape", "stress"),
    "energy is a word": (frame(info="energy=low"), "wrong-shape", "'low'"),
    "no such symbol": (frame(atoms=("Qq 0 0 0 0 0 0", ATOMS[1])), "unknown-element", "'Qq'"),
    "dummy atom": (frame(atoms=("X 0 0 0 0 0 0", ATOMS[1])), "unknown-element", "atomic number 0"),
    "element 95": (frame(atoms=("Am 0 0 0 0 0 0", ATOMS[1])), "unknown-element", "atomic number 95"),
    "flat cell": (frame(cell='Lattice="4.0 0 0 0 4.0 0 4.0 4.0 0"'), "zero-volume-cell", "linearly dependent"),
    "zero lattice vector": (frame(cell='Lattice="4.0 0 0 0 4.0 0 0 0 0"'), "zero-volume-cell", "lattice vector"),
    "no room for the atoms": (frame(cell='Lattice="0.8 0 0 0 0.8 0 0 0 0.8"'), "zero-volume-cell", "per atom"),
    "absurd force": (frame(atoms=(ATOMS[0], "Au 2.0 2.0 0.1 0.0 400.0 300.0")), "absurd-forces", "is 500 eV/A"),
    "two atoms too near": (frame(atoms=(ATOMS[0], "Au 0.1 0.0 0.0 0 0 0")), "overlapping-atoms", "0.1 A apart"),
    "too near through the boundary": (
        frame(atoms=(ATOMS[0], "Au 3.9 0.0 0.0 0 0 0")), "overlapping-atoms", "0.1 A apart"),
    "thousands of atoms at one place": (
        frame(atoms=many_atoms_at_one_place(3000), cell=CUBE.replace("4.0", "40.0")), "overlapping-atoms",
        "at the same place"),
    "an atom far away": (
        frame(cell="", pbc="F F F", info="energy=1.0", atoms=(ATOMS[0], "Au 0 0 1e300 0 0 0")), "absurd-positions",
        "spread over 1e+300 A"),
    "an atom far from a wire": (
        frame(cell='Lattice="4.0 0 0 0 0 0 0 0 0"', pbc="T F F", info="energy=1.0",
              atoms=(ATOMS[0], "Au 0 20000.0 20000.0 0 0 0")), "absurd-positions", "spread over 2e+04 A"),
    "no atoms": (frame(atoms=()), "empty-structure", "no atoms"),
    "malformed number": (frame(atoms=(ATOMS[0], "Au 2.0 two 0.1 0 0 0")), "unreadable", "two"),
    "too few columns": (frame(atoms=(ATOMS[0], "Au 2.0 2.0")), "unreadable", "cannot read"),
}  # fmt: skip
