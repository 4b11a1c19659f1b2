"""The layers of MatRIS. Products on concatenated inputs are split, so node parts are done once per node, not per row.

Legend: R rows (directed edges or angles), T targets, S sources, N nodes, C channels.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from janus.kernels import operators

ATTENTION_CONSTANT = 1.0  # the c of sum(u e^l v) / (c + sum(u e^l)); any positive value makes the sum smooth


@dataclass(frozen=True)
class Incidence:
    """Rows of a graph and the nodes they join.

    target, source [R]: node of each row (targets ascending in blocks); row_table [R] or None: which line of the row
    features each row reads (the atom graph keeps one line per undirected pair, read by two directed edges).
    num_targets, num_sources: differ where ghosts are sources.
    """

    target: Tensor
    source: Tensor
    row_table: Tensor | None
    num_targets: int
    num_sources: int


def silu_linear(hidden: Tensor, linear: nn.Linear) -> Tensor:
    """linear(silu(hidden)) -> [R,C]."""
    return operators.silu_linear(hidden, linear.weight, linear.bias)


class GatedMLP(nn.Module):
    """silu(LN(W2 silu(W1 z))) * sigmoid(LN(the same form, own weights)), z of ``num_inputs`` x C channels."""

    def __init__(self, num_inputs: int, width: int) -> None:
        super().__init__()
        self.num_inputs, self.width = num_inputs, width
        self.core_in, self.core_out = nn.Linear(num_inputs * width, width), nn.Linear(width, width)
        self.gate_in, self.gate_out = nn.Linear(num_inputs * width, width), nn.Linear(width, width)
        ones, zeros = torch.ones(width), torch.zeros(width)
        self.affine = nn.Parameter(torch.stack([ones, zeros, ones, zeros]))  # weight, bias of core, then of gate

    def dense(self, inputs: Tensor) -> Tensor:
        """inputs [N, num_inputs C] -> [N,C]."""
        core = silu_linear(self.core_in(inputs), self.core_out)
        gate = silu_linear(self.gate_in(inputs), self.gate_out)
        return operators.gated_norm(core, gate, self.affine)

    def forward(self, tables: list[Tensor], indices: list[Tensor | None]) -> Tensor:
        """The MLP on [tables[0][indices[0]], tables[1][indices[1]], ...] without forming it -> [R,C].

        tables: ``num_inputs`` of [*, C]; an index of None means one line per row.
        """
        assert len(tables) == self.num_inputs, (len(tables), self.num_inputs)
        core = silu_linear(self._hidden(self.core_in, tables, indices), self.core_out)
        gate = silu_linear(self._hidden(self.gate_in, tables, indices), self.gate_out)
        return operators.gated_norm(core, gate, self.affine)

    def _hidden(self, linear: nn.Linear, tables: list[Tensor], indices: list[Tensor | None]) -> Tensor:
        weights = linear.weight.split(self.width, dim=1)
        products = [operators.linear(table, weight) for table, weight in zip(tables, weights, strict=True)]
        products[-1] = products[-1] + linear.bias
        return operators.gathered_sum(products, indices)


class FeedForward(nn.Module):
    """Linear, SiLU, Linear, without biases."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width, width, bias=False)
        self.outer = nn.Linear(width, width, bias=False)

    def forward(self, rows: Tensor) -> Tensor:
        return silu_linear(operators.linear(rows, self.inner.weight), self.outer)

    def hidden(self, rows: Tensor) -> Tensor:
        """What the last product is done on: outer(mean of hidden rows) is the mean of forward(rows)."""
        return operators.silu(operators.linear(rows, self.inner.weight))


class SeparableAttention(nn.Module):
    """Per-channel attention of each node over the rows it is target of and, apart, the rows it is source of.

    Default: sum(u e^l v) / (c + sum(u e^l)), smooth when a row appears at the cutoff. ``compat``: plain softmax.
    """

    def __init__(self, width: int, compat: bool) -> None:
        super().__init__()
        self.compat = compat
        self.row_mlp = GatedMLP(3, width)
        self.node_mlp = GatedMLP(3, width)
        self.target_logits = nn.Linear(width, width, bias=False)
        self.source_logits = nn.Linear(width, width, bias=False)
        self.node_residual = nn.Parameter(torch.ones(width))
        self.row_residual = nn.Parameter(torch.ones(width))

    def forward(
        self, rows: Tensor, targets: Tensor, sources: Tensor, incidence: Incidence, envelope: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """rows [R',C], nodes by their part in the incidence targets [T,C] and sources [S,C], envelope [R] ->
        values [R,C] and what ``messages`` is made of, which is summed over ranks: [T,2C] and [S,2C].
        """
        target, source = incidence.target, incidence.source
        values = self.row_mlp([rows, targets, sources], [incidence.row_table, target, source])
        sums = []
        for projection, index, num_nodes in (
            (self.target_logits, target, incidence.num_targets),
            (self.source_logits, source, incidence.num_sources),
        ):
            logits = operators.linear(rows, projection.weight)
            logits = logits if incidence.row_table is None else operators.gathered(logits, incidence.row_table)
            sums.append(self._sums(logits, envelope, values, index, num_nodes))
        return values, sums[0], sums[1]

    def messages(self, target_sums: Tensor, source_sums: Tensor) -> Tensor:
        """Sums [N,2C] of each node as target and as source -> its messages [N,2C]."""
        if self.compat:
            return torch.cat([target_sums, source_sums], dim=1)
        quotients = []
        for sums in (target_sums, source_sums):
            weighted, weight = sums.chunk(2, dim=1)
            quotients.append(weighted / (ATTENTION_CONSTANT + weight))
        return torch.cat(quotients, dim=1)

    def updated_nodes(self, nodes: Tensor, messages: Tensor) -> Tensor:
        """nodes [N,C], messages [N,2C] -> new nodes [N,C]."""
        update = self.node_mlp.dense(torch.cat([nodes, messages], dim=1))
        return operators.scaled_sum(nodes, self.node_residual, update)

    def _sums(self, logits: Tensor, envelope: Tensor, values: Tensor, index: Tensor, num_nodes: int) -> Tensor:
        """Per node [sum of u e^l v, sum of u e^l] -> [num_nodes, 2C]; of ``compat`` models the attention itself."""
        if self.compat:
            return segment_softmax_sum(logits, values, index, num_nodes)
        return operators.attention_sums(logits, envelope, values, index, num_nodes)


def segment_softmax_sum(logits: Tensor, values: Tensor, index: Tensor, num_segments: int) -> Tensor:
    """Per-channel softmax over each segment times values, summed: the original's attention -> [num_segments, C]."""
    lines = index[:, None].expand_as(logits)
    largest = logits.new_full((num_segments, logits.shape[1]), -torch.inf)
    largest = largest.scatter_reduce(0, lines, logits.detach(), "amax")
    weight = torch.exp(logits - largest[index])
    total = operators.segment_sum(weight, index, num_segments)
    return operators.segment_sum(weight / total[index] * values, index, num_segments)


class EnergyHead(nn.Module):
    """C -> (2C, C, C) -> 1 with SiLU: one energy per atom, in eV."""

    def __init__(self, width: int) -> None:
        super().__init__()
        sizes = (width, 2 * width, width, width)
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))
        self.last = nn.Linear(width, 1)

    def forward(self, atoms: Tensor) -> Tensor:
        """atoms [N,C] -> [N]."""
        for linear in self.hidden:
            atoms = functional.silu(linear(atoms))
        return self.last(atoms).squeeze(1)


class MagneticMomentHead(nn.Module):
    """C -> 2C -> 1, absolute value: the original's magnetic moments, in Bohr magnetons (``compat`` models only)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(width, 2 * width)
        self.last = nn.Linear(2 * width, 1)

    def forward(self, atoms: Tensor) -> Tensor:
        """atoms [N,C] -> [N]."""
        return self.last(functional.silu(self.hidden(atoms))).squeeze(1).abs()
