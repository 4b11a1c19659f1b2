"""Small structures and models that the model tests share."""

from __future__ import annotations

from collections.abc import Sequence

import ase
import ase.build
import numpy as np
import pytest
import torch
from torch import nn

from janus.config import ExpertConfig, ModelConfig
from janus.data.graph import build_graph
from janus.data.structure import Structure
from janus.model.batch import GraphBatch
from janus.model.build import build_model

MATRIS = ModelConfig(num_blocks=2, width=16, cutoff_angstrom=4.0, line_cutoff_angstrom=3.2)
MATRIS_MOE = ModelConfig(
    family="matris-moe", num_blocks=2, width=16, num_heads=4, angle_width=8,
    cutoff_angstrom=4.0, line_cutoff_angstrom=3.2,
    experts=ExpertConfig(num_experts=6, top_k=2, message_hidden=24, feature_hidden=12),
)  # fmt: skip


@pytest.fixture(params=[MATRIS, MATRIS_MOE], ids=["matris", "matris-moe"])
def config(request: pytest.FixtureRequest) -> ModelConfig:
    """Each family's default model, small."""
    return request.param


@pytest.fixture
def model(config: ModelConfig) -> nn.Module:
    """The model in float64, its parameters moved off their special initial values (ones, zeros)."""
    return disturbed(build_model(config, seed=3, dtype=torch.float64))


def disturbed(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(0.05 * noise.to(parameter.dtype))
    return model


def structure(atoms: ase.Atoms) -> Structure:
    return Structure(
        numbers=atoms.numbers, positions=atoms.positions.copy(), cell=np.array(atoms.cell), pbc=np.array(atoms.pbc)
    )


def batch_of(config: ModelConfig, *many: ase.Atoms, dtype: torch.dtype = torch.float64) -> GraphBatch:
    structures: Sequence[Structure] = [structure(atoms) for atoms in many]
    cutoffs = config.cutoff_angstrom, config.line_cutoff_angstrom
    return GraphBatch.collate(structures, [build_graph(s, *cutoffs) for s in structures]).to("cpu", dtype)


@pytest.fixture
def crystal() -> ase.Atoms:
    """A rattled, strained rock-salt cell of 8 atoms."""
    atoms = ase.build.bulk("NaCl", "rocksalt", a=5.2, cubic=True)
    atoms.rattle(0.12, seed=1)
    strain = np.array([[0.02, 0.01, 0.0], [0.0, -0.01, 0.02], [0.01, 0.0, 0.0]])
    atoms.set_cell(atoms.cell @ (np.eye(3) + strain), scale_atoms=True)
    return atoms


@pytest.fixture
def molecule() -> ase.Atoms:
    """Ethanol without a cell."""
    return ase.build.molecule("CH3CH2OH")
