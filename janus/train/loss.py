"""The training loss, normalised over the global batch, and the labels it compares with.

loss = w_E / n_E sum_g l((E_g - E*_g) / N_g) + w_F / n_F sum l(F - F*) + w_S / n_S sum l(S - S*), where n_E counts the
structures with an energy, n_F and n_S the components of the labelled forces and stresses of the whole *global* batch.
Any partition of the batch over ranks and micro-batches therefore sums to the same loss and the same gradients.
Legend: G structures, N atoms of a micro-batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from janus.data.structure import Structure
from janus.errors import UserError
from janus.train.config import LossConfig

if TYPE_CHECKING:
    from janus.data.store import StructureStore
    from janus.model.potential import Prediction

FORCE_COMPONENTS = 3
STRESS_COMPONENTS = 9


@dataclass(frozen=True, kw_only=True)
class Denominators:
    """What each term of the loss is divided by: labelled structures and components of a global batch."""

    energies: int
    force_components: int
    stress_components: int


@dataclass(frozen=True, kw_only=True)
class Labels:
    """Labels of a micro-batch, float64, 0 where absent.

    energy, has_energy, num_atoms [G]; forces [N,3], has_forces [N]; stress [G,3,3], has_stress [G].
    """

    energy: Tensor
    has_energy: Tensor
    num_atoms: Tensor
    forces: Tensor
    has_forces: Tensor
    stress: Tensor
    has_stress: Tensor

    @classmethod
    def collate(cls, structures: Sequence[Structure]) -> Labels:
        """Labels of several structures side by side."""
        forces = [s.forces if s.forces is not None else np.zeros((s.num_atoms, 3)) for s in structures]
        stress = [s.stress if s.stress is not None else np.zeros((3, 3)) for s in structures]
        has_forces = [np.full(s.num_atoms, s.forces is not None) for s in structures]
        if not structures:
            forces, stress, has_forces = [np.zeros((0, 3))], np.zeros((0, 3, 3)), [np.zeros(0, dtype=bool)]
        return cls(
            energy=torch.tensor([s.energy if s.energy is not None else 0.0 for s in structures], dtype=torch.float64),
            has_energy=torch.tensor([s.energy is not None for s in structures], dtype=torch.bool),
            num_atoms=torch.tensor([s.num_atoms for s in structures], dtype=torch.int64),
            forces=torch.from_numpy(np.concatenate(forces).astype(np.float64)),
            has_forces=torch.from_numpy(np.concatenate(has_forces)),
            stress=torch.from_numpy(np.asarray(stress, dtype=np.float64)),
            has_stress=torch.tensor([s.stress is not None for s in structures], dtype=torch.bool),
        )

    def to(self, device: torch.device) -> Labels:
        """The same labels on a device."""
        return Labels(**{field.name: getattr(self, field.name).to(device) for field in fields(self)})


def denominators_of(store: StructureStore, indices: Sequence[int]) -> Denominators:
    """Denominators of a global batch, from the store's count arrays alone: no rank needs another's structures."""
    chosen = np.asarray(indices, dtype=np.int64)
    return Denominators(
        energies=int(store.has_energy[chosen].sum()),
        force_components=FORCE_COMPONENTS * int(store.num_atoms[chosen][store.has_forces[chosen]].sum()),
        stress_components=STRESS_COMPONENTS * int(store.has_stress[chosen].sum()),
    )


def denominators_of_labels(labels: Labels) -> Denominators:
    """Denominators of labels that are a whole global batch by themselves."""
    return Denominators(
        energies=int(labels.has_energy.sum()),
        force_components=FORCE_COMPONENTS * int(labels.has_forces.sum()),
        stress_components=STRESS_COMPONENTS * int(labels.has_stress.sum()),
    )


def require_labels(store: StructureStore, config: LossConfig) -> None:
    """Raise UserError when a weighted term of the loss finds no label in the store."""
    for name, present in (("energy", store.has_energy), ("forces", store.has_forces), ("stress", store.has_stress)):
        if getattr(config, name) > 0 and not present.any():
            raise UserError(
                f"loss.{name} is {getattr(config, name)} but no structure of {store.path} has {name} labels: "
                f"set loss.{name} to 0 or use labelled data"
            )


@dataclass(frozen=True, kw_only=True)
class Errors:
    """Errors of a micro-batch, float64, 0 where unlabelled: energy per atom [G], forces [N,3], stress [G,3,3]."""

    energy: Tensor
    forces: Tensor
    stress: Tensor


def errors_of(prediction: Prediction, labels: Labels) -> Errors:
    """Prediction minus label; entries without a label are exactly zero and carry no gradient."""
    energy = (prediction.energy.double() - labels.energy) / labels.num_atoms
    forces = prediction.forces.double() - labels.forces
    stress = prediction.stress.double() - labels.stress
    zero = energy.new_zeros(())
    return Errors(
        energy=torch.where(labels.has_energy, energy, zero),
        forces=torch.where(labels.has_forces[:, None], forces, zero),
        stress=torch.where(labels.has_stress[:, None, None], stress, zero),
    )


def _penalty(error: Tensor, config: LossConfig) -> Tensor:
    """Sum of l1, l2 or Huber penalties: Huber is e^2 / (2 delta) below delta and |e| - delta / 2 above."""
    if config.kind == "l1":
        return error.abs().sum()
    if config.kind == "l2":
        return error.square().sum()
    delta = config.huber_delta
    size = error.abs()
    return torch.where(size < delta, size.square() / (2 * delta), size - delta / 2).sum()


def batch_loss(
    prediction: Prediction, labels: Labels, denominators: Denominators, config: LossConfig
) -> tuple[Tensor, Tensor]:
    """This micro-batch's part of the global loss, and its part of the three global MAEs.

    Returns a float64 scalar and a detached float64 [3]: energy eV/atom, forces eV/angstrom, stress eV/angstrom^3.
    """
    errors = errors_of(prediction, labels)
    loss = errors.energy.new_zeros(())
    parts = []
    for error, weight, count in (
        (errors.energy, config.energy, denominators.energies),
        (errors.forces, config.forces, denominators.force_components),
        (errors.stress, config.stress, denominators.stress_components),
    ):
        if count > 0 and weight > 0:
            loss = loss + weight / count * _penalty(error, config)
        parts.append(error.detach().abs().sum() / max(count, 1))
    return loss, torch.stack(parts)
