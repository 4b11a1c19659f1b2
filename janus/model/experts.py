"""Mixture of experts with element-aware routing: a learned table picks each element's experts and their weights.

It owns one device's products, not the placement of experts. Legend: R tokens, d channels, h hidden channels of one
expert, X experts, k chosen experts per token, Z elements.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from janus.kernels import operators


class ElementGate(nn.Module):
    """A learned table [Z,X]: the experts of an element are its top k, weighted by the softmax of their entries.

    The set depends on the element alone, so it is constant along a trajectory and the energy surface is smooth. It may
    change from one step to the next as the table learns, never within one.
    """

    def __init__(self, num_elements: int, num_experts: int, top_k: int) -> None:
        super().__init__()
        self.top_k = top_k
        self.table = nn.Parameter(torch.randn(num_elements, num_experts))

    def forward(self) -> tuple[Tensor, Tensor]:
        """Experts [Z,k] (int64) and their weights [Z,k], which sum to 1 for each element."""
        chosen, experts = self.table.topk(self.top_k, dim=1)
        return experts, functional.softmax(chosen, dim=1)

    def loads(self, tokens_of_element: Tensor) -> Tensor:
        """Tokens that reach each expert [X], from tokens per element [Z]: known before the forward pass."""
        experts, _ = self()
        loads = tokens_of_element.new_zeros(self.table.shape[1])
        return loads.index_add(0, experts.flatten(), tokens_of_element.repeat_interleave(self.top_k))


def uniform_(weight: Tensor, fan_in: int) -> nn.Parameter:
    """A parameter uniform in +-1/sqrt(fan_in), as torch initialises a Linear."""
    bound = 1 / math.sqrt(fan_in)
    return nn.Parameter(weight.uniform_(-bound, bound))


class GatedExpert(nn.Module):
    """silu(x W1) * (x W3), then W2: 3 d h weights, no bias."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width, 2 * hidden, bias=False)
        self.outer = nn.Linear(hidden, width, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens [R,d] -> [R,d]."""
        return self.outer(self.hidden(tokens))

    def hidden(self, tokens: Tensor) -> Tensor:
        """silu(x W1) * (x W3): tokens [R,d] -> [R,h]."""
        return gated(self.inner(tokens))


def gated(product: Tensor) -> Tensor:
    """silu(first half) * second half: [R,2h] -> [R,h]."""
    core, gate = product.chunk(2, dim=1)
    return functional.silu(core) * gate


def grouped_gated_product(copies: Tensor, inner: Tensor, outer: Tensor, loads: Sequence[int]) -> Tensor:
    """Each expert's gated product on its rows: copies [R,d] sorted by expert, inner [X,2h,d], outer [X,d,h] -> [R,d].

    loads: rows of each expert [X].
    """
    return operators.grouped_product(gated(operators.grouped_product(copies, inner, loads)), outer, loads)


class Exchange(Protocol):
    """Computes a mixture whose experts are not all here."""

    def __call__(self, mixture: MixtureOfExperts, tokens: Tensor) -> Tensor: ...


class MixtureOfExperts(nn.Module):
    """Sum of an element's k experts, weighted, and of the shared experts (one gated product of their joint width).

    exchange: None where all experts are here.
    """

    exchange: Exchange | None = None

    def __init__(self, width: int, hidden: int, gate: ElementGate, num_shared: int) -> None:
        super().__init__()
        num_experts = gate.table.shape[1]
        self.gate = gate
        self.inner = uniform_(torch.empty(num_experts, 2 * hidden, width), width)
        self.outer = uniform_(torch.empty(num_experts, width, hidden), hidden)
        self.shared = GatedExpert(width, num_shared * hidden) if num_shared else None

    def forward(self, tokens: Tensor, element: Tensor) -> Tensor:
        """tokens [R,d], element [R] (0-based) -> [R,d]."""
        if self.exchange is not None:
            return self.exchange(self, tokens)
        experts, weights = self.gate()
        expert_of_copy = experts[element].flatten()  # k copies of each token
        order = torch.argsort(expert_of_copy, stable=True)
        token_of_copy = torch.div(order, self.gate.top_k, rounding_mode="floor")
        loads = torch.bincount(expert_of_copy, minlength=self.gate.table.shape[1]).tolist()
        copies = operators.gathered(tokens, token_of_copy)
        weight = weights[element].flatten()[order]
        mixed = grouped_gated_product(copies, self.inner, self.outer, loads) * weight[:, None]
        mixed = operators.segment_sum(mixed, token_of_copy, len(tokens))
        return mixed if self.shared is None else mixed + self.shared(tokens)
