"""The ASE calculator: equal to evaluate_potential, consistent with finite differences taken through ASE."""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.calculator import PropertyNotImplementedError
from ase.calculators.fd import calculate_numerical_forces, calculate_numerical_stress
from train_runs import TINY, make_store

from janus.calculator import JanusCalculator, structure_of
from janus.cli.main import main
from janus.data.graph import build_graph
from janus.errors import UserError
from janus.model.batch import GraphBatch
from janus.model.potential import evaluate_potential
from janus.train.inference import build_from_checkpoint, open_checkpoint


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("calculator")
    store = make_store(folder / "ten.store")
    words = ["--steps", "5", "--batch.structures=5", "--optimizer.learning_rate=0.01"]
    assert main(["train", "--data", str(store.path), "--out", str(folder / "run"), *TINY, *words]) == 0
    return folder / "run"


@pytest.fixture
def crystal():
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.1, seed=1)
    atoms.symbols[0] = "Al"
    return atoms


def test_properties_are_those_of_the_model(run, crystal):
    crystal.calc = JanusCalculator(run, dtype="float64")
    structure = structure_of(crystal)
    batch = GraphBatch.collate([structure], [build_graph(structure, 4.0, 3.0)]).to("cpu", torch.float64)
    model = build_from_checkpoint(open_checkpoint(run, pytest.fail), device="cpu").double()
    prediction = evaluate_potential(model, batch, create_graph=False)
    assert crystal.get_potential_energy() == float(prediction.energy[0])
    assert crystal.get_potential_energy(force_consistent=True) == crystal.get_potential_energy()
    assert np.array_equal(crystal.get_forces(), prediction.forces.numpy())
    assert np.abs(crystal.get_stress(voigt=False) - prediction.stress[0].numpy()).max() < 1e-15
    assert np.abs(crystal.get_forces()).max() > 1e-3


def test_forces_and_stress_are_derivatives_of_the_energy(run, crystal):
    crystal.calc = JanusCalculator(run, dtype="float64")
    numerical = calculate_numerical_forces(crystal, eps=1e-4)
    assert np.abs(crystal.get_forces() - numerical).max() < 1e-6
    assert np.abs(crystal.get_stress() - calculate_numerical_stress(crystal, eps=1e-5)).max() < 1e-7


def test_molecules_isolated_atoms_and_slabs_work(run):
    calculator = JanusCalculator(run)
    methane = molecule("CH4")
    methane.calc = calculator
    assert np.isfinite(methane.get_potential_energy())
    assert np.abs(methane.get_forces().sum(0)).max() < 1e-5
    with pytest.raises(PropertyNotImplementedError, match="three directions"):
        methane.get_stress()
    lone = Atoms("Cu", positions=[[0.0, 0.0, 0.0]])
    lone.calc = calculator
    assert np.array_equal(lone.get_forces(), np.zeros((1, 3)))
    slab = bulk("Al", cubic=True)
    slab.pbc = (True, True, False)
    slab.calc = calculator
    assert np.isfinite(slab.get_forces()).all()


def test_unknown_elements_and_precisions_are_named(run):
    heavy = Atoms("Am", positions=[[0.0, 0.0, 0.0]])
    heavy.calc = JanusCalculator(run)
    with pytest.raises(UserError, match="atomic number 95"):
        heavy.get_potential_energy()
    with pytest.raises(UserError, match="float16"):
        JanusCalculator(run, dtype="float16")
