"""Parameter counts, gradients that reach every parameter, recomputation, and the fused form against the plain one."""

from __future__ import annotations

from unittest.mock import patch

import ase
import pytest
import torch
from torch import nn

from janus.config import ModelConfig
from janus.kernels import operators, reference
from janus.model.build import build_model
from janus.model.potential import Prediction, evaluate_potential
from janus.presets import PRESETS
from tests.model.conftest import batch_of


@pytest.mark.parametrize(
    ("name", "published"), [("matris-10m", 10_443_505), ("matris-6m", 6_344_433), ("matris-4m", 4_294_897)]
)
def test_published_parameter_counts(name: str, published: int) -> None:
    model = build_model(PRESETS[name], device="meta")
    assert sum(p.numel() for p in model.parameters()) == published


def test_parameter_count_of_the_mended_model() -> None:
    config = PRESETS["matris-10m"]
    mended = ModelConfig(num_blocks=config.num_blocks, width=config.width)
    # without 3 angular frequencies, 94 reference energies, the magnetic moment head and, in the last block, the
    # updates of edges and angles that nothing reads: two of 2 d^2 + d
    less = 3 + 94 + 33_281 + 2 * (2 * 128**2 + 128)
    assert sum(p.numel() for p in build_model(mended, device="meta").parameters()) == 10_443_505 - less


@pytest.mark.parametrize(
    ("name", "total", "active"),
    [("matris-moe-s", 1.09e9, 0.19e9), ("matris-moe-m", 2.47e9, 0.56e9), ("matris-moe-l", 11.5e9, 2.89e9)],
)
def test_moe_presets_meet_the_paper_within_2_percent(name: str, total: float, active: float) -> None:
    model = build_model(PRESETS[name], device="meta")
    experts = PRESETS[name].experts
    assert experts is not None
    sizes = {n: p.numel() for n, p in model.named_parameters()}
    routed = sum(size for n, size in sizes.items() if n.endswith(("experts.inner", "experts.outer")))
    idle = routed * (experts.num_experts - experts.top_k) // experts.num_experts
    assert sum(sizes.values()) == pytest.approx(total, rel=0.02)
    assert sum(sizes.values()) - idle == pytest.approx(active, rel=0.02)
    assert all(p.is_meta for p in model.parameters())


def _loss(prediction: Prediction) -> torch.Tensor:
    return (prediction.forces - 0.1).square().sum() + prediction.energy.sum() + 10 * prediction.stress.square().sum()


def _gradients(model: nn.Module, *many: ase.Atoms, recompute: bool = False) -> tuple[Prediction, dict]:
    model.zero_grad()
    prediction = evaluate_potential(model, batch_of(model.config, *many), create_graph=True, recompute=recompute)
    _loss(prediction).backward()
    return prediction, {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


def test_every_parameter_receives_a_gradient(model: nn.Module, crystal: ase.Atoms) -> None:
    _, gradients = _gradients(model, crystal)
    assert [name for name, gradient in gradients.items() if gradient is None or not gradient.any()] == []


def test_recomputation_changes_nothing(model: nn.Module, crystal: ase.Atoms, molecule: ase.Atoms) -> None:
    a, plain = _gradients(model, crystal, molecule)
    b, again = _gradients(model, crystal, molecule, recompute=True)
    torch.testing.assert_close(b.energy, a.energy, rtol=1e-14, atol=0)
    torch.testing.assert_close(b.forces, a.forces, rtol=0, atol=1e-13)
    for name, gradient in plain.items():
        assert (again[name] - gradient).norm() <= 1e-11 * gradient.norm() + 1e-12, name


def test_fused_model_equals_plain_model(model: nn.Module, crystal: ase.Atoms) -> None:
    a, fused = _gradients(model, crystal)
    with patch.object(operators, "_form", lambda tensor: reference):
        b, plain = _gradients(model, crystal)
    torch.testing.assert_close(a.forces, b.forces, rtol=0, atol=1e-12)
    for name, gradient in plain.items():
        assert (fused[name] - gradient).norm() <= 1e-11 * gradient.norm() + 1e-12, name


def test_recomputation_keeps_less(crystal: ase.Atoms) -> None:
    """Bytes that the graph of a training step holds between the phases, read off the saved tensors."""
    config = ModelConfig(num_blocks=3, width=16, cutoff_angstrom=4.0, line_cutoff_angstrom=3.2)
    model = build_model(config, dtype=torch.float64)

    def held(recompute: bool) -> int:
        storages: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            prediction = evaluate_potential(model, batch_of(config, crystal), create_graph=True, recompute=recompute)
            _loss(prediction)
        return sum(storages.values())

    assert held(recompute=True) < 0.5 * held(recompute=False)


def test_same_seed_same_model(config: ModelConfig) -> None:
    a, b, c = (build_model(config, seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert any(not torch.equal(a[name], c[name]) for name in a)


def test_reference_energies_are_added(model: nn.Module, molecule: ase.Atoms) -> None:
    batch = batch_of(model.config, molecule)
    before = evaluate_potential(model, batch, create_graph=False).energy.item()
    table = torch.arange(95, dtype=torch.float64)
    model.set_reference_energies(table)
    after = evaluate_potential(model, batch, create_graph=False).energy.item()
    assert after - before == pytest.approx(float(molecule.numbers.sum()), rel=1e-12)
