"""Radial and angular basis functions and the cutoff envelope. Distances in angstrom."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

ENVELOPE_POWER = 8  # MatRIS, arXiv 2603.02002: u(x) = 1 - 45 x^8 + 80 x^9 - 36 x^10
ACOS_MARGIN = 1e-6  # of the original, which scales the cosine by 1 - 1e-6 before acos


def envelope(x: Tensor, power: int = ENVELOPE_POWER) -> Tensor:
    """Smooth cutoff of x = r / r_c: 1 at 0, and 0 with zero first and second derivative from 1 on.

    The polynomial 1 - (p+1)(p+2)/2 x^p + p(p+2) x^(p+1) - p(p+1)/2 x^(p+2) in factored form,
    (1 - x)^3 sum_{k<p} (k+1)(k+2)/2 x^k, which loses no digits near x = 1.
    """
    inside = x.clamp(max=1.0)
    series = torch.full_like(inside, power * (power + 1) / 2)
    for k in range(power - 2, -1, -1):
        series = series * inside + (k + 1) * (k + 2) / 2
    return (1 - inside) ** 3 * series


class RadialBasis(nn.Module):
    """sqrt(2/r_c) sin(f_n r/r_c) / r u(r/r_c), n = 1..num_radial, frequencies f_n learnable from n pi."""

    def __init__(self, num_radial: int, cutoff_angstrom: float) -> None:
        super().__init__()
        self.cutoff = cutoff_angstrom
        self.frequencies = nn.Parameter(math.pi * torch.arange(1, num_radial + 1, dtype=torch.get_default_dtype()))

    def forward(self, distance: Tensor) -> Tensor:
        """distance [R] -> [R, num_radial]."""
        x = distance / self.cutoff
        scale = math.sqrt(2.0 / self.cutoff) * envelope(x) / distance
        return scale[:, None] * torch.sin(x[:, None] * self.frequencies)


class FourierAngularBasis(nn.Module):
    """The original's basis: [1/sqrt 2, sin(f_m t), cos(f_m t)] / sqrt pi with t = acos(cosine), m = 1..3.

    Its derivatives grow without bound at 0 and 180 degrees: kept for ``compat`` models only.
    """

    def __init__(self, num_angular: int) -> None:
        super().__init__()
        order = (num_angular - 1) // 2
        self.frequencies = nn.Parameter(torch.arange(1, order + 1, dtype=torch.get_default_dtype()))

    def forward(self, cosine: Tensor) -> Tensor:
        """cosine [A] -> [A, num_angular]."""
        angle = torch.acos((1 - ACOS_MARGIN) * cosine)[:, None] * self.frequencies
        constant = torch.full_like(cosine[:, None], math.sqrt(0.5))
        return torch.cat([constant, torch.sin(angle), torch.cos(angle)], dim=1) / math.sqrt(math.pi)


class ChebyshevAngularBasis(nn.Module):
    """cos(m t) / sqrt pi for m = 0..num_angular-1 as Chebyshev polynomials of the cosine (the constant / sqrt 2pi).

    Polynomials of the cosine are smooth functions of the positions at every angle, 0 and 180 degrees included;
    sin(t), or cos(f t) with f not an integer, are not.
    """

    def __init__(self, num_angular: int) -> None:
        super().__init__()
        self.num_angular = num_angular

    def forward(self, cosine: Tensor) -> Tensor:
        """cosine [A] -> [A, num_angular]."""
        columns = [torch.full_like(cosine, math.sqrt(0.5)), cosine]
        previous, current = torch.ones_like(cosine), cosine
        for _ in range(2, self.num_angular):
            previous, current = current, 2 * cosine * current - previous
            columns.append(current)
        return torch.stack(columns[: self.num_angular], dim=1) / math.sqrt(math.pi)
