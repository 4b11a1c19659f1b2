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
from janus.model.matris import BlockRunner
from janus.model.recompute import recomputed

Phase = Callable[[str], AbstractContextManager[Any]]


@dataclass(frozen=True)
class Prediction:
    """energy [G] eV, float64, reference energies included; forces [N,3] eV/angstrom, of the atoms owned here;
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
    run_block: BlockRunner | None = None,
) -> Prediction:
    """Energy, forces and stress of a batch that is on the model's device and in its dtype.

    create_graph: keep what the second-order backward needs (training); otherwise the results are detached.
    phase: called with "FE" and "FF" for a context manager around each (timing).
    recompute: drop each block's activations and compute them again when wanted (second-order checkpointing).
    run_block: how each block is run, as ``recomputed`` or ``plain`` do; None: one of these two.

    Of a part of a batch, energies and stresses are complete on every rank that holds a part. What is differentiated
    for the forces is the sum over ranks of each one's atomic energies.
    """
    timed = phase or (lambda name: nullcontext())
    run_block = run_block or (recomputed if recompute else plain)
    with torch.enable_grad():
        with timed("FE"):
            positions, strain = inputs(batch)
            interaction, atoms = interaction_energies(model, batch, positions, strain, run_block)
        with timed("FF"), without_parameter_gradients():
            outputs = torch.autograd.grad(
                interaction.sum(), [positions, strain], create_graph=create_graph, materialize_grads=True
            )
            energy, virial = interaction.double() + reference_energy(model, batch), outputs[1]
            if batch.halo is not None:
                energy, virial = _summed_over_group(batch, energy, virial)
    stress = stress_of(virial, batch.volume)
    head = getattr(model, "magnetic_moment_head", None)
    moments = None if head is None else head(atoms)
    if not create_graph:
        energy, stress = energy.detach(), stress.detach()
        moments = None if moments is None else moments.detach()
    return Prediction(energy, -outputs[0], stress, moments)


def inputs(batch: GraphBatch) -> tuple[Tensor, Tensor]:
    """What energies are differentiated by: positions [N,3] angstrom, and a strain of zero [G,3,3]."""
    return batch.positions.detach().requires_grad_(), torch.zeros_like(batch.cell, requires_grad=True)


def interaction_energies(
    model: nn.Module, batch: GraphBatch, positions: Tensor, strain: Tensor, run_block: BlockRunner
) -> tuple[Tensor, Tensor]:
    """Energy of each structure without its reference energies [G] eV, and the atoms' features [N,C]."""
    moved, cell = geometry.strained(batch, positions, strain)
    atoms = model.atom_features(batch, geometry.measure(batch, moved, cell), run_block)
    atom_energy = model.atom_energies(atoms)
    total = atom_energy.new_zeros(batch.num_structures).index_add(0, batch.structure_of_atom, atom_energy)
    return total, atoms


def stress_of(virial: Tensor, volume: Tensor) -> Tensor:
    """dE/d(strain) [G,3,3] eV and volumes [G] angstrom^3 -> stress, zero where there is no volume."""
    volume = volume[:, None, None]
    return torch.where(volume > 0, virial / volume.clamp(min=torch.finfo(volume.dtype).tiny), 0.0)


def plain(block: nn.Module, function: Callable[..., tuple[Tensor, ...]], *tensors: Tensor) -> tuple[Tensor, ...]:
    """function(*tensors)."""
    return function(*tensors)


def _summed_over_group(batch: GraphBatch, energy: Tensor, virial: Tensor) -> tuple[Tensor, Tensor]:
    """energy [G] and dE/d(strain) [G,3,3] of this rank's atoms -> of all, in one float64 message."""
    both = batch.sum_over_group(torch.cat([energy[:, None], virial.double().flatten(1)], dim=1))
    return both[:, 0], both[:, 1:].unflatten(1, (3, 3)).to(virial.dtype)


def reference_energy(model: nn.Module, batch: GraphBatch) -> Tensor:
    """Sum of the atoms' reference energies -> [G] float64 (large numbers: float32 would round them)."""
    table = model.reference_energies.detach().double()
    total = torch.zeros(batch.num_structures, dtype=torch.float64, device=table.device)
    return total.index_add(0, batch.structure_of_atom, table[batch.numbers - 1])
