"""The potential as physics: derivatives, symmetries, smoothness. Float64 unless said."""

from __future__ import annotations

from collections.abc import Callable

import ase
import ase.build
import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import nn

from janus.config import ModelConfig
from janus.model.build import build_model
from janus.model.potential import Prediction, evaluate_potential
from tests.model.conftest import MATRIS, batch_of, disturbed


def _predict(model: nn.Module, *many: ase.Atoms) -> Prediction:
    return evaluate_potential(model, batch_of(model.config, *many), create_graph=False)


def _energy(model: nn.Module, atoms: ase.Atoms) -> float:
    return _predict(model, atoms).energy.item()


def _moved(atoms: ase.Atoms, index: int, axis: int, by: float) -> ase.Atoms:
    other = atoms.copy()
    other.positions[index, axis] += by
    return other


def _derivative(energy_at: Callable[[float], float], step: float = 4e-4) -> float:
    """Fourth-order central difference at 0: truncation near 1e-9 for the energies here, round-off near 1e-11."""
    near, far = (energy_at(s) - energy_at(-s) for s in (step, 2 * step))
    return (8 * near - far) / (12 * step)


@pytest.mark.parametrize("kind", ["crystal", "molecule"])
def test_forces_are_the_energy_gradient(model: nn.Module, kind: str, request: pytest.FixtureRequest) -> None:
    atoms = request.getfixturevalue(kind)
    forces = _predict(model, atoms).forces
    for index, axis in [(0, 0), (3, 1), (len(atoms) - 1, 2)]:
        slope = _derivative(lambda by, at=(index, axis): _energy(model, _moved(atoms, *at, by)))
        assert -slope == pytest.approx(forces[index, axis].item(), rel=1e-8, abs=2e-8)


def _strained(atoms: ase.Atoms, a: int, b: int, by: float) -> ase.Atoms:
    strain = np.zeros((3, 3))
    strain[a, b] += by / 2
    strain[b, a] += by / 2
    other = atoms.copy()
    other.set_cell(atoms.cell @ (np.eye(3) + strain), scale_atoms=True)
    return other


def test_stress_is_the_strain_derivative(model: nn.Module, crystal: ase.Atoms) -> None:
    stress = _predict(model, crystal).stress[0].numpy()
    for a, b in [(0, 0), (1, 2), (2, 0)]:
        slope = _derivative(lambda by, at=(a, b): _energy(model, _strained(crystal, *at, by)))
        assert slope / crystal.get_volume() == pytest.approx(stress[a, b], rel=1e-7, abs=2e-9)
    np.testing.assert_allclose(stress, stress.T, atol=1e-14)


def test_rotation(model: nn.Module, crystal: ase.Atoms) -> None:
    rotation = Rotation.random(random_state=5).as_matrix()
    turned = crystal.copy()
    turned.set_cell(crystal.cell @ rotation.T)
    turned.positions = crystal.positions @ rotation.T
    a, b = _predict(model, crystal), _predict(model, turned)
    assert b.energy.item() == pytest.approx(a.energy.item(), abs=1e-10)
    np.testing.assert_allclose(b.forces, a.forces.numpy() @ rotation.T, atol=1e-10)
    np.testing.assert_allclose(b.stress[0], rotation @ a.stress[0].numpy() @ rotation.T, atol=1e-10)


def test_translation_and_wrapping(model: nn.Module, crystal: ase.Atoms) -> None:
    shifted = crystal.copy()
    shifted.positions += [1.7, -2.3, 9.1]
    shifted.wrap()
    a, b = _predict(model, crystal), _predict(model, shifted)
    assert b.energy.item() == pytest.approx(a.energy.item(), abs=1e-10)
    np.testing.assert_allclose(b.forces, a.forces, atol=1e-10)
    np.testing.assert_allclose(a.forces.sum(dim=0), 0, atol=1e-11)


def test_permutation(model: nn.Module, crystal: ase.Atoms) -> None:
    order = np.random.default_rng(0).permutation(len(crystal))
    a, b = _predict(model, crystal), _predict(model, crystal[order])
    assert b.energy.item() == pytest.approx(a.energy.item(), abs=1e-10)
    np.testing.assert_allclose(b.forces, a.forces[order], atol=1e-11)


def test_supercell(model: nn.Module, crystal: ase.Atoms) -> None:
    a, b = _predict(model, crystal), _predict(model, crystal.repeat((2, 1, 1)))
    assert b.energy.item() == pytest.approx(2 * a.energy.item(), abs=1e-10)
    np.testing.assert_allclose(b.forces[: len(crystal)], a.forces, atol=1e-10)
    np.testing.assert_allclose(b.stress, a.stress, atol=1e-11)


def test_batch_equals_one_by_one(model: nn.Module, crystal: ase.Atoms, molecule: ase.Atoms) -> None:
    lone = ase.Atoms("He", positions=[[0, 0, 0]])
    slab = ase.Atoms("Cu2", positions=[[0, 0, 0], [0, 0, 2.3]], cell=[2.5, 2.5, 9.0], pbc=[True, True, False])
    many = [crystal, molecule, lone, slab]
    together = _predict(model, *many)
    apart = [_predict(model, atoms) for atoms in many]
    for name in ("energy", "forces", "stress"):
        joined = torch.cat([getattr(prediction, name) for prediction in apart])
        torch.testing.assert_close(getattr(together, name), joined, rtol=0, atol=1e-11)
    assert together.stress[1:].eq(0).all(), "no volume, no stress"
    assert together.forces[len(crystal) + len(molecule)].eq(0).all(), "an isolated atom feels nothing"


def _dimer(distance: float) -> ase.Atoms:
    return ase.Atoms("CuAl", positions=[[0, 0, 0], [distance, 0, 0]])


def _single_angle_partner(distance: float) -> ase.Atoms:
    return ase.Atoms("CuAlNi", positions=[[0, 0, 0], [0, 2.4, 0], [distance * 0.6, distance * 0.8, 0.0]])


def _cluster(distance: float) -> ase.Atoms:
    others = [[0, 0, 0], [0, 2.4, 0], [0, 0, 2.2], [-2.1, -0.8, 0.4], [1.1, -1.9, -0.9]]
    return ase.Atoms("CuAlNiPtAuAg", positions=[*others, [distance * 0.6, distance * 0.48, distance * 0.64]])


@pytest.mark.parametrize("make", [_dimer, _single_angle_partner, _cluster])
@pytest.mark.parametrize("cutoff", ["cutoff_angstrom", "line_cutoff_angstrom"])
def test_crossing_a_cutoff_is_smooth(model: nn.Module, make, cutoff: str) -> None:
    at = getattr(model.config, cutoff)
    inside, outside = (_predict(model, make(at + side)) for side in (-1e-8, 1e-8))
    assert abs(inside.energy - outside.energy).item() < 1e-6
    assert (inside.forces - outside.forces).abs().max().item() < 1e-5


def test_the_original_jumps_at_a_cutoff() -> None:
    """What the smoothness test sees when the softmax counts a vanishing neighbour: so that test can fail."""
    config = ModelConfig(num_blocks=2, width=16, cutoff_angstrom=4.0, line_cutoff_angstrom=3.2, compat=True)
    model = disturbed(build_model(config, seed=3, dtype=torch.float64))
    inside, outside = (_energy(model, _dimer(4.0 + side)) for side in (-1e-8, 1e-8))
    assert abs(inside - outside) > 1e-5


def _gradients(model: nn.Module, dtype: torch.dtype, *many: ase.Atoms) -> tuple[Prediction, dict[str, torch.Tensor]]:
    model = model.to(dtype)
    prediction = evaluate_potential(model, batch_of(model.config, *many, dtype=dtype), create_graph=True)
    loss = (prediction.forces - 0.1).square().sum() + prediction.stress.square().sum()
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    return prediction, {n: g.double() for n, g in zip(parameters, found, strict=True) if g is not None}


@pytest.mark.parametrize("kind", ["line", "rocksalt"])
def test_straight_angles_in_float32(config: ModelConfig, kind: str) -> None:
    """Angles of exactly 0 and 180 degrees: finite, and as accurate as float32 is elsewhere."""
    if kind == "line":  # O-C-S and a collinear neighbour behind: angles of 180 and of 0 degrees
        atoms = ase.Atoms("OCSH", positions=[[0, 0, 0], [1.16, 0, 0], [2.72, 0, 0], [-0.97, 0, 0]])
    else:
        atoms = ase.build.bulk("NaCl", "rocksalt", a=5.2, cubic=True)
        atoms.numbers[0] = 19
    (a, ga), (b, gb) = (
        _gradients(disturbed(build_model(config, seed=3, dtype=torch.float64)), dtype, atoms)
        for dtype in (torch.float64, torch.float32)
    )
    assert (a.forces - b.forces).abs().max() < 2e-5 * max(1.0, a.forces.abs().max().item())
    for name, gradient in ga.items():
        assert gb[name].isfinite().all(), name
        assert (gb[name] - gradient).norm() <= 1e-3 * gradient.norm() + 1e-5, name


def test_second_order_gradient_by_finite_differences(model: nn.Module, crystal: ase.Atoms) -> None:
    """d(force loss)/d(parameter) against differences of the loss itself, along one random direction."""
    batch = batch_of(model.config, crystal)

    def loss(create_graph: bool) -> torch.Tensor:
        prediction = evaluate_potential(model, batch, create_graph=create_graph)
        return (prediction.forces - 0.1).square().sum() + 3 * prediction.energy.sum() + prediction.stress.sum()

    parameters = [p for p in model.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(loss(True), parameters, allow_unused=True, materialize_grads=True)
    generator = torch.Generator().manual_seed(2)
    directions = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]
    expected = sum((g * d).sum() for g, d in zip(gradients, directions, strict=True))
    step, values = 1e-5, []
    for sign in (1, -2, 1):  # forward, backward, and home again
        with torch.no_grad():
            for p, d in zip(parameters, directions, strict=True):
                p.add_(d, alpha=sign * step)
        values.append(loss(False).item())
    assert (values[0] - values[1]) / (2 * step) == pytest.approx(expected.item(), rel=1e-6)


def test_moe_tokens_are_known_beforehand(crystal: ase.Atoms) -> None:
    from tests.model.conftest import MATRIS_MOE

    model = build_model(MATRIS_MOE)
    batch = batch_of(MATRIS_MOE, crystal)
    loads = model.tokens_per_expert(batch)
    top_k = MATRIS_MOE.experts.top_k
    assert len(loads) == 2 * MATRIS_MOE.num_blocks
    for name, load in loads.items():
        tokens = batch.num_edges if name.endswith("message") else batch.num_atoms
        assert load.sum().item() == top_k * tokens
    assert build_model(MATRIS).tokens_per_expert(batch) is None
