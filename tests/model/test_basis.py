"""Envelope, radial and angular bases on their own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from janus.model.basis import ChebyshevAngularBasis, FourierAngularBasis, RadialBasis, envelope


def test_factored_envelope_equals_the_published_polynomial() -> None:
    x = torch.linspace(0, 1, 101, dtype=torch.float64)
    torch.testing.assert_close(envelope(x), 1 - 45 * x**8 + 80 * x**9 - 36 * x**10, rtol=0, atol=1e-13)


def test_envelope_vanishes_with_two_derivatives_and_stays_zero() -> None:
    x = torch.tensor([1.0, 1.3], dtype=torch.float64, requires_grad=True)
    value = envelope(x)
    (first,) = torch.autograd.grad(value.sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    assert value.eq(0).all()
    assert first.eq(0).all()
    assert second.eq(0).all()
    near = torch.tensor([1 - 1e-4], dtype=torch.float32)
    assert envelope(near).item() == pytest.approx(36 * 1e-12 * 10 / 3, rel=0.02), "no digits lost near the cutoff"


def test_radial_basis_is_the_published_formula() -> None:
    basis = RadialBasis(7, 6.0).double()
    r = torch.tensor([0.9, 3.3, 5.99], dtype=torch.float64)
    n = np.arange(1, 8)
    expected = np.sqrt(2 / 6) * np.sin(n * np.pi * r.numpy()[:, None] / 6) / r.numpy()[:, None]
    expected = expected * envelope(r / 6).numpy()[:, None]
    np.testing.assert_allclose(basis(r).detach(), expected, rtol=1e-5, atol=1e-12)  # frequencies start in float32


def _second_derivative(basis: nn.Module, cosine: float) -> float:
    x = torch.tensor([cosine], dtype=torch.float64, requires_grad=True)
    total = basis(x).sum()
    (first,) = torch.autograd.grad(total, x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    return abs(second.item())


@pytest.mark.parametrize("cosine", [-1.0, 1.0])
def test_straight_angles_are_ordinary_points_of_the_default_basis(cosine: float) -> None:
    assert _second_derivative(ChebyshevAngularBasis(7), cosine) < 1e3
    assert _second_derivative(FourierAngularBasis(7).double(), cosine) > 1e6, "the original's are not"


def test_chebyshev_is_cosine_of_multiples() -> None:
    angle = torch.linspace(0.1, 3.0, 9, dtype=torch.float64)
    found = ChebyshevAngularBasis(7)(torch.cos(angle)) * np.sqrt(np.pi)
    expected = torch.cos(angle[:, None] * torch.arange(7))
    expected[:, 0] = np.sqrt(0.5)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
