"""Writes structures as one extended XYZ file, atomically. It does not own stores (``store.py``)."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable
from pathlib import Path

import ase
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io.extxyz import write_xyz

from janus.data.store_arrays import disk_errors_named
from janus.data.structure import Structure
from janus.errors import UserError


def write_extxyz(path: Path | str, structures: Iterable[Structure], *, replace: bool = False) -> int:
    """Stream structures into an extended XYZ file (8 decimals); returns how many. The name becomes the key "id".

    Raises UserError when the file exists and replace is not set, or the disk is full; the file appears only when
    complete, and what was there before stays until then.
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not replace:
        raise UserError(f"{path} exists: choose another name, or replace it with --force")
    if target.is_dir():
        raise UserError(f"{path} is a folder: name a file")
    partial = target.with_name(f".{target.name}.partial-{secrets.token_hex(4)}")
    count = 0
    with disk_errors_named(Path(path)):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("x", encoding="utf-8") as stream:
                for structure in structures:
                    write_xyz(stream, [_to_ase(structure)])
                    count += 1
                stream.flush()
                os.fsync(stream.fileno())
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)
    return count


def _to_ase(structure: Structure) -> ase.Atoms:
    atoms = ase.Atoms(
        numbers=structure.numbers, positions=structure.positions, cell=structure.cell, pbc=structure.pbc,
        info={"id": structure.name} if structure.name else {},
    )  # fmt: skip
    labels = {"energy": structure.energy, "forces": structure.forces, "stress": structure.stress}
    if labels["stress"] is not None:
        stress = structure.stress
        labels["stress"] = stress.ravel()[[0, 4, 8, 5, 2, 1]]
    atoms.calc = SinglePointCalculator(atoms, **{name: value for name, value in labels.items() if value is not None})
    return atoms
