"""ASE calculator of a trained potential. It does not own the checkpoint's format nor the model."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator, PropertyNotImplementedError, all_changes
from ase.stress import full_3x3_to_voigt_6_stress

from janus.data.graph import build_graph
from janus.data.structure import Structure
from janus.errors import UserError
from janus.model.batch import GraphBatch
from janus.model.potential import evaluate_potential
from janus.train.inference import build_from_checkpoint, open_checkpoint


class JanusCalculator(Calculator):
    """Energy (eV), forces (eV/angstrom) and stress (eV/angstrom^3, Voigt order xx yy zz yz xz xy) of a checkpoint.

    checkpoint: a run's folder, one of its checkpoints or an exported file; averaged weights are used where there
    are any. device: torch device. dtype: "float32" or "float64" (None: as trained). Isolated atoms, molecules without
    a cell and mixed boundary conditions work; stress needs a cell that is periodic in three directions.
    """

    implemented_properties: ClassVar[list[str]] = ["energy", "free_energy", "forces", "stress"]

    def __init__(
        self, checkpoint: str | Path, *, device: str = "cpu", dtype: str | None = None, **keywords: Any
    ) -> None:
        super().__init__(**keywords)
        if dtype not in (None, "float32", "float64"):
            raise UserError(f"dtype is {dtype!r}: use 'float32', 'float64' or None")
        content = open_checkpoint(Path(checkpoint), lambda sentence: print(f"janus: {sentence}", file=sys.stderr))
        self._config = content.config.model
        self._dtype = getattr(torch, dtype or content.config.run.dtype)
        self._model = build_from_checkpoint(content, device=device).to(self._dtype)
        self._device = torch.device(device)

    def calculate(
        self, atoms: Atoms | None = None, properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = all_changes,
    ) -> None:  # fmt: skip
        """Fill ``results``; all properties come from one pass."""
        super().calculate(atoms, properties, system_changes)
        structure = structure_of(self.atoms)
        unknown = sorted({int(z) for z in structure.numbers if not 1 <= z <= self._config.num_elements})
        if unknown:
            raise UserError(
                f"the structure contains atomic number {unknown[0]}: the model knows 1 to {self._config.num_elements}"
            )
        periodic = bool(structure.pbc.all())
        if "stress" in properties and not periodic:
            raise PropertyNotImplementedError("stress needs a cell that is periodic in three directions")
        graph = build_graph(structure, self._config.cutoff_angstrom, self._config.line_cutoff_angstrom)
        batch = GraphBatch.collate([structure], [graph]).to(self._device, self._dtype)
        prediction = evaluate_potential(self._model, batch, create_graph=False)
        energy = float(prediction.energy[0])
        self.results = {
            "energy": energy,
            "free_energy": energy,
            "forces": prediction.forces.double().cpu().numpy(),
        }
        if periodic:
            self.results["stress"] = full_3x3_to_voigt_6_stress(prediction.stress[0].double().cpu().numpy())


def structure_of(atoms: Atoms) -> Structure:
    """An ASE structure without labels."""
    return Structure(
        numbers=np.asarray(atoms.numbers, dtype=np.int32),
        positions=np.asarray(atoms.positions, dtype=np.float64),
        cell=np.asarray(atoms.cell.array, dtype=np.float64),
        pbc=np.asarray(atoms.pbc, dtype=bool),
    )
