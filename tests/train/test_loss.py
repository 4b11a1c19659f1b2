"""The loss against numbers worked out by hand, missing labels, and any partition into micro-batches."""

import numpy as np
import pytest
import torch
from train_runs import make_store

from janus.data.structure import Structure
from janus.errors import UserError
from janus.model.potential import Prediction
from janus.train.config import LossConfig
from janus.train.loss import Denominators, Labels, batch_loss, denominators_of, denominators_of_labels, require_labels


def pair(energy, forces, stress=None):
    return Structure(numbers=np.array([1, 1], dtype=np.int32), positions=np.zeros((2, 3)), cell=np.zeros((3, 3)),
                     pbc=np.zeros(3, dtype=bool), energy=energy, forces=forces, stress=stress)  # fmt: skip


@pytest.fixture
def two_structures():
    """First: energy 2 too low for two atoms, one force component off by 0.3. Second: no energy, no forces, a stress."""
    labels = Labels.collate([pair(4.0, np.zeros((2, 3))), pair(None, None, np.eye(3))])
    forces = torch.zeros(4, 3, dtype=torch.float64)
    forces[0, 0] = 0.3
    forces[3, 1] = 99.0  # unlabelled: must not count
    energy = torch.tensor([2.0, 77.0], dtype=torch.float64)
    return Prediction(energy, forces, torch.zeros(2, 3, 3, dtype=torch.float64)), labels


@pytest.mark.parametrize(
    ("kind", "energy", "forces", "stress"),
    [
        ("l1", 1.0, 0.3, 3.0),
        ("l2", 1.0, 0.09, 3.0),
        ("huber", 1.0 - 0.25, 0.09 / (2 * 0.5), 3 * 0.75),
    ],
)
def test_each_kind_by_hand(two_structures, kind, energy, forces, stress):
    prediction, labels = two_structures
    config = LossConfig(kind=kind, energy=2.0, forces=3.0, stress=5.0, huber_delta=0.5)
    loss, parts = batch_loss(prediction, labels, denominators_of_labels(labels), config)
    assert float(loss) == pytest.approx(2 * energy + 3 * forces / 6 + 5 * stress / 9, rel=1e-14)
    assert parts.tolist() == pytest.approx([1.0, 0.3 / 6, 3 / 9], rel=1e-14)


def test_unlabelled_entries_carry_no_gradient(two_structures):
    prediction, labels = two_structures
    forces = prediction.forces.clone().requires_grad_()
    loss, _ = batch_loss(
        Prediction(prediction.energy, forces, prediction.stress), labels, denominators_of_labels(labels), LossConfig()
    )
    loss.backward()
    assert torch.count_nonzero(forces.grad[2:]) == 0
    assert forces.grad[0, 0] != 0


def test_a_term_without_any_label_is_left_out(two_structures):
    prediction, labels = two_structures
    none = Denominators(energies=1, force_components=6, stress_components=0)
    with_stress, _ = batch_loss(prediction, labels, none, LossConfig(stress=5.0))
    without, _ = batch_loss(prediction, labels, none, LossConfig(stress=0.0))
    assert float(with_stress) == float(without) > 0


def test_denominators_come_from_the_store_alone(tmp_path):
    store = make_store(tmp_path / "ten.store")
    indices = [0, 7, 8, 9]  # a crystal, a molecule, a lone atom, a slab
    expected = denominators_of_labels(Labels.collate([store[index] for index in indices]))
    assert denominators_of(store, indices) == expected
    assert expected.stress_components == 9


def test_a_weight_without_labels_is_a_mistake(tmp_path):
    from janus.data.store import write_store

    molecules = write_store(tmp_path / "m.store", [pair(1.0, np.zeros((2, 3)))], cutoff_angstrom=4.0,
                            line_cutoff_angstrom=3.0)  # fmt: skip
    with pytest.raises(UserError, match=r"set loss\.stress to 0"):
        require_labels(molecules, LossConfig())
    require_labels(molecules, LossConfig(stress=0.0))
