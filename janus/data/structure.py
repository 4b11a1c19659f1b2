"""One labelled structure. It owns the field names and units, not where structures come from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Structure:
    """A set of atoms with optional labels. N atoms; eV and angstrom throughout.

    numbers [N] int32 atomic numbers; positions [N,3] float64; cell [3,3] float64, rows are lattice vectors, zero rows
    where there is none; pbc [3] bool; energy eV or None; forces [N,3] eV/angstrom or None;
    stress [3,3] eV/angstrom^3, (1/V) dE/d(strain) (ASE's sign), or None; name: identity within its source.
    """

    numbers: np.ndarray
    positions: np.ndarray
    cell: np.ndarray
    pbc: np.ndarray
    energy: float | None = None
    forces: np.ndarray | None = None
    stress: np.ndarray | None = None
    name: str = ""

    @property
    def num_atoms(self) -> int:
        return len(self.numbers)
