"""Energy, conservative forces and stress by one autograd pass. It owns the phases FE and FF, not the architecture."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from janus.kernels.wanted import without_parameter_gradients
from janus.model import geometry
from janus.model.batch import GraphBatch
from janus.model.recompute import recomputed

Phase = Callable[[str], AbstractContextManager[Any]]


@dataclass(frozen=True)
class Prediction:
    """energy [G] eV, float64, reference energies included; forces [N,3] eV/angstrom;
    stress [G,3,3] eV/angstrom^3, (1/V) dE/d(strain), zero where there is no volume;
    magnetic_moments [N] Bohr magnetons, of ``compat`` models only.
    """

    energy: Tensor
    forces: Tensor
    stress: Tensor
    magnetic_moments: Tensor | None = None


def evaluate_potential(
    model: nn.Module,
    batch: GraphBatch,
    *,
    create_graph: bool,
    phase: Phase | None = None,
    recompute: bool = False,
) -> Prediction:
    """Energy, forces and stress of a batch that is on the model's device and in its dtype.

    create_graph: keep what the second-order backward needs (training); otherwise the results are detached.
    phase: called with "FE" and "FF" for a context manager around each (timing).
    recompute: drop each block's activations and compute them again when wanted (second-order checkpointing).
    """
    timed = phase or (lambda name: nullcontext())
    run_block = recomputed if recompute else _plain
    with torch.enable_grad():
        with timed("FE"):
            positions = batch.positions.detach().requires_grad_()
            strain = torch.zeros_like(batch.cell, requires_grad=True)
            moved, cell = geometry.strained(batch, positions, strain)
            atoms = model.atom_features(batch, geometry.measure(batch, moved, cell), run_block)
            atom_energy = model.atom_energies(atoms)
            interaction = atom_energy.new_zeros(batch.num_structures).index_add(0, batch.structure_of_atom, atom_energy)
        with timed("FF"), without_parameter_gradients():
            outputs = torch.autograd.grad(
                interaction.sum(), [positions, strain], create_graph=create_graph, materialize_grads=True
            )
    volume = batch.volume[:, None, None]
    stress = torch.where(volume > 0, outputs[1] / volume.clamp(min=torch.finfo(volume.dtype).tiny), 0.0)
    energy = interaction.double() + _reference_energy(model, batch)
    head = getattr(model, "magnetic_moment_head", None)
    moments = None if head is None else head(atoms)
    if not create_graph:
        energy, moments = energy.detach(), None if moments is None else moments.detach()
    return Prediction(energy, -outputs[0], stress, moments)


def _plain(block: nn.Module, function: Callable[..., tuple[Tensor, ...]], *tensors: Tensor) -> tuple[Tensor, ...]:
    return function(*tensors)


def _reference_energy(model: nn.Module, batch: GraphBatch) -> Tensor:
    """Sum of the atoms' reference energies -> [G] float64 (large numbers: float32 would round them)."""
    table = model.reference_energies.detach().double()
    total = torch.zeros(batch.num_structures, dtype=torch.float64, device=table.device)
    return total.index_add(0, batch.structure_of_atom, table[batch.numbers - 1])
